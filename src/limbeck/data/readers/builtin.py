"""Data sets known by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from limbeck.core.errors import UserError
from limbeck.data.images import RawData, ReadOptions
from limbeck.data.readers.idx import CLASSES, read_idx
from limbeck.data.tree import read_folder_tree

FASHION_FOLDER = Path("/usr/share/datasets/fashion-mnist")


def read_digits(_options: ReadOptions) -> RawData:
    """The 1,797 digits of scikit-learn, 8x8 in grey."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)  # 0..16
    images = np.rint(pixels.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    return RawData("digits", {"train": images}, {"train": labels})


def read_fashion_mnist(options: ReadOptions) -> RawData:
    """Fashion-MNIST from its Debian package. Raises UserError where that is not installed."""
    if not FASHION_FOLDER.is_dir():
        raise UserError(
            f"fashion-mnist: {FASHION_FOLDER} does not exist; install the Debian package dataset-fashion-mnist or give "
            "the folder with the idx files"
        )
    raw = read_idx(read_folder_tree(FASHION_FOLDER).root, options)
    return raw._replace(name="fashion-mnist", names=CLASSES["fashionmnist"])
