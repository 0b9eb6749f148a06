"""Labelled images from names, files and Python (`load_data`), and their network input space (`fit_preprocess`)."""

from limbeck.data.images import READING, ImageData, Split
from limbeck.data.preprocess import Preprocess, fit_preprocess
from limbeck.data.sources import DataSource, load_data

__all__ = ["READING", "DataSource", "ImageData", "Preprocess", "Split", "fit_preprocess", "load_data"]
