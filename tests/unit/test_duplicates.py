"""Duplicates: equal images by split and label, near ones across splits, and when the latter are not looked for."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance

from limbeck.core.events import Event
from limbeck.data import ImageData, Split
from limbeck.data import duplicates as module
from limbeck.data.duplicates import NearPair, Place, find_duplicates

Pixels = np.ndarray[Any, np.dtype[np.uint8]]


def random_images(count: int, side: int = 32, channels: int = 1, seed: int = 0) -> Pixels:
    """Images of a few soft blobs, which are as different from each other as photos are."""
    generator = np.random.default_rng(seed)
    images = np.empty((count, channels, side, side), np.uint8)
    for index in np.ndindex(count, channels):
        coarse = Image.fromarray(generator.integers(0, 256, (6, 6), dtype=np.uint8))
        images[index] = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC))
    return images


def make_data(train: Pixels, test: Pixels, train_labels: Any = None, test_labels: Any = None) -> ImageData:
    splits = []
    for images, labels in ((train, train_labels), (train[:0], None), (test, test_labels)):
        numbers = torch.arange(len(images)) % 2 if labels is None else torch.tensor(labels)
        splits.append(Split(torch.from_numpy(images), numbers))
    return ImageData("some", *splits, ("a", "b"), (), "0" * 16)


def test_equal_images_are_grouped_with_their_splits_rows_and_labels() -> None:
    train, test = random_images(6), random_images(5, seed=1)
    train[4] = train[1]
    test[0] = test[2] = train[1]
    test[4] = test[3]
    duplicates = find_duplicates(make_data(train, test, [0, 1, 0, 0, 0, 1], [1, 0, 1, 0, 0]))
    first = (Place("train", 1, 1), Place("train", 4, 0), Place("test", 0, 1), Place("test", 2, 1))
    assert duplicates.exact == (first, (Place("test", 3, 0), Place("test", 4, 0)))
    assert duplicates.contradictions() == [first]
    assert duplicates.count_within() == {"train": 1, "validation": 0, "test": 2}
    assert duplicates.count_across()["train", "test"] == 2
    assert sum(duplicates.count_across().values()) == 2


def test_one_channel_that_differs_makes_images_unequal() -> None:
    train = random_images(4, channels=3)
    train[1] = train[0]
    train[1, 2, 31, 31] ^= 1
    assert find_duplicates(make_data(train, random_images(2, channels=3, seed=1)), near=False).exact == ()


def as_jpeg(image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=60)
    return Image.open(io.BytesIO(buffer.getvalue()))


CHANGES = {
    "compressed": as_jpeg,
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.8),
    "flatter": lambda image: ImageEnhance.Contrast(image).enhance(0.7),
    "resized": lambda image: image.resize((24, 24), Image.Resampling.BILINEAR).resize((32, 32)),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_of_a_train_image_is_a_near_duplicate_and_no_other_is(change: str, channels: int) -> None:
    train, test = random_images(40, channels=channels), random_images(30, channels=channels, seed=1)
    for source, row in ((3, 0), (17, 29)):
        image = Image.fromarray(train[source].transpose(1, 2, 0).squeeze())
        test[row] = np.asarray(CHANGES[change](image)).reshape(32, 32, channels).transpose(2, 0, 1)
    duplicates = find_duplicates(make_data(train, test, [0] * 40, [0] * 29 + [1]))
    assert duplicates.near is not None
    places = {(pair.first, pair.second) for pair in duplicates.near}
    assert places == {
        (Place("train", 3, 0), Place("test", 0, 0)),
        (Place("train", 17, 0), Place("test", 29, 1)),
    }
    assert [pair.contradicts for pair in sorted(duplicates.near, key=lambda pair: pair.second.row)] == [False, True]
    assert duplicates.count_near() == {("train", "validation"): 0, ("train", "test"): 2, ("validation", "test"): 0}
    assert duplicates.exact == ()
    assert duplicates.skipped_near == ""


def test_an_exact_copy_is_not_reported_as_a_near_one_again() -> None:
    train, test = random_images(20), random_images(20, seed=1)
    test[5] = train[7]
    duplicates = find_duplicates(make_data(train, test))
    assert len(duplicates.exact) == 1
    assert duplicates.near == ()


def test_images_of_one_colour_are_equal_or_nothing() -> None:
    """They have no shape, and their hashes are all the same."""
    train, test = random_images(20), random_images(20, seed=1)
    train[:3], test[0], test[1], test[2] = 0, 0, 9, 255
    duplicates = find_duplicates(make_data(train, test))
    assert [len(group) for group in duplicates.exact] == [4]
    assert duplicates.near == ()


def test_the_pairs_are_those_of_a_plain_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_QUERIES", 7)
    monkeypatch.setattr(module, "CHUNK", 9)
    train, test = random_images(50), random_images(30, seed=1)
    generator = np.random.default_rng(2)
    for row in range(0, 30, 2):  # copies of different quality
        noise = generator.normal(0, row, (1, 32, 32))
        test[row] = np.clip(train[row] + noise, 0, 255).astype(np.uint8)
    train[49] = np.clip(train[0].astype(int) + 2, 0, 255)  # test 0 has two neighbours
    duplicates = find_duplicates(make_data(train, test, [0] * 50, [0] * 30))
    assert duplicates.near
    from imagehash import phash

    hashes = {
        name: [phash(Image.fromarray(x[0])) for x in images] for name, images in (("train", train), ("test", test))
    }
    mean = train[:, 0].astype(float).mean(0)
    expected = []
    for row, image in enumerate(test):
        pairs = [
            (float(np.corrcoef((image[0] - mean).ravel(), (other[0] - mean).ravel())[0, 1]), column)
            for column, other in enumerate(train)
            if hashes["test"][row] - hashes["train"][column] <= module.MAX_BITS
        ]
        if pairs and max(pairs)[0] > module.SURE_SIMILARITY and not (train == image).all((1, 2, 3)).any():
            expected.append((max(pairs)[1], row, round(max(pairs)[0], 4)))
    assert len(expected) > 3
    result = [(pair.first.row, pair.second.row, round(pair.similarity, 4)) for pair in duplicates.near]
    assert sorted(result) == sorted(expected)
    assert [pair.similarity for pair in duplicates.near] == sorted(
        (p.similarity for p in duplicates.near), reverse=True
    )


def test_of_many_candidates_the_nearest_by_hash_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CANDIDATES", 1)
    train, test = random_images(100), random_images(10, seed=1)
    noise = np.random.default_rng(0).normal(0, 25, (8, 1, 32, 32))
    train[:8] = np.clip(test[0] + noise, 0, 255).astype(np.uint8)
    train[17] = test[0] // 2 + 40  # of another contrast, which changes no bit of the hash
    duplicates = find_duplicates(make_data(train, test, [0] * 100, [0] * 10))
    assert [(pair.first.row, pair.second.row) for pair in duplicates.near or ()] == [(17, 0)]


@pytest.mark.parametrize(
    ("values", "count", "threshold"),
    [
        ([], 100, 0.95),
        ([0.93], 100, 0.95),
        ([0.96], 100, 0.96),
        ([], 1000, 0.9),
        ([0.95, 0.92, 0.3], 1000, 0.92),
        ([0.5] * 9, 10, 0.95),
        ([0.999] * 9, 10, 0.97),
    ],
)
def test_the_threshold_is_what_one_image_in_a_thousand_reaches_in_another_class(
    values: list[float], count: int, threshold: float
) -> None:
    assert module._choose_threshold(values, count) == threshold


def test_where_different_classes_look_alike_only_closer_copies_count() -> None:
    """Four shapes, each of which occurs in both classes, as shirts and pullovers do in Fashion-MNIST."""
    noise = np.random.default_rng(3).normal(0, 15, (80, 1, 32, 32))
    images = np.clip(random_images(4)[np.arange(80) // 2 % 4] * 0.8 + noise + 20, 0, 255).astype(np.uint8)
    images[79] = images[0]
    images[79, 0, 0, 0] ^= 1
    duplicates = find_duplicates(make_data(images[:40], images[40:], test_labels=[0, 1] * 19 + [0, 0]))
    assert module.LOW_SIMILARITY < duplicates.min_similarity < module.HIGH_SIMILARITY
    assert duplicates.near
    assert (duplicates.near[0].first.row, duplicates.near[0].second.row) == (0, 39)
    assert not any(pair.contradicts for pair in duplicates.near)


@pytest.mark.parametrize("near", [None, True])
def test_small_images_are_not_hashed(near: bool | None) -> None:
    images = random_images(8, side=module.MIN_SIDE - 1)
    duplicates = find_duplicates(make_data(images[:5], images[5:]), near=near)
    assert duplicates.near is None
    assert "23x23 pixels are too small" in duplicates.skipped_near
    images = random_images(8, side=module.MIN_SIDE)
    assert find_duplicates(make_data(images[:5], images[5:]), near=near).near == ()


def test_many_images_are_hashed_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_IMAGES", 7)
    data = make_data(random_images(5), random_images(3, seed=1))
    assert "8 images take minutes" in find_duplicates(data).skipped_near
    assert find_duplicates(data, near=True).near == ()
    assert find_duplicates(data, near=False).skipped_near == "near duplicates were not looked for"


def test_progress_adds_up_and_is_silent_for_few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_data(random_images(25), random_images(12, seed=1))
    events: list[Event] = []
    find_duplicates(data, listen=events.append)
    assert events == []
    monkeypatch.setattr(module, "ANNOUNCED", 37)
    monkeypatch.setattr(module, "CHUNK", 10)
    find_duplicates(data, listen=events.append)
    totals = {event["name"]: event["total"] for event in events if event["event"] == "stage"}
    assert totals == {"hashing": 3 + 2, "matching": 2 + 2}, "test in train, and in the empty validation split"
    assert sum(event["event"] == "advance" for event in events) == sum(totals.values())


def test_a_near_pair_says_whether_its_labels_differ() -> None:
    assert NearPair(Place("train", 0, 1), Place("test", 0, 0), 0.99).contradicts
