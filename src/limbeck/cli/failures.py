"""Turns exceptions that the user or the machine caused into one sentence and an exit status."""

from __future__ import annotations

from typing import NamedTuple

from safetensors import SafetensorError

from limbeck.core.errors import UserError


class Failure(NamedTuple):
    """One sentence for standard error, and the exit status."""

    sentence: str
    status: int


def explain(error: Exception) -> Failure | None:
    """The sentence and status of a mistake of the user (2) or of a fault of the machine (1); None for a defect."""
    if isinstance(error, UserError):
        return Failure(str(error), 2)
    if isinstance(error, NotADirectoryError | FileExistsError):
        return Failure(f"{error}; name another folder.", 2)
    if isinstance(error, OSError | SafetensorError):  # a full disk is a SafetensorError while tensors are written
        return Failure(str(error), 1)
    return None
