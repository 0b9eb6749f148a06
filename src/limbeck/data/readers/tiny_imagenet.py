"""Reader of Tiny-ImageNet as it is downloaded: train/<wnid>/images and val/images with val_annotations.txt.

Scripts that sort the images of val into folders of classes are common, and their result is read as well.
"""

from __future__ import annotations

import numpy as np

from limbeck.core.errors import UserError
from limbeck.data.decoding import decode_splits
from limbeck.data.images import RawData, ReadOptions
from limbeck.data.pictures import Encoded, is_picture
from limbeck.data.readers.reader import Reader
from limbeck.data.tree import File, Folder, relative_paths

ANNOTATIONS = "val_annotations.txt"


def read_tiny_imagenet(folder: Folder, options: ReadOptions) -> RawData:
    """Read the training images, and the validation images as test images, since those called test have no labels.

    Classes are WordNet ids in the order of their names. Raises UserError where images and annotations do not fit.
    """
    val = folder.folders["val"]
    train = [
        (file, name)
        for name, inner in folder.folders["train"].folders.items()
        for _, file in inner.walk()
        if is_picture(file)
    ]
    names = sorted({name for _, name in train})
    labelled = {"train": train, "test": _label_pictures(val, val.files.get(ANNOTATIONS))}
    notes = ["val was read as the test split, as the papers' code does, since the images in test have no labels"]
    number = {name: label for label, name in enumerate(names)}
    for file, name in labelled["test"]:
        if name not in number:
            raise UserError(f"{file.where}: its class, {name[:40]}, is not one of train; fetch the data set again")
    if test := folder.folders.get("test"):
        notes.append(f"{sum(1 for _ in test.walk())} files of test were left out: they have no labels")
    splits = {
        split: (len(pairs), (Encoded(file, file.where) for file, _ in pairs)) for split, pairs in labelled.items()
    }
    images, remarks = decode_splits(splits, options, folder.where)
    labels = {split: np.array([number[name] for _, name in labelled[split]]) for split in images}
    paths = {split: relative_paths(folder, (file for file, _ in labelled[split])) for split in images}
    return RawData(folder.name, images, labels, names, (*notes, *remarks), paths)


def _read_annotations(file: File) -> dict[str, str]:
    """Classes by the names of pictures: the first two columns of the file."""
    rows = [line.split("\t") for line in file.read(1 << 26).decode("utf-8", "replace").splitlines() if line.strip()]
    for number, row in enumerate(rows, 1):
        if len(row) < 2:
            raise UserError(f"{file.where} line {number}: no name of a picture, tab and class; fetch it again")
    return {row[0]: row[1] for row in rows}


def _label_pictures(val: Folder, annotations: File | None) -> list[tuple[File, str]]:
    """(picture, class) of all pictures of a folder, by the annotations, or else by the folders of val."""
    classes = _read_annotations(annotations) if annotations else {}
    pictures = [(path.split("/"), file) for path, file in val.walk() if is_picture(file)]
    missing = set(classes) - {parts[-1] for parts, _ in pictures}
    if missing:
        raise UserError(f"{val.where}: {min(missing)[:40]} of {ANNOTATIONS} is missing; fetch the data set again")
    return [(file, classes.get(parts[-1], parts[0])) for parts, file in pictures]


def recognises(folder: Folder) -> bool:
    """Whether a folder holds Tiny-ImageNet."""
    has_words = "wnids.txt" in folder.files or ("val" in folder.folders and ANNOTATIONS in folder.folders["val"].files)
    return has_words and {"train", "val"} <= set(folder.folders)


READER = Reader("Tiny-ImageNet", recognises, read_tiny_imagenet, decodes=True)
