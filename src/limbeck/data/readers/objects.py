"""Reader of Python objects: map-style Datasets of (image, label)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np

from limbeck.core.errors import UserError
from limbeck.data.images import RawData, ReadOptions
from limbeck.data.pictures import Encoded, as_encoded, decode_splits


class MapDataset(Protocol):
    """A map-style Dataset: (image, label) pairs by number, of known length; a list of pairs is one."""

    def __len__(self) -> int:
        """The number of pairs."""
        ...

    def __getitem__(self, index: int, /) -> Any:
        """The pair of this number."""
        ...


class TrainTest(NamedTuple):
    """The Datasets of train and test images, or None for the second."""

    train: Any
    test: Any


def is_dataset(source: Any) -> bool:
    """Whether an object is a map-style Dataset."""
    return hasattr(source, "__getitem__") and hasattr(source, "__len__")


def read_datasets(datasets: TrainTest, options: ReadOptions) -> RawData:
    """Read Datasets of train and test. Raises UserError for items that are no (image, label) pairs."""
    labels: dict[str, list[int]] = {}
    splits = {}
    for split, dataset in zip(datasets._fields, datasets, strict=True):
        if dataset is not None:
            labels[split] = []
            where = f"{split} {type(dataset).__name__}"
            if not len(dataset):
                raise UserError(f"{where}: has length 0; give one with images")
            splits[split] = len(dataset), _items(dataset, where, labels[split])
    names = getattr(datasets.train, "classes", None)
    has_names = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
    images, notes = decode_splits(splits, options, type(datasets.train).__name__)
    targets = {split: np.array(labels[split]) for split in images}
    return RawData(type(datasets.train).__name__.lower(), images, targets, names if has_names else None, notes)


def _items(dataset: Any, where: str, labels: list[int]) -> Iterator[Encoded]:
    """The images of a Dataset, in order; their labels are appended to `labels`."""
    for i in range(len(dataset)):
        try:
            image, label = dataset[i]
        except (TypeError, ValueError) as error:
            raise UserError(f"{where} item {i}: not an (image, label) pair ({error}); give such pairs") from error
        target = np.asarray(label)
        if target.size != 1 or target.dtype.kind not in "iub":
            raise UserError(f"{where} item {i}: label {label!r} is not one whole number; give the class number")
        labels.append(int(target.reshape(())))
        yield as_encoded(image, f"{where} item {i}")
