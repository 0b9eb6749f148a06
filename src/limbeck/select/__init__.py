"""Selection of real images, as baselines and as the start of a synthetic set."""

from limbeck.select.coresets import SELECTORS, herding, kcentre, kmeans, random, select_per_class, topk

__all__ = ["SELECTORS", "herding", "kcentre", "kmeans", "random", "select_per_class", "topk"]
