"""What is captured is checked once: whatever a recorder does, results are those of the plain pass, and no run ends."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from limbeck.derivatives.autograd import Hvp, NeedsGrad
from limbeck.derivatives.cuda_graph import CapturedDerivatives, Outputs, agree

pytestmark = pytest.mark.usefixtures("untouched_generators")

NEEDS = NeedsGrad(True, True, False)
Work = Callable[[], Outputs]


@dataclass
class Direct:
    """Derivatives that are simple to see through, and counted."""

    dtype: torch.dtype = torch.float32
    calls: list[str] = field(default_factory=list)
    scale: float = 1.0

    def gradient(self, theta: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        self.calls.append("gradient")
        return self.scale * theta * images.sum() + labels.sum()

    def hvp(self, theta: Tensor, images: Tensor, labels: Tensor, direction: Tensor, needs: NeedsGrad) -> Hvp:
        self.calls.append("hvp")
        directional = torch.dot(theta, direction)
        return Hvp(directional, 2 * direction, images * directional if needs.images else None, None)

    def logits(self, theta: Tensor, images: Tensor) -> Tensor:
        self.calls.append("logits")
        return images.flatten(1) * theta.sum()


def faithful(work: Work) -> Work:
    """What a CUDA graph does: the same work on the same buffers, into the same buffers."""
    results = work()

    def replay() -> Outputs:
        for place, new in zip(results, work()):
            if place is not None and new is not None:
                place.copy_(new)
        return results

    return replay


def refuses(work: Work) -> Work:
    work()
    raise RuntimeError("operation not permitted when stream is capturing\nand a long story")


def refuses_to_replay(work: Work) -> Work:
    def replay() -> Outputs:
        raise MemoryError

    return replay


def changed(change: Callable[[Tensor], Tensor]) -> Callable[[Work], Work]:
    def record(work: Work) -> Work:
        replay = faithful(work)
        return lambda: [None if result is None else change(result.clone()) for result in replay()]

    return record


def deaf(work: Work) -> Work:
    """The results of what was recorded, whatever lies in the buffers."""
    results = work()
    return lambda: results


def mute(work: Work) -> Work:
    """Buffers that nothing was written to."""
    results = [None if result is None else torch.full_like(result, torch.nan) for result in work()]
    return lambda: results


def forgets_one(work: Work) -> Work:
    replay = faithful(work)
    return lambda: [*replay()][:-1]


BROKEN = {
    "refuses": refuses,
    "refuses to replay": refuses_to_replay,
    "wrong": changed(lambda x: 1.01 * x + 0.01),
    "not finite": changed(lambda x: x / 0),
    "deaf": deaf,
    "mute": mute,
    "forgets one": forgets_one,
}


def point(count: int = 3) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    drawn = torch.Generator().manual_seed(count)
    theta, direction = torch.randn(4, generator=drawn), torch.randn(4, generator=drawn)
    return theta, torch.randn(count, 1, 2, 2, generator=drawn), torch.arange(count) % 3 + 1, direction


def all_results(derivatives: CapturedDerivatives | Direct, count: int = 3) -> list[Tensor]:
    theta, images, labels, direction = point(count)
    products = derivatives.hvp(theta, images, labels, direction, NEEDS)
    return [
        derivatives.gradient(theta, images, labels),
        derivatives.logits(theta, images),
        *(part for part in products if part is not None),
    ]


def are_equal(actual: list[Tensor], exact: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(actual, exact, strict=True))


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_trusted_is_not_used(name: str) -> None:
    """One warning that names the reason, the plain results from the first call on, and nothing is tried again."""
    direct, tries = Direct(), []

    def record(work: Work) -> Work:
        tries.append(name)
        return BROKEN[name](work)

    derivatives = CapturedDerivatives(direct, record)
    with pytest.warns(UserWarning, match="no more CUDA graphs") as caught:
        assert are_equal(all_results(derivatives), all_results(Direct()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for count in (3, 5, 3):
            assert are_equal(all_results(derivatives, count), all_results(Direct(), count))
    assert len(caught) == len(tries) == 1
    assert derivatives.graphs == {}
    assert ("not permitted" in str(caught[0].message)) == (name == "refuses")
    assert "long story" not in str(caught[0].message)


def test_what_was_recorded_before_a_failure_goes_on() -> None:
    direct, allowed = Direct(), [True, False]

    def record(work: Work) -> Work:
        return (faithful if allowed.pop(0) else refuses)(work)

    derivatives = CapturedDerivatives(direct, record)
    theta, images, labels, _ = point()
    derivatives.gradient(theta, images, labels)
    with pytest.warns(UserWarning, match="CUDA graphs"):
        derivatives.logits(theta, images)
    assert len(derivatives.graphs) == 1
    assert torch.equal(derivatives.gradient(theta + 1, images, labels), Direct().gradient(theta + 1, images, labels))


def test_rounding_is_no_failure_and_the_replay_is_what_counts() -> None:
    """The first call gives the bits that every later one gives, so that an interrupted run does too."""
    derivatives = CapturedDerivatives(Direct(), changed(lambda x: x * (1 + 1e-6)))
    first, second = all_results(derivatives), all_results(derivatives)
    assert are_equal(first, second)
    assert not are_equal(first, all_results(Direct()))
    assert derivatives.failures == []


def test_a_pass_that_diverged_is_no_failure() -> None:
    """Where the plain pass is not finite a replay may be anything; where it is, it may not."""
    derivatives = CapturedDerivatives(Direct(scale=torch.inf), faithful)
    theta, images, labels, _ = point()
    theta[0] = torch.nan
    assert not derivatives.gradient(theta, images, labels).isfinite().any()
    assert derivatives.failures == []
    partly_nan = torch.tensor([1.0, torch.nan])
    assert agree([partly_nan], [partly_nan], 1e-3)
    assert not agree([torch.tensor([torch.nan, 1.0])], [partly_nan], 1e-3)


def test_an_error_of_the_pass_itself_is_raised() -> None:
    derivatives = CapturedDerivatives(Direct(), faithful)
    theta, images, labels, direction = point()
    with pytest.raises(RuntimeError, match="same number of elements"):
        derivatives.hvp(theta, images, labels, direction[:2], NEEDS)
    assert derivatives.failures == []
