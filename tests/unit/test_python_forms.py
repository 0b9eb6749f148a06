"""Every form of Python objects: what is written is read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from python_objects import Feature, HubDataset, Pairs, as_tensor, pairs_of, png
from sklearn.utils import Bunch
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from limbeck.data import load_data


@st.composite
def labelled_sets(draw: st.DrawFn) -> tuple[dict[str, tuple[Any, Any]], tuple[str, ...]]:
    """Images (n, h, w) or (n, h, w, 3) and labels by split, every class in train; and class names."""
    classes = draw(st.integers(2, 4))
    size = draw(st.integers(2, 7)), draw(st.integers(4, 7)), *draw(st.sampled_from([(), (3,)]))
    names = tuple(
        sorted(draw(st.lists(st.text("abc xyzäß").filter(str.strip), min_size=classes, max_size=classes, unique=True)))
    )
    generator = np.random.default_rng(draw(st.integers(0, 999)))
    splits = {}
    for split in ("train", *draw(st.sampled_from([("test",), ("validation", "test")]))):
        labels = draw(st.lists(st.integers(0, classes - 1), min_size=1, max_size=6))
        labels = np.array([*range(classes), *labels] if split == "train" else labels)
        splits[split] = generator.integers(0, 256, (len(labels), *size), np.uint8), labels
    return splits, names


WRITTEN: dict[str, Callable[[Any, Any, Any], Any]] = {
    "pairs of PIL images": lambda x, y, names: Pairs(pairs_of(map_all(Image.fromarray, x), y), names),
    "pairs of tensors": lambda x, y, names: Pairs(pairs_of(map_all(as_tensor, x), y), class_to_idx=by_index(names)),
    "pairs of arrays in 0..1": lambda x, y, names: Pairs(pairs_of(list(x / 255), y), names),
    "a shuffled Subset": lambda x, y, names: Subset(Pairs(pairs_of(list(x), y)[::-1], names), range(len(y))[::-1]),
    "a ConcatDataset": lambda x, y, names: ConcatDataset(
        [Pairs(pairs_of(list(x[:1]), y[:1]), names), Pairs(pairs_of(list(x[1:]), y[1:]), names)]
    ),
    "arrays with words": lambda x, y, names: (x, [names[k] for k in y]),
    "lists with words": lambda x, y, names: (x.tolist(), np.array(names)[y]),
    "a Bunch": lambda x, y, names: Bunch(images=x, target=y, target_names=names),
    "dicts of Hugging Face": lambda x, y, names: HubDataset(
        [{"img": png(p), "label": int(k)} for p, k in zip(x, y, strict=True)],
        {"img": Feature(), "label": Feature(list(names))},
    ),
}


def map_all(function: Callable[[Any], Any], values: Any) -> list[Any]:
    return [function(value) for value in values]


def by_index(names: tuple[str, ...]) -> dict[str, int]:
    return {name: i for i, name in reversed(list(enumerate(names)))}


@pytest.mark.parametrize("form", WRITTEN)
@settings(max_examples=25, deadline=None)
@given(content=labelled_sets())
def test_what_is_written_in_a_form_is_read(form: str, content: Any) -> None:
    splits, names = content
    data = load_data({split: WRITTEN[form](*part, names) for split, part in splits.items()}, validation=0)
    assert data.classes == names
    for split, (images, labels) in splits.items():
        read = getattr(data, split)
        expected = images[:, None] if images.ndim == 3 else np.moveaxis(images, -1, 1)
        assert np.array_equal(read.images, expected)
        assert read.labels.tolist() == labels.tolist()
    assert len(data.validation) == (len(splits["validation"][1]) if "validation" in splits else 0)


@settings(max_examples=25, deadline=None)
@given(content=labelled_sets())
def test_tensors_and_rows_that_are_written_are_read(content: Any) -> None:
    splits, _ = content
    tensors, rows = {}, {}
    for split, (images, labels) in splits.items():
        planes = images[:, None] if images.ndim == 3 else np.moveaxis(images, -1, 1)
        side = min(planes.shape[2:])
        tensors[split] = torch.from_numpy(planes.copy()), torch.from_numpy(labels)
        rows[split] = planes[:, :, :side, :side].reshape(len(labels), -1), labels
    data = load_data({split: TensorDataset(*pair) for split, pair in tensors.items()}, validation=0)
    flat = load_data(rows, validation=0)
    for split, pair in tensors.items():
        assert torch.equal(getattr(data, split).images, pair[0])
        assert torch.equal(getattr(data, split).labels, pair[1])
        assert np.array_equal(getattr(flat, split).images.flatten(1), rows[split][0])
