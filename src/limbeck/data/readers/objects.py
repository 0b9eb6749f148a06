"""Reader of Python objects: Datasets of torch and of Hugging Face, arrays of images and labels, and these by split."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader, IterableDataset, Subset, TensorDataset

from limbeck.core.errors import UserError
from limbeck.core.text import shorten
from limbeck.data.assemble import as_labels
from limbeck.data.decoding import decode_splits
from limbeck.data.images import Array, RawData, ReadOptions
from limbeck.data.pictures import Encoded, as_encoded
from limbeck.data.pixels import PixelRange
from limbeck.data.readers.arrays import (
    Arrays,
    append_label,
    are_arrays,
    describe_parts,
    is_sequence,
    read_arrays,
    read_labels,
)
from limbeck.data.readers.arrow_columns import IMAGE_COLUMNS
from limbeck.data.readers.columns import FIRST_LABEL_COLUMNS, Labels, join_labels, label_columns, usual_columns
from limbeck.data.readers.table_files import list_names
from limbeck.data.splits import find_splits

KINDS = "a map-style Dataset of (image, label), arrays (X, y), a dict of these by split"


class MapDataset(Protocol):
    """A map-style Dataset: (image, label) pairs by number, of known length; a list of pairs is one."""

    def __len__(self) -> int:
        """The number of pairs."""
        ...

    def __getitem__(self, index: int, /) -> Any:
        """The pair of this number."""
        ...


class Items(NamedTuple):
    """One split of a data set as a map-style Dataset.

    dataset: of items that hold an image and a label.
    where:   its source, for messages.
    name:    of the data set.
    keys:    of the image and of the label in an item.
    names:   class names indexed by label value; None where there are none.
    notes:   sentences on what of an item is read.
    """

    dataset: Any
    where: str
    name: str
    keys: tuple[Any, Any] = (0, 1)
    names: list[str] | None = None
    notes: tuple[str, ...] = ()


def read_objects(source: Any, test: Any, options: ReadOptions) -> tuple[RawData, PixelRange | None]:
    """Read a Dataset, arrays, or a dict of these by split.

    Returns the images, and the pixel range that has yet to be applied to them.

    test: the test split beside a source that is one split; else None.
    Raises UserError for other objects, for items that cannot be read, and for labels of different kinds.
    """
    sources, notes = _sort_by_split(source, test)
    parts = {split: _open_split(part, split) for split, part in sources.items()}
    name = parts["train"].name
    remarks: tuple[str, ...] = ()
    remaining_range = None
    arrays = {split: part for split, part in parts.items() if isinstance(part, Arrays)}
    if len(arrays) == len(parts):
        images = {split: part.images for split, part in arrays.items()}
        labels = {split: part.labels for split, part in arrays.items()}
        remaining_range = options.pixel_range
    else:
        values: dict[str, list[int | str]] = {split: [] for split in parts}
        items = {split: _as_items(part, split) for split, part in parts.items()}
        splits = {split: (len(part.dataset), _encode_items(part, values[split])) for split, part in items.items()}
        images, remarks = decode_splits(splits, options, name)
        labels = {split: np.array(values[split]) for split in images}
    notes += [note for part in parts.values() for note in part.notes]
    joint = join_labels(
        {split: [_read_labels(labels[split], part.names, f"{name} ({split})")] for split, part in parts.items()}, name
    )
    images = {split: images[split] for split in joint.by_split}
    notes = [*dict.fromkeys(notes), *joint.notes, *remarks]
    return RawData(name, images, joint.by_split, joint.names, tuple(notes)), remaining_range


def _sort_by_split(source: Any, test: Any) -> tuple[dict[str, Any], list[str]]:
    """The objects by split, and a note on the keys of a dict that are no splits."""
    if not isinstance(source, Mapping) or _is_bunch(source):
        return {"train": source} if test is None else {"train": source, "test": test}, []
    if test is not None:
        raise UserError("test= is the test split beside one Dataset or arrays; a dict of splits holds it as an entry")
    by_name = {str(key): value for key, value in source.items()}
    kind = type(source).__name__
    if any(getattr(value, "ndim", 0) for value in by_name.values()):  # as numpy.load gives them
        pairs = '{"train": (images, labels), "test": (images, labels)}'
        raise UserError(f"{kind}: arrays called {shorten(', '.join(by_name))}; give them in pairs by split, {pairs}")
    split_names = find_splits(by_name, kind)
    if "train" not in split_names:
        keys = shorten(", ".join(by_name) or "no keys")
        raise UserError(f"{kind}: no split to train on among {keys}; call it train, beside validation and test")
    left_out = list_names(key for key in by_name if key not in split_names.values())
    notes = [f"entries that are no split were left out: {left_out}"] if left_out else []
    return {split: by_name[key] for split, key in split_names.items()}, notes


def _is_bunch(source: Any) -> bool:
    """Whether it is a dict as scikit-learn's data sets are."""
    return isinstance(source, Mapping) and "target" in source and ("images" in source or "data" in source)


def _open_split(source: Any, split: str) -> Items | Arrays:
    """One split as a Dataset or arrays. Raises UserError for what is neither, and for what may be both."""
    kind = type(source).__name__
    where = f"{split} {kind}"
    if _is_bunch(source):
        return _open_bunch(source, where)
    if type(source) is TensorDataset and len(source.tensors) > 1:  # a subclass may change its items
        arrays = read_arrays(source.tensors[0], source.tensors[1], where)
        return arrays._replace(name=kind.lower(), notes=(*arrays.notes, *describe_parts(source.tensors)))
    if are_arrays(source):
        return _open_arrays(source[0], source[1], where)
    if is_sequence(source) and source and all(are_arrays(part) or hasattr(part, "__array__") for part in source):
        raise UserError(f'{where}: it holds several arrays; say what they are: {{"train": (X, y), "test": (X, y)}}')
    if isinstance(source, np.ndarray | torch.Tensor) or hasattr(source, "iloc"):
        raise UserError(f"{where}: one array or table; give a tuple of two, (images, labels)")
    if isinstance(source, DataLoader):
        raise UserError(f"{where}: it gives batches, which may be shuffled; give its .dataset")
    if isinstance(source, IterableDataset) or (hasattr(source, "__iter__") and not hasattr(source, "__getitem__")):
        raise UserError(f"{where}: a stream, without length or order; give a map-style Dataset, say list(...) of it")
    if isinstance(source, str | bytes | Mapping) or not hasattr(source, "__getitem__"):
        raise UserError(f"{where}: not a source of data; give a path or name alone, {KINDS}")
    return _open_dataset(source, where)


def _open_arrays(x: Any, y: Any, where: str) -> Items | Arrays:
    """Images and labels. A list of pictures or arrays is read one by one, since they may differ in size."""
    if not is_sequence(x) or not len(x) or isinstance(x[0], list) or not _is_image(x[0]):
        return read_arrays(x, y, where)
    return Items(list(zip(x, read_labels(y, len(x), where), strict=True)), where, "arrays")


def _open_bunch(bunch: Mapping[str, Any], where: str) -> Items | Arrays:
    part = _open_arrays(bunch["images"] if "images" in bunch else bunch["data"], bunch["target"], where)
    names = bunch.get("target_names")
    labels = part.labels if isinstance(part, Arrays) else np.array([label for _, label in part.dataset])
    if names is None or labels.dtype.kind not in "iu" or labels.max(initial=0) >= len(names):
        return part  # OpenML's target_names are the names of columns
    return part._replace(names=list(map(str, names)))


def _as_items(part: Items | Arrays, split: str) -> Items:
    """One split as a Dataset, where another split is one."""
    if isinstance(part, Items):
        return part
    return Items(list(zip(part.images, part.labels, strict=True)), f"{split} {part.name}", part.name, names=part.names)


def _open_dataset(dataset: Any, where: str) -> Items:
    try:
        count = len(dataset)
    except Exception as error:  # a Dataset of torch has no __len__ of its own
        raise UserError(f"{where}: has no length ({shorten(error)}); define __len__, the number of items") from error
    if not count:
        raise UserError(f"{where}: has length 0; give one with images")
    inner = _innermost(dataset)
    name = getattr(getattr(inner[0], "info", None), "dataset_name", None) or type(inner[0]).__name__
    first = _fetch(dataset, 0, where)
    keys: tuple[Any, Any] = (0, 1)
    notes = () if isinstance(first, Mapping) else describe_parts(first)
    if isinstance(first, Mapping):
        keys = _choose_keys(first, getattr(inner[0], "features", None), where)
        notes = (f"labels are the column {keys[1]}",) if keys[1] not in FIRST_LABEL_COLUMNS else ()
    return Items(dataset, where, str(name).lower(), keys, _find_names(inner, keys[1], where), notes)


def _innermost(dataset: Any) -> list[Any]:
    """The Datasets from which torch's own wrappers take items; these change no label, as a user's own might."""
    if isinstance(dataset, Subset):
        return _innermost(dataset.dataset)
    if isinstance(dataset, ConcatDataset):
        return [inner for part in dataset.datasets for inner in _innermost(part)]
    return [dataset]


def _find_names(datasets: list[Any], label: Any, where: str) -> list[str] | None:
    """The class names of Datasets that are read as one. Raises UserError where they differ."""
    lists = [names for dataset in datasets if (names := _own_names(dataset, label, where)) is not None]
    for names in lists:
        if names != lists[0]:
            shown = " and ".join(shorten(", ".join(part)) for part in (lists[0], names))
            raise UserError(f"{where}: parts whose classes are {shown}; give all parts the same classes in one order")
    return lists[0] if lists else None


def _own_names(dataset: Any, label: Any, where: str) -> list[str] | None:
    """Class names by label value, from Hugging Face's `features`, or from torchvision's `classes` or `class_to_idx`."""
    features = getattr(dataset, "features", None)
    if isinstance(features, Mapping) and label in features:
        names = getattr(features[label], "names", None)
        return None if names is None else list(map(str, names))
    classes = getattr(dataset, "classes", None)
    are_words = isinstance(classes, list | tuple | np.ndarray) and all(isinstance(name, str) for name in classes)
    class_list = list(map(str, classes)) if classes is not None and are_words else None
    indices = getattr(dataset, "class_to_idx", None)
    if not isinstance(indices, Mapping) or not all(isinstance(index, int | np.integer) for index in indices.values()):
        return class_list
    by_index: dict[int, str] = {}
    for class_name, index in indices.items():
        by_index.setdefault(int(index), str(class_name))  # ImageNet has several words for one class
    index_list = [by_index.get(index, str(index)) for index in range(max(by_index, default=-1) + 1)]
    if class_list is not None and class_list != index_list:
        raise UserError(f"{where}: .classes and .class_to_idx order the classes differently; correct or delete one")
    return index_list or None


def _choose_keys(item: Mapping[Any, Any], features: Any, where: str) -> tuple[Any, Any]:
    """The keys of image and label in an item that is a dict: those of a usual name, or the only ones that fit."""
    images = [key for key, value in item.items() if isinstance(key, str) and _is_image(value)]
    others = [key for key in item if isinstance(key, str) and key not in images]
    features = features if isinstance(features, Mapping) else {}
    class_labels = [key for key in others if getattr(features.get(key), "names", None)]
    choices = {
        "image": usual_columns(images, IMAGE_COLUMNS) or images,
        "label": label_columns(others) or class_labels,
    }
    for kind, keys in choices.items():
        if len(keys) > 1:
            raise UserError(f"{where}: several {kind} columns, {list_names(keys)}; remove or rename all but one")
        if not keys:
            shown = list_names(map(str, item)) or "nothing"
            raise UserError(f"{where}: no {kind} column among {shown}; call the one that is meant {kind}")
    return choices["image"][0], choices["label"][0]


def _is_image(value: Any) -> bool:
    if isinstance(value, Mapping):
        return "bytes" in value
    if isinstance(value, list):
        return bool(value) and isinstance(value[0], list)
    return isinstance(value, Image.Image | bytes) or getattr(value, "ndim", 0) > 1


def _fetch(dataset: Any, index: int, where: str) -> Any:
    """An item of a Dataset: a dict, or a sequence of at least two parts. Raises UserError, also for its own errors."""
    try:
        item = dataset[index]
    except IndexError as error:
        reason = f"item {index} of {len(dataset)} raises IndexError ({shorten(error)})"
        raise UserError(f"{where}: {reason}; its __len__ promises more than it has, or the item is damaged") from error
    except Exception as error:  # whatever a Dataset's own code raises
        reason = f"{type(error).__name__}: {shorten(error)}"
        raise UserError(f"{where} item {index}: cannot be read ({reason}); repair it, or leave it out") from error
    if isinstance(item, Mapping) or (isinstance(item, tuple | list) and len(item) > 1):
        return item
    content = f"{len(item)} part" if isinstance(item, tuple | list) else type(item).__name__
    raise UserError(f"{where} item {index}: not an (image, label) pair but {content}; repair it, or leave it out")


def _encode_items(items: Items, labels: list[int | str]) -> Iterator[Encoded]:
    """The images of a Dataset, in order; their labels are appended to `labels`."""
    image_key, label_key = items.keys
    for i in range(len(items.dataset)):
        where = f"{items.where} item {i}"
        item = _fetch(items.dataset, i, items.where)
        try:
            image, label = item[image_key], item[label_key]
        except (KeyError, TypeError) as error:
            raise UserError(f"{where}: has no {image_key} and {label_key} as item 0 has; give all the same") from error
        append_label(labels, label, where)
        yield as_encoded(_unpack(image, where), where)


def _unpack(image: Any, where: str) -> Any:
    """The bytes of an image that Hugging Face did not decode; other images as they are."""
    if not isinstance(image, Mapping):
        return image
    if image.get("bytes") is None:
        raise UserError(f"{where}: image is a dict without bytes; give a tensor, a PIL image or a numpy array")
    return image["bytes"]


def _read_labels(values: Array, names: list[str] | None, where: str) -> Labels:
    """Labels (n,) or (n, 1), numbers or words, of one split. Numbers below 0 throughout are hidden labels."""
    rows = np.arange(len(values))
    if values.dtype.kind == "U":
        words = sorted(set(values.tolist()))
        return Labels(np.searchsorted(words, values), words, True, where, rows)
    is_hidden = values.dtype.kind in "if" and values.max() < 0
    codes = np.full(len(values), -1) if is_hidden else as_labels(values, len(values), where)
    return Labels(codes, names, False, where, rows)
