"""A network as a pure function of one flat parameter vector."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from limbeck.core.errors import UserError
from limbeck.core.rng import fork_rng
from limbeck.core.text import quote, shorten
from limbeck.networks.dropout import switch_off_dropout


@dataclass(frozen=True)
class Layout:
    """The names and shapes of a module's parameters, in the module's own order, which is that of the flat vector.

    >>> Layout(("weight", "bias"), ((2, 3), (2,))).count
    8
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @cached_property
    def sizes(self) -> list[int]:
        """The number of elements of each tensor."""
        return [prod(shape) for shape in self.shapes]

    @property
    def count(self) -> int:
        """P, the length of the flat vector."""
        return sum(self.sizes)

    def split(self, theta: Tensor) -> list[Tensor]:
        """Views of a (P,) vector, one per tensor, each in its own shape."""
        return [part.view(shape) for part, shape in zip(theta.split(self.sizes), self.shapes)]

    def join(self, tensors: list[Tensor]) -> Tensor:
        """A new (P,) vector from tensors in layout order. Raises ValueError where a shape differs."""
        for name, shape, tensor in zip(self.names, self.shapes, tensors, strict=True):
            if tuple(tensor.shape) != shape:
                raise ValueError(f"parameter {name} has shape {tuple(tensor.shape)}, expected {shape}")
        return torch.cat([tensor.reshape(-1) for tensor in tensors])

    def per_tensor(self, values: Tensor) -> Tensor:
        """Spread one value per tensor (L,) over the elements of each: (P,)."""
        return values.repeat_interleave(torch.tensor(self.sizes, device=values.device), output_size=self.count)


def lecun_normal(layout: Layout, generator: torch.Generator) -> Tensor:
    """flax's default initialisation (P,): weights N(0, 1/fan-in) truncated at two standard deviations, biases 0.

    The variance is 1/fan-in after the truncation (LeCun et al. 1998). torch's default has a third of it: features of
    three blocks without normalisation are then 5 times smaller, and the ridge weighs more. Tensors of one dimension
    count as biases, so that this is for networks without normalisation.
    """
    parts = []
    for shape in layout.shapes:
        part = torch.zeros(shape)
        if len(shape) > 1:
            scale = part[0].numel() ** -0.5 / 0.87962566103423978  # the standard deviation of N(0, 1) truncated at 2
            torch.nn.init.trunc_normal_(part, 0.0, scale, -2 * scale, 2 * scale, generator=generator)
        parts.append(part)
    return layout.join(parts)


def _refuse_unfinished(module: object) -> None:
    """Raise UserError for a value that is no module, and for a module whose parameters have no shape yet."""
    if not isinstance(module, nn.Module):
        raise UserError(
            f"the function that builds a network returns {type(module).__name__}, expected torch.nn.Module."
        )
    lazy = [name for name, parameter in module.named_parameters() if nn.parameter.is_lazy(parameter)]
    if lazy:
        raise UserError(
            f"the parameter {quote(lazy[0])} of the network {type(module).__name__} is lazy, so that a student cannot "
            "be built; give the layer its sizes."
        )


class _MathAttention:
    """Attention is computed by products and softmax in a `with` block; torch's switches for it are the process's.

    Threads may be in such blocks at the same time: the last one to leave restores the switches.
    """

    def __init__(self) -> None:
        self.lock, self.users, self.restore = threading.Lock(), 0, ExitStack()

    def __enter__(self) -> None:
        with self.lock:
            if self.users == 0:
                self.restore.callback(
                    torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled()
                )
                torch.backends.mha.set_fastpath_enabled(False)
                self.restore.enter_context(sdpa_kernel(SDPBackend.MATH))
            self.users += 1

    def __exit__(self, *error: object) -> None:
        with self.lock:
            self.users -= 1
            if self.users == 0:
                self.restore.close()


MATH_ATTENTION = _MathAttention()
"""For every call of a network, because torch's fused kernels of attention have no second derivative."""


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())


class _Call(NamedTuple):
    """What a call of a module leaves: its result, the buffers, and the state of the global generator."""

    logits: Tensor
    buffers: dict[str, Tensor]
    generator: Tensor


def _call_once(module: nn.Module, images: Tensor) -> _Call:
    """A call with copies of the module's buffers, so that these are not changed.

    Raises UserError for a module that cannot be called on these images, or whose result is no tensor.
    """
    name, shape = type(module).__name__, tuple(images.shape[1:])
    buffers = {buffer: tensor.clone() for buffer, tensor in module.named_buffers()}
    try:
        with torch.no_grad(), MATH_ATTENTION:
            logits = torch.func.functional_call(module, buffers, (images,))
            generator = torch.get_rng_state()
    except Exception as error:  # the module may be the user's own
        reason = shorten(error, 160)
        raise UserError(f"the network {name} cannot be called on images of shape {shape}: {reason}") from error
    if not isinstance(logits, Tensor):
        raise UserError(f"the network {name} returns {type(logits).__name__}, expected logits (n, classes).")
    return _Call(logits, buffers, generator)


def _two_images(shape: Sequence[int]) -> Tensor:
    """Two images (2, *shape) to try a network with."""
    return torch.arange(float(2 * prod(shape))).cos().view(2, *shape)


def _find_changed_buffers(module: nn.Module, shape: Sequence[int]) -> list[str]:
    """The names of the buffers that a call on images of `shape` changes.

    Raises UserError where two calls on the same two images differ, or draw random numbers.
    """
    images = _two_images(shape).to(next(module.parameters(), torch.empty(0)))
    with fork_rng(0, "check"):
        first, second = _call_once(module, images), _call_once(module, images)
    pairs = [(first.logits, second.logits), (first.generator, second.generator)]
    pairs += [(tensor, second.buffers[buffer]) for buffer, tensor in first.buffers.items()]
    if not all(_same_bits(*pair) for pair in pairs):
        raise UserError(
            f"the network {type(module).__name__} is random or keeps state outside its buffers: two calls on the same "
            "images differ, so that a student cannot compute a step again. Dropout of layers is off already; that of a "
            "function (F.dropout) has to be taken out."
        )
    return [buffer for buffer, tensor in module.named_buffers() if not _same_bits(tensor, first.buffers[buffer])]


def _copy_module(module: nn.Module) -> nn.Module | None:
    """A copy of a module that nothing calls; None where it cannot be copied."""
    try:
        return copy.deepcopy(module)
    except Exception:  # of the user's module, anything
        return None


class FlatModel:
    """A module as a pure function of its parameters: `model(theta, images)` returns logits.

    build: A function that builds the module. It is called once here, and by `fresh` for each new initialisation.
    shape: The shape of one image (channels, height, width); None where it is not known before the first call.

    The same arguments must give the same bits, because a student computes its steps again. Hence dropout is switched
    off (`dropout` names its layers), and the module is called twice on the same images when it is built, or before its
    first call where `shape` is None.
    Every call starts from copies of the module's initial buffers. Batch norm in training mode thus normalises by the
    statistics of the batch and is a pure function; its running statistics are for evaluation, and
    `limbeck.networks.statistics` keeps them.
    Attention is computed by products and softmax, because torch's fused kernels have no second derivative.
    Raises UserError for a module that is random or keeps state outside its buffers, and for one that cannot be called
    on such images.

    >>> model = FlatModel(lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), (1, 8, 8))
    >>> model(model.init(0), torch.zeros(2, 1, 8, 8)).shape, model.layout.count
    (torch.Size([2, 10]), 650)
    """

    def __init__(self, build: Callable[[], nn.Module], shape: tuple[int, ...] | None = None):
        if isinstance(build, nn.Module):
            raise UserError(
                f"FlatModel takes a function that builds a network, not the {type(build).__name__} itself, so that it "
                "can build new initialisations: write FlatModel(lambda: Network(...))."
            )
        self.build, self.shape = build, shape
        with fork_rng(0, "shell"):
            module = build()
        _refuse_unfinished(module)
        self.dropout = switch_off_dropout(module)
        for parameter in module.parameters():
            parameter.requires_grad_(False)
        self._modules, self._shell = threading.local(), module
        self._modules.own = module
        self._template, self._lock = _copy_module(module), threading.Lock()
        self._initial_buffers: dict[tuple[torch.device, torch.dtype], dict[str, Tensor]] = {}  # sent to a device once
        named = list(self.module.named_parameters())
        self.layout = Layout(tuple(name for name, _ in named), tuple(tuple(p.shape) for _, p in named))
        self.changed_buffers: list[str] | None = None if shape is None else _find_changed_buffers(self.module, shape)

    def __repr__(self) -> str:
        return f"FlatModel(shape={self.shape}, {self.layout.count:,} parameters)"

    @property
    def module(self) -> nn.Module:
        """The module or, in another thread, its copy: functional_call exchanges a module's parameters meanwhile."""
        if not hasattr(self._modules, "own"):
            if self._template is None:
                return self._shell
            with self._lock:
                self._modules.own = copy.deepcopy(self._template)
        module: nn.Module = self._modules.own
        return module

    @cached_property
    def serves_threads(self) -> bool:
        """Whether copies of the module compute what it computes, so that several threads may call the model.

        A module that reaches its layers other than by its attributes, through a closure say, has no such copies. It is
        found out by a call with other parameters than the module's own, on images of `shape`.
        """
        if self._template is None or self.shape is None:
            return False
        module, theta = self.module, self.init(0, "copy")
        images = _two_images(self.shape).to(theta)
        with torch.no_grad():
            expected = self(theta, images)
            self._modules.own = copy.deepcopy(self._template)
            try:
                return _same_bits(self(theta, images), expected)
            except Exception:  # of the user's module, anything
                return False
            finally:
                self._modules.own = module

    def __call__(self, theta: Tensor, images: Tensor, buffers: dict[str, Tensor] | None = None) -> Tensor:
        """theta (P,), images (n, channels, height, width) -> logits (n, classes).

        buffers: Used in place of the module's own, and updated in place where the module does so; see `copy_buffers`.
                 None stands for new copies, so that the call is pure.
        Raises UserError where a norm has a single value per channel in the batch, as torch does.
        """
        if self.changed_buffers is None and images.is_floating_point():
            self.changed_buffers = _find_changed_buffers(self.module, images.shape[1:])
        if buffers is None:
            buffers = self.copy_buffers(theta)
        tensors = dict(zip(self.layout.names, self.layout.split(theta))) | buffers
        try:
            with MATH_ATTENTION:
                logits: Tensor = torch.func.functional_call(self.module, tensors, (images,))
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise UserError(
                f"the network {type(self.module).__name__} has one value per channel to normalise in a batch of "
                f"{len(images)} image; take larger batches or images, or another norm."
            ) from error
        for name in buffers:  # a module may replace a buffer by a new tensor
            buffers[name] = tensors[name].detach()
        return logits

    @property
    def has_statistics(self) -> bool:
        """Whether calls change buffers, as batch norm does; False before the first call where `shape` is None."""
        return bool(self.changed_buffers)

    def copy_buffers(self, like: Tensor) -> dict[str, Tensor]:
        """Copies of the module's initial buffers by name, on the device of `like` and, if real, of its type."""
        if (like.device, like.dtype) not in self._initial_buffers:
            self._initial_buffers[like.device, like.dtype] = {
                name: buffer.to(like.device, like.dtype if buffer.is_floating_point() else buffer.dtype)
                for name, buffer in self.module.named_buffers()
            }
        return {name: buffer.clone() for name, buffer in self._initial_buffers[like.device, like.dtype].items()}

    def init(self, seed: int, *path: str | int) -> Tensor:
        """The module's own random initialisation (P,), determined by (seed, path) alone."""
        with fork_rng(seed, "fresh", *path), torch.no_grad():
            return self.layout.join([parameter.detach() for parameter in self.build().parameters()])

    def features(self, theta: Tensor, images: Tensor, buffers: dict[str, Tensor] | None = None) -> Tensor:
        """The inputs of the layer called `classifier` (n, d): the network's representation of the images.

        buffers: As in a call. Raises UserError for a module without a `classifier`.
        """
        classifier = getattr(self.module, "classifier", None)
        if classifier is None:
            raise UserError(f"{type(self.module).__name__} has no layer called 'classifier'; call its last layer that.")
        features: list[Tensor] = []
        handle = classifier.register_forward_pre_hook(lambda _module, inputs: features.append(inputs[0].flatten(1)))
        try:
            self(theta, images, buffers)
        finally:
            handle.remove()
        return features[0]
