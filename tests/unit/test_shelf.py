"""Sets that come with limbeck load and are what their record says; images of 16 bits survive their file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import limbeck
from limbeck.core.errors import UserError
from limbeck.core.shelf import FOLDER, find_shelf_file, read_shelf
from limbeck.core.tensors import read_header
from limbeck.data import fit_preprocess, load_data
from limbeck.synthetic.distilled import DistilledSet, Mosaics
from limbeck.synthetic.tiles import Partition

NAMES = sorted(read_shelf())


def test_the_shelf_has_a_file_for_every_record_and_is_small() -> None:
    files = sorted(FOLDER.glob("*.safetensors"))
    assert [file.stem for file in files] == NAMES
    assert sum(file.stat().st_size for file in files) < 10e6


@pytest.mark.parametrize("name", NAMES)
def test_a_set_of_the_shelf_is_what_its_record_says(name: str) -> None:
    entry, distilled = read_shelf()[name], limbeck.load(name)
    images, labels = distilled.stored_pair
    assert len(images) == entry.ipc * len(distilled.classes)
    assert len(distilled.images) == entry.tiles * len(images)
    assert entry.bytes == 2 * images.numel() + labels.element_size() * labels.numel()
    assert distilled.provenance["method"] == entry.method
    assert distilled.provenance["data"]["name"] == entry.data
    assert bool(torch.isfinite(distilled.images).all())
    assert {row.set for row in entry.rows} == {"distilled", "random", "kmeans"}
    assert all(row.n >= 3 and row.accuracy_std is not None for row in entry.rows)
    assert abs(entry.difference) < 0.01, "16 bits cost accuracy"


@pytest.mark.parametrize("name", NAMES)
def test_a_set_of_the_shelf_names_no_place_of_the_machine_that_made_it(name: str) -> None:
    entry, header = read_shelf()[name], read_header(FOLDER / f"{name}.safetensors")
    assert header["provenance"]["data"]["source"] == entry.source
    assert "/" not in entry.source
    for text in (json.dumps(header["provenance"]), *entry.commands):
        assert not any(place in text for place in ("/home/", "/root/", "/tmp/", "/work/"))


@pytest.mark.skipif(not NAMES, reason="the shelf is empty")
def test_a_file_of_its_name_goes_before_a_set_of_the_shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_shelf_file(NAMES[0]) == FOLDER / f"{NAMES[0]}.safetensors"
    Path(NAMES[0]).mkdir()
    assert find_shelf_file(NAMES[0]) is None
    with pytest.raises(UserError, match="no distilled set"):
        limbeck.load(NAMES[0])


def test_a_name_that_is_no_set_is_answered_by_those_that_are() -> None:
    with pytest.raises(UserError, match="fashion-mnist-ipc1"):
        limbeck.load("fashion-mnist-ipc99")


def test_test_images_of_another_size_are_refused_in_a_sentence() -> None:
    small = limbeck.load("fashion-mnist-ipc1")
    with pytest.raises(UserError, match="resize=28"):
        small.accuracy(torch.nn.Flatten(), torch.zeros(2, 1, 52, 40, dtype=torch.uint8), torch.zeros(2))


@pytest.mark.parametrize("is_tiled", [False, True])
def test_images_of_16_bits_come_back_as_float32(is_tiled: bool, tmp_path: Path) -> None:
    data = load_data("digits")
    preprocess = fit_preprocess("normalise", data.train.images)
    images, labels = preprocess.apply(data.train.images[:10]), data.train.labels[:10]
    distilled = DistilledSet(images, labels, 0.01, preprocess, data.classes, recipe={}, provenance={})
    if is_tiled:
        mosaics = Mosaics(distilled.images, distilled.labels, Partition(2))
        images, labels = mosaics.partition(*mosaics[:2])
        distilled = replace(distilled, images=images, labels=labels, mosaics=mosaics)
    distilled.save(tmp_path / "half.safetensors", half=True)
    distilled.save(tmp_path / "whole.safetensors")
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("half", "whole")]
    restored = limbeck.load(tmp_path / "half.safetensors")
    stored, original = restored.stored_pair[0], distilled.stored_pair[0]
    assert restored.images.dtype == torch.float32
    assert torch.equal(stored, original.half().float())
    assert sizes[1] - sizes[0] > original.numel()
    assert read_header(tmp_path / "half.safetensors")["version"] == 3
