"""A device that is not there: tensors that torch takes for another device's, with true values, and a log of transfers.

A GPU cannot be had in every test, and a build of torch without CUDA ends the process where autograd meets a tensor
that claims to be on one. So tensors of torch's `meta` device stand for those of a GPU: torch knows no values there, and
these keep theirs aside, on the processor. torch's FakeTensorMode judges every operation as if the device were CUDA.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

import limbeck

DEVICE = torch.device("meta")
MOVES = ("aten::_to_copy", "aten::copy_")
"""The only operations that may see two devices."""

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
        made = Tensor._make_wrapper_subclass(
            cls,
            value.shape,
            strides=value.stride(),
            storage_offset=value.storage_offset(),
            dtype=value.dtype,
            device=DEVICE,
        )
        made.value = value
        return made

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
    """torch makes tensors of numbers on `meta` without the numbers: here they are made on the processor and moved."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is Tensor.new_tensor and isinstance(args[0], There):
            func, kwargs = torch.tensor, {"dtype": args[0].dtype, "device": DEVICE, **kwargs}
            args = args[1:]
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") == DEVICE and not _is_tensor(args):
            return func(*args, **{**kwargs, "device": "cpu"}).to(DEVICE)
        if func in (Tensor.__getitem__, Tensor.__setitem__) and isinstance(args[0], There):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            if any(isinstance(part, list) for part in index):
                raise MixedDevices(f"a list as an index, which is sent over, in {place()}")
        return func(*args, **kwargs)


def _is_tensor(args: Any) -> bool:
    return isinstance(args[0], Tensor)


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
        yield
        self.forbidden = before

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        flat, spec = tree_flatten((args, kwargs or {}))
        asked = any(each == DEVICE for each in flat if isinstance(each, torch.device))
        if not asked and not any(isinstance(each, There) for each in flat):
            return func(*args, **(kwargs or {}))
        assert not any(type(each) is Tensor and each.device == DEVICE for each in flat), "a tensor without values"
        name = func._schema.name
        devices = {each.device.type for each in flat if isinstance(each, Tensor) and each.ndim}
        if len(devices) > 1 and name not in MOVES:
            raise MixedDevices(f"{func} of tensors on {sorted(devices)}, in {place()}")
        self.operations.setdefault(name, place())
        owners = {id(each.value): each for each in flat if isinstance(each, There)}
        plain_args, plain_kwargs = tree_unflatten([_plain(each) for each in flat], spec)
        made = func(*plain_args, **plain_kwargs)
        if torch.Tag.inplace_view in func.tags:  # the shape of what stands for it changes as well
            with torch._C._DisableTorchDispatch():
                func(*args, **(kwargs or {}))
        goes = asked or _stays(func, flat)
        kept = tree_map(lambda each: self._place(each, owners, goes), made)
        if _waits(func, flat, kwargs or {}) or not goes:
            self._log(self.reads, f"{func} reads a value back")
        elif any(type(each) is Tensor and (each.ndim or name in MOVES) for each in flat):
            self._log(self.uploads, f"{func} sends values over")
        return kept

    def _place(self, made: Any, owners: dict[int, There], goes: bool) -> Any:
        if not isinstance(made, Tensor) or not goes:
            return made
        return owners[id(made)] if id(made) in owners else There(made.clone() if made._is_zerotensor() else made)

    def _log(self, places: list[str], what: str) -> None:
        if self.forbidden:
            raise ReadBack(f"{what} in {place()}, {self.forbidden}")
        places.append(place())


def _plain(each: Any) -> Any:
    if isinstance(each, There):
        return each.value
    return torch.device("cpu") if isinstance(each, torch.device) else each


def _stays(func: Any, flat: list[Any]) -> bool:
    """Whether the result lies on the device: not where it is asked for, or written, on the processor."""
    if func._schema.name == "aten::_to_copy":
        return not any(isinstance(each, torch.device) and each.type == "cpu" for each in flat)
    first = next(each for each in flat if isinstance(each, Tensor))
    return isinstance(first, There) or func._schema.name != "aten::copy_"


def _waits(func: Any, flat: list[Any], kwargs: dict[str, Any]) -> bool:
    """Whether the processor has to wait for the device: for a value, or for the size of the result."""
    name = func._schema.name
    if name in ("aten::index", "aten::index_put", "aten::index_put_"):  # tagged for masks alone
        return any(isinstance(each, Tensor) and each.dtype in (torch.bool, torch.uint8) for each in flat[1:])
    if torch.Tag.dynamic_output_shape in func.tags:
        return kwargs.get("output_size") is None
    return torch.Tag.data_dependent_output in func.tags or name == "aten::_linalg_check_errors"


def place() -> str:
    """The innermost function of limbeck that is running, as module.function."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename.startswith(PACKAGE):
            name = frame.f_code.co_qualname.split(".<locals>")[0]
            return f"{frame.f_globals['__name__'].removeprefix('limbeck.')}.{name}"
        frame = frame.f_back  # type: ignore[assignment]
    return "elsewhere"
