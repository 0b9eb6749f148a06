"""Coresets: which real images to keep, as baselines and as the start of a synthetic set."""

from limbeck.select.coresets import SELECTORS, choose, herding, highest, kcentre, kmeans, random

__all__ = ["SELECTORS", "choose", "herding", "highest", "kcentre", "kmeans", "random"]
