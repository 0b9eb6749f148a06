"""The overview of a data set: statistics of pixels, and the sentences on what may be a mistake."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_files import save_picture

from limbeck.data import ImageData, Split, load_data
from limbeck.data import overview as module
from limbeck.data.overview import make_overview, pixel_statistics

Pixels = np.ndarray[Any, np.dtype[np.uint8]]


def noise(*shape: int, low: int = 0, high: int = 256, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(low, high, shape, dtype=np.uint8)


def make_data(train: Pixels, test: Pixels, classes: tuple[str, ...] = ("cat", "dog"), labels: Any = None) -> ImageData:
    def split(images: Pixels, labels: Any = None) -> Split:
        numbers = torch.arange(len(images)) % len(classes) if labels is None else torch.tensor(labels)
        return Split(torch.from_numpy(images), numbers)

    return ImageData("some", split(train, labels), split(train[:0]), split(test), classes, ("a note",), "0" * 16)


def warnings_of(train: Pixels, test: Pixels | None = None, **options: Any) -> list[str]:
    test = noise(4, *train.shape[1:], seed=1) if test is None else test
    return make_overview(make_data(train, test, **options)).warnings()


@pytest.mark.parametrize("channels", [1, 3])
def test_statistics_are_those_of_numpy(monkeypatch: pytest.MonkeyPatch, channels: int) -> None:
    monkeypatch.setattr(module, "_CHUNK", 3 * channels * 5 * 7)
    images = np.stack([noise(8, 5, 7, low=10 * c, high=100 + 40 * c, seed=c) for c in range(channels)], axis=1)
    images[3] = images[3, :, :1, :1]
    images[7, :, 2:] = 60
    statistics = pixel_statistics(make_data(images, images).train)
    assert statistics is not None
    assert statistics.constant == (3,)
    assert statistics.levels() == len(np.unique(images))
    for channel, (low, high) in enumerate(statistics.limits()):
        assert (low, high) == (images[:, channel].min(), images[:, channel].max())
        assert statistics.mean()[channel] == pytest.approx(images[:, channel].mean())


def test_limits_without_tails() -> None:
    images = np.full((1, 1, 50, 100), 20, np.uint8)
    images[0, 0, 0, :4] = 255, 255, 255, 0
    images[0, 0, 1, :10] = 30
    statistics = pixel_statistics(make_data(images, images).train)
    assert statistics is not None
    assert statistics.limits() == [(0, 255)]
    assert statistics.limits(0.001) == [(20, 30)], "3 bright pixels of 5,000 are less than a thousandth, 13 are more"
    assert statistics.limits(0.003) == [(20, 20)]


def test_a_split_without_images_has_no_statistics() -> None:
    overview = make_overview(make_data(noise(4, 1, 8, 8), noise(4, 1, 8, 8, seed=1)))
    assert set(overview.pixels) == {"train", "test"}
    assert set(overview.to_json()["pixels"]) == {"train", "test"}


def test_ordinary_images_give_no_warnings() -> None:
    assert warnings_of(noise(6, 3, 8, 8)) == []


@pytest.mark.parametrize(
    ("low", "high", "mark", "sentence"),
    [
        (0, 17, 255, "nearly all pixels lie in 0 to 16 of 255, so the images are nearly black; --pixel-range 0 16"),
        (
            200,
            256,
            0,
            "nearly all pixels lie in 200 to 255 of 255, so the images are nearly white; --pixel-range 200 255",
        ),
        (100, 120, 0, "nearly all pixels lie in 100 to 119 of 255, so the images are of hardly any contrast"),
        (100, 120, 110, "of hardly any contrast"),
        (0, 80, 255, None),
        (0, 17, 16, None),  # this is in the notes of `load_data`
    ],
)
def test_images_in_which_little_is_seen(low: int, high: int, mark: int, sentence: str | None) -> None:
    """A burned-in mark of one pixel an image does not hide that the rest is nearly black."""
    train, test = noise(6, 1, 40, 40, low=low, high=high), noise(4, 1, 40, 40, low=low, high=high, seed=1)
    train[:, :, 0, 0] = mark
    warnings = warnings_of(train, test)
    assert len(warnings) == (sentence is not None)
    assert sentence is None or sentence in warnings[0]


def test_images_of_one_colour_are_counted_by_class() -> None:
    train, test = noise(9, 1, 8, 8), noise(4, 1, 8, 8, seed=1)
    for value, row in enumerate((1, 3, 4)):
        train[row] = value
    test[3] = 77
    (warning,) = warnings_of(train, test)
    assert warning == "4 images are of one colour throughout: 3 of dog (as train 1), 1 of cat (as train 4)"


def test_of_many_classes_with_images_of_one_colour_three_are_named() -> None:
    train = noise(12, 1, 8, 8)
    train[:6] = np.arange(6, dtype=np.uint8)[:, None, None, None]
    (warning,) = warnings_of(train, classes=tuple("abcdef"))
    assert warning.endswith("1 of a (as train 0), 1 of b (as train 1), 1 of c (as train 2) and 3 other classes")


@pytest.mark.parametrize(("counts", "is_uneven"), [((5, 5), False), ((5, 9), False), ((5, 10), True), ((1, 30), True)])
def test_uneven_classes(counts: tuple[int, int], is_uneven: bool) -> None:
    labels = [1] * counts[0] + [0] * counts[1]
    warnings = warnings_of(noise(sum(counts), 1, 8, 8), labels=labels)
    assert [f"{counts[1]} images of cat and {counts[0]} of dog" in warning for warning in warnings] == [
        True
    ] * is_uneven


@pytest.mark.parametrize(
    ("tested", "names"), [([0, 1, 2, 3, 4], ""), ([0, 1, 3, 4], "c"), ([4], "a, b, c and 1 other")]
)
def test_classes_without_test_images(tested: list[int], names: str) -> None:
    """Of class e there is one image, which is in the notes."""
    splits = [
        Split(torch.from_numpy(noise(len(labels), 1, 8, 8, seed=len(labels))), torch.tensor(labels, dtype=torch.int64))
        for labels in ([0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4], [], tested)
    ]
    data = ImageData("some", *splits, tuple("abcde"), (), "0" * 16)
    warnings = make_overview(data).warnings()
    assert [warning for warning in warnings if warning.startswith("test has")] == (
        [f"test has no image of {names}{' class' * ('other' in names)}"] if names else []
    )


def test_equal_images_of_one_colour_are_told_once() -> None:
    train, test = noise(8, 1, 8, 8), noise(6, 1, 8, 8, seed=1)
    train[:4], test[:3] = 0, 0
    overview = make_overview(make_data(train, test))
    assert overview.warnings() == [
        "7 images are of one colour throughout: 4 of cat (as train 0), 3 of dog (as train 1)"
    ]
    assert overview.to_json()["duplicates"]["exact"]["contradictions"] == 1


def test_duplicates_are_told_with_an_example_each() -> None:
    train, test = noise(8, 1, 8, 8), noise(6, 1, 8, 8, seed=1)
    train[5] = train[1]
    test[2] = train[0]
    test[3] = train[4]
    assert warnings_of(train, test) == [
        "equal images have different labels in 1 case, as train 4 (cat) = test 3 (dog)",
        "2 images of test are also in train, pixel for pixel, as train 0 (cat) = test 2 (cat)",
        "1 image is a copy of another one in the same split: 1 in train",
    ]


def test_near_duplicates_are_told_by_pair_of_splits() -> None:
    coarse = noise(30, 1, 8, 8).repeat(4, axis=2).repeat(4, axis=3)
    train, test = coarse[:20], coarse[20:]
    test[0] = train[4] // 2 + 10
    test[1] = train[7] // 2 + 20
    (warning,) = warnings_of(train, test)
    assert warning.startswith("2 images of test are nearly equal to one of train, as test ")
    assert "too many" not in warning
    test[2] = train[8] // 2 + 20
    (warning,) = warnings_of(train, test)
    assert warning.endswith(", of 10: too many for single copies, so that many images look alike or were split late")


def test_the_command_that_shows_duplicates_names_the_data(tmp_path: Path) -> None:
    coarse = noise(30, 1, 8, 8).repeat(4, axis=2).repeat(4, axis=3)
    for row, image in enumerate([*coarse, coarse[0] // 2 + 10]):
        place = tmp_path / "my photos" / ("test" if row > 20 else "train") / "ab"[row % 2]
        save_picture(place / f"{row}.png", image[0])
    place = tmp_path / "my photos"
    (finding,) = (f for f in make_overview(load_data(place, resize=32)).findings() if "nearly" in f.text)
    assert finding.remedy.startswith(f"look at them with limbeck info '{place}' --resize 32 --picture pairs.png, ")


def test_class_names_in_sentences_are_short_and_printable() -> None:
    train = noise(4, 1, 8, 8)
    train[2] = train[1]
    warnings = warnings_of(train, classes=("\x1b[31mred\n" + "x" * 500, "b"))
    assert all(warning.isprintable() and len(warning) < 300 for warning in warnings)
    assert "train 2 (\\x1b[31mred\\…xxxxxxxxxxx)" in warnings[0]


def test_json_has_all_of_it() -> None:
    train, test = noise(40, 1, 24, 24), noise(20, 1, 24, 24, seed=1)
    test[7] = train[3]
    test[8] = np.clip(train[4].astype(int) + 3, 0, 255)
    data = make_data(train, test, labels=[0] * 25 + [1] * 15)
    facts = json.loads(json.dumps(make_overview(data).to_json(), allow_nan=False))
    assert set(facts) == {*data.describe(), "pixels", "balance", "duplicates", "warnings"}
    assert facts["balance"] == {"smallest": 15, "largest": 25}
    exact, near = facts["duplicates"]["exact"], facts["duplicates"]["near"]
    places = [{"split": "train", "row": 3, "label": 0}, {"split": "test", "row": 7, "label": 1}]
    assert exact["groups"] == [places]
    assert exact["across"] == {"train-validation": 0, "train-test": 1, "validation-test": 0}
    assert exact["contradictions"] == 1
    assert [pair["images"][0]["row"] for pair in near["pairs"]] == [4]
    assert (near["across"]["train-test"], near["contradictions"]) == (1, 0)
    assert facts["duplicates"]["near_skipped"] is None
    facts = make_overview(data, near=False).to_json()
    assert facts["duplicates"]["near"] is None
    assert facts["duplicates"]["near_skipped"] == "near duplicates were not looked for"
