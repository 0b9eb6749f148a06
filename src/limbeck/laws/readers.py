"""Laws of readers of files: what they recognise, and the arrays that they return."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from limbeck.data import load_data
from limbeck.data.images import RawData, ReadOptions
from limbeck.data.readers.own import find_reader
from limbeck.data.sources import open_own_tree
from limbeck.data.tree import Folder
from limbeck.laws.law import Law, require


@dataclass(frozen=True)
class ReaderTrial:
    """A reader by name, and the path of data that it has to read."""

    name: str
    path: str

    def folder(self) -> Folder:
        """The folder that the reader gets."""
        return open_own_tree(self.path).root

    def read(self) -> RawData:
        """The reader's result."""
        return find_reader(self.name).read(self.folder(), ReadOptions())


def check_recognises(trial: ReaderTrial) -> None:
    """it recognises the data, and an empty folder it does not"""
    reader = find_reader(trial.name)
    require(bool(reader.kind), "the reader has no name: its `kind` is empty")
    require(reader.recognises(trial.folder()), f"it does not recognise {trial.path}")
    require(not reader.recognises(Folder("empty", "empty")), "it recognises an empty folder")


def check_arrays(trial: ReaderTrial) -> None:
    """it returns a RawData with as many labels as images, and a train split"""
    raw = trial.read()
    require(isinstance(raw, RawData), f"it returns a {type(raw).__name__}")
    require("train" in raw.images, f"there is no split 'train', but {', '.join(raw.images) or 'none'}")
    require({*raw.images} == {*raw.labels}, f"images have the splits {[*raw.images]}, labels {[*raw.labels]}")
    for split, images in raw.images.items():
        labels = raw.labels[split]
        require(len(images) == len(labels), f"'{split}' has {len(images)} images and {len(labels)} labels")


def check_same_arrays(trial: ReaderTrial) -> None:
    """two reads give the same arrays"""
    first, second = trial.read(), trial.read()
    for split, images in first.images.items():
        require(np.array_equal(images, second.images[split]), f"images of '{split}' differ between two reads")
        require(np.array_equal(first.labels[split], second.labels[split]), f"labels of '{split}' differ")


def check_data_set(trial: ReaderTrial) -> None:
    """load_data makes three splits of it, of classes from 0 on"""
    data = load_data(f"{trial.name}={trial.path}")
    for name, split in (("train", data.train), ("test", data.test)):
        require(len(split) > 0, f"the split '{name}' is empty")
    require(data.num_classes > 1, f"there is {data.num_classes} class")


READER_LAWS: tuple[Law[ReaderTrial], ...] = (check_recognises, check_arrays, check_same_arrays, check_data_set)
