"""Ctrl-C ends the process at once while a command starts, and is a KeyboardInterrupt while the command works.

An exception in the middle of an import reaches C code, which turns it into errors of its own: pydantic's core panics.
While a command starts there is nothing to clean up, so no exception is needed.
"""

from __future__ import annotations

import os
import signal
from types import FrameType

SENTENCE = "interrupted; the same command goes on where it stopped."
STATUS = 130


def exit_on_interrupt() -> None:
    """Let Ctrl-C end the process with one line, unless it is ignored or has another handler."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _exit)


def raise_on_interrupt() -> None:
    """Let Ctrl-C raise KeyboardInterrupt again."""
    if signal.getsignal(signal.SIGINT) is _exit:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _exit(number: int, frame: FrameType | None) -> None:
    os.write(2, f"limbeck: {SENTENCE}\n".encode())
    os._exit(STATUS)
