"""Captures a derivative as a CUDA graph, so that some hundred small kernels launch as one."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from limbeck.derivatives.autograd import Hvp, NeedsGrad
from limbeck.derivatives.explicit import ExplicitDerivatives

Made = Sequence[Tensor | None]
Record = Callable[[Callable[[], Made]], Callable[[], Made]]
"""fn -> replay, which runs fn again on the same input and output buffers."""

ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 5e-2}
"""How far a replay may be from the plain pass, relative to the size of the result: both run the same kernels."""


def cuda_graph(work: Callable[[], Made]) -> Callable[[], Made]:
    """Run `work` three times on a stream of its own, so that libraries choose their algorithms, and capture it."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        made = work()

    def again() -> Made:
        graph.replay()
        return made

    return again


@dataclass(frozen=True, eq=False)
class CapturedDerivatives:
    """`plain`, which reads nothing back from the device, recorded once for each shape of its inputs.

    A step is then some copies and one launch. Only the first `most` shapes are recorded, since a recording holds its
    memory. The first replay is compared with the plain pass. Where recording fails, or the two differ by more than
    rounding, the plain pass is used, nothing else is recorded, and one warning says why.
    """

    plain: ExplicitDerivatives
    record: Record = cuda_graph
    most: int = 16
    held: dict[Any, tuple[list[Tensor], Callable[[], Made]]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    @property
    def dtype(self) -> torch.dtype:
        """How activations are stored."""
        return self.plain.dtype

    def gradient(self, theta: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """As `TorchDerivatives.gradient`."""
        return self._one("gradient", self.plain.gradient, theta, images, labels)

    def hvp(self, theta: Tensor, images: Tensor, labels: Tensor, direction: Tensor, needs: NeedsGrad) -> Hvp:
        """As `TorchDerivatives.hvp`."""

        def work(*given: Tensor) -> Hvp:
            return self.plain.hvp(given[0], given[1], given[2], given[3], needs)

        directional, *rest = self._again(("hvp", needs), work, theta, images, labels, direction)
        assert directional is not None
        return Hvp(directional, *rest)

    def logits(self, theta: Tensor, images: Tensor) -> Tensor:
        """As `TorchDerivatives.logits`."""
        return self._one("logits", self.plain.logits, theta, images)

    def _one(self, name: str, work: Callable[..., Tensor], *given: Tensor) -> Tensor:
        (made,) = self._again(name, lambda *inputs: (work(*inputs),), *given)
        assert made is not None
        return made

    def _again(self, what: Any, work: Callable[..., Made], *given: Tensor) -> Made:
        key = what, tuple((tensor.shape, tensor.dtype) for tensor in given)
        if key in self.held:
            return _replay(*self.held[key], given)
        if len(self.held) == self.most or self.failures:
            return work(*given)
        plain = work(*given)
        try:
            # On other values than the first replay has, so that a recording that is deaf to its inputs is found out.
            inputs = [tensor.detach().clone(memory_format=torch.contiguous_format) for tensor in given]
            for tensor in inputs:
                tensor.copy_(tensor / 2)
            recording = inputs, self.record(lambda: work(*inputs))
            replayed = _replay(*recording, given)
            if not agree(replayed, plain, ROUNDING[self.dtype]):
                raise RuntimeError("a replay gave other numbers than the pass itself")
        except Exception as error:  # whatever it is: an optimisation ends no run
            self._give_up(error)
            return plain
        self.held[key] = recording
        return replayed

    def _give_up(self, error: Exception) -> None:
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        self.failures.append(reason)
        warnings.warn(
            f"no more CUDA graphs: {reason}; the same is computed kernel by kernel, which takes longer.",
            stacklevel=2,
        )


def _replay(inputs: list[Tensor], again: Callable[[], Made], given: Sequence[Tensor]) -> Made:
    for place, tensor in zip(inputs, given):
        place.copy_(tensor)
    return [None if result is None else result.clone() for result in again()]


def agree(replayed: Made, plain: Made, tolerance: float) -> bool:
    """Whether both have the same tensors up to rounding, relative to the norm of each, wherever `plain` is finite.

    >>> one = torch.ones(3)
    >>> agree([one + 1e-6, None], [one, None], 1e-3), agree([2 * one, None], [one, None], 1e-3)
    (True, False)
    """
    if len(replayed) != len(plain):
        return False
    for ours, exact in zip(replayed, plain):
        if ours is None or exact is None:
            if ours is not exact:
                return False
            continue
        if ours.shape != exact.shape:
            return False
        finite = exact.isfinite()
        size = torch.where(finite, exact, 0).norm()
        if not bool(torch.where(finite, ours - exact, 0).norm() <= tolerance * size):  # NaN is not
            return False
    return True
