"""Sets exported as files that need no limbeck: read again by other programs, trained on by the code of their cards."""

from __future__ import annotations

import csv
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from authors_files import refuse
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from limbeck.core.files import write_folder
from limbeck.core.records import ResultRow
from limbeck.data import ImageData, fit_preprocess, load_data
from limbeck.interop import SET_STYLES, export_set
from limbeck.interop.card import CardFacts, describe_export
from limbeck.interop.card_code import STYLES, training_code
from limbeck.interop.portable import folder_names
from limbeck.interop.rounding import as_pixels, round_set
from limbeck.synthetic.distilled import DistilledSet, Mosaics, load
from limbeck.synthetic.tiles import Partition

PORTABLE = ("imagefolder", "npz", "hf")
RECIPE = {
    **{"networks": 2, "epochs": 16, "batch_size": 50, "momentum": 0.9, "weight_decay": 5e-4, "augment": "crop"},
    "model": {"name": "convnet", "depth": 2, "width": 8},
}
FACTS = CardFacts(command="limbeck distill digits")


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def make_set(data: ImageData, kind: str = "normalise", soft: bool = False, per_class: int = 10) -> DistilledSet:
    """The first images of every class with a little noise, so that values lie between those of 8 bits and beyond."""
    rows = torch.cat([(data.train.labels == label).nonzero()[:per_class, 0] for label in range(data.num_classes)])
    preprocess = fit_preprocess(kind, data.train.images)
    labels = data.train.labels[rows]
    if soft:
        labels = torch.nn.functional.one_hot(labels, 10) * 0.9 + 0.01
    images = preprocess.apply(data.train.images[rows]) + 0.02 * noise(len(rows), *data.shape)
    provenance = {"method": "mct", "data": {"name": data.name, "fingerprint": data.fingerprint}, "step": 5}
    return DistilledSet(images, labels, 0.05, preprocess, data.classes, RECIPE, provenance)


def make_colour_set(classes: tuple[str, ...], counts: tuple[int, ...]) -> DistilledSet:
    """Colours at random, higher than wide, in classes of these sizes."""
    pixels = torch.randint(256, (sum(counts), 3, 8, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    preprocess = fit_preprocess("normalise", pixels)
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return DistilledSet(preprocess.apply(pixels), labels, 0.1, preprocess, classes, {}, {})


@pytest.fixture
def _own_generator() -> Any:
    """Code for users draws from torch's global generator."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def run_card(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run the code of a card in the folder of the card, and return its names."""
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    modules = set(re.findall(r"^(?:import|from) (\w+)", code, re.MULTILINE))
    assert modules <= {"csv", "pathlib", "numpy", "torch", "PIL", "pyarrow"}
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec", dont_inherit=True), names)
    return names


def test_every_style_has_a_card() -> None:
    assert list(STYLES) == list(SET_STYLES)


CASES = [(to, soft, "normalise") for to in SET_STYLES for soft in (False, True)]
CASES += [(to, False, "zca") for to in ("imagefolder", "npz")]


@pytest.mark.usefixtures("_own_generator")
@pytest.mark.parametrize(("to", "soft", "kind"), CASES)
def test_the_code_of_a_card_trains_a_network(
    tmp_path: Path, digits: ImageData, monkeypatch: pytest.MonkeyPatch, to: str, soft: bool, kind: str
) -> None:
    distilled = make_set(digits, kind, soft)
    export_set(distilled, tmp_path / "out", to, FACTS)
    names = run_card(tmp_path / "out", monkeypatch)
    pixels = digits.test.images[:200].float() / 255
    torch.testing.assert_close(names["to_input"](pixels), distilled.preprocess.apply(digits.test.images[:200]))
    images = round_set(distilled).images if to == "imagefolder" else distilled.images
    torch.testing.assert_close(names["x"], images)
    assert (names["predict"](pixels) == digits.test.labels[:200]).float().mean() > 0.7  # 0.1 by chance
    assert names["y"].is_floating_point() == (soft or to == "datm"), "whose labels are logits"


@pytest.mark.usefixtures("_own_generator")
def test_the_code_of_a_card_crops_canvases(tmp_path: Path, digits: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    small = make_set(digits, per_class=1)
    canvases = replace(
        small,
        images=small.images.repeat(1, 1, 2, 2),
        recipe={**RECIPE, "epochs": 2},
        provenance={"config": {"canvas": 2}},
    )
    assert "random windows of 8 x 8" in describe_export(canvases, "npz")[0]
    export_set(canvases, tmp_path / "out", "npz")
    names = run_card(tmp_path / "out", monkeypatch)
    assert names["x"].shape == (10, 1, 16, 16)
    assert names["images"].shape == (10, 1, 8, 8)
    assert all("window" not in note for note in describe_export(small, "npz"))


def test_mosaics_go_out_as_the_training_images(tmp_path: Path, digits: ImageData) -> None:
    stored = make_set(digits, per_class=1)
    partition = Partition(2, "single")
    images, labels = partition(stored.images, stored.labels)
    tiles = replace(stored, images=images, labels=labels, mosaics=Mosaics(stored.images, stored.labels, partition))
    assert "stores 10 mosaics, from which these 40 training images are cut" in describe_export(tiles, "npz")[0]
    export_set(tiles, tmp_path / "out", "npz")
    with np.load(tmp_path / "out/distilled.npz") as file:
        assert np.array_equal(file["x"], images.numpy())
    card = (tmp_path / "out/README.md").read_text()
    assert "# digits: 40 training images for 10 classes" in card
    assert "there are 10." not in card, "without random images beside it"
    rows = (ResultRow(set="random", model="convnet", split="test", accuracy_mean=0.5, n=1),)
    export_set(tiles, tmp_path / "again", "npz", FACTS._replace(results=rows))
    assert "Of random and kmeans images, as of mosaics, there are 10." in (tmp_path / "again/README.md").read_text()
    export_set(tiles, tmp_path / "theirs", "ddranking")
    assert "\nipc: 1\n" in (tmp_path / "theirs/ddranking.yaml").read_text()
    start = replace(tiles, provenance={**tiles.provenance, "step": 0})
    export_set(start, tmp_path / "start", "npz")
    assert "made smaller, to be tiles, and enlarged again" in (tmp_path / "start/README.md").read_text()


def all_images(data: ImageData) -> Counter[tuple[str, bytes]]:
    """Class name and pixels of every image, whatever its split."""
    splits = (data.train, data.validation, data.test)
    return Counter(
        (data.classes[label], image.numpy().tobytes())
        for split in splits
        for image, label in zip(split.images, split.labels.tolist())
    )


def expected_images(distilled: DistilledSet) -> Counter[tuple[str, bytes]]:
    names = [distilled.classes[label] for label in distilled.hard_labels().tolist()]
    return Counter(zip(names, (image.numpy().tobytes() for image in as_pixels(distilled))))


@pytest.mark.parametrize("to", PORTABLE)
@pytest.mark.parametrize("soft", [False, True])
def test_load_data_reads_the_same_pixels_and_classes(tmp_path: Path, digits: ImageData, to: str, soft: bool) -> None:
    distilled = make_set(digits, soft=soft)
    export_set(distilled, tmp_path / "out", to)
    data = load_data(tmp_path / "out")
    assert data.classes == distilled.classes
    assert all_images(data) == expected_images(distilled)
    assert len(expected_images(distilled)) > 90, "the images differ from each other"


@pytest.mark.parametrize("to", PORTABLE)
def test_colours_unequal_classes_and_words(tmp_path: Path, to: str) -> None:
    distilled = make_colour_set(("größe", "猫", "b"), (3, 2, 4))
    export_set(distilled, tmp_path / "out", to)
    data = load_data(tmp_path / "out")
    assert all_images(data) == expected_images(distilled)
    assert set(data.classes) == set(distilled.classes)
    if to == "hf":
        table = pq.read_table(tmp_path / "out/data")
        assert torch.equal(torch.tensor(table["input"].to_pylist()), distilled.images)
    if to != "imagefolder":
        assert data.classes == distilled.classes, "in the order of the labels"


@pytest.mark.parametrize("classes", [("x", "y", "z"), ("label", "split", "index"), ("set", "猫", "dx")])
def test_classes_that_are_called_as_columns_are_read_from_their_folders(
    tmp_path: Path, classes: tuple[str, ...]
) -> None:
    """Not from the probabilities of one of them, in labels.csv."""
    distilled = make_colour_set(classes, (3, 2, 4))
    soft = replace(distilled, labels=torch.softmax(3 * torch.eye(3)[distilled.labels] + noise(9, 3) / 2, 1))
    export_set(soft, tmp_path / "out", "imagefolder")
    data = load_data(tmp_path / "out")
    assert set(data.classes) == set(classes)
    assert all_images(data) == expected_images(soft)


ODD_WORDS = ["train", "Training set", "test", "TEST", "val", "dev", "images", "part 1", "batch", "Batch", "photos", "y"]
ODD_WORDS += ["__MACOSX", "lost+found", "$RECYCLE.BIN", ".git", "thumbs.db", "steam train", "model train", "model test"]
ODD_WORDS += ["crash test", "class_0_test", "class 0 train", "class_1", "7", "con", "file", "the"]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(ODD_WORDS), min_size=2, unique=True), st.booleans())
def test_class_folders_of_any_names_are_read_as_classes(classes: list[str], soft: bool) -> None:
    distilled = make_colour_set(tuple(classes), (2,) * len(classes))
    if soft:
        distilled = replace(distilled, labels=torch.softmax(9 * torch.eye(len(classes))[distilled.labels], 1))
    with TemporaryDirectory() as folder:
        export_set(distilled, Path(folder) / "out", "imagefolder")
        data = load_data(Path(folder) / "out")
    assert all_images(data) == expected_images(replace(distilled, classes=tuple(folder_names(classes))))


@pytest.mark.parametrize("to", PORTABLE)
def test_one_image_a_class(tmp_path: Path, digits: ImageData, to: str) -> None:
    files = export_set(make_set(digits, per_class=1), tmp_path / "out", to)
    assert all(file.is_file() for file in files)
    assert {*(tmp_path / "out").rglob("*.*")} == {*files}
    assert not list(tmp_path.glob(".*")), "no temporary folder"


def test_what_an_image_folder_cannot_say_is_said(tmp_path: Path) -> None:
    """ImageFolder sorts folders as text, knows no class without pictures, and its folders have names of files."""
    names = (*map(str, range(11)), "a/b")
    distilled = make_colour_set(names, (1,) * 10 + (0, 1))
    files = export_set(distilled, tmp_path / "out", "imagefolder")
    folders = sorted({file.parent.name for file in files} - {"out"})
    assert folders == sorted([*map(str, range(10)), "a_b"])
    missing, order, renamed = describe_export(distilled, "imagefolder")
    assert missing == "classes without an image have no folder: 10"
    assert "their names: a_b is 10 there and 11 here" in order
    assert "'a/b' is a_b" in renamed
    assert all(note in (tmp_path / "out/README.md").read_text() for note in (missing, order, renamed))
    several = make_colour_set(tuple(map(str, range(11))), (1,) * 11)
    (order,) = describe_export(several, "imagefolder")
    assert "2 is 3 there and 2 here, 3 is 4 there and 3 here" in order
    assert "10 is 2 there" not in order, "a note lists the first classes"
    assert len(describe_export(several, "imagefolder", 100)[0]) > len(order)
    assert describe_export(make_colour_set(("a", "b"), (1, 1)), "imagefolder") == []


def test_soft_labels_beside_folders_are_exact(tmp_path: Path, digits: ImageData) -> None:
    distilled = make_set(digits, soft=True)
    labels = torch.softmax(noise(100, 10), 1)
    distilled = replace(distilled, labels=labels)
    export_set(distilled, tmp_path / "out", "imagefolder")
    with (tmp_path / "out/labels.csv").open(encoding="utf-8", newline="") as stream:
        head, *rows = csv.reader(stream)
    assert head == ["file", *digits.classes]
    assert torch.equal(torch.tensor([[float(word) for word in row[1:]] for row in rows]), labels)
    for row, image, label in zip(rows, as_pixels(distilled), labels.argmax(1).tolist()):
        assert row[0].startswith(f"{label}/")
        assert np.array_equal(np.array(Image.open(tmp_path / "out" / row[0])), image[0].numpy())


@pytest.mark.parametrize("kind", ["normalise", "zca"])
@pytest.mark.parametrize("soft", [False, True])
def test_numpy_alone_reads_the_arrays(tmp_path: Path, digits: ImageData, kind: str, soft: bool) -> None:
    distilled = make_set(digits, kind, soft)
    distilled = replace(distilled, targets=noise(100, 10) if soft else None)
    export_set(distilled, tmp_path / "out", "npz")
    with np.load(tmp_path / "out/distilled.npz", allow_pickle=False) as file:
        arrays = dict(file)
    assert np.array_equal(arrays["x"], distilled.images.numpy())
    assert np.array_equal(arrays["y"], distilled.labels.numpy())
    assert arrays["x"].dtype == np.float32
    assert arrays["y"].dtype == (np.float32 if soft else np.int64)
    assert tuple(arrays["classes"].tolist()) == digits.classes
    assert float(arrays["lr"]) == distilled.lr
    assert ("labels" in arrays, "targets" in arrays) == (soft, soft)
    assert np.array_equal(arrays["pixels"], as_pixels(distilled)[:, 0].numpy())
    pixels = digits.test.images.numpy() / np.float32(255)
    if kind == "zca":
        x = ((pixels.reshape(len(pixels), -1) - arrays["mean"]) @ arrays["whiten"]).reshape(pixels.shape)
    else:
        x = (pixels - arrays["mean"][:, None, None]) / arrays["std"][:, None, None]
    np.testing.assert_allclose(x, distilled.preprocess.apply(digits.test.images).numpy(), atol=1e-5)


@pytest.mark.parametrize("soft", [False, True])
def test_parquet_is_exact_and_its_card_says_what_it_holds(tmp_path: Path, digits: ImageData, soft: bool) -> None:
    distilled = make_set(digits, soft=soft)
    file, *_ = export_set(distilled, tmp_path / "out", "hf", FACTS._replace(license="cc-by-4.0"))
    table = pq.read_table(file)
    assert torch.equal(torch.tensor(table["input"].to_pylist()), distilled.images)
    assert table["label"].to_pylist() == distilled.hard_labels().tolist()
    if soft:
        assert torch.equal(torch.tensor(table["soft_label"].to_pylist()), distilled.labels)
    text = (tmp_path / "out/README.md").read_text(encoding="utf-8")
    _, head, body = text.split("---\n", 2)
    card = yaml.safe_load(head)
    assert card["license"] == "cc-by-4.0"
    assert card["task_categories"] == ["image-classification"]
    assert card["size_categories"] == ["n<1K"]
    assert "dataset-distillation" in card["tags"]
    info = card["dataset_info"]
    assert info["splits"] == [{"name": "train", "num_bytes": table.nbytes, "num_examples": 100}]
    assert info["download_size"] == file.stat().st_size
    assert [feature["name"] for feature in info["features"]] == table.column_names
    assert info["features"][1]["dtype"]["class_label"]["names"] == {name: name for name in digits.classes}
    for part in ("not real images", digits.fingerprint, FACTS.command, "epochs 16", "licence", "limbeck.DSA"):
        assert part.lower() in body.lower()


def test_the_library_datasets_reads_the_folder(
    tmp_path: Path, digits: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    distilled = make_set(digits, soft=True)
    export_set(distilled, tmp_path / "out", "hf")
    rows = datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    numbers = rows.with_format("numpy")[:]
    assert np.array_equal(numbers["input"], distilled.images.numpy())
    assert np.array_equal(numbers["soft_label"], distilled.labels.numpy())
    assert rows.features["label"].names == list(digits.classes)
    assert np.array_equal(np.array(rows[7]["image"]), as_pixels(distilled)[7, 0].numpy())


@given(st.lists(st.text(max_size=12), min_size=1, max_size=8))
@settings(max_examples=100, deadline=None)
def test_names_of_folders_are_safe_and_unique(classes: list[str]) -> None:
    names = folder_names(classes)
    assert len({name.casefold() for name in names}) == len(classes)
    for name in names:
        assert name.isprintable()
        assert name == name.strip()
        assert not set(name) & set('<>:"/\\|?*.')
        assert 0 < len(name.encode()) < 255
    assert folder_names(names) == names


def test_names_of_folders_keep_words() -> None:
    assert folder_names(["tabby cat", "größe", "猫", "a-b_c", "12"]) == ["tabby cat", "größe", "猫", "a-b_c", "12"]
    assert folder_names(["", "con", "x" * 300, "x" * 300])[:2] == ["class", "con_"]
    assert folder_names(["a", "A", "a_2"]) == ["a", "A_2", "a_2_2"]
    assert folder_names(["streetcar", "train"]) == ["streetcar", "train"], "as of CIFAR-100"
    assert folder_names(["a", "images", "lost+found"]) == ["a", "class_1", "class_2"]


def test_a_card_of_real_images_does_not_deny_it(tmp_path: Path, digits: ImageData) -> None:
    distilled = make_set(digits)
    selected = replace(distilled, provenance={**distilled.provenance, "method": "kmeans", "step": 0})
    export_set(selected, tmp_path / "out", "npz")
    text = (tmp_path / "out/README.md").read_text()
    assert "not real" not in text
    assert "`kmeans` starts" in text


def test_a_folder_is_whole_or_not_there(tmp_path: Path, digits: ImageData) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_folder(tmp_path / "new/out", fail)
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "empty").mkdir()
    export_set(make_set(digits), tmp_path / "empty", "npz")
    assert (tmp_path / "empty").stat().st_mode & 0o777 == (tmp_path / "new").stat().st_mode & 0o777
    before = sorted(tmp_path.rglob("*"))
    refuse("is not an empty folder", lambda: export_set(make_set(digits), tmp_path / "empty", "npz"))
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("to", PORTABLE)
def test_a_set_with_half_a_character_and_a_recipe_that_says_nothing_goes_out(
    tmp_path: Path, digits: ImageData, to: str
) -> None:
    names = ("\ud800", *digits.classes[1:])
    replace(make_set(digits, soft=True), classes=names, recipe={**dict.fromkeys(RECIPE), "augment": "crop"}).save(
        tmp_path / "set.safetensors"
    )
    distilled = load(tmp_path / "set.safetensors")
    assert distilled.recipe == {"augment": "crop"}
    export_set(distilled, tmp_path / "out", to)
    assert "EPOCHS, LR = 1000, " in (tmp_path / "out/README.md").read_text(encoding="utf-8")


def test_the_code_is_short(digits: ImageData) -> None:
    """From the optimiser on it is the ten lines that a reader copies."""
    for to in SET_STYLES:
        code = training_code(make_set(digits), to)
        assert len(code.partition("optimiser =")[2].partition("def predict")[0].strip().splitlines()) <= 10
