"""Reader of .npz files in the layouts of MedMNIST and Keras."""

from __future__ import annotations

import zipfile
import zlib

import numpy as np

from limbeck.core.errors import UserError
from limbeck.data.images import RawData, ReadOptions
from limbeck.data.readers.reader import Reader
from limbeck.data.tree import File, Folder

KEYS = {
    "train": (("train_images", "train_labels"), ("x_train", "y_train")),
    "validation": (("val_images", "val_labels"), ("x_val", "y_val")),
    "test": (("test_images", "test_labels"), ("x_test", "y_test")),
}


def _npz_file(folder: Folder) -> File | None:
    """The only .npz file of a folder; None where there is none or several."""
    files = [file for name, file in folder.files.items() if name.lower().endswith(".npz")]
    return files[0] if len(files) == 1 else None


def read_npz(folder: Folder, _options: ReadOptions) -> RawData:
    """Read the splits of an .npz file. Raises UserError for one that cannot be read, or lacks images or labels."""
    file = _npz_file(folder)
    assert file is not None
    images, labels = {}, {}
    try:
        with file.open() as stream:
            if not zipfile.is_zipfile(stream):
                raise ValueError("no zip archive, or cut short")
        with file.open() as stream, np.load(stream, allow_pickle=False) as archive:  # pickles run code when read
            keys = list(archive)
            for split, layouts in KEYS.items():
                for image_key, label_key in layouts:
                    if image_key in keys and label_key in keys:
                        images[split], labels[split] = archive[image_key], archive[label_key]
    except (ValueError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        reason = "it holds Python objects" if "allow_pickle" in str(error) else str(error)
        raise UserError(f"{file.where}: not a readable .npz of arrays ({reason}); save it with numpy.savez") from error
    if "train" not in images:
        raise UserError(
            f"{file.where}: no images with labels to train on; it holds {', '.join(sorted(keys)) or 'nothing'}, and "
            "needs train_images and train_labels or x_train and y_train"
        )
    for split, layouts in KEYS.items():
        single = [key for pair in layouts for key in pair if key in keys]
        if split not in images and single:
            raise UserError(
                f"{file.where}: {single[0]} has no partner among {', '.join(sorted(keys))}; add it or remove this"
            )
    return RawData(folder.name, images, labels)


READER = Reader("an .npz file in the MedMNIST or Keras layout", lambda folder: _npz_file(folder) is not None, read_npz)
