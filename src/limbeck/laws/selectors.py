"""Laws of selectors: rows of one class from that class's features."""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.core.rng import make_generator
from limbeck.laws.law import Law, require
from limbeck.select.coresets import Selector

SIZES = ((1, 1, 1), (7, 3, 2), (7, 3, 7), (40, 5, 10))
"""(images of the class, features, count)."""


def _draw_features(size: int, dimensions: int) -> Tensor:
    return torch.randn(size, dimensions, generator=make_generator(0, "features", size))


def check_rows(selector: Selector) -> None:
    """it returns `count` different rows of the class, int64 (count,), also where count is the whole class"""
    for size, dimensions, count in SIZES:
        rows, place = selector(_draw_features(size, dimensions), count, 0), f"for {count} of {size} rows"
        require(isinstance(rows, Tensor), f"it returns a {type(rows).__name__} {place}, not a tensor")
        require(rows.dtype is torch.int64, f"it returns {rows.dtype} {place}")
        require(tuple(rows.shape) == (count,), f"it returns the shape {tuple(rows.shape)} {place}")
        require(len({*rows.tolist()}) == count, f"it returns a row twice {place}")
        require(int(rows.min()) >= 0 and int(rows.max()) < size, f"it returns a row that does not exist {place}")


def check_same_rows(selector: Selector) -> None:
    """it returns the same rows for the same features and seed, and leaves the features as they are"""
    features = _draw_features(40, 5)
    before = features.clone()
    first, second = selector(features, 10, 3), selector(features, 10, 3)
    require(torch.equal(first, second), f"two calls give {first.tolist()} and {second.tolist()}")
    require(torch.equal(features, before), "it changes the features")


def check_equal_features(selector: Selector) -> None:
    """images that are all the same, and features of one dimension, are no obstacle"""
    for features in (torch.ones(6, 4), torch.arange(6.0)[:, None]):
        rows = selector(features, 4, 0)
        require(len({*rows.tolist()}) == 4, f"of features of shape {tuple(features.shape)} it returns {rows.tolist()}")


SELECTOR_LAWS: tuple[Law[Selector], ...] = (check_rows, check_same_rows, check_equal_features)
