"""Networks that lie on the paths of experts, under which real and synthetic images are compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.core.rng import make_generator
from limbeck.core.types import Trajectory

Place = Callable[[int, torch.Generator], float]
"""(last epoch of an expert, generator) -> an epoch in [0, last epoch]."""


def draw_uniform(last: float, generator: torch.Generator) -> float:
    """A real number, uniform in [0, last]."""
    return last * float(torch.rand((), generator=generator, dtype=torch.double))


@dataclass(frozen=True)
class Anywhere:
    """A `Place`: uniform along the whole path.

    whole: Only whole epochs, 0 to the last, as recorded trajectories need.

    >>> 0 <= Anywhere()(10, torch.Generator().manual_seed(0)) <= 10
    True
    """

    whole: bool = False

    def __call__(self, end: int, generator: torch.Generator) -> float:
        """An epoch in [0, end]."""
        if self.whole:
            return float(torch.randint(end + 1, (), generator=generator))
        return draw_uniform(end, generator)


@dataclass(frozen=True)
class Ahead:
    """A `Place`: what `Anywhere` draws with this generator, moved ahead by a uniform part of `share` of the path.

    It ends with the path. TGDD draws the network of its cross-entropy so, up to 6 of 60 epochs ahead of the features'.

    >>> place, ahead = (rule(10, torch.Generator().manual_seed(0)) for rule in (Anywhere(), Ahead(0.1)))
    >>> place <= ahead <= min(place + 1, 10)
    True
    """

    share: float

    def __call__(self, end: int, generator: torch.Generator) -> float:
        """An epoch in [0, end]."""
        place = draw_uniform(end, generator)
        return place + draw_uniform(min(self.share * end, end - place), generator)


@dataclass(frozen=True)
class AtEnd:
    """A `Place`: the end of the path, which is the trained expert."""

    def __call__(self, end: int, generator: torch.Generator) -> float:
        """The last epoch."""
        return float(end)


@dataclass(frozen=True)
class AlongExperts:
    """A `NetworkSource`: a random expert at a place on its path, drawn anew at every outer step.

    trajectories: Of the experts.
    place:        Where on the path; two sources of the same experts draw the same expert at the same step and seed.
    device:       Where the parameters are needed.

    NCFM draws a point on the chord from the start to the end of an expert's training: a convexified trajectory of two
    waypoints and a uniform beta, at a uniform place (Wang et al., CVPR 2025). TGDD draws an epoch (AAAI 2026).

    >>> from limbeck.experts.recorded import Recorded
    >>> path = Recorded(torch.tensor([[0.0], [1.0], [2.0]]))
    >>> AlongExperts([path], AtEnd(), torch.device("cpu"))(0, 0)
    tensor([2.])
    """

    trajectories: Sequence[Trajectory]
    place: Place
    device: torch.device

    def __call__(self, step: int, seed: int) -> Tensor:
        """The parameters (P,) at outer step `step`."""
        generator = make_generator(seed, "along-experts", step)
        expert = self.trajectories[int(torch.randint(len(self.trajectories), (), generator=generator))]
        return expert.at(self.place(expert.end, generator)).to(self.device)
