"""Laws of the samplers: every segment lies in the trajectory, and only (seed, step) decides which."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from limbeck.core.errors import UserError
from limbeck.core.rng import make_generator
from limbeck.core.types import Sampler
from limbeck.experts import Continuous, WholeEpochs

pytestmark = pytest.mark.usefixtures("untouched_generators")

epochs = st.floats(0.01, 80, allow_nan=False)
continuous = st.builds(Continuous, max_start=epochs, span=epochs)
whole = st.builds(
    lambda low, room, span: WholeEpochs(low + room, span, low),
    st.integers(0, 30),
    st.integers(1, 30),
    st.integers(1, 9),
)
SAMPLERS = {"continuous": continuous, "whole": whole}
ends, steps, seeds = st.integers(1, 60), st.integers(0, 10**6), st.integers(-(2**40), 2**40)


def accepts(sampler: Sampler, end: int) -> bool:
    return not isinstance(sampler, WholeEpochs) or sampler.min_start + sampler.span <= end


@given(st.one_of(*SAMPLERS.values()), ends, steps, seeds)
def test_a_segment_lies_in_the_trajectory(sampler: Sampler, end: int, step: int, seed: int) -> None:
    if not accepts(sampler, end):
        with pytest.raises(UserError, match=f"experts of {end} epochs"):
            sampler(step, end, make_generator(seed, step))
        return
    t0, t1 = sampler(step, end, make_generator(seed, step))
    assert 0 <= t0 < t1 <= end
    assert (t0, t1) == sampler(step, end, make_generator(seed, step))


@given(continuous, ends, steps)
def test_continuous_goes_a_span_or_to_the_end(sampler: Continuous, end: int, step: int) -> None:
    t0, t1 = sampler(step, end, make_generator(0, step))
    assert t0 < sampler.max_start
    assert t1 == min(t0 + sampler.span, end)
    if sampler.span <= end / 2 and sampler.max_start + sampler.span <= end:
        assert t1 - t0 == pytest.approx(sampler.span)


@given(whole, ends, steps)
def test_whole_epochs_are_whole(sampler: WholeEpochs, end: int, step: int) -> None:
    if accepts(sampler, end):
        t0, t1 = sampler(step, end, make_generator(0, step))
        assert (t0, t1) == (int(t0), int(t1))
        assert sampler.min_start <= t0 < sampler.max_start
        assert t1 - t0 == sampler.span


def test_continuous_is_uniform() -> None:
    starts = torch.tensor([Continuous(6.0, 3.0)(step, 30, make_generator(0, step))[0] for step in range(4000)])
    counts = torch.histc(starts, bins=10, min=0, max=6)
    assert counts.sum() == 4000
    assert (counts - 400).abs().max() < 5 * (4000 * 0.1 * 0.9) ** 0.5
    assert len(starts.unique()) > 3990


@pytest.mark.parametrize(("end", "starts"), [(30, [2, 3, 4, 5]), (6, [2, 3, 4])])
def test_whole_epochs_are_uniform(end: int, starts: list[int]) -> None:
    """Over every start that leaves room for the span, the last one included."""
    sampler = WholeEpochs(max_start=6, span=2, min_start=2)
    samples = torch.tensor([sampler(step, end, make_generator(0, step))[0] for step in range(2000)])
    values, counts = samples.unique(return_counts=True)
    assert values.tolist() == starts
    share = 1 / len(starts)
    assert (counts - 2000 * share).abs().max() < 5 * (2000 * share * (1 - share)) ** 0.5


@pytest.mark.parametrize("kind", [Continuous, WholeEpochs])
@pytest.mark.parametrize(("start", "span"), [(0, 1), (-1, 1), (1, 0), (1, -2)])
def test_nothing_to_match_is_refused(kind: type, start: int, span: int) -> None:
    with pytest.raises(UserError):
        kind(start, span)
