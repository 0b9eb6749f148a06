"""What a person should know of a data set before using it: counts, pixels, duplicates, and sentences on what is odd."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from limbeck.core.events import Listener
from limbeck.core.findings import Finding
from limbeck.core.text import printable
from limbeck.data.duplicates import SPLITS, Duplicates, NearPair, Place, find_duplicates
from limbeck.data.images import ImageData, Split
from limbeck.data.pixels import BRIGHT, DARK, describe_darkness

CONTRAST = 32  # levels: where nearly all pixels lie within fewer, a person sees little
TAIL = 0.001  # share of the pixels left out at either end, as the labels that are printed into X-rays
MANY_ALIKE = 0.2  # a larger share of near duplicates in a split is no matter of single copies
UNEVEN = 2.0  # times that the largest class is larger than the smallest from which on they are called uneven
_CHUNK = 1 << 22  # pixels that are counted at once, for which numpy takes eight times their bytes
_SHOWN = 3  # examples in a sentence
_NAME_WIDTH = 24  # characters of a class name in a sentence
PATH_WIDTH = 60  # characters of the path of a file in a sentence


class PixelStatistics(NamedTuple):
    """The pixels of one split, in 0..255.

    histogram: int64 (channels, 256), how often each value occurs.
    constant:  rows of the images that are of one colour throughout.
    """

    histogram: npt.NDArray[np.int64]
    constant: tuple[int, ...]

    def limits(self, tail: float = 0.0) -> list[tuple[int, int]]:
        """The lowest and the highest value by channel, after a share `tail` of the pixels is left out at either end."""
        limits = []
        for counts in self.histogram:
            total = counts.cumsum()
            low = int(np.searchsorted(total, tail * total[-1], side="right"))
            limits.append((low, int(np.searchsorted(total, (1 - tail) * total[-1], side="left"))))
        return limits

    def mean(self) -> list[float]:
        """By channel."""
        return [float(counts @ np.arange(256) / counts.sum()) for counts in self.histogram]

    def levels(self) -> int:
        """How many different values occur; 8 bits have 256."""
        return int(self.histogram.any(0).sum())


def pixel_statistics(split: Split) -> PixelStatistics | None:
    """The statistics of a split; None for one without images.

    >>> from limbeck.data import load_data
    >>> statistics = pixel_statistics(load_data("digits").train)
    >>> statistics.limits(), statistics.levels(), statistics.constant
    ([(0, 255)], 17, ())
    """
    if not len(split):
        return None
    images = split.images.numpy()
    histogram = np.zeros((images.shape[1], 256), np.int64)
    constant: list[int] = []
    step = max(1, _CHUNK // images[0].size)
    for start in range(0, len(images), step):
        part = images[start : start + step]
        part = part.reshape(*part.shape[:2], -1)
        for channel, counts in enumerate(histogram):
            counts += np.bincount(part[:, channel].ravel(), minlength=256)
        constant += (start + np.flatnonzero((part == part[:, :, :1]).all((1, 2)))).tolist()
    return PixelStatistics(histogram, tuple(constant))


@dataclass(frozen=True)
class Overview:
    """An overview of a data set. Splits without images are not in `pixels`."""

    data: ImageData
    pixels: dict[str, PixelStatistics]
    duplicates: Duplicates

    def warnings(self) -> list[str]:
        """Sentences on what may be a mistake, the gravest first."""
        return [finding.text for finding in self.findings()]

    def findings(self) -> list[Finding]:
        """The same, with what to do about it."""
        return [*self._duplicates(), *self._pixels(), *self._balance()]

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON values: `ImageData.describe`, and "pixels", "balance", "duplicates" and "warnings"."""
        counts = self.data.train.counts(self.data.num_classes)
        return {
            **self.data.describe(),
            "pixels": {split: _pixels_to_json(statistics) for split, statistics in self.pixels.items()},
            "balance": {"smallest": min(counts), "largest": max(counts)},
            "duplicates": self._duplicates_to_json(),
            "warnings": self.warnings(),
        }

    def _class(self, label: int) -> str:
        return printable(self.data.classes[label], _NAME_WIDTH)

    def _place(self, place: Place) -> str:
        return f"{self.locate(place)} ({self._class(place.label)})"

    def locate(self, place: Place) -> str:
        """Where an image stands, for sentences: its file where it is one, else its split and row."""
        files = self.data.files.get(place.split)
        return printable(files[place.row], PATH_WIDTH) if files else f"{place.split} {place.row}"

    def _duplicates(self) -> list[Finding]:
        findings, duplicates = [], replace(self.duplicates, exact=self._groups_of_shapes())
        if groups := duplicates.contradictions():
            example = " = ".join(self._place(place) for place in _differing(groups[0]))
            text = f"equal images have different labels in {_count(len(groups), 'case')}, as {example}"
            findings.append(Finding(text, "keep each once, with its right label"))
        for (first, second), count in duplicates.count_across().items():
            if count:
                example = " = ".join(self._place(place) for place in _across(duplicates.exact, first, second))
                text = f"{_are(count, f'of {second}')} also in {first}, pixel for pixel, as {example}"
                findings.append(Finding(text, f"take them out of {first}"))
        near = duplicates.near or ()
        for (first, second), count in duplicates.count_near().items():
            if count:
                pairs = [pair for pair in near if (pair.first.split, pair.second.split) == (first, second)]
                text = self._describe_near(pairs, first, second)
                findings.append(Finding(text, f"look at them with {self._info_command()}, and take copies out"))
        if copies := {split: count for split, count in duplicates.count_within().items() if count}:
            shares = ", ".join(f"{count:,} in {split}" for split, count in copies.items())
            text = f"{_are(sum(copies.values()))} a copy of another one in the same split: {shares}"
            findings.append(Finding(text, "keep each once"))
        return findings

    def _info_command(self) -> str:
        """The command that draws pairs of duplicates."""
        origin = self.data.origin
        resize = "x".join(map(str, origin.resize)) if isinstance(origin.resize, tuple) else origin.resize
        options = "" if resize is None else f" --resize {resize}"
        return f"limbeck info {shlex.quote(origin.source or 'DATA')}{options} --picture pairs.png"

    def _groups_of_shapes(self) -> tuple[tuple[Place, ...], ...]:
        """The groups of equal images without those of one colour, on which there is a sentence of its own."""
        constant = {(split, row) for split, statistics in self.pixels.items() for row in statistics.constant}
        return tuple(group for group in self.duplicates.exact if group[0][:2] not in constant)

    def _describe_near(self, pairs: Sequence[NearPair], first: str, second: str) -> str:
        contradictions = sum(pair.contradicts for pair in pairs)
        label = f", {contradictions} of them with another label" if contradictions else ""
        pair = pairs[0]
        example = f"as {self._place(pair.second)} like {self._place(pair.first)}"
        total = len(getattr(self.data, second))
        doubt = f", of {total:,}: too many for single copies, so that many images look alike or were split late"
        return (
            f"{_are(len(pairs), f'of {second}')} nearly equal to one of {first}{label}, {example}"
            f"{doubt if len(pairs) > MANY_ALIKE * total else ''}"
        )

    def _pixels(self) -> list[Finding]:
        findings = []
        limits = [pair for statistics in self.pixels.values() for pair in statistics.limits()]
        bulk = [pair for statistics in self.pixels.values() for pair in statistics.limits(TAIL)]
        low, high = min(pair[0] for pair in bulk), max(pair[1] for pair in bulk)
        is_noted = describe_darkness(min(pair[0] for pair in limits), max(pair[1] for pair in limits))
        look = "nearly black" if high < DARK else "nearly white" if low >= BRIGHT else "of hardly any contrast"
        if (high < DARK or low >= BRIGHT or high - low < CONTRAST) and not is_noted:
            spread = f"; --pixel-range {low} {high} spreads them" if low < high else ""
            text = f"nearly all pixels lie in {low} to {high} of 255, so the images are {look}{spread}"
            findings.append(Finding(text, "" if spread else "check how they were written"))
        constant: dict[int, list[Place]] = {}
        for split, statistics in self.pixels.items():
            labels = getattr(self.data, split).labels
            for row in statistics.constant:
                constant.setdefault(int(labels[row]), []).append(Place(split, row, int(labels[row])))
        if constant:
            total = sum(map(len, constant.values()))
            sizes = Counter({label: len(places) for label, places in constant.items()}).most_common()
            names = [f"{size} of {self._class(label)} (as {self.locate(constant[label][0])})" for label, size in sizes]
            findings.append(Finding(f"{_are(total)} of one colour throughout: {_list(names)}", "remove them"))
        return findings

    def _balance(self) -> list[Finding]:
        data, findings = self.data, []
        counts = {split: np.array(getattr(data, split).counts(data.num_classes)) for split in SPLITS}
        enough = sum(counts.values()) > len(SPLITS) - 1  # smaller classes are in the notes
        for split in self.pixels:
            names = [self._class(label) for label in np.flatnonzero((counts[split] == 0) & enough).tolist()]
            if names:
                findings.append(Finding(f"{split} has no image of {_list(names)}", "add some, or leave the class out"))
        small, large = int(counts["train"].argmin()), int(counts["train"].argmax())
        least, most = int(counts["train"][small]), int(counts["train"][large])
        if most >= UNEVEN * least:
            text = (
                f"classes are uneven: train has {most:,} images of {self._class(large)} and {least:,} of "
                f"{self._class(small)}; read the balanced accuracy beside the accuracy"
            )
            findings.append(Finding(text, "--balanced and --eval.choose-by balanced count every class alike"))
        return findings

    def _place_to_json(self, place: Place) -> dict[str, Any]:
        files = self.data.files.get(place.split)
        return {**place._asdict(), **({"file": files[place.row]} if files else {})}

    def _duplicates_to_json(self) -> dict[str, Any]:
        duplicates = self.duplicates
        exact = {
            "within": duplicates.count_within(),
            "across": {"-".join(splits): count for splits, count in duplicates.count_across().items()},
            "contradictions": len(duplicates.contradictions()),
            "groups": [[self._place_to_json(place) for place in group] for group in duplicates.exact],
        }
        if duplicates.near is None:
            return {"exact": exact, "near": None, "near_skipped": duplicates.skipped_near}
        near = {
            "across": {"-".join(splits): count for splits, count in duplicates.count_near().items()},
            "contradictions": sum(pair.contradicts for pair in duplicates.near),
            "min_similarity": round(duplicates.min_similarity, 4),
            "pairs": [
                {
                    "images": [self._place_to_json(pair.first), self._place_to_json(pair.second)],
                    "similarity": round(pair.similarity, 4),
                }
                for pair in duplicates.near
            ],
        }
        return {"exact": exact, "near": near, "near_skipped": None}


def make_overview(data: ImageData, *, near: bool | None = None, listen: Listener | None = None) -> Overview:
    """Look at every image of a data set. near, listen: see `find_duplicates`.

    >>> from limbeck.data import load_data
    >>> overview = make_overview(load_data("digits"))
    >>> overview.warnings(), overview.pixels["test"].limits()
    ([], [(0, 255)])
    """
    statistics = {split: pixel_statistics(getattr(data, split)) for split in SPLITS}
    pixels = {split: values for split, values in statistics.items() if values is not None}
    return Overview(data, pixels, find_duplicates(data, near=near, listen=listen))


def _pixels_to_json(statistics: PixelStatistics) -> dict[str, Any]:
    return {
        "min": [low for low, _ in statistics.limits()],
        "max": [high for _, high in statistics.limits()],
        "mean": [round(mean, 2) for mean in statistics.mean()],
        "levels": statistics.levels(),
        "constant_images": list(statistics.constant),
    }


def _are(count: int, which: str = "") -> str:
    """The beginning of a sentence about so many images."""
    return " ".join(filter(None, (_count(count, "image"), which, "is" if count == 1 else "are")))


def _count(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 'es' if noun.endswith('s') else 's'}"


def _list(parts: Sequence[str]) -> str:
    others = len(parts) - _SHOWN
    return ", ".join(parts[:_SHOWN]) + (f" and {_count(others, 'other class')}" if others > 0 else "")


def _differing(group: Sequence[Place]) -> tuple[Place, Place]:
    """Two images of a group whose labels differ."""
    return group[0], next(place for place in group if place.label != group[0].label)


def _across(groups: Sequence[Sequence[Place]], first: str, second: str) -> tuple[Place, Place]:
    """Two equal images of these two splits."""
    for group in groups:
        places = {place.split: place for place in reversed(group)}
        if first in places and second in places:
            return places[first], places[second]
    raise ValueError(f"no image is in both {first} and {second}")
