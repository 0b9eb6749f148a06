"""Turns exceptions that the user or the machine caused into one sentence and an exit status."""

from __future__ import annotations

import errno
import os
from typing import NamedTuple

from safetensors import SafetensorError

from limbeck.core.disk import OF_THE_PATH, REMEDIES
from limbeck.core.errors import UserError, WriteError, explain_memory
from limbeck.core.interrupts import SENTENCE, find_interrupt
from limbeck.core.text import shorten_path
from limbeck.engines.work import EngineLostError


class Failure(NamedTuple):
    """One sentence for standard error, and the exit status.

    ends_at_once: whether Python does not clean up, since threads of a library go on that would crash it meanwhile.
    """

    sentence: str
    status: int
    ends_at_once: bool = False


def explain(error: Exception) -> Failure | None:
    """The sentence and status of a mistake of the user (2) or of a fault of the machine (1); None for a defect."""
    if isinstance(error, UserError):
        return Failure(str(error), 2)
    if isinstance(error, WriteError):
        return Failure(str(error), 1)
    if isinstance(error, EngineLostError):
        return Failure(str(error), 1, ends_at_once=True)
    if isinstance(error, OSError) and error.errno in (*OF_THE_PATH, errno.EROFS) and error.filename is not None:
        reason = (error.strerror or str(error)).lower()
        return Failure(f"{shorten_path(error.filename)} cannot be used ({reason}); name another path.", 2)
    if isinstance(error, FileNotFoundError) and error.filename is not None:
        path = shorten_path(error.filename)
        return Failure(
            f"{path} is gone, it may have been moved or removed; bring it back, and type the command again.", 1
        )
    if isinstance(error, OSError) and error.errno in REMEDIES and error.filename is None:  # of print, to a full disk
        reason = os.strerror(error.errno).lower()
        return Failure(f"the output cannot be written ({reason}); {REMEDIES[error.errno]}, and repeat the command.", 1)
    if (sentence := explain_memory(error)) is not None:
        return Failure(sentence, 1)
    if isinstance(error, OSError | SafetensorError):  # a full disk is a SafetensorError while tensors are written
        return Failure(str(error), 1)
    return None


def explain_interrupt() -> Failure | None:
    """The sentence and status of an interruption that a library made an error of its own; None where there was none."""
    interrupt = find_interrupt()
    return None if interrupt is None else Failure(SENTENCE, interrupt.status)
