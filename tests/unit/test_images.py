"""Image sets: splits, descriptions, fingerprints, and how a split is held out of train."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import colour, grey, labelled_arrays, make_class_folders, refuses, save_npz

from limbeck.core.rng import make_generator
from limbeck.data import ImageData, Split, load_data
from limbeck.data.assemble import assemble, choose_rows
from limbeck.data.images import RawData, compute_fingerprint


def test_a_split_counts_and_selects() -> None:
    split = Split(torch.arange(12, dtype=torch.uint8).reshape(4, 1, 1, 3), torch.tensor([2, 0, 2, 1]))
    assert len(split) == 4
    assert split.counts(4) == [1, 1, 2, 0]
    part = split.subset(torch.tensor([2, 1]))
    assert part.labels.tolist() == [2, 0]
    assert part.images[0].flatten().tolist() == [6, 7, 8]


def test_describe_is_json_and_tells_the_counts(tmp_path: Path) -> None:
    data = load_data(make_class_folders(tmp_path / "set", "abc", 10, colour))
    description = json.loads(json.dumps(data.describe()))
    assert (data.channels, data.size, data.num_classes) == (3, (6, 5), 3)
    assert description["name"] == "set"
    assert description["shape"] == [3, 6, 5]
    assert description["classes"] == ["a", "b", "c"]
    assert description["counts"] == {"train": [7, 7, 7], "validation": [1, 1, 1], "test": [2, 2, 2]}
    assert len(description["notes"]) == 2
    assert description["fingerprint"] == data.fingerprint


def test_the_fingerprint_covers_pixels_labels_splits_and_names() -> None:
    data = load_data("digits", seed=3)
    parts = [data.train, data.validation, data.test]
    assert compute_fingerprint(parts, data.classes) == data.fingerprint == load_data("digits", seed=3).fingerprint
    pixel, label = data.train.images.clone(), data.train.labels.clone()
    pixel[5, 0, 4, 4] ^= 1
    label[5] = (label[5] + 1) % 10
    fingerprints = [
        compute_fingerprint([Split(pixel, data.train.labels), *parts[1:]], data.classes),
        compute_fingerprint([Split(data.train.images, label), *parts[1:]], data.classes),
        compute_fingerprint([data.train, data.test, data.validation], data.classes),
        compute_fingerprint(parts, ("zero", *data.classes[1:])),
        load_data("digits", seed=4).fingerprint,
        load_data("digits", seed=3, validation=0).fingerprint,
    ]
    assert len({data.fingerprint, *fingerprints}) == len(fingerprints) + 1


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.99])
def test_held_out_takes_of_every_class_and_leaves_of_every_class(fraction: float) -> None:
    labels = torch.tensor([0] + [1] * 2 + [2] * 3 + [3] * 40)
    split = Split(torch.arange(46, dtype=torch.uint8).reshape(46, 1, 1, 1), labels)
    mask = choose_rows(labels, 4, fraction, make_generator(0, "x"))
    remaining, split_part = split.subset(~mask), split.subset(mask)
    assert [a + b for a, b in zip(remaining.counts(4), split_part.counts(4))] == [1, 2, 3, 40]
    assert split_part.counts(4)[:2] == [0, 1]
    assert min(remaining.counts(4)) >= 1
    assert split_part.counts(4)[3] == min(round(fraction * 40), 39)
    assert sorted([*remaining.images.flatten().tolist(), *split_part.images.flatten().tolist()]) == list(range(46))


def test_the_splits_are_seeded_and_leave_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    data, same_seed, other_seed = load_data("digits"), load_data("digits"), load_data("digits", seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(data.validation.images, same_seed.validation.images)
    assert not torch.equal(data.test.images, other_seed.test.images)
    assert sum(map(len, (data.train, data.validation, data.test))) == 1797


def test_validation_is_a_fraction_and_may_be_nothing(tmp_path: Path) -> None:
    file = save_npz(tmp_path / "a.npz", **labelled_arrays(40), x_test=grey(4), y_test=[0, 1, 0, 1])
    assert load_data(file, validation=0.25).validation.counts(2) == [5, 5]
    bare = load_data(file, validation=0)
    assert (len(bare.train), len(bare.validation), bare.validation.images.shape[1:]) == (40, 0, (1, 6, 5))
    refuses(file, "validation is a fraction", "not 1", validation=1)


def _load_with_counts(*counts: int, **options: object) -> ImageData:
    labels = np.repeat(np.arange(len(counts)), counts)
    names = [f"n{label}" for label in range(len(counts))]
    images = np.random.default_rng(0).integers(0, 256, (len(labels), 4, 4), dtype=np.uint8)
    raw = RawData("x", {"train": images}, {"train": labels}, names)
    return assemble(raw, **{"validation": 0.1, "seed": 0, "resize": None, **options})  # type: ignore[arg-type]


def test_a_class_that_is_too_small_for_a_split_is_named() -> None:
    notes = _load_with_counts(5, 1, 2, 3).notes
    assert notes[2:] == (
        "class n1 has one image: it has no validation and no test image",
        "class n2 has 2 images: it has no validation image",
    )
    assert _load_with_counts(5, 3).notes[2:] == ()
    assert _load_with_counts(5, 1, 1).notes[2:] == (
        "classes n1, n2 have one image each: they have no validation and no test image",
    )
    assert _load_with_counts(9, *[1] * 7).notes[2].startswith("classes n1, n2, n3, n4, n5 and 2 more have one image")
    assert _load_with_counts(9, 1, validation=0).notes[2:] == ("class n1 has one image: it has no test image",)


def test_a_split_of_the_source_is_not_missed_in_a_small_class() -> None:
    images, labels = np.zeros((6, 4, 4), np.uint8), np.array([0, 0, 0, 0, 0, 1])
    raw = RawData("x", {"train": images, "test": images[:2]}, {"train": labels, "test": labels[-2:]}, ["a", "b"])
    notes = assemble(raw, validation=0.1, seed=0, resize=None).notes
    assert notes[-1] == "class b has one image: it has no validation image"
