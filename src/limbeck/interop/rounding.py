"""Distilled sets at 8 bits a value, as pictures hold them, and what that costs in accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from torch import Tensor

from limbeck.core.events import Listener
from limbeck.evaluation.compare import PairedDifference, paired_difference
from limbeck.evaluation.run import run_evaluations
from limbeck.evaluation.sets import Evaluation
from limbeck.synthetic.distilled import DistilledSet

MARGIN = 0.5 / 255  # a value that is this far outside of 0..1 is rounded to 0 or 1, and not clipped


class RoundingLoss(NamedTuple):
    """Test accuracies of networks trained on a set as it is and at 8 bits, by the same seeds.

    exact, rounded: the means. difference: rounded less exact.
    """

    exact: float
    rounded: float
    difference: PairedDifference

    @property
    def text(self) -> str:
        """The figures as part of a sentence.

        >>> RoundingLoss(0.715, 0.711, PairedDifference(-0.004, 0.002, -0.01, 0.001, 5)).text
        '71.1 % at 8 bits, 71.5 % exact: a difference of -0.4 points (standard error 0.2, n 5)'
        """
        error = self.difference.standard_error
        spread = "" if error is None else f"standard error {100 * error:.1f}, "
        return (
            f"{100 * self.rounded:.1f} % at 8 bits, {100 * self.exact:.1f} % exact: a difference of "
            f"{100 * self.difference.mean:+.1f} points ({spread}n {self.difference.n})"
        )

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        difference = self.difference._asdict()
        return {"exact": self.exact, "rounded": self.rounded, "difference": difference.pop("mean"), **difference}


def as_pixels(distilled: DistilledSet) -> Tensor:
    """The images as uint8 pixels (n, c, h, w): values outside of 0..1 are clipped, the others rounded."""
    return distilled.pictures().clamp(0, 1).mul(255).round().byte()


def clipped_fraction(distilled: DistilledSet) -> float:
    """The fraction of pixel values that `as_pixels` clips."""
    return ((distilled.pictures() - 0.5).abs() > 0.5 + MARGIN).double().mean().item()


def round_set(distilled: DistilledSet) -> DistilledSet:
    """The set whose images are those of `as_pixels`, brought to network input space again.

    Whitened images (ZCA) become pixels before they are rounded, and are whitened again: an error of one pixel then
    spreads over the whole image.

    >>> import torch
    >>> from limbeck.data import fit_preprocess, load_data
    >>> images = load_data("digits").train.images[:4]
    >>> preprocess = fit_preprocess("normalise", images)
    >>> exact = DistilledSet(preprocess.apply(images), torch.arange(4), 0.1, preprocess, tuple("abcd"), {}, {})
    >>> torch.equal(as_pixels(exact), images), (round_set(exact).images - exact.images).abs().max().item() < 1e-5
    (True, True)
    """
    return replace(distilled, images=distilled.preprocess.apply(as_pixels(distilled)))


def pair_evaluations(evaluation: Evaluation) -> list[Evaluation]:
    """The evaluation of a set, and that of the same set at 8 bits."""
    return [evaluation, evaluation._replace(distilled=round_set(evaluation.distilled))]


def measure_rounding(pair: Sequence[Evaluation], seed: int, listen: Listener = lambda event: None) -> RoundingLoss:
    """Train fresh networks of the same seeds on both sets of `pair_evaluations`, and compare their test accuracies."""
    exact, rounded = run_evaluations(pair, seed, listen)
    difference = paired_difference(rounded.accuracies or [], exact.accuracies or [], seed)
    return RoundingLoss(exact.accuracy_mean, rounded.accuracy_mean, difference)
