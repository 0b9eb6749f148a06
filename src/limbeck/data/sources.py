"""Where images come from. To add a data source, write one function that reads it and list it in READERS."""

from __future__ import annotations

import gzip
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from limbeck.core.errors import UserError
from limbeck.core.files import refuse_own_folder
from limbeck.data.cache import announce_decoding, read_with_cache
from limbeck.data.images import (
    SPLITS,
    Array,
    ImageData,
    Picture,
    RawData,
    Size,
    as_picture,
    assemble,
    decode_picture,
    stack_pictures,
)
from limbeck.data.parquet import parquet_files, read_parquet

FASHION_FOLDER = Path("/usr/share/datasets/fashion-mnist")
FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
NAMES = ("digits", "fashion-mnist")
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff")
NPZ_KEYS = {
    "train": (("train_images", "train_labels"), ("x_train", "y_train")),
    "validation": (("val_images", "val_labels"), ("x_val", "y_val")),
    "test": (("test_images", "test_labels"), ("x_test", "y_test")),
}
IDX_FILE = re.compile(r"(train|t10k|test)-(images|labels)[-.]idx[13]-ubyte(\.gz)?")


class Reader(NamedTuple):
    """One kind of source: what it is (for messages), whether a source is one, and how it is read at a size (h, w).

    files: all that is read, where reading means decoding pictures: the result is then kept for reuse.
    """

    what: str
    recognise: Callable[[Any], bool]
    read: Callable[[Any, Size | None], RawData]
    files: Callable[[Path], list[Path]] | None = None


def load_data(
    source: Any,
    *,
    validation: float = 0.1,
    seed: int = 0,
    resize: int | tuple[int, int] | None = None,
    test: Any | None = None,
    name: str | None = None,
) -> ImageData:
    """Read a labelled image set as uint8 (n, c, h, w) tensors with train, validation and test splits.

    source: a name in NAMES, the path of anything in READERS, a map-style Dataset of (image, label), or an ImageData,
        which is returned as it is. A name wins over a path: write ./digits for a folder of that name.
    validation: fraction of every class held out of train, in [0, 1), where the source has no validation split; a
        source without a test split first gives 20 % of every class to test. `notes` of the result tell.
    seed: of those draws. resize: height and width in pixels, or one number for both; stretches, antialiased bilinear.
    test: the Dataset of test images, beside a Dataset as source. name: instead of the source's own.

    Raises UserError, in one sentence, for whatever cannot be read or does not fit together.

    >>> data = load_data("digits")
    >>> data.shape, data.num_classes, len(data.train), len(data.validation), len(data.test)
    ((1, 8, 8), 10, 1295, 143, 359)
    """
    size = _size(resize)
    if not 0 <= validation < 1:
        raise UserError(f"validation is a fraction of train in [0, 1), not {validation}; 0.1 is usual")
    if isinstance(source, ImageData):
        if size not in (None, source.size) or test is not None:
            raise UserError("resize and test do nothing to data already loaded; give them where it is loaded first")
        return source
    reader = _reader(source)
    if test is not None and (reader is not DATASET or not DATASET.recognise(test)):
        raise UserError("test= is a Dataset beside a Dataset as source; a file or folder holds its own test split")
    try:
        if reader.files is None:
            raw = reader.read(source if test is None else _Pair(source, test), size)
        else:
            path = Path(source)
            raw = read_with_cache(path, partial(reader.files, path), size, partial(reader.read, path, size))
    except OSError as error:
        raise UserError(f"{error.filename or source}: cannot be read ({error.strerror or error}); check it") from error
    return assemble(raw._replace(name=name or raw.name), validation=validation, seed=seed, resize=size)


def _size(resize: int | tuple[int, int] | None) -> Size | None:
    if resize is None:
        return None
    height, width = (resize, resize) if isinstance(resize, int) else resize
    if height < 1 or width < 1:
        raise UserError(f"resize is a height and a width of at least 1 pixel, not {resize}; give, say, 32")
    return height, width


def _reader(source: Any) -> Reader:
    for reader in READERS:
        if reader.recognise(source):
            return reader
    kinds = "; ".join(reader.what for reader in READERS)
    if not isinstance(source, str | Path):
        raise UserError(f"a {type(source).__name__} is not a source of data; give one of: {kinds}")
    if not Path(source).exists():
        raise UserError(f"no data called {str(source)!r}; give a path that exists or a known name: {', '.join(NAMES)}")
    raise UserError(f"{source}: unknown file type {Path(source).suffix!r}; give one of: {kinds}")


def _read_digits(_source: Any, _size: Size | None) -> RawData:
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)  # 0..16
    images = np.rint(pixels.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    return RawData("digits", {"train": images}, {"train": labels})


def _read_fashion(_source: Any, size: Size | None) -> RawData:
    if not FASHION_FOLDER.is_dir():
        raise UserError(
            f"fashion-mnist: {FASHION_FOLDER} does not exist; install the Debian package dataset-fashion-mnist or give "
            "the folder with the idx files"
        )
    return _read_idx(FASHION_FOLDER, size)._replace(name="fashion-mnist", names=FASHION)


def _idx_files(folder: Path) -> dict[tuple[str, str], Path]:
    """(split, "images" or "labels") -> file; an unpacked file wins over the .gz beside it."""
    found: dict[tuple[str, str], Path] = {}
    for path in sorted(folder.iterdir(), reverse=True):
        if match := IDX_FILE.fullmatch(path.name):
            found["train" if match[1] == "train" else "test", match[2]] = path
    return found


def _read_idx(source: Any, _size: Size | None) -> RawData:
    folder = Path(source)
    files = _idx_files(folder)
    images, labels = {}, {}
    for split in ("train", "test"):
        pair = [files.get((split, kind)) for kind in ("images", "labels")]
        if pair[0] and pair[1]:
            images[split], labels[split] = _idx_array(pair[0], 3), _idx_array(pair[1], 1)
        elif split == "train" or any(pair):
            missing = "images" if pair[0] is None else "labels"
            raise UserError(f"{folder}: no idx file of {split} {missing}; add it, with the name it has in MNIST")
    return RawData(folder.resolve().name, images, labels)


def _idx_array(path: Path, dimensions: int) -> Array:
    """The bytes of an idx file as uint8 of its `dimensions` dimensions."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path}: truncated or not gzip ({error}); fetch it again") from error
    magic, start = bytes([0, 0, 8, dimensions]), 4 + 4 * dimensions
    if len(content) < start or content[:4] != magic:
        raise UserError(f"{path}: starts with {content[:4].hex()}, not {magic.hex()}; give an idx file as MNIST has")
    shape = [int.from_bytes(content[i : i + 4], "big") for i in range(4, start, 4)]
    values = np.frombuffer(content, np.uint8, offset=start)
    if len(values) != prod(shape):
        raise UserError(f"{path}: header says {shape} but {len(values)} bytes follow (truncated?); fetch it again")
    return values.reshape(shape)


def _read_npz(source: Any, _size: Size | None) -> RawData:
    path = Path(source)
    images, labels = {}, {}
    try:
        if not zipfile.is_zipfile(path):
            raise ValueError("no zip archive, or cut short")
        with np.load(path, allow_pickle=False) as archive:  # pickles run code when read
            keys = list(archive)
            for split, layouts in NPZ_KEYS.items():
                for image_key, label_key in layouts:
                    if image_key in keys and label_key in keys:
                        images[split], labels[split] = archive[image_key], archive[label_key]
    except (ValueError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        reason = "it holds Python objects" if "allow_pickle" in str(error) else str(error)
        raise UserError(f"{path}: not a readable .npz of arrays ({reason}); save it with numpy.savez") from error
    if "train" not in images:
        raise UserError(
            f"{path}: no images with labels to train on; it holds {', '.join(sorted(keys)) or 'nothing'}, and needs "
            "train_images and train_labels or x_train and y_train"
        )
    for split, layouts in NPZ_KEYS.items():
        lone = [key for pair in layouts for key in pair if key in keys]
        if split not in images and lone:
            raise UserError(f"{path}: {lone[0]} has no partner among {', '.join(sorted(keys))}; add it or remove this")
    return RawData(path.stem, images, labels)


def _visible(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if not p.name.startswith((".", "__MACOSX")))


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES


def _split_folders(folder: Path) -> dict[str, Path]:
    """split -> folder of class folders: this one, or those in it if train/ holds folders (train may be a class)."""
    folders = [p for p in _visible(folder) if p.is_dir()]
    named = [(SPLITS[p.name.lower()], p) for p in folders if p.name.lower() in SPLITS]
    found = dict(named)
    if "train" in found and any(p.is_dir() for p in _visible(found["train"])):
        if len(found) < len(named):
            raise UserError(f"{folder}: two folders for one split in {', '.join(p.name for _, p in named)}; keep one")
        return found
    if named and len(named) == len(folders):
        raise UserError(
            f"{folder}: has {named[0][1].name}/ but no train/ with class folders; add it, a folder per class"
        )
    return {"train": folder}


def _class_files(folder: Path) -> tuple[dict[str, list[Path]], int]:
    """Image files of each class folder, in order, and how many other files lie there; UserError if a class has none."""
    inside = _visible(folder)
    classes, others = {}, 0
    for entry in (p for p in inside if p.is_dir()):
        files = [Path(root, f) for root, _, names in os.walk(entry, followlinks=True) for f in names if f[0] != "."]
        classes[entry.name] = sorted(f for f in files if _is_image(f))
        others += len(files) - len(classes[entry.name])
        if not classes[entry.name]:
            raise UserError(f"{entry}: a class folder without images ({', '.join(SUFFIXES)}); add some or remove it")
    if not classes:
        what = "images but no class folders" if any(map(_is_image, inside)) else "no class folders of images"
        what = what if inside else "an empty folder"
        raise UserError(f"{folder}: {what}; give one folder per class with that class's images in it")
    return classes, others


def _tree(folder: Path) -> list[Path]:
    """All files and folders below one, in order, but for hidden ones and what they hold."""
    paths = list[Path]()
    for root, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if name[0] != "."]
        paths += [Path(root, name) for name in (*folders, *files) if name[0] != "."]
    return sorted(paths)


def _read_folder(source: Any, size: Size | None) -> RawData:
    folder = Path(source)
    refuse_own_folder(folder)
    pictures: dict[str, list[Picture]] = {}
    labels, others = {}, 0
    listed = {split: _class_files(inside) for split, inside in _split_folders(folder).items()}
    classes = sorted(listed["train"][0])
    for split, (files, extra) in listed.items():
        for odd in sorted(set(files) ^ set(classes)):
            has, lacks = (split, "train") if odd in files else ("train", split)
            raise UserError(f"{folder}: class folder {odd} is in {has} and not in {lacks}; give both the same classes")
        others += extra
    announce_decoding(sum(len(paths) for files, _ in listed.values() for paths in files.values()), folder)
    for split, (files, _) in listed.items():
        pictures[split] = [decode_picture(path, str(path), size) for name in classes for path in files[name]]
        labels[split] = np.repeat(np.arange(len(classes)), [len(files[name]) for name in classes])
    images, notes = stack_pictures(pictures)
    notes += (f"{others} files that are not images were left out",) if others else ()
    return RawData(folder.resolve().name, images, labels, classes, notes)


class _Pair(NamedTuple):
    train: Any
    test: Any


def _read_dataset(source: Any, size: Size | None) -> RawData:
    given = source if isinstance(source, _Pair) else _Pair(source, None)
    pictures, labels = {}, {}
    for split, dataset in zip(given._fields, given, strict=True):
        if dataset is not None:
            items = list(_items(dataset, f"{split} {type(dataset).__name__}", size))
            pictures[split] = [picture for picture, _ in items]
            labels[split] = np.array([label for _, label in items])
    names = getattr(given.train, "classes", None)
    named = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
    images, notes = stack_pictures(pictures)
    return RawData(type(given.train).__name__.lower(), images, labels, names if named else None, notes)


def _items(dataset: Any, where: str, size: Size | None) -> Iterator[tuple[Picture, int]]:
    if not len(dataset):
        raise UserError(f"{where}: has length 0; give one with images")
    for i in range(len(dataset)):
        try:
            image, label = dataset[i]
        except (TypeError, ValueError) as error:
            raise UserError(f"{where} item {i}: not an (image, label) pair ({error}); give such pairs") from error
        target = np.asarray(label)
        if target.size != 1 or target.dtype.kind not in "iub":
            raise UserError(f"{where} item {i}: label {label!r} is not one whole number; give the class number")
        yield as_picture(image, f"{where} item {i}", size), int(target.reshape(()))


def _is_folder(source: Any) -> bool:
    return isinstance(source, str | Path) and Path(source).is_dir()


def _holds_parquet(source: Any) -> bool:
    return _is_folder(source) and bool(parquet_files(Path(source)))


def _is_file(source: Any, suffix: str) -> bool:
    return isinstance(source, str | Path) and Path(source).is_file() and Path(source).suffix.lower() == suffix


DATASET = Reader(
    "a map-style torch Dataset of (image, label)",
    lambda s: not isinstance(s, str | Path) and hasattr(s, "__getitem__") and hasattr(s, "__len__"),
    _read_dataset,
)

# The first that recognises the source reads it; the folder of class folders comes after every other kind of folder.
READERS: list[Reader] = [
    Reader("digits", lambda s: isinstance(s, str) and s == "digits", _read_digits),
    Reader("fashion-mnist", lambda s: isinstance(s, str) and s == "fashion-mnist", _read_fashion),
    Reader("an .npz file in the MedMNIST or Keras layout", lambda s: _is_file(s, ".npz"), _read_npz),
    Reader("a .parquet file", lambda s: _is_file(s, ".parquet"), read_parquet, parquet_files),
    Reader("a folder of idx files", lambda s: _is_folder(s) and bool(_idx_files(Path(s))), _read_idx),
    Reader("a folder of parquet files", _holds_parquet, read_parquet, parquet_files),
    Reader("a folder with one folder of images per class", _is_folder, _read_folder, _tree),
    DATASET,
]
