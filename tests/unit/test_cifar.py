"""CIFAR, SVHN and STL-10 as they are downloaded; pickles are read as data, and never run."""

from __future__ import annotations

import contextlib
import pickle
import shutil
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_files import refuses
from image_layouts import (
    CIFAR10,
    CIFAR_BATCHES,
    cifar10_folder,
    cifar100_folder,
    dump,
    python2_pickle,
    stl10_folder,
    svhn_folder,
)

from limbeck.core.errors import UserError
from limbeck.data import Split, load_data
from limbeck.data.augment import DSA, default_strategy
from limbeck.data.readers.pickles import read_pickle

PROTOCOLS = st.sampled_from([-2, 0, 1, 2, 3, 4, 5])


def check_split(split: Split, images: Any, labels: list[int]) -> None:
    assert np.array_equal(split.images.numpy(), images.transpose(0, 3, 1, 2))
    assert split.labels.tolist() == labels


@given(protocol=PROTOCOLS, seed=st.integers(0, 9))
def test_cifar10_is_read_as_it_is_downloaded(
    tmp_path_factory: pytest.TempPathFactory, protocol: int, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("cifar") / "cifar-10-batches-py"
    images, labels = cifar10_folder(folder, protocol, seed)
    data = load_data(folder, validation=0)
    assert (data.name, data.classes, data.notes[1:]) == ("cifar-10-batches-py", CIFAR10, ())
    check_split(data.train, images[:20], labels[:20])
    check_split(data.test, images[20:], labels[20:])
    (folder / "data_batch_4").unlink()
    refuses(folder, "data_batch_4 is missing")


@given(protocol=PROTOCOLS, seed=st.integers(0, 9))
def test_cifar100_is_read_by_its_fine_labels(
    tmp_path_factory: pytest.TempPathFactory, protocol: int, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("cifar") / "cifar-100-python"
    images, labels = cifar100_folder(folder, protocol, seed)
    data = load_data(folder, validation=0)
    assert data.classes == ("apple", "baby", "crab", "dog")
    assert data.notes[0] == "labels are the fine classes; the coarse ones were left out"
    check_split(data.train, images[:8], labels[:8])
    check_split(data.test, images[8:], labels[8:])


@given(is_hundred=st.booleans(), seed=st.integers(0, 9))
def test_records_are_read(tmp_path_factory: pytest.TempPathFactory, is_hundred: bool, seed: int) -> None:
    folder = tmp_path_factory.mktemp("cifar")
    rng = np.random.default_rng(seed)
    labels = [i % 10 for i in range(24)]
    images = rng.integers(0, 256, (24, 3, 32, 32), np.uint8)
    start = b"\x07" if is_hundred else b""
    records = [start + bytes([label]) + pixels.tobytes() for label, pixels in zip(labels, images)]
    if is_hundred:
        (folder / "train.bin").write_bytes(b"".join(records[:20]))
        (folder / "test.bin").write_bytes(b"".join(records[20:]))
    else:
        for i, name in enumerate(CIFAR_BATCHES):
            (folder / f"{name}.bin").write_bytes(b"".join(records[4 * i : 4 * i + 4]))
    meta = folder / ("fine_label_names.txt" if is_hundred else "batches.meta.txt")
    meta.write_text("\n".join(CIFAR10) + "\n\n")
    data = load_data(folder, validation=0)
    assert data.classes == CIFAR10
    check_split(data.train, images[:20].transpose(0, 2, 3, 1), labels[:20])
    check_split(data.test, images[20:].transpose(0, 2, 3, 1), labels[20:])
    last = folder / ("test.bin" if is_hundred else "test_batch.bin")
    last.write_bytes(last.read_bytes()[:-1])
    refuses(folder, f"{last.name}: ", "(truncated?)")


@given(is_packed=st.booleans(), seed=st.integers(0, 9))
def test_svhn_is_read_as_it_is_downloaded(tmp_path_factory: pytest.TempPathFactory, is_packed: bool, seed: int) -> None:
    folder = tmp_path_factory.mktemp("svhn") / "SVHN"
    images, digits = svhn_folder(folder, seed, is_packed)
    (folder / "extra_32x32.mat").write_bytes(b"")
    data = load_data(folder, validation=0)
    assert data.classes == tuple("0123456789")
    assert data.notes[:2] == ("label 10 is the digit 0", "extra_32x32.mat was left out")
    check_split(data.train, images[:20], digits[:20])
    check_split(data.test, images[20:], digits[20:])
    assert "flip" not in DSA(default_strategy(data.name)).families


def test_files_of_svhn_that_are_damaged_are_refused(tmp_path: Path) -> None:
    svhn_folder(tmp_path / "SVHN", is_packed=False)
    path = tmp_path / "SVHN" / "train_32x32.mat"
    whole = path.read_bytes()
    for content in (b"", whole[:100], whole[:200], whole[:-1000], whole[:128] + bytes(64) + whole[192:]):
        path.write_bytes(content)
        refuses(tmp_path / "SVHN", "train_32x32.mat: not SVHN's X")
    claim = whole.replace(struct.pack("<iiii", 32, 32, 3, 20), struct.pack("<iiii", 32, 32, 3, 2_000_000_000))
    assert claim != whole
    path.write_bytes(claim.replace(struct.pack("<ii", 20, 1), struct.pack("<ii", 2_000_000_000, 1)))
    refuses(tmp_path / "SVHN", "it claims 6,144,000,000,000 bytes")


def test_stl10_is_read_as_it_is_downloaded(tmp_path: Path) -> None:
    images, labels = stl10_folder(tmp_path / "stl10_binary")
    data = load_data(tmp_path / "stl10_binary", validation=0)
    assert data.classes == ("airplane", "bird", "car")
    assert data.notes[0] == "unlabelled images were left out"
    check_split(data.train, images[:6], labels[:6])
    check_split(data.test, images[6:], labels[6:])
    (tmp_path / "stl10_binary" / "test_y.bin").unlink()
    refuses(tmp_path / "stl10_binary", "test_X.bin and test_y.bin are not both there")
    (tmp_path / "stl10_binary" / "train_X.bin").write_bytes(b"123")
    refuses(tmp_path / "stl10_binary", "3 bytes are no images of 27648")


class Code:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> Any:
        return exec, ("raise SystemExit(3)",)


@pytest.mark.parametrize(
    "value",
    [
        Code(),
        {"data": Code()},
        {"data": np.array([Code()], object)},
        {"data": 1 + 1j},
        {"data": np.zeros(3, "M8[s]")},
        {"data": np.zeros(3, [("a", int)])},
        {"data": Path()},
        {("a", "b"): 1},
        [1],
        3,
    ],
)
@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_pickles_of_other_objects_are_refused(value: Any, protocol: int) -> None:
    with pytest.raises(UserError, match="x: not a pickle of arrays, numbers and text"):
        read_pickle(pickle.dumps(value, protocol), "x")


HOSTILE = {
    "eval": b"cbuiltins\neval\n(S'1'\ntR.",
    "system": b"cos\nsystem\n(S'touch x'\ntR.",
    "inst": b"(S'touch x'\nios\nsystem\n.",
    "obj": b"(cos\nsystem\nS'touch x'\no.",
    "newobj": b"cbuiltins\nobject\n)\x81.",
    "persistent": b"Pabc\n.",
    "extension": b"\x82\x01.",
    "stack global": b"\x8c\x02os\x8c\x06system\x93(S'x'\ntR.",
    "memo": b"N" + b"r" + b"\xff" * 4 + b"0.",
    "long": b"T\xff\xff\xff\x7fabc.",
    "frame": b"\x95" + b"\xff" * 8 + b".",
    "bytes8": b"\x8e" + b"\xff" * 7 + b"\x7f.",
    "deep": b"]" * 100_000 + b"a" * 99_999 + b".",
    "deep key": b"}" + b"N" + b"\x85" * 1_000_000 + b"Ns.",
    "deep type": b"cnumpy\ndtype\n" + b"]" * 100_000 + b"a" * 99_999 + b"\x85R.",
    "marks": b"(" * 100_000 + b".",
    "empty": b"",
    "no stop": b"}",
    "twice": b"}}.",
    "nothing": b"0.",
    "build": b"}}b.",
    "huge array": b"cnumpy.core.multiarray\n_reconstruct\n(tR(K\x01(J\xff\xff\xff\x7ft"
    b"cnumpy\ndtype\n(U\x02u1tR\x89U\x00tb.",
    "digits": b"I" + b"1" * 100_000 + b"\n.",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickles_are_refused_in_little_memory(name: str) -> None:
    tracemalloc.start()
    with pytest.raises(UserError, match="x: not a pickle of arrays, numbers and text") as caught:
        read_pickle(HOSTILE[name], "x")
    assert tracemalloc.get_traced_memory()[1] < 200e6
    tracemalloc.stop()
    assert len(str(caught.value)) < 300
    assert "\n" not in str(caught.value)


@given(data=st.binary(max_size=200))
def test_any_bytes_are_a_pickle_or_refused(data: bytes) -> None:
    with contextlib.suppress(UserError):
        read_pickle(data, "x")


def test_pickles_of_numbers_text_and_arrays_are_read() -> None:
    value = {
        "a": [1, -1, 2**40, 1.5, None, True, "é", b"\xff", (1, (2, 3)), {}],
        "b": np.asfortranarray(np.arange(6, dtype=">i4").reshape(2, 3)),
        "c": np.zeros((0, 3), np.float32),
    }
    for protocol in range(6):
        content = read_pickle(pickle.dumps(value, protocol), "x")
        assert content["a"] == value["a"]
        assert np.array_equal(content["b"], value["b"])
        assert content["b"].dtype == ">i4"
        assert content["c"].shape == (0, 3)


def test_files_that_are_no_batches_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "cifar"
    cifar10_folder(folder)
    batch = folder / "data_batch_2"
    pixels = np.zeros((4, 3072), np.uint8)
    for value in (
        {"labels": [1]},
        {"data": pixels, "labels": ["a"] * 4},
        {"data": pixels, "labels": [300] * 4},
        {"data": pixels[:, 1:], "labels": [1] * 4},
        {"data": pixels.astype(np.int32), "labels": [1] * 4},
    ):
        batch.write_bytes(python2_pickle(value))
        refuses(folder, "data_batch_2: no data of 3,072 bytes an image with a list of labels")
    batch.write_bytes(python2_pickle({"data": pixels, "labels": [1] * 3}))
    refuses(folder, "20 images but 19 labels")
    batch.write_bytes(python2_pickle({"data": pixels, "labels": [1] * 4})[:-40])
    refuses(folder, "data_batch_2: not a pickle")
    shutil.rmtree(folder)
    cifar10_folder(folder)
    (folder / "batches.meta").write_bytes(dump({"label_names": [1]}, 2))
    refuses(folder, "batches.meta: no list of label_names")
    (folder / "batches.meta").write_bytes(dump({"label_names": ["a", "b"]}, 2))
    refuses(folder, "label 9 has no name among the 2 class names")
