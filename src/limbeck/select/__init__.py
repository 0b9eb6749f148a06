"""Coresets: which real images to keep, as baselines and as the start of a synthetic set."""

from limbeck.select.coresets import SELECTORS, choose, kmeans, random

__all__ = ["SELECTORS", "choose", "kmeans", "random"]
