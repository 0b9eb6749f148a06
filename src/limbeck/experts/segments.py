"""Samplers: which segment of a trajectory an outer step matches."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from limbeck.core.errors import UserError


def _check(max_start: float, span: float) -> None:
    if not (max_start > 0 and span > 1e-6):  # a shorter stretch has no length to divide by; NaN fails too
        raise UserError(f"start epochs below {max_start} and a span of {span} epochs leave nothing to match.")


@dataclass(frozen=True)
class Continuous:
    """MCT: t0 uniform in [0, max_start), t1 = min(t0 + span, end), both real.

    max_start, span: in epochs. A start bound past the end is drawn in to the last whole span that fits.
    first, steps: the bound grows linearly from `first` to `max_start` in so many outer steps (the floating upper bound
    that the authors' code has but cannot switch on); by default it is `max_start` throughout.
    """

    max_start: float
    span: float
    first: float | None = None
    steps: int = 1

    def __post_init__(self) -> None:
        _check(self.max_start, self.span)
        if self.first is not None:
            _check(self.first, self.span)

    def bound(self, step: int) -> float:
        """The upper bound of start epochs at an outer step."""
        first = self.max_start if self.first is None else self.first
        return first + (self.max_start - first) * min(step / self.steps, 1.0)

    def __call__(self, step: int, end: int, generator: torch.Generator) -> tuple[float, float]:
        bound = min(self.bound(step), end - min(self.span, end / 2))
        t0 = bound * float(torch.rand((), generator=generator, dtype=torch.double))
        return t0, min(t0 + self.span, float(end))


@dataclass(frozen=True)
class WholeEpochs:
    """MTT: t0 uniform in {min_start, ..., max_start - 1}, t1 = t0 + span, both whole epochs.

    Raises UserError where the trajectory has no room for the span.
    """

    max_start: int
    span: int
    min_start: int = 0

    def __post_init__(self) -> None:
        _check(self.max_start, self.span)
        if self.min_start < 0:
            raise UserError(f"start epochs begin at 0, not at {self.min_start}.")

    def __call__(self, step: int, end: int, generator: torch.Generator) -> tuple[float, float]:
        bound = min(self.max_start, end - self.span + 1)
        if bound <= self.min_start:
            raise UserError(
                f"experts of {end} epochs have no segment of {self.span} epochs from epoch {self.min_start} on."
            )
        t0 = int(torch.randint(self.min_start, bound, (), generator=generator))
        return float(t0), float(t0 + self.span)


@dataclass(frozen=True)
class GrownEpochs:
    """DATM: whole epochs whose upper bound grows, U(step) = min(first + int((last - first) step / steps), last).

    first, last: the bound U at step 0 and from step `steps` on; span and min_start as in `WholeEpochs`.
    """

    first: int
    last: int
    steps: int
    span: int
    min_start: int = 0

    def __post_init__(self) -> None:
        if not self.min_start < self.first <= self.last or self.steps < 1:
            raise UserError(
                f"a start range [{self.min_start}, {self.first}) cannot grow to [{self.min_start}, {self.last}) "
                f"in {self.steps} steps."
            )
        WholeEpochs(self.first, self.span, self.min_start)

    def bound(self, step: int) -> int:
        """U at an outer step."""
        return min(self.first + int((self.last - self.first) * step / self.steps), self.last)

    def __call__(self, step: int, end: int, generator: torch.Generator) -> tuple[float, float]:
        return WholeEpochs(self.bound(step), self.span, self.min_start)(step, end, generator)
