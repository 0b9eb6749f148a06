"""Reader of SVHN's cropped digits as they are downloaded: train_32x32.mat and test_32x32.mat."""

from __future__ import annotations

from math import prod

import numpy as np

from limbeck.core.errors import UserError
from limbeck.core.text import shorten
from limbeck.data.archives import MAX_RATIO
from limbeck.data.images import Array, RawData, ReadOptions
from limbeck.data.memory import refuse_beyond_memory
from limbeck.data.readers.reader import Reader
from limbeck.data.tree import File, Folder

FILES = {"train": "train_32x32.mat", "test": "test_32x32.mat"}
EXTRA = "extra_32x32.mat"


def read_svhn(folder: Folder, _options: ReadOptions) -> RawData:
    """Read the training and test digits; label 10 of the files is the digit 0. Raises UserError for damaged files."""
    arrays = {split: _read_mat(folder.files[name]) for split, name in FILES.items() if name in folder.files}
    notes = ["label 10 is the digit 0"] + ([f"{EXTRA} was left out"] if EXTRA in folder.files else [])
    images = {split: pixels.transpose(3, 0, 1, 2) for split, (pixels, _) in arrays.items()}
    labels = {split: numbers % 10 for split, (_, numbers) in arrays.items()}
    return RawData(folder.name, images, labels, tuple("0123456789"), tuple(notes))


def _read_mat(file: File) -> tuple[Array, Array]:
    """Pixels (32, 32, 3, n) and labels (n,), 1 to 10. What the file claims is checked before memory is taken."""
    from scipy.io import loadmat, whosmat

    try:
        with file.open() as stream:
            shapes = {name: shape for name, shape, _ in whosmat(stream)}
        pixels, labels = shapes.get("X", ()), shapes.get("y", ())
        if len(pixels) != 4 or pixels[2] != 3 or labels != (pixels[3], 1):
            raise ValueError(f"it holds {str(shapes)[:80]}")
        if prod(pixels) > MAX_RATIO * file.size:
            raise ValueError(f"it claims {prod(pixels):,} bytes")
        refuse_beyond_memory(prod(pixels), f"{file.where}: its images", "give fewer")
        with file.open() as stream:
            content = loadmat(stream, variable_names=["X", "y"])
        images, numbers = content["X"], content["y"][:, 0]
        if images.dtype != np.uint8 or numbers.dtype.kind not in "iu" or not 1 <= numbers.min() <= numbers.max() <= 10:
            raise ValueError(f"pixels are {images.dtype}, labels {numbers.dtype}")
    except UserError:
        raise
    except Exception as error:  # a damaged file makes scipy raise almost anything
        reason = shorten(error)
        raise UserError(f"{file.where}: not SVHN's X (32, 32, 3, n) and y (n, 1) ({reason}); fetch it again") from error
    return images, numbers.astype(np.int64)


READER = Reader("SVHN", lambda folder: FILES["train"] in folder.files, read_svhn)
