"""Reader of STL-10 as it is downloaded: train_X.bin, train_y.bin, test_X.bin and test_y.bin."""

from __future__ import annotations

import numpy as np

from limbeck.core.errors import UserError
from limbeck.data.images import Array, RawData, ReadOptions
from limbeck.data.readers.reader import Reader
from limbeck.data.tree import MAX_FILE, File, Folder

SIDE = 96
UNLABELLED = "unlabeled_X.bin"


def read_stl10(folder: Folder, _options: ReadOptions) -> RawData:
    """Read the labelled images, which the files hold column by column. Raises UserError for files that do not fit."""
    images, labels = {}, {}
    for split in ("train", "test"):
        pair = [folder.files.get(f"{split}_{kind}.bin") for kind in "Xy"]
        if pair[0] and pair[1]:
            images[split] = _read_images(pair[0])
            labels[split] = np.frombuffer(pair[1].read(), np.uint8).astype(np.int64) - 1
        elif split == "train" or any(pair):
            raise UserError(f"{folder.where}: {split}_X.bin and {split}_y.bin are not both there; fetch them again")
    names = folder.files.get("class_names.txt")
    classes = names.read(1 << 20).decode("utf-8", "replace").split() if names else None
    notes = ("unlabelled images were left out",) if UNLABELLED in folder.files else ()
    return RawData(folder.name, images, labels, classes, notes)


def _read_images(file: File) -> Array:
    size = 3 * SIDE * SIDE
    if file.size % size:
        raise UserError(f"{file.where}: {file.size:,} bytes are no images of {size} (truncated?); fetch it again")
    return np.frombuffer(file.read(MAX_FILE), np.uint8).reshape(-1, 3, SIDE, SIDE).swapaxes(2, 3)


READER = Reader("STL-10", lambda folder: {"train_X.bin", "train_y.bin"} <= set(folder.files), read_stl10)
