"""Samplers: which segment of a trajectory an outer step matches."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from limbeck.core.errors import UserError


def _require_length(max_start: float, span: float) -> None:
    if not (max_start > 0 and span > 1e-6):  # a shorter segment has no length to divide by; NaN fails too
        raise UserError(
            f"start epochs below {max_start} and a span of {span} epochs leave nothing to match; raise them."
        )


@dataclass(frozen=True)
class Continuous:
    """MCT's sampler: t0 uniform in [0, max_start), t1 = min(t0 + span, end), both real.

    max_start:    bound of start epochs. A bound beyond the last whole span of a trajectory is reduced to it.
    span:         length of a segment, in epochs.
    first, steps: the bound grows linearly from `first` to `max_start` in the first `steps` outer steps (the floating
                  upper bound that the authors' code has but cannot switch on); None: it does not grow.
    Raises UserError for bounds and spans that are not positive, and for a bound that would fall.

    >>> import limbeck, torch
    >>> sampler = limbeck.Continuous(max_start=10.0, span=2.5)
    >>> t0, t1 = sampler(0, 50, torch.Generator().manual_seed(0))  # outer step 0, an expert of 50 epochs
    >>> 0 <= t0 < 10, t1 == t0 + 2.5
    (True, True)
    """

    max_start: float
    span: float
    first: float | None = None
    steps: int = 1

    def __post_init__(self) -> None:
        _require_length(self.max_start, self.span)
        if self.first is not None:
            _require_length(self.first, self.span)
            if self.first > self.max_start:
                raise UserError(
                    f"a bound of start epochs of {self.first:g} cannot grow to {self.max_start:g}; lower "
                    "--first-max-start-epoch."
                )

    def bound(self, step: int) -> float:
        """Return the upper bound of start epochs at an outer step."""
        first = self.max_start if self.first is None else self.first
        return first + (self.max_start - first) * min(step / self.steps, 1.0)

    def __call__(self, step: int, end: int, generator: torch.Generator) -> tuple[float, float]:
        """Return the first and last epoch of the segment, for an expert of `end` epochs."""
        bound = min(self.bound(step), end - min(self.span, end / 2))
        t0 = bound * float(torch.rand((), generator=generator, dtype=torch.double))
        return t0, min(t0 + self.span, float(end))


@dataclass(frozen=True)
class WholeEpochs:
    """MTT's sampler: t0 uniform in {min_start, ..., max_start - 1}, t1 = t0 + span, both whole epochs.

    Raises UserError for a trajectory that is shorter than min_start + span.

    >>> import limbeck, torch
    >>> sampler = limbeck.WholeEpochs(max_start=10, span=2)
    >>> t0, t1 = sampler(0, 50, torch.Generator().manual_seed(0))  # outer step 0, an expert of 50 epochs
    >>> t0 in range(10), t1 == t0 + 2
    (True, True)
    """

    max_start: int
    span: int
    min_start: int = 0

    def __post_init__(self) -> None:
        _require_length(self.max_start, self.span)
        if self.min_start < 0:
            raise UserError(f"start epochs begin at 0, not at {self.min_start}; give 0 or more.")

    def __call__(self, step: int, end: int, generator: torch.Generator) -> tuple[float, float]:
        """Return the first and last epoch of the segment, for an expert of `end` epochs."""
        bound = min(self.max_start, end - self.span + 1)
        if bound <= self.min_start:
            raise UserError(
                f"experts of {end} epochs have no segment of {self.span} epochs from epoch {self.min_start} on; "
                "lower --expert-epochs, or train them longer (--expert.epochs)."
            )
        t0 = int(torch.randint(self.min_start, bound, (), generator=generator))
        return float(t0), float(t0 + self.span)


@dataclass(frozen=True)
class GrowingEpochs:
    """DATM's sampler: whole epochs whose upper bound grows, min(first + int((last - first) step / steps), last).

    first, last: the bound at step 0, and from step `steps` on.
    span, min_start: as in `WholeEpochs`.
    Raises UserError unless min_start < first <= last and steps >= 1.
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
                f"in {self.steps} steps; the bound grows from above the first start epoch, and never falls: lower "
                "--first-max-start-epoch."
            )
        WholeEpochs(self.first, self.span, self.min_start)

    def bound(self, step: int) -> int:
        """Return the upper bound of start epochs at an outer step."""
        return min(self.first + int((self.last - self.first) * step / self.steps), self.last)

    def __call__(self, step: int, end: int, generator: torch.Generator) -> tuple[float, float]:
        """Return the first and last epoch of the segment, for an expert of `end` epochs."""
        return WholeEpochs(self.bound(step), self.span, self.min_start)(step, end, generator)
