"""Images that occur twice in a data set, with equal pixels or nearly so, within and across its splits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from limbeck.core.events import Event, Listener
from limbeck.data.images import ImageData

SPLITS = ("train", "validation", "test")
CHUNK = 1000  # images between two events of progress
ANNOUNCED = 10_000  # fewer images are compared within a second
MIN_SIDE, MAX_IMAGES = 24, 200_000  # outside of these, near duplicates are not looked for by default
# Measured on test images against train images (docs/LOG.md). The hashes of copies that were compressed, darkened or
# resized differ by at most 6 bits of 64. In CIFAR-10 this alone finds copies; in Fashion-MNIST half of all test images
# have such a neighbour, and a quarter one of another class, so that similarity has to decide. At 28 pixels no two
# images of different classes were more similar than 0.97; at 16 pixels 1 % of the test images were.
MAX_BITS = 6
LOW_SIMILARITY, HIGH_SIMILARITY = 0.9, 0.97
# Where fewer than 1,000 images are tested, no threshold can be read off: at 0.95 instead of 0.9, 600 images of
# Fashion-MNIST give 0.5 % of false alarms instead of 3 %, and 74 of 80 changed copies are still found.
SURE_SIMILARITY = 0.95
FALSE_ALARMS = 0.001  # share of images that may be as similar to one of another class
_THUMBNAIL = 32  # pixels a side, on which the hash is defined
_QUERIES, _CANDIDATES = 64, 100  # images compared at once, and how many of the nearest by hash are looked at for each
Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


class Place(NamedTuple):
    """Where an image stands: its split, its row there, and its label. `data.train.images[row]` is the image."""

    split: str
    row: int
    label: int


class NearPair(NamedTuple):
    """Two images of different splits that look alike; similarity in -1..1 is that of `find_duplicates`."""

    first: Place
    second: Place
    similarity: float

    @property
    def contradicts(self) -> bool:
        """Whether their labels differ."""
        return self.first.label != self.second.label


@dataclass(frozen=True)
class Duplicates:
    """Images that occur more than once.

    exact:          groups of two or more images with equal pixels, in the order train, validation, test.
    near:           for every image of validation and test that has no exact copy in an earlier split, the most
                    similar image there, where the two are near duplicates. None where none were looked for.
    skipped_near:   why near duplicates were not looked for, as a sentence; "" where they were.
    min_similarity: above it, two images are near duplicates in this data set.
    """

    exact: tuple[tuple[Place, ...], ...]
    near: tuple[NearPair, ...] | None
    skipped_near: str
    min_similarity: float

    def contradictions(self) -> list[tuple[Place, ...]]:
        """The groups of equal images that do not all have one label."""
        return [group for group in self.exact if len({place.label for place in group}) > 1]

    def count_within(self) -> dict[str, int]:
        """By split: how many images are copies of one before them in the same split."""
        copies = Counter(place.split for group in self.exact for place in group)
        firsts = Counter(split for group in self.exact for split in {place.split for place in group})
        return {split: copies[split] - firsts[split] for split in SPLITS}

    def count_across(self) -> dict[tuple[str, str], int]:
        """By pair of splits: how many images of the second one have an exact copy in the first one."""
        return {
            (first, second): sum(
                sum(place.split == second for place in group)
                for group in self.exact
                if any(place.split == first for place in group)
            )
            for first, second in combinations(SPLITS, 2)
        }

    def count_near(self) -> dict[tuple[str, str], int]:
        """By pair of splits: how many images of the second one have a near duplicate in the first one."""
        counts = Counter((pair.first.split, pair.second.split) for pair in self.near or ())
        return {splits: counts[splits] for splits in combinations(SPLITS, 2)}


def find_duplicates(data: ImageData, *, near: bool | None = None, listen: Listener | None = None) -> Duplicates:
    """Find images with equal pixels anywhere in a data set, and near duplicates across its splits.

    near:   whether to look for near duplicates. By default they are looked for in at most `MAX_IMAGES` images. Images
            with a side below `MIN_SIDE` are always left out, since a hash of so few pixels matches what merely has
            the same shape.
    listen: receives the events of the stages, where there are many images.

    Two images are near duplicates where their perceptual hashes (pHash of the package ImageHash, 64 bits) differ by at
    most `MAX_BITS` and their similarity reaches a threshold. The similarity is the correlation of what distinguishes
    the two, in 32x32 grey pixels, from the mean image of train. The threshold is the similarity that `FALSE_ALARMS`
    of the images of validation and test reach with an image of another class, but at least `LOW_SIMILARITY` and at most
    `HIGH_SIMILARITY`: where images of different classes look alike, so do different images of one class. Where they are
    too few for such a share, it is at least `SURE_SIMILARITY`.

    >>> from limbeck.data import load_data
    >>> duplicates = find_duplicates(load_data("digits"))
    >>> duplicates.exact, duplicates.near, duplicates.skipped_near
    ((), None, 'near duplicates were not looked for: images of 8x8 pixels are too small for a perceptual hash')
    """
    splits = {split: getattr(data, split) for split in SPLITS}
    images = {split: part.images.numpy() for split, part in splits.items()}
    labels = {split: part.labels.numpy() for split, part in splits.items()}
    exact = _find_exact(images, labels)
    count = sum(map(len, images.values()))
    reason = _reason_to_skip(data, count, near)
    if reason is not None:
        return Duplicates(exact, None, f"near duplicates were not looked for{reason}", HIGH_SIMILARITY)
    search = _NearSearch(images, labels, listen if listen and count >= ANNOUNCED else _ignore)
    for place in (place for group in exact for place in group if place.split != group[0].split):
        search.is_copy[place.split][place.row] = True
    pairs, min_similarity = search.find_pairs()
    return Duplicates(exact, tuple(pairs), "", min_similarity)


def _ignore(event: Event) -> None:
    pass


def _reason_to_skip(data: ImageData, count: int, near: bool | None) -> str | None:
    """Why no hashes are computed, as the end of a sentence; None where they are."""
    height, width = data.size
    if near is False:
        return ""
    if min(height, width) < MIN_SIDE:
        return f": images of {height}x{width} pixels are too small for a perceptual hash"
    if near is None and count > MAX_IMAGES:
        return f": {count:,} images take minutes; pass --near-duplicates yes (near=True in Python)"
    return None


def _find_exact(images: dict[str, Any], labels: dict[str, Any]) -> tuple[tuple[Place, ...], ...]:
    groups: dict[bytes, list[Place]] = {}
    for split, array in images.items():
        for row, (image, label) in enumerate(zip(array, labels[split].tolist(), strict=True)):
            digest = blake2b(np.ascontiguousarray(image).data, digest_size=16).digest()
            groups.setdefault(digest, []).append(Place(split, row, label))
    return tuple(tuple(group) for group in groups.values() if len(group) > 1)


class _NearSearch:
    """The hashes and 32x32 grey pixels of all images by split, and the search for neighbours among them."""

    def __init__(self, images: dict[str, Any], labels: dict[str, Any], listen: Listener):
        self.labels, self.listen = labels, listen
        self.hashes: dict[str, npt.NDArray[np.uint64]] = {}
        self.pixels: dict[str, Bytes] = {}
        self.is_copy = {split: np.zeros(len(array), bool) for split, array in images.items()}  # these have no search
        chunks = {split: range(0, len(array), CHUNK) for split, array in images.items()}
        self._announce("hashing", sum(map(len, chunks.values())))
        for split, array in images.items():
            self.pixels[split] = np.empty((len(array), _THUMBNAIL, _THUMBNAIL), np.uint8)
            self.hashes[split] = np.empty(len(array), np.uint64)
            for start in chunks[split]:
                part = slice(start, start + CHUNK)
                self.pixels[split][part], self.hashes[split][part] = _hash_images(array[part])
                listen({"event": "advance", "text": split})
        self.mean = self.pixels["train"].mean(0, dtype=np.float64).astype(np.float32)

    def _announce(self, name: str, total: int) -> None:
        self.listen({"event": "stage", "name": name, "total": total, "unit": "thousand image"})

    def find_pairs(self) -> tuple[list[NearPair], float]:
        """The most similar image of an earlier split for each of a later one, and the similarity that counts."""
        pairs, other_classes = [], []
        total = sum(-(-len(self.hashes[second]) // CHUNK) for _, second in combinations(SPLITS, 2))
        self._announce("matching", total)
        for first, second in combinations(SPLITS, 2):
            for start in range(0, len(self.hashes[second]), CHUNK):
                rows = start + np.flatnonzero(~self.is_copy[second][start : start + CHUNK])
                for block in range(0, len(rows), _QUERIES):
                    for pair, other_class in self._match(first, second, rows[block : block + _QUERIES]):
                        pairs.append(pair)
                        other_classes.append(other_class)
                self.listen({"event": "advance", "text": f"{second} in {first}"})
        count = sum(len(self.hashes[split]) for split in SPLITS[1:])
        threshold = _choose_threshold(other_classes, count)
        return sorted((p for p in pairs if p.similarity > threshold), key=lambda p: -p.similarity), threshold

    def _match(self, first: str, second: str, rows: npt.NDArray[np.int64]) -> Iterator[tuple[NearPair, float]]:
        """Rows of `second` that have candidates in `first`: the most similar, and the similarity to another class."""
        bits = np.bitwise_count(self.hashes[second][rows, None] ^ self.hashes[first][None])
        queries, candidates = np.nonzero(bits <= MAX_BITS)
        order = np.lexsort((bits[queries, candidates], queries))
        queries, candidates = queries[order], candidates[order]
        nearest = np.arange(len(queries)) - np.searchsorted(queries, queries) < _CANDIDATES
        queries, candidates = queries[nearest], candidates[nearest]
        a, b = self._deviations(second, rows[queries]), self._deviations(first, candidates)
        similarity = np.einsum("ij,ij->i", a, b)
        labels, others = self.labels[second][rows[queries]], self.labels[first][candidates]
        for query in np.unique(queries):
            members = np.flatnonzero(queries == query)
            best = members[similarity[members].argmax()]
            other_class = similarity[members][labels[members] != others[members]].max(initial=-1.0)
            earlier = Place(first, int(candidates[best]), int(others[best]))
            later = Place(second, int(rows[query]), int(labels[best]))
            yield NearPair(earlier, later, float(similarity[best])), float(other_class)

    def _deviations(self, split: str, rows: npt.NDArray[np.int64]) -> Floats:
        """What distinguishes images from the mean image, as vectors (n, 1024) of mean 0 and length 1.

        An image of one colour is 0: it differs from the mean image in the same way whether it is black or white.
        """
        pixels = self.pixels[split][rows].reshape(len(rows), _THUMBNAIL**2)
        x = (pixels - self.mean.ravel()) * (pixels.max(1) > pixels.min(1))[:, None]
        x -= x.mean(1, keepdims=True)
        unit: Floats = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-3)
        return unit


def _choose_threshold(other_classes: Sequence[float], count: int) -> float:
    """The similarity to another class that `FALSE_ALARMS` of `count` images reach, between the two limits."""
    allowed = int(FALSE_ALARMS * count)
    values = sorted(other_classes, reverse=True)
    reached = values[allowed] if allowed < len(values) else -1.0
    return min(max(reached, LOW_SIMILARITY if allowed else SURE_SIMILARITY), HIGH_SIMILARITY)


def _hash_images(images: Bytes) -> tuple[Bytes, npt.NDArray[np.uint64]]:
    """Images uint8 (n, c, h, w) as grey ones (n, 32, 32), and their hashes (n,)."""
    from imagehash import phash  # takes 0.1 s to import, with scipy

    size = (_THUMBNAIL, _THUMBNAIL)
    pixels = (image[0] if len(image) == 1 else np.ascontiguousarray(image.transpose(1, 2, 0)) for image in images)
    thumbnails = [Image.fromarray(part).convert("L").resize(size, Image.Resampling.LANCZOS) for part in pixels]
    bits = np.packbits([phash(thumbnail).hash.ravel() for thumbnail in thumbnails], axis=1)
    return np.stack([np.asarray(thumbnail) for thumbnail in thumbnails]), bits.view(np.uint64)[:, 0]
