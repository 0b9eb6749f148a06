"""Truncated back-propagation: which steps of a student's training are differentiated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from limbeck.core.types import Batch, PureLoss
from limbeck.derivatives.autograd import Loss
from limbeck.training.descent import Descent, State
from limbeck.training.unroll import advance, walk


class Place(Protocol):
    """Where a window begins."""

    def __call__(self, last: int, norms: Callable[[], Tensor], generator: torch.Generator) -> int:
        """The number of steps before the window, from 0 to `last`.

        norms: () -> the norms of the gradients (T,) of this training, which costs a whole training without a graph.
        """
        ...


@dataclass(frozen=True)
class Uniform:
    """Every place is as likely as any other (RaT-BPTT, Feng et al. 2024).

    >>> Uniform()(0, lambda: torch.ones(60), torch.Generator())
    0
    """

    def __call__(self, last: int, norms: Callable[[], Tensor], generator: torch.Generator) -> int:
        """The number of steps before the window; see `Place`."""
        return int(torch.randint(last + 1, (), generator=generator))


@dataclass(frozen=True)
class AtEnd:
    """The last steps: truncated back-propagation.

    >>> AtEnd()(40, lambda: torch.ones(60), torch.Generator())
    40
    """

    def __call__(self, last: int, norms: Callable[[], Tensor], generator: torch.Generator) -> int:
        """The number of steps before the window; see `Place`."""
        return last


@dataclass(frozen=True)
class ByNorm:
    """Steps of a large gradient are the likelier a window's first one, the lower the temperature (after AT-BPTT).

    The probabilities are the softmax of the gradient norms at the possible first steps, in standard deviations from
    their mean, over the temperature: they do not change where the loss is scaled, and equal norms have equal ones.

    >>> ByNorm(0.5).probabilities(torch.tensor([1.0, 1.0, 1.0, 2.0]))
    tensor([0.0096, 0.0096, 0.0096, 0.9713])
    """

    temperature: float = 1.0

    def probabilities(self, norms: Tensor) -> Tensor:
        """Norms (n,) -> probabilities (n,)."""
        deviation = norms - norms.mean()
        spread = deviation.square().mean().sqrt()
        scores = torch.where(spread > 0, deviation / spread, 0)
        return (scores.nan_to_num(0.0) / self.temperature).softmax(0)

    def __call__(self, last: int, norms: Callable[[], Tensor], generator: torch.Generator) -> int:
        """The number of steps before the window; see `Place`."""
        probabilities = self.probabilities(norms()[: last + 1].double().cpu())
        return int(torch.multinomial(probabilities, 1, generator=generator))


UNIFORM = Uniform()


@dataclass(frozen=True)
class Window:
    """`length` steps, somewhere in a training of `total` steps, that are differentiated; those before are constants.

    The gradient is that of the loss at the window's end as a function of the set as used inside the window. Adam and
    momentum go on counting from the steps before.

    place: Where it begins: `Uniform`, `AtEnd` or `ByNorm`.
    Raises ValueError for a window that is longer than the training, or empty.

    >>> batches = [Batch(torch.zeros(1, 1, 1, 1), torch.zeros(1))] * 5
    >>> from limbeck.training import Plain
    >>> quadratic = lambda theta, batch: (theta**2).sum() / 2
    >>> state, rest = Window(5, 2, AtEnd()).open(quadratic, torch.ones(1), batches, 0.5, Plain(), torch.Generator())
    >>> state.steps, len(rest)
    (3, 2)
    """

    total: int
    length: int
    place: Place = UNIFORM

    def __post_init__(self) -> None:
        if not 1 <= self.length <= self.total:
            raise ValueError(
                f"a window of {self.length} steps in a training of {self.total}; expected 1 to {self.total}"
            )

    def open(
        self,
        loss: Loss | PureLoss,
        theta0: Tensor,
        batches: list[Batch],
        lr: Tensor | float,
        descent: Descent,
        generator: torch.Generator,
    ) -> tuple[State, list[Batch]]:
        """Train from theta0 (P,) up to the window without a graph -> the state there, and the window's batches.

        batches: One for every step of the training.
        """
        path = [descent.start(theta0)]

        def norms() -> Tensor:
            sizes = []
            for state, gradient in walk(loss, theta0, batches, lr, descent):
                path.append(state)
                sizes.append(gradient.norm())
            return torch.stack(sizes)

        first = self.place(self.total - self.length, norms, generator)
        state = path[first] if first < len(path) else advance(loss, theta0, batches[:first], lr, descent)
        return state, batches[first : first + self.length]
