"""Reader of CIFAR-10 and CIFAR-100 as they are downloaded: pickles, or files of binary records."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import numpy as np

from limbeck.core.errors import UserError
from limbeck.data.images import Array, RawData, ReadOptions
from limbeck.data.readers.pickles import read_pickle
from limbeck.data.readers.reader import Reader
from limbeck.data.tree import File, Folder

PIXELS = 3 * 32 * 32


class Layout(NamedTuple):
    """The files of one version of CIFAR.

    train, test: of images. meta: of class names. labels, names: keys of the pickles; "" in records.
    label_bytes: before the pixels of a record; the last is the label.
    """

    train: tuple[str, ...]
    test: str
    meta: str
    labels: str = ""
    names: str = ""
    label_bytes: int = 0


BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
LAYOUTS = (
    Layout(BATCHES, "test_batch", "batches.meta", "labels", "label_names"),
    Layout(("train",), "test", "meta", "fine_labels", "fine_label_names"),
    Layout(tuple(f"{name}.bin" for name in BATCHES), "test_batch.bin", "batches.meta.txt", label_bytes=1),
    Layout(("train.bin",), "test.bin", "fine_label_names.txt", label_bytes=2),
)


def _find_layout(folder: Folder) -> Layout | None:
    return next((layout for layout in LAYOUTS if {layout.train[0], layout.meta} <= set(folder.files)), None)


def read_cifar(folder: Folder, _options: ReadOptions) -> RawData:
    """Read the training and test images of a folder. Raises UserError for files that are missing or damaged."""
    layout = _find_layout(folder)
    assert layout is not None
    for name in (*layout.train, layout.test):
        if name not in folder.files:
            raise UserError(f"{folder.where}: {name} is missing beside {layout.meta}; fetch it again")
    read = partial(_read_records if layout.label_bytes else _read_batch, layout)
    images, labels = {}, {}
    for split, names in (("train", layout.train), ("test", (layout.test,))):
        parts = [read(folder.files[name]) for name in names]
        images[split] = np.concatenate([pixels for pixels, _ in parts]).reshape(-1, 3, 32, 32)
        labels[split] = np.concatenate([numbers for _, numbers in parts])
    is_fine = layout.names == "fine_label_names" or layout.label_bytes == 2
    notes = ("labels are the fine classes; the coarse ones were left out",) if is_fine else ()
    return RawData(folder.name, images, labels, _read_names(layout, folder.files[layout.meta]), notes)


def _read_batch(layout: Layout, file: File) -> tuple[Array, Array]:
    """Pixels (n, 3072) and labels (n,) of a pickle."""
    batch = read_pickle(file.read(), file.where)
    pixels, labels = batch.get("data"), batch.get(layout.labels)
    if not (
        isinstance(pixels, np.ndarray)
        and (pixels.dtype, pixels.shape[1:]) == (np.uint8, (PIXELS,))
        and isinstance(labels, list)
        and all(type(label) is int and 0 <= label < 256 for label in labels)
    ):
        raise UserError(
            f"{file.where}: no data of 3,072 bytes an image with a list of {layout.labels}; give the files of CIFAR"
        )
    return pixels, np.array(labels, np.int64)


def _read_records(layout: Layout, file: File) -> tuple[Array, Array]:
    """Pixels (n, 3072) and labels (n,) of a file of records."""
    size = layout.label_bytes + PIXELS
    if file.size % size:
        raise UserError(f"{file.where}: {file.size:,} bytes are no records of {size} (truncated?); fetch it again")
    records = np.frombuffer(file.read(), np.uint8).reshape(-1, size)
    return records[:, layout.label_bytes :], records[:, layout.label_bytes - 1].astype(np.int64)


def _read_names(layout: Layout, file: File) -> list[str]:
    if layout.label_bytes:
        return file.read(1 << 20).decode("utf-8", "replace").split()
    names: Any = read_pickle(file.read(1 << 20), file.where).get(layout.names)
    if not (isinstance(names, list) and all(isinstance(name, str | bytes) for name in names)):
        raise UserError(f"{file.where}: no list of {layout.names}; give the files of CIFAR")
    return [name.decode("latin-1") if isinstance(name, bytes) else name for name in names]


READER = Reader("CIFAR", lambda folder: _find_layout(folder) is not None, read_cifar)
