"""Laws of the device that stands for a GPU in tests (tests/elsewhere.py): it computes, and sees every transfer."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from elsewhere import DEVICE, Elsewhere, MixedDevices, ReadBack, There
from torch import Tensor

pytestmark = pytest.mark.usefixtures("untouched_generators")


@pytest.fixture
def elsewhere() -> Elsewhere:
    return Elsewhere()


def test_operations_and_autograd_compute_on_the_device(elsewhere: Elsewhere) -> None:
    with elsewhere:
        x = torch.arange(3.0).to(DEVICE).requires_grad_()
        (x * x).sum().backward()
        assert isinstance(x.grad, There)
        assert elsewhere.reads == []
        assert x.grad.tolist() == [0.0, 2.0, 4.0]
        assert torch.tensor([1.5], device=DEVICE).item() == x.new_tensor([1.5]).item() == 1.5
    assert len(elsewhere.reads) == 3


@pytest.mark.parametrize(
    "work",
    [
        lambda x: x + torch.ones(3),
        lambda x: x[torch.tensor([0, 1])],
        lambda x: x[[0, 1]],
        lambda x: x.index_add_(0, torch.tensor([0]), x[:1]),
        lambda x: torch.cat([x, torch.ones(1)]),
    ],
)
def test_mixed_devices_are_refused(elsewhere: Elsewhere, work: Callable[[Tensor], Tensor]) -> None:
    with elsewhere, pytest.raises(MixedDevices):
        work(torch.ones(3).to(DEVICE))


@pytest.mark.parametrize(
    "work",
    [
        lambda x: float(x[0]),
        lambda x: bool(x.isfinite().all()),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x.unique(),
        lambda x: x.to("cpu"),
        lambda x: torch.zeros(3).copy_(x),
        lambda x: x.copy_(torch.zeros(3)),
        lambda x: torch.zeros(3).to(DEVICE),
        lambda x: torch.tensor(1.0, device=DEVICE),
    ],
)
def test_every_transfer_is_seen(elsewhere: Elsewhere, work: Callable[[Tensor], object]) -> None:
    with elsewhere:
        x = torch.ones(3).to(DEVICE)
        with elsewhere.nothing_crosses("in a test"), pytest.raises(ReadBack):
            work(x)
