"""A device that is not there: tensors that torch takes for another device's, with true values, and a log of transfers.

A GPU cannot be had in every test, and a build of torch without CUDA ends the process where autograd meets a tensor
that claims to be on one. So tensors of torch's `meta` device stand for those of a GPU: torch knows no values there, and
these keep theirs aside, on the processor.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

import limbeck

DEVICE = torch.device("meta")
PACKAGE = str(Path(limbeck.__file__).parent)


class MixedDevices(AssertionError):
    """An operation that a GPU would refuse, or would serve by a hidden copy."""


class ReadBack(AssertionError):
    """The processor waits for a value of the device, or hands it one, where that is forbidden."""


class There(Tensor):
    """A tensor of the device; `value` is what it holds, on the processor."""

    value: Tensor

    @staticmethod
    def __new__(cls, value: Tensor) -> There:
        tensor = Tensor._make_wrapper_subclass(
            cls,
            value.shape,
            strides=value.stride(),
            storage_offset=value.storage_offset(),
            dtype=value.dtype,
            device=DEVICE,
        )
        tensor.value = value
        return tensor

    @classmethod
    def of(cls, value: Tensor) -> There:
        """A tensor that holds this; zeros that have no memory yet get some."""
        return cls(value.clone() if value._is_zerotensor() else value)

    __torch_function__ = torch._C._disabled_torch_function_impl

    def tolist(self) -> Any:
        """One copy, as torch's own on a GPU, which refuses subclasses."""
        return self.cpu().tolist()

    def __repr__(self) -> str:  # type: ignore[override]
        return f"There({self.value!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} outside of the mode")


class Factories(TorchFunctionMode):
    """torch creates tensors of numbers on `meta` without the numbers: here on the processor, then they move."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is Tensor.new_tensor and isinstance(args[0], There):
            func, kwargs = torch.tensor, {"dtype": args[0].dtype, "device": DEVICE, **kwargs}
            args = args[1:]
        numbers = func in (torch.tensor, torch.as_tensor) and not isinstance(args[0], Tensor)
        if numbers and kwargs.get("device") == DEVICE:
            return func(*args, **{**kwargs, "device": "cpu"}).to(DEVICE)
        if func in (Tensor.__getitem__, Tensor.__setitem__) and isinstance(args[0], There):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            if any(isinstance(part, list) for part in index):
                raise MixedDevices(f"a list as an index, which is sent over, in {place()}")
        return func(*args, **kwargs)


class Elsewhere(TorchDispatchMode):
    """While it is active `DEVICE` computes.

    reads: places in limbeck that waited for a value of the device, in order. uploads: places that sent it one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[str] = []
        self.uploads: list[str] = []
        self.operations: dict[str, str] = {}
        self.forbidden = ""

    def __enter__(self) -> Elsewhere:
        self.factories = Factories()
        self.factories.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.factories.__exit__(*error)

    @contextmanager
    def nothing_crosses(self, why: str) -> Iterator[None]:
        """Raise ReadBack at the first value that goes either way."""
        before, self.forbidden = self.forbidden, why
        try:
            yield
        finally:
            self.forbidden = before

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        flat, spec = tree_flatten((args, kwargs or {}))
        there = [value for value in flat if isinstance(value, There)]
        requested = DEVICE in [value for value in flat if isinstance(value, torch.device)]
        if not there and not requested:
            return func(*args, **(kwargs or {}))
        here = [value for value in flat if isinstance(value, Tensor) and not isinstance(value, There)]
        assert not any(tensor.device == DEVICE for tensor in here), "a tensor of the device without values"
        operation = describe(func)
        if not operation.moves and any(tensor.ndim for tensor in here) and (requested or any(t.ndim for t in there)):
            raise MixedDevices(f"{func} of tensors of two devices, in {place()}")
        if operation.name not in self.operations:
            self.operations[operation.name] = place()
        plain_args, plain_kwargs = tree_unflatten([_plain(value) for value in flat], spec)
        result = func(*plain_args, **plain_kwargs)
        if operation.reshapes:  # the shape of what stands for the tensor changes as well
            with torch._C._DisableTorchDispatch():
                func(*args, **(kwargs or {}))
        stays = operation.stays(flat)
        if not stays or operation.waits(flat, kwargs or {}):
            self._log(self.reads, f"{func} reads a value back")
        elif operation.moves and here:
            self._log(self.uploads, f"{func} sends values over")
        if not stays:
            return result
        owners = {id(tensor.value): tensor for tensor in there}
        return tree_map_only(Tensor, lambda t: owners[id(t)] if id(t) in owners else There.of(t), result)

    def _log(self, places: list[str], what: str) -> None:
        if self.forbidden:
            raise ReadBack(f"{what} in {place()}, {self.forbidden}")
        places.append(place())


def _plain(value: Any) -> Any:
    if isinstance(value, There):
        return value.value
    return torch.device("cpu") if isinstance(value, torch.device) else value


@dataclass(frozen=True)
class Operation:
    """What there is to know of one of torch's operations. moves: it may see two devices; reshapes: in place."""

    name: str
    moves: bool
    reshapes: bool
    value_is_read: bool
    size_is_read: bool

    def stays(self, flat: list[Any]) -> bool:
        """Whether the result lies on the device: not where it is requested, or written, on the processor."""
        if self.name == "aten::_to_copy":
            return all(value.type != "cpu" for value in flat if isinstance(value, torch.device))
        return self.name != "aten::copy_" or isinstance(flat[0], There)

    def waits(self, flat: list[Any], kwargs: dict[str, Any]) -> bool:
        """Whether the processor has to wait for the device: for a value, or for the size of the result."""
        if self.name in ("aten::index", "aten::index_put", "aten::index_put_"):  # tagged for masks alone
            return any(isinstance(value, Tensor) and value.dtype in (torch.bool, torch.uint8) for value in flat[1:])
        return self.value_is_read or (self.size_is_read and kwargs.get("output_size") is None)


@cache
def describe(func: Any) -> Operation:
    """By torch's own tags, which FakeTensorMode goes by as well."""
    name, tags = func._schema.name, func.tags
    return Operation(
        name,
        moves=name in ("aten::_to_copy", "aten::copy_"),
        reshapes=torch.Tag.inplace_view in tags,
        value_is_read=torch.Tag.data_dependent_output in tags or name == "aten::_linalg_check_errors",
        size_is_read=torch.Tag.dynamic_output_shape in tags,
    )


def place() -> str:
    """The innermost function of limbeck that is running, as module.function."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename.startswith(PACKAGE):
            name = frame.f_code.co_qualname.split(".<locals>")[0]
            return f"{frame.f_globals['__name__'].removeprefix('limbeck.')}.{name}"
        frame = frame.f_back  # type: ignore[assignment]
    return "elsewhere"
