"""The distance of characteristic functions (Wang et al., NCFM, CVPR 2025), a `ClassDistance` of features."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.core.rng import make_generator
from limbeck.objectives.features import ClassFeatures

TINY = 1e-12  # inside the roots, whose derivatives are then finite at 0


@dataclass(frozen=True)
class CharacteristicDistance:
    """The distance between the characteristic functions of real and synthetic features of length 1, class by class.

    With Phi(t) the mean of exp(i t.f) over a class, a = |Phi_real(t)| and b = |Phi_synthetic(t)|, it is the scale times
    the mean over t of sqrt(alpha (a - b)^2 + (1 - alpha) (|Phi_real - Phi_synthetic|^2 - (a - b)^2)): a difference of
    amplitudes and one of phases. The second is 2 (a b - Re Phi_real Re Phi_synthetic - Im Phi_real Im Phi_synthetic),
    written so that little is lost by rounding.

    count: Frequencies t, drawn from N(0, I) by (seed, step): one draw for all classes.
    scale: Of the distance (300 in the released code).
    alpha: Weight of the amplitude; at 0.5 the distance is scale / sqrt(2) * mean over t of |Phi_real - Phi_synthetic|.

    >>> features = ClassFeatures(torch.eye(3), [1, 2])
    >>> float(CharacteristicDistance(8)(features, features, step=0, seed=0)) < 1e-2
    True
    """

    count: int = 256
    scale: float = 300.0
    alpha: float = 0.5

    def frequencies(self, like: Tensor, step: int, seed: int) -> Tensor:
        """The frequencies of an outer step, (count, d) for features (n, d)."""
        generator = make_generator(seed, "frequencies", step)
        return torch.randn(self.count, like.shape[1], generator=generator).to(like)

    def __call__(self, real: ClassFeatures, synthetic: ClassFeatures, step: int, seed: int) -> Tensor:
        """The sum over classes: a scalar."""
        frequencies = self.frequencies(real.features, step, seed)
        (real_part, imaginary_part), (real_part1, imaginary_part1) = (
            characteristic_function(batch, frequencies) for batch in (real, synthetic)
        )
        difference = (real_part - real_part1).square() + (imaginary_part - imaginary_part1).square()
        amplitude, amplitude1 = (
            (re.square() + im.square() + TINY).sqrt()
            for re, im in ((real_part, imaginary_part), (real_part1, imaginary_part1))
        )
        of_amplitude = (amplitude - amplitude1).square()
        of_phase = (difference - of_amplitude).clamp_min(0)  # rounding can make it negative
        weighted = self.alpha * of_amplitude + (1 - self.alpha) * of_phase
        return self.scale * (weighted + TINY).sqrt().mean(1).sum()


def characteristic_function(batch: ClassFeatures, frequencies: Tensor) -> tuple[Tensor, Tensor]:
    """Real and imaginary parts (classes, count) of Phi at frequencies (count, d), of features scaled to length 1."""
    phase = F.normalize(batch.features, dim=1) @ frequencies.T
    return batch.means(phase.cos()), batch.means(phase.sin())
