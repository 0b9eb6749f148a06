"""Files of numpy: layouts of MedMNIST, Keras, KMNIST and others; claims are checked before memory is taken."""

from __future__ import annotations

import struct
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_files import colour, grey, labelled_arrays, make_class_folders, refuses, save_npz

from limbeck.data import load_data
from limbeck.data.readers import medmnist


def test_medmnist_layout_is_used_as_it_is(tmp_path: Path) -> None:
    parts = {"train": 12, "val": 4, "test": 6}
    arrays = {f"{k}_images": grey(n, seed=n) for k, n in parts.items()}
    arrays |= {f"{k}_labels": (np.arange(n) % 2).astype(np.uint8)[:, None] for k, n in parts.items()}
    data = load_data(save_npz(tmp_path / "medmnist.npz", **arrays))
    assert data.name == "medmnist"
    assert data.notes == ()
    for split, n in ((data.train, 12), (data.validation, 4), (data.test, 6)):
        assert np.array_equal(split.images.numpy()[:, 0], grey(n, seed=n))
        assert split.labels.tolist() == [i % 2 for i in range(n)]


def test_arrays_may_have_their_channels_first_last_or_float(tmp_path: Path) -> None:
    images, labels = colour(20), np.arange(20) % 2
    last = load_data(save_npz(tmp_path / "last.npz", x_train=images, y_train=labels))
    first = load_data(save_npz(tmp_path / "first.npz", x_train=images.transpose(0, 3, 1, 2), y_train=labels))
    real = load_data(save_npz(tmp_path / "real.npz", x_train=(images / 255).astype(np.float32), y_train=labels))
    assert last.shape == (3, 6, 5)
    assert last.fingerprint == first.fingerprint == real.fingerprint
    assert "floating-point pixels were rounded to 8 bits" in real.notes
    assert load_data(save_npz(tmp_path / "one.npz", x_train=images[..., :1], y_train=labels)).shape == (1, 6, 5)


def test_labels_with_gaps_are_renumbered_and_keep_their_names(tmp_path: Path) -> None:
    labels = np.array([7, 3, 9, 3, 7, 9] * 5)
    data = load_data(save_npz(tmp_path / "a.npz", x_train=grey(30), y_train=labels, x_test=grey(30), y_test=labels))
    assert data.classes == ("3", "7", "9")
    assert data.test.labels.tolist() == [1, 0, 2, 0, 1, 2] * 5
    assert "renumbered 0..2" in data.notes[0]


@pytest.mark.parametrize(
    ("arrays", "parts"),
    [
        (
            {"arr_0": grey(3), "arr_1": [0, 1, 0]},
            ["it holds arr_0, arr_1", "called x_train and y_train, or images and labels"],
        ),
        ({"x_train": grey(3)}, ["no images with labels", "x_train"]),
        ({**labelled_arrays(), "x_test": grey(3)}, ["x_test has no partner"]),
        ({**labelled_arrays(), "y_train": np.zeros((10, 14), int)}, ["14 labels per image", "multi-label"]),
        ({**labelled_arrays(), "y_train": np.zeros((10, 1, 1), int)}, ["labels have shape (10, 1, 1)"]),
        ({**labelled_arrays(), "y_train": np.zeros(9, int)}, ["10 images but 9 labels"]),
        ({**labelled_arrays(), "y_train": np.arange(10) % 2 * 0.5}, ["labels are float64", "whole numbers"]),
        ({**labelled_arrays(), "y_train": np.array([np.nan] * 10)}, ["labels are float64", "whole numbers"]),
        ({**labelled_arrays(), "y_train": np.arange(10) % 3 - 1}, ["label -1 is negative"]),
        ({**labelled_arrays(), "y_train": np.full(10, 4)}, ["only one class (4)"]),
        ({**labelled_arrays(), "x_test": grey(2), "y_test": [0, 5]}, ["class 5 is in test and not in train"]),
        ({**labelled_arrays(), "x_test": grey(2, 7), "y_test": [0, 1]}, ["(1, 6, 5)", "(1, 7, 5)"]),
        ({**labelled_arrays(), "x_train": grey(10) - 9.0}, ["pixels run from -9 to 24", "in 0..1", "--pixel-range"]),
        (
            {**labelled_arrays(), "x_train": grey(10).astype(np.int64) - 9},
            ["pixels run from -9 to 24", "--pixel-range"],
        ),
        (
            {**labelled_arrays(), "x_train": grey(10).astype(np.float32)},
            ["run from 0 to 25", "in 0..1", "--pixel-range"],
        ),
        ({**labelled_arrays(), "x_train": np.full((10, 6, 5), np.nan)}, ["300 of 300 pixels are NaN"]),
        ({**labelled_arrays(), "x_train": grey(10) + 1j}, ["pixels are complex128"]),
        ({**labelled_arrays(), "x_train": np.zeros((10, 6, 5, 7), np.uint8)}, ["(10, 6, 5, 7)", "not that of flat"]),
        ({"x_train": grey(0), "y_train": np.zeros(0, int)}, ["no images"]),
        ({"x_train": grey(2), "y_train": [0, 1]}, ["no class has a second image"]),
        ({**labelled_arrays(), "x_train": np.array([None] * 10, object)}, ["it holds Python objects"]),
    ],
)
def test_npz_contents_that_are_unfit_are_refused(tmp_path: Path, arrays: dict[str, Any], parts: list[str]) -> None:
    refuses(save_npz(tmp_path / "bad.npz", **arrays), "bad", *parts)


def test_npz_files_that_are_none_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "bad.npz"
    file.write_text("hello")
    refuses(file, "not a readable .npz", "no zip archive")
    with file.open("wb") as stream_:
        np.save(stream_, grey(3))
    refuses(file, "not a readable .npz")
    whole = save_npz(tmp_path / "good.npz", **labelled_arrays(200)).read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    refuses(file, "bad.npz: not a readable .npz", "cut short")
    file.write_bytes(whole[:500] + bytes(100) + whole[600:])  # damaged inside: the checksum tells
    refuses(file, "bad.npz: not a readable .npz")


@pytest.mark.parametrize("size", ["", "_64", "_128", "_224"])
def test_sets_of_medmnist_have_class_names(tmp_path: Path, size: str) -> None:
    arrays = {f"{split}_images": grey(18) for split in ("train", "val", "test")}
    arrays |= {f"{split}_labels": np.arange(18, dtype=np.uint8)[:, None] % 9 for split in ("train", "val", "test")}
    data = load_data(save_npz(tmp_path / f"pathmnist{size}.npz", **arrays))
    assert (data.name, data.classes[8]) == (f"pathmnist{size}", "colorectal adenocarcinoma epithelium")
    assert data.notes == ()
    data = load_data(save_npz(tmp_path / f"octmnist{size}.npz", **arrays))  # which has 4 classes
    assert data.classes == tuple("012345678")
    assert "not those of octmnist" in data.notes[0]


def test_all_sets_of_medmnist_are_known() -> None:
    numbers = {name: len(classes) for name, classes in medmnist.CLASSES.items()}
    assert numbers == {
        "pathmnist": 9, "dermamnist": 7, "octmnist": 4, "pneumoniamnist": 2, "retinamnist": 5, "breastmnist": 2,
        "bloodmnist": 8, "tissuemnist": 8, "organamnist": 11, "organcmnist": 11, "organsmnist": 11,
    }  # fmt: skip


@pytest.mark.parametrize("name", ["chestmnist", "chestmnist_224"])
def test_sets_of_several_labels_are_refused_by_name(tmp_path: Path, name: str) -> None:
    path = save_npz(tmp_path / f"{name}.npz", train_images=grey(10), train_labels=np.zeros((10, 14), np.uint8))
    refuses(path, "ChestMNIST has 14 labels an image")


@pytest.mark.parametrize("name", [*medmnist.VOLUMES, "organmnist3d_64"])
def test_sets_of_volumes_are_refused_by_name(tmp_path: Path, name: str) -> None:
    volumes = np.zeros((4, 28, 28, 28), np.uint8)
    path = save_npz(tmp_path / f"{name}.npz", train_images=volumes, train_labels=np.arange(4) % 2)
    refuses(path, f"{name[:-3] if '_' in name else name} holds volumes")
    refuses(path.rename(tmp_path / "other.npz"), "(4, 28, 28, 28)", "not that of flat")


KEYS = {
    "train": ["X_train Y_train", "train_x train_y", "trainX trainY", "xtrain ytrain", "x y", "images labels",
              "data target", "X_tr y_tr", "train_data train_labels", "training_images training_targets"],
    "validation": ["X_val Y_val", "x_valid y_valid", "dev_x dev_y", "valX valY"],
    "test": ["X_test y_test", "test_data test_labels", "testX testY", "xtest ytest"],
}  # fmt: skip


@given(
    keys=st.fixed_dictionaries({split: st.sampled_from(names) for split, names in KEYS.items()}),
    kinds=st.tuples(st.sampled_from(["u1", "i8"]), st.sampled_from(["u1", "<i4", ">i2", "U5", "S5"])),
    is_packed=st.booleans(),
    form=st.sampled_from(["one", "files", "arrays", "npy"]),
    is_column=st.booleans(),
    seed=st.integers(0, 9),
)
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, keys: dict[str, str], kinds: tuple[str, str], is_packed: bool, form: str,
    is_column: bool, seed: int,
) -> None:  # fmt: skip
    """form: one .npz; an .npz a split; an .npz an array, as arr_0; an .npy an array."""
    folder = tmp_path_factory.mktemp("npz")
    save: Any = np.savez_compressed if is_packed else np.savez
    written, arrays = {}, {}
    for i, (split, pair) in enumerate(keys.items()):
        images, labels = colour(12, seed=seed + i), (np.arange(12) + i) % 3
        images.flat[0] = 255
        written[split] = images, labels
        values = np.array(["ant", "bee", "cat"])[labels] if kinds[1][0] in "US" else labels
        parts = dict(
            zip(pair.split(), (images.astype(kinds[0]), values.astype(kinds[1]).reshape((-1, 1) if is_column else -1)))
        )
        arrays |= parts
        if form == "files":
            save(folder / f"{split}.npz", **parts)
    for key, array in arrays.items():
        if form == "arrays":
            save(folder / f"pets-{key}.npz", array)
        if form == "npy":
            np.save(folder / f"{key}.npy", array)
    if form == "one":
        save(folder / "all.npz", **arrays)
    data = load_data(folder / "all.npz" if form == "one" else folder, validation=0)
    assert data.classes == (("ant", "bee", "cat") if kinds[1][0] in "US" else ("0", "1", "2"))
    assert data.notes == ()
    for split, (images, labels) in written.items():
        assert np.array_equal(getattr(data, split).images.numpy(), images.transpose(0, 3, 1, 2))
        assert getattr(data, split).labels.tolist() == labels.tolist()


def test_kmnist_is_read_from_its_four_files(tmp_path: Path) -> None:
    for split, n in (("train", 20), ("test", 10)):
        save = lambda name, array: np.savez(tmp_path / f"kmnist-{split}-{name}.npz", array)  # noqa: B023, E731
        save("imgs", grey(n, seed=n))
        save("labels", np.arange(n) % 10)
    data = load_data(tmp_path)
    assert (data.name, data.classes[:2]) == ("kmnist", ("o", "ki"))
    assert np.array_equal(data.test.images.numpy()[:, 0], grey(10, seed=10))


def test_class_names_may_stand_beside_the_arrays(tmp_path: Path) -> None:
    path = save_npz(tmp_path / "a.npz", **labelled_arrays(), class_names=["ant", "bee"], seeds=[1, 2], w_train=[3])
    data = load_data(path)
    assert data.classes == ("ant", "bee")
    assert "2 arrays were left out: seeds, w_train" in data.notes
    assert load_data(save_npz(tmp_path / "a.npz", **labelled_arrays(), classes=[0, 1])).classes == ("0", "1")


def test_words_of_a_label_keep_their_order_by_number(tmp_path: Path) -> None:
    data = load_data(save_npz(tmp_path / "a.npz", x=grey(30), y=[str(i % 3 * 5) for i in range(30)]))
    assert data.classes == ("0", "5", "10")


@pytest.mark.parametrize("codes", [[0x110000], [0xFFFFFFFF], [0xD800]])
def test_words_that_are_no_text_are_refused(tmp_path: Path, codes: list[int]) -> None:
    words = np.frombuffer(np.array([97, *codes] * 5, np.uint32).tobytes(), "U1")
    refuses(save_npz(tmp_path / "a.npz", x=grey(10), y=words), "codes that are no characters")
    refuses(save_npz(tmp_path / "a.npz", **labelled_arrays(), names=words), "codes that are no characters")
    refuses(save_npz(tmp_path / "a.npz", x=grey(10), y=np.array([b"a", b"\xff"] * 5)), "not in UTF-8")


def test_a_folder_of_one_file_is_called_as_the_folder_or_as_a_known_set(tmp_path: Path) -> None:
    (tmp_path / "pets").mkdir()
    file = save_npz(tmp_path / "pets" / "all.npz", **labelled_arrays())
    assert load_data(tmp_path / "pets").name == "pets"
    assert load_data(file.rename(file.with_name("breastmnist.npz")).parent).name == "breastmnist"


def test_several_sets_are_named(tmp_path: Path) -> None:
    for name in ("bloodmnist", "pathmnist", "pathmnist_64"):
        save_npz(tmp_path / f"{name}.npz", **labelled_arrays())
    refuses(tmp_path, "several data sets, bloodmnist, pathmnist, pathmnist 64", "name one file")
    refuses(
        save_npz(tmp_path / "a.npz", x_train=grey(9), train_images=grey(9), y=[0]), "x_train and train_images are both"
    )
    cats_and_dogs = {f"{pet}_{kind}": grey(9) for pet in ("cat", "dog") for kind in ("x", "y")}
    refuses(save_npz(tmp_path / "a.npz", **cats_and_dogs), "several data sets, cat, dog")


def test_arrays_beside_class_folders_are_not_the_data(tmp_path: Path) -> None:
    make_class_folders(tmp_path / "pets")
    np.save(tmp_path / "pets" / "features.npy", grey(3))
    save_npz(tmp_path / "pets" / "a.npz", a=[1])
    save_npz(tmp_path / "pets" / "b.npz", b=[1])
    assert load_data(tmp_path / "pets").classes == ("a", "b")


def write_npz(path: Path, header: str, content: bytes, kind: int = zipfile.ZIP_DEFLATED) -> Path:
    """An .npz of x_train with this header and content, and of y_train."""
    text = header.encode() + b"\n"
    with zipfile.ZipFile(path, "w", kind) as archive:
        archive.writestr("x_train.npy", b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text + content)
        with archive.open("y_train.npy", "w") as stream:
            np.save(stream, np.arange(10) % 2)
    return path


@pytest.mark.parametrize(
    "shape", ["(750000000000,)", "(10, -6, -5)", "(10, 6, 6)", "(2**70,)", "(10.0, 6, 5)", "('a',)"]
)
@pytest.mark.parametrize("dtype", ["|u1", "|S70000000", "[('a', '<i4', (1000000000,))]", "O"])
def test_a_claim_of_a_header_takes_no_memory(tmp_path: Path, shape: str, dtype: str) -> None:
    header = f"{{'descr': {dtype if dtype[0] == '[' else repr(dtype)}, 'fortran_order': False, 'shape': {shape}, }}"
    path = write_npz(tmp_path / "a.npz", header, bytes(300))
    tracemalloc.start()
    refuses(path, "a.npz: not a readable .npz")
    assert tracemalloc.get_traced_memory()[1] < 5e6
    tracemalloc.stop()


def test_bombs_and_claims_of_the_zip_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    header = "{'descr': '|u1', 'fortran_order': False, 'shape': (10, 6, 5), }"
    path = write_npz(tmp_path / "a.npz", header, bytes(300))
    assert load_data(path).shape == (1, 6, 5)
    content = bytearray(path.read_bytes())
    struct.pack_into("<I", content, content.index(b"PK\1\2") + 24, 4_000_000_000)
    path.write_bytes(content)
    refuses(path, "claims 4,000,000,000 bytes", "which cannot be")
    refuses(write_npz(path, header, bytes(300), zipfile.ZIP_BZIP2), "compressed by bzip2")
    refuses(write_npz(path, header, bytes(100_000_000)), "x_train claims shape (10, 6, 5) in 100,000,000 bytes")
    monkeypatch.setattr("limbeck.data.memory.machine_memory", lambda: 379)
    refuses(write_npz(path, header, bytes(300)), "its arrays need", "GB of memory")
