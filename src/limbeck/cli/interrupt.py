"""Ctrl-C, SIGTERM and SIGHUP end the process at once while a command starts, and once it works they let it clean up.

An exception in the middle of an import reaches C code, which turns it into errors of its own: pydantic's core panics.
While a command starts there is nothing to clean up, so no exception is needed.
"""

from __future__ import annotations

from limbeck.core.interrupts import Interrupts

_starting: list[Interrupts] = []


def exit_on_interrupt() -> None:
    """Let a signal end the process with one line, unless it is ignored or has another handler."""
    _starting.append(Interrupts(end_at_once=True).install())


def raise_on_interrupt() -> None:
    """Let the first signal raise Interrupted from now on, where `exit_on_interrupt` was called before."""
    while _starting:
        _starting.pop().end_at_once = False
