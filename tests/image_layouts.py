"""Data sets of random pixels, written in the layouts in which known sets are downloaded."""

from __future__ import annotations

import gzip
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
from image_files import colour, grey, save_picture

CODES = {"u1": 8, "i1": 9, "i2": 11, "i4": 12, "f4": 13, "f8": 14}


def idx_bytes(values: Any) -> bytes:
    head = bytes([0, 0, CODES[values.dtype.str[1:]], values.ndim])
    head += b"".join(int(n).to_bytes(4, "big") for n in values.shape)
    return head + values.astype(values.dtype.newbyteorder(">")).tobytes()


def idx(path: Path, values: Any, pack: bool = True) -> None:
    content = idx_bytes(values.astype(np.uint8))
    path.write_bytes(gzip.compress(content) if pack else content)


def idx_folder(folder: Path, pack: bool = True, start: str = "", labels: Any = (0, 1)) -> Path:
    folder.mkdir(parents=True)
    end = ".gz" if pack else ""
    test = "test" if start else "t10k"
    for name, n in (("train", 20), (test, 6)):
        idx(folder / f"{start}{name}-images-idx3-ubyte{end}", grey(n, seed=n), pack)
        idx(folder / f"{start}{name}-labels-idx1-ubyte{end}", np.resize(labels, n), pack)
    return folder


def python2_pickle(value: Any) -> bytes:
    """A pickle as Python 2 writes it (protocol 2): its text is bytes, and so is the content of an array."""
    return b"\x80\x02" + _python2(value) + b"."


def _python2(value: Any) -> bytes:
    if isinstance(value, dict):
        return b"}(" + b"".join(_python2(part) for item in value.items() for part in item) + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(map(_python2, value)) + b"e"
    if isinstance(value, tuple):
        return b"(" + b"".join(map(_python2, value)) + b"t"
    if isinstance(value, str | bytes):
        content = value.encode() if isinstance(value, str) else value
        size = struct.pack("<B", len(content)) if len(content) < 256 else struct.pack("<i", len(content))
        return (b"U" if len(content) < 256 else b"T") + size + content
    if isinstance(value, np.ndarray):
        dtype = b"cnumpy\ndtype\n" + _python2((value.dtype.str[1:], 0, 1)) + b"R"
        dtype += _python2((3, value.dtype.str[0], None, None, None, -1, -1, 0)) + b"b"
        start = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + _python2((0,)) + b"U\x01b\x87R"
        return start + b"(K\x01" + _python2(value.shape) + dtype + b"\x89" + _python2(value.tobytes()) + b"tb"
    return b"N" if value is None else b"J" + struct.pack("<i", value)


def dump(value: Any, protocol: int) -> bytes:
    """A pickle: of Python 2 for protocol -2, else of this Python."""
    return python2_pickle(value) if protocol == -2 else pickle.dumps(value, protocol)


CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR_BATCHES = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]


def cifar10_folder(folder: Path, protocol: int = -2, seed: int = 0, count: int = 4) -> tuple[Any, list[int]]:
    """CIFAR-10 with `count` images a batch; returns images (n, 32, 32, 3) and labels of all six batches."""
    folder.mkdir(parents=True)
    images, labels = colour(6 * count, 32, 32, seed), [(i + i // 10) % 10 for i in range(6 * count)]
    for i, name in enumerate(CIFAR_BATCHES):
        rows = slice(i * count, (i + 1) * count)
        pixels = images[rows].transpose(0, 3, 1, 2).reshape(count, -1)
        batch = {"batch_label": name, "labels": labels[rows], "data": pixels, "filenames": ["a.png"] * count}
        (folder / name).write_bytes(dump(batch, protocol))
    meta = {"num_cases_per_batch": 10000, "label_names": list(CIFAR10), "num_vis": 3072}
    (folder / "batches.meta").write_bytes(dump(meta, protocol))
    (folder / "readme.html").write_text("CIFAR-10")
    return images, labels


def cifar100_folder(folder: Path, protocol: int = -2, seed: int = 0) -> tuple[Any, list[int]]:
    """CIFAR-100 with 8 training and 4 test images of 4 fine classes; returns images and fine labels."""
    folder.mkdir(parents=True)
    images, labels = colour(12, 32, 32, seed), [i % 4 for i in range(12)]
    for name, rows in (("train", slice(8)), ("test", slice(8, 12))):
        pixels = images[rows].transpose(0, 3, 1, 2).reshape(-1, 3072)
        batch = {"fine_labels": labels[rows], "coarse_labels": [1] * len(pixels), "data": pixels}
        (folder / name).write_bytes(dump(batch, protocol))
    meta = {"fine_label_names": ["apple", "baby", "crab", "dog"], "coarse_label_names": ["fish", "trees"]}
    (folder / "meta").write_bytes(dump(meta, protocol))
    (folder / "file.txt~").write_text("")
    return images, labels


def tiny_imagenet_folder(folder: Path, seed: int = 0, is_sorted: bool = False) -> tuple[Any, Any]:
    """Tiny-ImageNet with 3 classes; returns training images (9, 6, 5, 3) and test images (6, 6, 5, 3), class by class.

    is_sorted: whether the validation images lie in folders of classes.
    """
    wnids = ["n02124075", "n01443537", "n04067472"]
    train, val = colour(9, seed=seed), colour(6, seed=seed + 1)
    for i, pixels in enumerate(train):
        wnid = sorted(wnids)[i // 3]
        save_picture(folder / "train" / wnid / "images" / f"{wnid}_{i}.png", pixels)
        (folder / "train" / wnid / f"{wnid}_boxes.txt").write_text(f"{wnid}_{i}.png\t0\t0\t62\t62\n")
    rows = []
    for i, pixels in enumerate(val):
        wnid = sorted(wnids)[i // 2]
        place = folder / "val" / (f"{wnid}/images" if is_sorted else "images")
        save_picture(place / f"val_{i}.png", pixels)
        rows.append(f"val_{i}.png\t{wnid}\t0\t32\t44\t62\n")
    if not is_sorted:
        (folder / "val" / "val_annotations.txt").write_text("".join(reversed(rows)))
    save_picture(folder / "test" / "images" / "test_0.png", colour(1)[0])
    (folder / "wnids.txt").write_text("\n".join(wnids))
    (folder / "words.txt").write_text("n01443537\tgoldfish, Carassius auratus\n")
    return train, val


def svhn_folder(folder: Path, seed: int = 0, is_packed: bool = True) -> tuple[Any, list[int]]:
    """SVHN with 20 training and 10 test images; returns images (30, 32, 32, 3) and digits."""
    from scipy.io import savemat

    folder.mkdir(parents=True)
    images, digits = colour(30, 32, 32, seed), [i % 10 for i in range(30)]
    for split, rows in (("train", slice(20)), ("test", slice(20, 30))):
        y = np.array([digit or 10 for digit in digits[rows]], np.uint8)[:, None]
        content = {"X": images[rows].transpose(1, 2, 3, 0), "y": y}
        savemat(folder / f"{split}_32x32.mat", content, do_compression=is_packed)
    return images, digits


def stl10_folder(folder: Path, seed: int = 0) -> tuple[Any, list[int]]:
    """STL-10 with 6 training and 3 test images; returns images (9, 96, 96, 3) and labels."""
    folder.mkdir(parents=True)
    images, labels = colour(9, 96, 96, seed), [i % 3 for i in range(9)]
    for split, rows in (("train", slice(6)), ("test", slice(6, 9))):
        (folder / f"{split}_X.bin").write_bytes(images[rows].transpose(0, 3, 2, 1).tobytes())
        (folder / f"{split}_y.bin").write_bytes(bytes(label + 1 for label in labels[rows]))
    (folder / "class_names.txt").write_text("airplane\nbird\ncar\n")
    (folder / "unlabeled_X.bin").write_bytes(b"")
    return images, labels
