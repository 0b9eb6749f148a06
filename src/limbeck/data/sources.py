"""Sources of labelled images, and `load_data`. A new source is a function that reads it and a line in READERS."""

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
from typing import Any, NamedTuple, Protocol

import numpy as np
from torch.utils.data import Dataset

from limbeck.core.errors import UserError
from limbeck.core.files import refuse_own_folder
from limbeck.data.cache import announce_decoding, read_with_cache
from limbeck.data.images import SPLITS, Array, ImageData, RawData, Size, assemble
from limbeck.data.parquet import parquet_files, read_parquet
from limbeck.data.pictures import Picture, as_picture, decode_picture, stack_pictures

FASHION_FOLDER = Path("/usr/share/datasets/fashion-mnist")
FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
DATA_NAMES = ("digits", "fashion-mnist")
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff")
NPZ_KEYS = {
    "train": (("train_images", "train_labels"), ("x_train", "y_train")),
    "validation": (("val_images", "val_labels"), ("x_val", "y_val")),
    "test": (("test_images", "test_labels"), ("x_test", "y_test")),
}
IDX_FILE = re.compile(r"(train|t10k|test)-(images|labels)[-.]idx[13]-ubyte(\.gz)?")


class MapDataset(Protocol):
    """A map-style Dataset: (image, label) pairs by number, of known length; a list of pairs is one."""

    def __len__(self) -> int:
        """The number of pairs."""
        ...

    def __getitem__(self, index: int, /) -> Any:
        """The pair of this number."""
        ...


DataSource = str | Path | ImageData | Dataset[Any] | MapDataset
"""Whatever `load_data` reads."""


class Reader(NamedTuple):
    """One kind of source.

    kind:       its name, for messages.
    recognises: source -> whether it is of this kind.
    read:       (source, size (h, w) or None) -> its images. A reader may ignore the size.
    files:      source -> all files and folders that are read; only where reading decodes pictures, whose pixels the
                cache then stores.
    """

    kind: str
    recognises: Callable[[Any], bool]
    read: Callable[[Any, Size | None], RawData]
    files: Callable[[Path], list[Path]] | None = None


def load_data(
    source: DataSource,
    *,
    validation: float = 0.1,
    seed: int = 0,
    resize: int | tuple[int, int] | None = None,
    test: Dataset[Any] | MapDataset | None = None,
    name: str | None = None,
) -> ImageData:
    """Read a labelled image set as uint8 (n, c, h, w) tensors with train, validation and test splits.

    source:     a name in `DATA_NAMES`; the path of anything in `READERS`; a map-style Dataset of (image, label) pairs;
                or an ImageData, which is returned as it is. A name wins over a path: write ./digits for a folder.
    validation: fraction of every class, in [0, 1), that is split off train where the source has no validation split.
                A source without a test split first loses 20 % of every class to one. `notes` of the result say so.
    seed:       of these random splits.
    resize:     height and width in pixels, or one number for both. Images are stretched, antialiased and bilinear.
    test:       the Dataset of test images, where the source is a Dataset.
    name:       of the result; by default that of the source.

    Raises UserError, in one sentence, for a source that cannot be read or whose parts do not fit each other.

    >>> data = load_data("digits")
    >>> data.shape, data.num_classes, len(data.train), len(data.validation), len(data.test)
    ((1, 8, 8), 10, 1295, 143, 359)
    """
    size = _check_size(resize)
    if not 0 <= validation < 1:
        raise UserError(f"validation is a fraction of train in [0, 1), not {validation}; 0.1 is usual")
    if isinstance(source, ImageData):
        if size not in (None, source.size) or test is not None:
            raise UserError("resize and test do nothing to data already loaded; give them where it is loaded first")
        return source
    reader = _find_reader(source)
    if test is not None and (reader is not DATASET or not DATASET.recognises(test)):
        raise UserError("test= is a Dataset beside a Dataset as source; a file or folder holds its own test split")
    try:
        if reader.files is None:
            raw = reader.read(source if test is None else _TrainTest(source, test), size)
        else:
            path = Path(str(source))
            raw = read_with_cache(path, partial(reader.files, path), size, partial(reader.read, path, size))
    except OSError as error:
        raise UserError(f"{error.filename or source}: cannot be read ({error.strerror or error}); check it") from error
    return assemble(raw._replace(name=name or raw.name), validation=validation, seed=seed, resize=size)


def _check_size(resize: int | tuple[int, int] | None) -> Size | None:
    if resize is None:
        return None
    height, width = (resize, resize) if isinstance(resize, int) else resize
    if height < 1 or width < 1:
        raise UserError(f"resize is a height and a width of at least 1 pixel, not {resize}; give, say, 32")
    return height, width


def _find_reader(source: Any) -> Reader:
    for reader in READERS:
        if reader.recognises(source):
            return reader
    kinds = "; ".join(reader.kind for reader in READERS)
    if not isinstance(source, str | Path):
        raise UserError(f"a {type(source).__name__} is not a source of data; give one of: {kinds}")
    if not Path(source).exists():
        raise UserError(
            f"no data called {str(source)!r}; give a path that exists or a known name: {', '.join(DATA_NAMES)}"
        )
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
    """The idx files of a folder by (split, "images" or "labels"); an unpacked file wins over the .gz beside it."""
    files: dict[tuple[str, str], Path] = {}
    for path in sorted(folder.iterdir(), reverse=True):
        if match := IDX_FILE.fullmatch(path.name):
            files["train" if match[1] == "train" else "test", match[2]] = path
    return files


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
    """The content of an idx file of uint8 with this number of dimensions."""
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
        single = [key for pair in layouts for key in pair if key in keys]
        if split not in images and single:
            raise UserError(
                f"{path}: {single[0]} has no partner among {', '.join(sorted(keys))}; add it or remove this"
            )
    return RawData(path.stem, images, labels)


def _visible(folder: Path) -> list[Path]:
    """The files and folders in a folder that are not hidden, in order."""
    return sorted(p for p in folder.iterdir() if not p.name.startswith((".", "__MACOSX")))


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES


def _split_folders(folder: Path) -> dict[str, Path]:
    """The folders of class folders by split: those in `folder` where train/ contains folders, else `folder` itself.

    A folder train/ of images is a class of that name.
    """
    folders = [path for path in _visible(folder) if path.is_dir()]
    split_folders = [(SPLITS[path.name.lower()], path) for path in folders if path.name.lower() in SPLITS]
    by_split = dict(split_folders)
    if "train" in by_split and any(path.is_dir() for path in _visible(by_split["train"])):
        if len(by_split) < len(split_folders):
            names = ", ".join(path.name for _, path in split_folders)
            raise UserError(f"{folder}: two folders for one split in {names}; keep one")
        return by_split
    if split_folders and len(split_folders) == len(folders):
        name = split_folders[0][1].name
        raise UserError(f"{folder}: has {name}/ but no train/ with class folders; add it, a folder per class")
    return {"train": folder}


def _class_files(folder: Path) -> tuple[dict[str, list[Path]], int]:
    """The image files of every class folder, in order, and the number of other files.

    Raises UserError where there are no class folders, and for one without images.
    """
    entries = _visible(folder)
    classes, num_others = {}, 0
    for entry in (path for path in entries if path.is_dir()):
        files = [Path(root, name) for root, _, names in _walk(entry) for name in names]
        classes[entry.name] = sorted(path for path in files if _is_image(path))
        num_others += len(files) - len(classes[entry.name])
        if not classes[entry.name]:
            raise UserError(f"{entry}: a class folder without images ({', '.join(SUFFIXES)}); add some or remove it")
    if not classes:
        content = "images but no class folders" if any(map(_is_image, entries)) else "no class folders of images"
        content = content if entries else "an empty folder"
        raise UserError(f"{folder}: {content}; give one folder per class with that class's images in it")
    return classes, num_others


def _walk(folder: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """os.walk through a folder and the folders that links lead to, without hidden files and folders."""
    for root, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if name[0] != "."]
        yield root, folders, [name for name in files if name[0] != "."]


def _tree(folder: Path) -> list[Path]:
    """All files and folders below a folder, in order, without hidden ones and their contents."""
    return sorted(Path(root, name) for root, folders, files in _walk(folder) for name in (*folders, *files))


def _read_folder(source: Any, size: Size | None) -> RawData:
    folder = Path(source)
    refuse_own_folder(folder)
    pictures: dict[str, list[Picture]] = {}
    labels, num_others = {}, 0
    splits = {split: _class_files(path) for split, path in _split_folders(folder).items()}
    classes = sorted(splits["train"][0])
    for split, (files, others) in splits.items():
        for name in sorted(set(files) ^ set(classes)):
            where, where_not = (split, "train") if name in files else ("train", split)
            raise UserError(
                f"{folder}: class folder {name} is in {where} and not in {where_not}; give both the same classes"
            )
        num_others += others
    announce_decoding(sum(len(paths) for files, _ in splits.values() for paths in files.values()), folder)
    for split, (files, _) in splits.items():
        pictures[split] = [decode_picture(path, str(path), size) for name in classes for path in files[name]]
        labels[split] = np.repeat(np.arange(len(classes)), [len(files[name]) for name in classes])
    images, notes = stack_pictures(pictures)
    notes += (f"{num_others} files that are not images were left out",) if num_others else ()
    return RawData(folder.resolve().name, images, labels, classes, notes)


class _TrainTest(NamedTuple):
    """The Datasets of train and test images, or None for the second."""

    train: Any
    test: Any


def _read_dataset(source: Any, size: Size | None) -> RawData:
    datasets = source if isinstance(source, _TrainTest) else _TrainTest(source, None)
    pictures, labels = {}, {}
    for split, dataset in zip(datasets._fields, datasets, strict=True):
        if dataset is not None:
            items = list(_items(dataset, f"{split} {type(dataset).__name__}", size))
            pictures[split] = [picture for picture, _ in items]
            labels[split] = np.array([label for _, label in items])
    names = getattr(datasets.train, "classes", None)
    has_names = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
    images, notes = stack_pictures(pictures)
    return RawData(type(datasets.train).__name__.lower(), images, labels, names if has_names else None, notes)


def _items(dataset: Any, where: str, size: Size | None) -> Iterator[tuple[Picture, int]]:
    """The pictures and labels of a Dataset, in order. Raises UserError for items that are no (image, label) pairs."""
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

# The first reader that recognises a source reads it. A folder of class folders therefore comes after other folders.
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
