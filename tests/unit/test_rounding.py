"""Sets at 8 bits: which values change, and what that costs by the sets' own recipe."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from limbeck.data import ImageData, fit_preprocess
from limbeck.evaluation.run import evaluate
from limbeck.evaluation.sets import prepare_evaluation
from limbeck.interop.rounding import as_pixels, clipped_fraction, measure_rounding, pair_evaluations, round_set
from limbeck.synthetic.distilled import DistilledSet

RECIPE = {
    **{"networks": 3, "epochs": 4, "batch_size": 50, "momentum": 0.9, "weight_decay": 5e-4, "augment": "none"},
    "model": {"name": "convnet", "depth": 2, "width": 8},
}


def make_set(data: ImageData, kind: str, noise: float) -> DistilledSet:
    preprocess = fit_preprocess(kind, data.train.images)
    images = preprocess.apply(data.train.images[:40])
    images = images + noise * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return DistilledSet(images, data.train.labels[:40], 0.05, preprocess, data.classes, RECIPE, {})


@pytest.mark.parametrize("kind", ["normalise", "zca"])
def test_pixels_are_rounded_once(digits: ImageData, kind: str) -> None:
    distilled = make_set(digits, kind, 0.3)
    rounded = round_set(distilled)
    assert torch.equal(as_pixels(rounded), as_pixels(distilled))
    assert not torch.equal(rounded.images, distilled.images)
    pictures = distilled.pictures().numpy().astype(np.float64)
    assert clipped_fraction(distilled) == pytest.approx(
        np.mean((pictures < -0.5 / 255) | (pictures > 255.5 / 255)), abs=1e-4
    )
    assert clipped_fraction(rounded) == 0
    inside = (pictures >= 0) & (pictures <= 1)
    assert np.abs(rounded.pictures().numpy() - pictures)[inside].max() < 0.51 / 255


def test_the_cost_is_that_of_two_evaluations_by_the_same_seeds(digits: ImageData) -> None:
    distilled = make_set(digits, "normalise", 1.0)
    (evaluation,) = prepare_evaluation(distilled, data=digits)
    loss = measure_rounding(pair_evaluations(evaluation), seed=3)
    exact, rounded = (evaluate(one, data=digits, seed=3)[0] for one in (distilled, round_set(distilled)))
    assert (loss.exact, loss.rounded) == (exact.accuracy_mean, rounded.accuracy_mean)
    assert loss.difference.n == 3
    assert loss.difference.mean == pytest.approx(rounded.accuracy_mean - exact.accuracy_mean)
    assert loss.exact != loss.rounded, "noise of one standard deviation is clipped"
    assert loss.to_json()["difference"] == loss.difference.mean


def test_what_is_8_bits_already_costs_nothing(digits: ImageData) -> None:
    distilled = make_set(digits, "normalise", 0)
    (evaluation,) = prepare_evaluation(replace(distilled, recipe={**RECIPE, "networks": 2}), data=digits)
    loss = measure_rounding(pair_evaluations(evaluation), seed=0)
    assert abs(loss.difference.mean) < 0.005
    assert loss.exact > 0
