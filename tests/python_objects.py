"""Datasets and items as Python programs hold them, and what `load_data` makes of them."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset

from limbeck.data import ImageData, load_data


class Pairs(Dataset[Any]):
    """A map-style Dataset of the given (image, label) pairs, with attributes as torchvision's."""

    def __init__(self, pairs: list[Any], classes: Any = None, **attributes: Any) -> None:
        self.pairs = pairs
        if classes is not None:
            self.classes = classes
        self.__dict__.update(attributes)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Any:
        return self.pairs[index]


class Stream(IterableDataset[Any]):
    """A Dataset without rows. It inherits a __getitem__ that raises NotImplementedError, and may have a length."""

    def __iter__(self) -> Any:
        return iter(())

    def __len__(self) -> int:
        return 3


class Feature:
    """A feature of a Hugging Face column: of a class label, with names."""

    def __init__(self, names: list[str] | None = None) -> None:
        if names:
            self.names = names


class HubDataset:
    """What Hugging Face's Dataset shows of itself: rows are dicts, `features` describe the columns."""

    def __init__(self, rows: list[dict[str, Any]], features: dict[str, Feature]) -> None:
        self.rows, self.features, self.column_names = rows, features, list(features)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]


def png(pixels: Any) -> bytes:
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def as_tensor(pixels: Any) -> torch.Tensor:
    return torch.from_numpy(pixels if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0).copy())


def pairs_of(images: Any, labels: Any = None) -> list[Any]:
    return list(zip(images, [i % 2 for i in range(len(images))] if labels is None else labels, strict=True))


def pixels_of(data: ImageData) -> Any:
    """Train images as numpy (n, h, w) or (n, h, w, 3)."""
    images = data.train.images.permute(0, 2, 3, 1).numpy()
    return images[..., 0] if images.shape[-1] == 1 else images


def whole(source: Any, **options: Any) -> ImageData:
    """The data with the source as every split, so that no image is held out."""
    return load_data({"train": source, "validation": source, "test": source}, **options)
