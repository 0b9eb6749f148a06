"""A short text for values at a prompt: the class and its fields, with shapes in place of the content of tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields as fields_of
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

LIMIT, PART_LIMIT = 250, 60
"""Characters of a text, and of a field in it."""


def short_repr(value: Any) -> str:
    """The class of a dataclass, a named tuple or a pydantic model with its fields, in at most about 300 characters.

    It is their `__repr__`: a class that holds tensors, or much else, says `__repr__ = short_repr`.

    >>> from dataclasses import dataclass
    >>> from torch import Tensor, zeros
    >>> @dataclass
    ... class Pair:
    ...     images: Tensor
    ...     notes: tuple[str, ...]
    ...     __repr__ = short_repr
    >>> Pair(zeros(2, 3), ("first",)), Pair(zeros(1), ("a long note", ) * 20)
    (Pair(images=float32[2, 3], notes=('first',)), Pair(images=float32[1], notes=tuple of 20))
    """
    text, others = f"{type(value).__name__}(", list(_field_names(value))
    for name in tuple(others):
        part = f"{name}={_describe(getattr(value, name))}"
        if len(text) + len(part) > LIMIT:
            break
        others.remove(name)
        text += part + ", " * bool(others)
    return f"{text}{'...' if others else ''})"


def _field_names(value: Any) -> tuple[str, ...]:
    if isinstance(value, BaseModel):
        return tuple(type(value).model_fields)
    return tuple(field.name for field in fields_of(value) if field.repr) if is_dataclass(value) else value._fields


def _describe(value: Any) -> str:
    """A field: in full where that is short and holds no tensor, else its type and size."""
    kind = type(value).__name__
    if _is_tensor(value):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if hasattr(value, "_fields") or is_dataclass(value) or isinstance(value, BaseModel):
        text = repr(value) if getattr(type(value), "__repr__", None) is short_repr or not _holds_tensors(value) else ""
        name = getattr(value, "name", "")
        return text if 0 < len(text) <= PART_LIMIT else f"{kind}({f'{name!r}, ' if name else ''}...)"
    if isinstance(value, tuple | list | Mapping):
        text = "" if _holds_tensors(value) or len(value) > PART_LIMIT else repr(value)
        return text if 0 < len(text) <= PART_LIMIT else f"{kind} of {len(value)}"
    value = str(value) if isinstance(value, Path) else value
    if isinstance(value, str) and len(value) > PART_LIMIT:
        return repr(f"{value[: PART_LIMIT - 3]}...")
    text = repr(value)
    return text if len(text) <= PART_LIMIT and " object at 0x" not in text and "\n" not in text else kind


def _is_tensor(value: Any) -> bool:
    """Whether it is a tensor or an array; told by attributes, since records are read without torch."""
    return hasattr(value, "dtype") and hasattr(value, "shape") and not isinstance(value, type)


def _holds_tensors(value: Any) -> bool:
    if _is_tensor(value):
        return True
    if is_dataclass(value) or hasattr(value, "_fields") or isinstance(value, BaseModel):
        return any(_holds_tensors(getattr(value, name)) for name in _field_names(value))
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, tuple | list) else ()
    return any(map(_holds_tensors, parts))


def changed_options(options: BaseModel) -> list[tuple[str | None, Any]]:
    """The options of a model that are not at their defaults: its `__repr_args__`, so that its text stays short.

    >>> class Options(BaseModel):
    ...     depth: int = 3
    ...     width: int = 128
    ...     __repr_args__ = changed_options
    >>> Options(width=16)
    Options(width=16)
    """
    defaults = {
        name: field.get_default(call_default_factory=True) for name, field in type(options).model_fields.items()
    }
    return [(name, getattr(options, name)) for name in defaults if getattr(options, name) != defaults[name]]
