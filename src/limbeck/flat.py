"""A network as a pure function of one flat parameter vector."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import prod

import torch
from torch import Tensor, nn

from limbeck.errors import UserError
from limbeck.random import isolated


@dataclass(frozen=True)
class Layout:
    """Where each named parameter tensor lies in the flat vector, in the module's own order.

    >>> Layout(("weight", "bias"), ((2, 3), (2,))).count
    8
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @cached_property
    def sizes(self) -> list[int]:
        """Number of elements of each tensor."""
        return [prod(shape) for shape in self.shapes]

    @property
    def count(self) -> int:
        """P, the length of the flat vector."""
        return sum(self.sizes)

    def split(self, theta: Tensor) -> list[Tensor]:
        """Views of a (P,) vector, one per tensor, each in its own shape."""
        return [part.view(shape) for part, shape in zip(theta.split(self.sizes), self.shapes)]

    def join(self, tensors: list[Tensor]) -> Tensor:
        """One new (P,) vector from tensors in layout order; ValueError where a shape differs."""
        for name, shape, tensor in zip(self.names, self.shapes, tensors, strict=True):
            if tuple(tensor.shape) != shape:
                raise ValueError(f"parameter {name} has shape {tuple(tensor.shape)}, expected {shape}")
        return torch.cat([tensor.reshape(-1) for tensor in tensors])

    def per_tensor(self, values: Tensor) -> Tensor:
        """Spread one value per tensor (L,) over the elements of each: (P,)."""
        return values.repeat_interleave(torch.tensor(self.sizes, device=values.device), output_size=self.count)


def lecun_normal(layout: Layout, generator: torch.Generator) -> Tensor:
    """Parameters (P,): weights N(0, 1/fan-in) cut off at two standard deviations, other tensors 0: flax's start.

    The variance is 1/fan-in after the cut (LeCun et al. 1998). torch's own start has a third of it, so that features of
    three blocks without normalisation come out 5 times smaller, and the ridge weighs more. Tensors of one dimension
    are taken to be biases: for networks without normalisation.
    """
    parts = []
    for shape in layout.shapes:
        part = torch.zeros(shape)
        if len(shape) > 1:
            scale = part[0].numel() ** -0.5 / 0.87962566103423978  # the standard deviation of N(0, 1) cut at 2
            torch.nn.init.trunc_normal_(part, 0.0, scale, -2 * scale, 2 * scale, generator=generator)
        parts.append(part)
    return layout.join(parts)


def _refuse_impure(module: nn.Module) -> None:
    """The student differentiates the loss by calling it again: it must be a pure function of (theta, batch)."""
    for name, part in module.named_modules():
        if getattr(part, "running_mean", None) is not None:
            raise UserError(
                f"layer '{name}' ({type(part).__name__}) keeps running statistics, which are not among the parameters "
                "that are matched; use instance, layer or group normalisation."
            )
        if isinstance(part, nn.modules.dropout._DropoutNd) and part.p > 0:
            raise UserError(f"layer '{name}' ({type(part).__name__}) is random; build the network without dropout.")


class FlatModel:
    """`model(theta, images) -> logits`, a module with its parameters handed in as one vector.

    build: makes the module; it is called once for the shell, and again by `fresh` for each new initialisation.
    Raises UserError for modules with running statistics or dropout.
    """

    def __init__(self, build: Callable[[], nn.Module]):
        self.build = build
        with isolated(0, "shell"):
            self.module = build()
        _refuse_impure(self.module)
        for parameter in self.module.parameters():
            parameter.requires_grad_(False)
        named = list(self.module.named_parameters())
        self.layout = Layout(tuple(name for name, _ in named), tuple(tuple(p.shape) for _, p in named))

    def __call__(self, theta: Tensor, images: Tensor) -> Tensor:
        """theta (P,), images (n, channels, height, width) -> logits (n, classes)."""
        parameters = dict(zip(self.layout.names, self.layout.split(theta)))
        logits: Tensor = torch.func.functional_call(self.module, parameters, (images,))
        return logits

    def fresh(self, seed: int, *path: str | int) -> Tensor:
        """A new random initialisation (P,), the module's own, from (seed, path) alone."""
        with isolated(seed, "fresh", *path), torch.no_grad():
            return self.layout.join([parameter.detach() for parameter in self.build().parameters()])

    def features(self, theta: Tensor, images: Tensor) -> Tensor:
        """What enters the last linear layer (n, d): the network's representation of the images.

        Raises UserError for a module without a `classifier`.
        """
        classifier = getattr(self.module, "classifier", None)
        if classifier is None:
            raise UserError(f"{type(self.module).__name__} has no layer called 'classifier', so no features to read.")
        seen: list[Tensor] = []
        handle = classifier.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].flatten(1)))
        try:
            self(theta, images)
        finally:
            handle.remove()
        return seen[0]
