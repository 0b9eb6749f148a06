"""Pickles as data: numbers, text, lists, dicts and arrays are read, and nothing that a pickle names is called."""

from __future__ import annotations

import pickletools
import re
from math import prod
from typing import Any

import numpy as np

from limbeck.core.errors import UserError
from limbeck.core.text import shorten

DAMAGE = (ValueError, IndexError, KeyError, TypeError, OverflowError)
DTYPE = re.compile("[biuf][1248]")
CONSTANTS = {
    "NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple,
}  # fmt: skip
NUMBERS_AND_TEXT = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
}  # fmt: skip
WITHOUT_EFFECT = {"PROTO", "FRAME", "STOP"}


class Global:
    """A name that a pickle refers to, as "numpy.dtype"."""

    def __init__(self, name: str) -> None:
        self.name = name.replace("numpy._core.", "numpy.core.")


class Dtype:
    """The type of an array; its byte order follows when it is built."""

    def __init__(self, name: Any) -> None:
        if not (isinstance(name, str) and DTYPE.fullmatch(name)):
            raise ValueError("an array of a type that is not a number")
        self.name, self.order = name, "="

    def build(self, state: Any) -> None:
        """Set the byte order."""
        if state[1] not in ("<", ">", "|"):
            raise ValueError("an array in an unknown byte order")
        self.order = state[1]


class PickledArray:
    """An array, which is empty until it is built."""

    value: np.ndarray[Any, Any] = np.empty(0)

    def build(self, state: Any) -> None:
        """Set shape and content, whose bytes have to fit each other."""
        _, shape, dtype, is_fortran, content = state
        if not (isinstance(dtype, Dtype) and all(type(side) is int and side >= 0 for side in shape)):
            raise ValueError("an array without a shape or a type")
        content = content.encode("latin-1") if isinstance(content, str) else content
        kind = np.dtype(dtype.order + dtype.name)
        if not isinstance(content, bytes | bytearray) or len(content) != prod(shape) * kind.itemsize:
            raise ValueError(f"an array of shape {tuple(shape)} in another number of bytes")
        self.value = np.frombuffer(content, kind).reshape(shape, order="F" if is_fortran else "C")


class _Machine:
    """The stack and the memory of a pickle. `run` carries out one of its operations."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def pop(self, count: int) -> list[Any]:
        if len(self.stack) - count < (self.marks[-1] if self.marks else 0):
            raise IndexError("more values are used than there are")
        start = len(self.stack) - count
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def pop_mark(self) -> list[Any]:
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def run(self, operation: str, argument: Any) -> None:
        stack = self.stack
        match operation:
            case "MARK":
                self.marks.append(len(stack))
            case "PUT" | "BINPUT" | "LONG_BINPUT" | "MEMOIZE":
                self.memo[len(self.memo) if argument is None else argument] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(self.memo[argument])
            case "GLOBAL":
                stack.append(Global(argument.replace(" ", ".")))
            case "STACK_GLOBAL":
                stack.append(Global(".".join(self.pop(2))))
            case "TUPLE" | "LIST":
                stack.append((tuple if operation == "TUPLE" else list)(self.pop_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(self.pop(int(operation[-1]))))
            case "APPEND" | "APPENDS":
                values = self.pop(1) if operation == "APPEND" else self.pop_mark()
                self.top(list).extend(values)
            case "SETITEM" | "SETITEMS":
                values = self.pop(2) if operation == "SETITEM" else self.pop_mark()
                self.set_items(self.top(dict), values)
            case "DICT":
                items: dict[Any, Any] = {}
                self.set_items(items, self.pop_mark())
                stack.append(items)
            case "REDUCE":
                stack.append(_call(*self.pop(2)))
            case "BUILD":
                (state,) = self.pop(1)
                self.top((Dtype, PickledArray)).build(state)
            case _:
                raise ValueError(f"the operation {operation}")

    def top(self, kinds: Any) -> Any:
        """The last value, which has to be of these types."""
        if not isinstance(self.stack[-1], kinds):
            raise TypeError(f"a {type(self.stack[-1]).__name__} that is changed")
        return self.stack[-1]

    def set_items(self, items: dict[Any, Any], values: list[Any]) -> None:
        for key, value in zip(values[::2], values[1::2], strict=True):
            if not isinstance(key, str | bytes | int):
                raise TypeError(f"a {type(key).__name__} as a key")
            items[key] = value


def _call(function: Any, arguments: Any) -> Any:
    """The value of a call by which numpy and Python pickle arrays and bytes."""
    match getattr(function, "name", None), arguments:
        case "numpy.core.multiarray._reconstruct", _:
            return PickledArray()
        case "numpy.core.numeric._frombuffer", (content, dtype, shape, order):
            array = PickledArray()
            array.build((1, shape, dtype, order == "F", content))
            return array
        case "numpy.dtype", (name, *_):
            return Dtype(name)
        case "__builtin__.bytes", ():
            return b""
        case "_codecs.encode", (str(text), "latin1"):
            return text.encode("latin-1")
    raise ValueError(f"the object {getattr(function, 'name', type(function).__name__)[:40]}")


def read_pickle(content: bytes, where: str) -> dict[str, Any]:
    """The dict that a pickle holds, of Python 2 or 3, with text for keys, and numpy arrays for arrays.

    Raises UserError for anything else, and where the pickle is damaged or holds other objects.
    """
    machine = _Machine()
    try:
        for operation, argument, _ in pickletools.genops(content):
            if operation.name in NUMBERS_AND_TEXT:
                machine.stack.append(argument)
            elif operation.name in CONSTANTS:
                constant = CONSTANTS[operation.name]
                machine.stack.append(constant() if isinstance(constant, type) else constant)
            elif operation.name not in WITHOUT_EFFECT:
                machine.run(operation.name, argument)
        (items,) = machine.stack
        if not isinstance(items, dict):
            raise TypeError(f"a {type(items).__name__} instead of a dict")
    except DAMAGE as error:
        reason = shorten(error)
        raise UserError(f"{where}: not a pickle of arrays, numbers and text ({reason}); fetch it again") from error
    return {
        key.decode("latin-1") if isinstance(key, bytes) else str(key): value.value
        if isinstance(value, PickledArray)
        else value
        for key, value in items.items()
    }
