"""Pictures and arrays of random pixels, written as files of all kinds of sources, and the check that one is refused."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from limbeck.core.errors import UserError
from limbeck.data import load_data


def grey(n: int, h: int = 6, w: int = 5, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (n, h, w), dtype=np.uint8)


def colour(n: int, h: int = 6, w: int = 5, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (n, h, w, 3), dtype=np.uint8)


def planes(images: Any) -> Any:
    """Coloured images (n, h, w, c) as (n, c, h, w)."""
    return images.transpose(0, 3, 1, 2)


def encode_png(pixels: Any) -> bytes:
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


def save_picture(path: Path, pixels: Any, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def make_class_folders(folder: Path, names: str = "ab", count: int = 5, make: Any = grey, seed: int = 0) -> Path:
    for k, name in enumerate(names):
        for i, pixels in enumerate(make(count, seed=seed + k)):
            save_picture(folder / name / f"{i}.png", pixels)
    return folder


def save_npz(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def labelled_arrays(n: int = 10, classes: int = 2) -> dict[str, Any]:
    return {"x_train": grey(n), "y_train": np.arange(n) % classes}


def refuses(source: Any, *parts: str, **options: Any) -> str:
    """Check that loading raises a UserError of one sentence that contains all of `parts`, and return the sentence."""
    with pytest.raises(UserError) as caught:
        load_data(source, **options)
    sentence = str(caught.value)
    for part in parts:
        assert part in sentence, sentence
    assert "\n" not in sentence
    return sentence
