"""Selection of real images, as baselines and as the start of a synthetic set."""

from limbeck.select.coresets import SELECTORS, find_selector, herding, kcentre, kmeans, random, select_per_class, topk
from limbeck.select.fill import FillName, take_images

__all__ = [
    "SELECTORS",
    "FillName",
    "find_selector",
    "herding",
    "kcentre",
    "kmeans",
    "random",
    "select_per_class",
    "take_images",
    "topk",
]
