"""Chooses what computes a network's derivatives: explicit derivatives where they are accurate and faster than autograd.

Compiled derivatives are compared with autograd once per processor and network. The measurement is stored beside the
compiled library, so that the choice does not change in the middle of a run.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from math import isfinite
from pathlib import Path
from typing import NamedTuple

import torch

from limbeck.core.errors import UserError
from limbeck.core.files import write_json
from limbeck.core.rng import make_generator
from limbeck.core.text import quote
from limbeck.core.types import Batch
from limbeck.derivatives.autograd import Loss, NeedsGrad
from limbeck.derivatives.compiled import CompiledDerivatives
from limbeck.derivatives.convnet import convnet_derivatives, torch_derivatives
from limbeck.derivatives.explicit import ExplicitDerivatives
from limbeck.derivatives.kernels import build
from limbeck.derivatives.kernels.library import unavailable_reason
from limbeck.networks.flat import FlatModel
from limbeck.networks.losses import CrossEntropy

Shape = tuple[int, int, int]
TOLERANCE = 1e-2
"""Relative error against autograd in float32 beyond which the kernels are refused. Rounding gives 1e-6; an activation
that rounding puts on the other side of a ReLU's kink changes the derivative of a batch by up to a thousandth."""
ROUNDS = 5


class Measurement(NamedTuple):
    """Compiled derivatives against autograd: the largest relative error, and the ratio of autograd's time to theirs."""

    error: float
    ratio: float

    @property
    def is_accurate(self) -> bool:
        """Whether the results agree to rounding."""
        return self.error <= TOLERANCE


class Choice(NamedTuple):
    """What computes a network's derivatives, and why.

    derivatives:     The explicit derivatives; None stands for autograd.
    reason:          A clause for the user, or empty.
    could_be_faster: Whether something that is wrong with this machine slows it down, so that the reason is a warning.
    """

    derivatives: ExplicitDerivatives | None
    reason: str
    could_be_faster: bool = False

    @property
    def is_compiled(self) -> bool:
        """Whether the compiled network computes them, whose bits do not depend on the number of threads."""
        return isinstance(self.derivatives, CompiledDerivatives)

    @property
    def implementation(self) -> str:
        """The name of what computes them. The same name and inputs give the same bits."""
        if isinstance(self.derivatives, CompiledDerivatives):
            return f"compiled ({self.derivatives.library.name})"
        return "autograd" if self.derivatives is None else "explicit"


def choose(model: FlatModel, shape: Shape, dtype: torch.dtype, device: str) -> Choice:
    """The fastest accurate implementation for images of this shape (channels, height, width) on this type of device.

    $LIMBECK_KERNELS chooses as well: 0 forces autograd, and 1 takes the kernels however fast they are. Kernels that are
    not accurate are never used. Raises UserError where the variable is anything else.
    """
    switch = os.environ.get("LIMBECK_KERNELS", "")
    if switch not in ("", "0", "1"):
        raise UserError(
            f"LIMBECK_KERNELS is {quote(switch)}; give 0 for autograd, 1 for compiled kernels however fast they are, "
            "or leave it out."
        )
    derivatives = convnet_derivatives(model, dtype, device)
    if derivatives is None:
        missing = unavailable_reason() if device == "cpu" and torch_derivatives(model, dtype) is not None else ""
        reason = (
            f"no compiled kernels: {missing}; autograd computes the same, two to six times as slow" if missing else ""
        )
        return Choice(None, reason, could_be_faster=bool(reason))
    if not isinstance(derivatives, CompiledDerivatives):
        return Choice(derivatives, "")
    measurement = _load_or_measure(derivatives, model, shape)
    if not measurement.is_accurate:
        text = (
            f"the compiled kernels are wrong on this machine (relative error {measurement.error:.1g}) and are not used"
        )
        return Choice(None, text, could_be_faster=True)
    if measurement.ratio < 1 and switch != "1":
        return Choice(
            None, f"autograd is {1 / measurement.ratio:.1f} times as fast as compiled kernels for this network"
        )
    return Choice(derivatives, f"compiled kernels, {measurement.ratio:.1f} times as fast as autograd")


def _load_or_measure(compiled: CompiledDerivatives, model: FlatModel, shape: Shape) -> Measurement:
    """The stored measurement of this library and network on this processor; measured the first time, by one process."""
    network = [*map(list, compiled.blocks), compiled.classes, list(shape), str(compiled.dtype)]
    case = [*network, compiled.library.path.stem, processor(), str(torch.__version__)]
    path = compiled.library.path.with_name(
        f"measured-{hashlib.sha256(json.dumps(case).encode()).hexdigest()[:16]}.json"
    )
    with build.lock_folder(path.parent):
        try:
            return Measurement(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError):
            measurement = measure(compiled, model, shape)
            with suppress(OSError):  # a full disk, say: the next process measures again
                write_json(path, measurement._asdict())
            return measurement


PROCESSOR = ("model name", "cpu family", "model", "CPU implementer", "CPU part")  # of /proc/cpuinfo


@cache
def processor() -> str:
    """The processor's name and model on Linux, empty elsewhere: different machines may share a home folder."""
    try:
        lines = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
    except OSError:
        return ""
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return " ".join(fields[name] for name in PROCESSOR if name in fields)


def measure(compiled: ExplicitDerivatives, model: FlatModel, shape: Shape) -> Measurement:
    """Compare a gradient and Hessian-vector products of a few images with autograd's, and time both in turns."""
    draws = make_generator(0, "kernels", *shape)
    classes = model.layout.shapes[-1][0]
    count = max(2, min(10, 10 * 32 * 32 // (shape[1] * shape[2])))
    images = torch.randn(count, *shape, generator=draws).to(compiled.dtype)
    theta = model.init(0).to(compiled.dtype)
    direction = torch.randn(len(theta), generator=draws).to(compiled.dtype)
    labels, needs, loss = torch.arange(count) % classes, NeedsGrad(True, True, False), Loss(CrossEntropy(model))

    def explicit() -> list[torch.Tensor]:
        second = compiled.hvp(theta, images, labels, direction, needs)
        return _tensors(compiled.gradient(theta, images, labels), second.theta, second.images)

    def by_autograd() -> list[torch.Tensor]:
        batch = Batch(images, labels)
        second = loss.hvp(theta, batch, direction, needs)
        return _tensors(loss.gradient(theta, batch), second.theta, second.images)

    errors = [relative_error(actual, exact) for actual, exact in zip(explicit(), by_autograd())]
    times = [(_seconds(explicit), _seconds(by_autograd)) for _ in range(ROUNDS)]
    fastest = [min(column) for column in zip(*times)]  # the fastest round: other processes may be busy
    return Measurement(max(errors), fastest[1] / fastest[0])


def relative_error(actual: torch.Tensor, exact: torch.Tensor) -> float:
    """|actual - exact| / |exact|; 1e9 where that is not finite, 0 where both are 0.

    >>> relative_error(torch.tensor([1.5]), torch.tensor([1.0])), relative_error(torch.zeros(1), torch.zeros(1))
    (0.5, 0.0)
    """
    difference = float((actual - exact).norm())
    if difference == 0:
        return 0.0
    error = difference / max(float(exact.norm()), 1e-30)
    return error if isfinite(error) else 1e9


def _tensors(*tensors: torch.Tensor | None) -> list[torch.Tensor]:
    return [tensor for tensor in tensors if tensor is not None]


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
