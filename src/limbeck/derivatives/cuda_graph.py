"""Captures derivatives as CUDA graphs, so that about a hundred small kernels launch as one."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from limbeck.derivatives.autograd import Hvp, NeedsGrad
from limbeck.derivatives.explicit import ExplicitDerivatives

Outputs = Sequence[Tensor | None]
Capture = Callable[[Callable[[], Outputs]], Callable[[], Outputs]]
"""fn -> replay, which runs fn again on the same input and output buffers; it may overwrite the outputs of others."""

ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 5e-2}
"""How far a replay may be from the direct computation, relative to the result's norm: both run the same kernels."""


@dataclass(eq=False)
class CudaGraphs:
    """Captures functions as CUDA graphs that compute in the same memory: only one of them may replay at a time.

    A replay may overwrite the outputs of the other graphs, so that they must be copied before. In memory of its own
    each graph would keep what a whole step needs (measured: 1.1 GiB for 100 images at width 128).

    pool: The memory of the first graph; None before it.
    """

    pool: Any = None

    def __call__(self, fn: Callable[[], Outputs]) -> Callable[[], Outputs]:
        """Run `fn` three times on a side stream, so that libraries choose their algorithms, then capture it."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                fn()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            outputs = fn()
        self.pool = graph.pool()

        def replay() -> Outputs:
            graph.replay()
            return outputs

        return replay


@dataclass(frozen=True, eq=False)
class CapturedDerivatives:
    """Explicit derivatives, captured once for each shape of their inputs: see `ExplicitDerivatives`.

    derivatives: What is captured. It must not read anything back from the device.
    capture:     How a function becomes a replay.
    max_graphs:  Only the first shapes are captured, since a graph keeps its memory.

    A step is then a few copies and one launch. The first replay is compared with the direct computation. Where
    capturing fails, or the two differ by more than rounding, direct computation is used from then on, no other shape is
    captured, and one warning says why.
    """

    derivatives: ExplicitDerivatives
    capture: Capture = field(default_factory=CudaGraphs)
    max_graphs: int = 16
    graphs: dict[Any, tuple[list[Tensor], Callable[[], Outputs]]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    @property
    def dtype(self) -> torch.dtype:
        """The type in which activations are stored."""
        return self.derivatives.dtype

    def gradient(self, theta: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """The gradient (P,)."""
        return self._run_single("gradient", self.derivatives.gradient, theta, images, labels)

    def hvp(self, theta: Tensor, images: Tensor, labels: Tensor, direction: Tensor, needs: NeedsGrad) -> Hvp:
        """The derivatives of direction . gradient."""

        def compute(*inputs: Tensor) -> Hvp:
            return self.derivatives.hvp(inputs[0], inputs[1], inputs[2], inputs[3], needs)

        directional, *derivatives = self._run(("hvp", needs), compute, theta, images, labels, direction)
        assert directional is not None
        return Hvp(directional, *derivatives)

    def logits(self, theta: Tensor, images: Tensor) -> Tensor:
        """The network's outputs (n, classes)."""
        return self._run_single("logits", self.derivatives.logits, theta, images)

    def _run_single(self, name: str, compute: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        (output,) = self._run(name, lambda *tensors: (compute(*tensors),), *inputs)
        assert output is not None
        return output

    def _run(self, name: Any, compute: Callable[..., Outputs], *inputs: Tensor) -> Outputs:
        """compute(*inputs), by a replay where one was captured for these shapes."""
        key = name, tuple((tensor.shape, tensor.dtype) for tensor in inputs)
        if key in self.graphs:
            return _replay(*self.graphs[key], inputs)
        if len(self.graphs) == self.max_graphs or self.failures:
            return compute(*inputs)
        outputs = compute(*inputs)
        try:
            # Captured on other values than the first replay gets: a graph that ignores its inputs is then detected.
            buffers = [tensor.detach().clone(memory_format=torch.contiguous_format) for tensor in inputs]
            for buffer in buffers:
                buffer.copy_(buffer / 2)
            graph = buffers, self.capture(lambda: compute(*buffers))
            replayed = _replay(*graph, inputs)
            if not agree(replayed, outputs, ROUNDING[self.dtype]):
                raise RuntimeError("a replay gave other numbers than the pass itself")
        except Exception as error:  # any error at all: an optimisation must not end a run
            self._stop_capturing(error)
            return outputs
        self.graphs[key] = graph
        return replayed

    def _stop_capturing(self, error: Exception) -> None:
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        self.failures.append(reason)
        warnings.warn(
            f"no more CUDA graphs: {reason}; the same is computed kernel by kernel, which takes longer.",
            stacklevel=2,
        )


def _replay(buffers: list[Tensor], replay: Callable[[], Outputs], inputs: Sequence[Tensor]) -> Outputs:
    """Copy the inputs into the buffers, replay, and copy the results out of theirs."""
    for buffer, tensor in zip(buffers, inputs):
        buffer.copy_(tensor)
    return [None if output is None else output.clone() for output in replay()]


def agree(replayed: Outputs, direct: Outputs, tolerance: float) -> bool:
    """Whether both have the same tensors up to rounding, relative to the norm of each, wherever `direct` is finite.

    >>> one = torch.ones(3)
    >>> agree([one + 1e-6, None], [one, None], 1e-3), agree([2 * one, None], [one, None], 1e-3)
    (True, False)
    """
    if len(replayed) != len(direct):
        return False
    for actual, exact in zip(replayed, direct):
        if actual is None or exact is None:
            if actual is not exact:
                return False
            continue
        if actual.shape != exact.shape:
            return False
        finite = exact.isfinite()
        size = torch.where(finite, exact, 0).norm()
        if not bool(torch.where(finite, actual - exact, 0).norm() <= tolerance * size):  # false for NaN
            return False
    return True
