"""Signals that ask a process to stop: Ctrl-C (SIGINT), SIGTERM, and SIGHUP where a terminal closes.

`Interrupted` is raised for the first one, so that what is at work cleans up; `finish_step` lets a loop come to the end
of its step before. The second one ends the process at once. Signals that are ignored stay ignored, as Ctrl-C is by
what a shell runs in the background, and SIGHUP under nohup.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
SENTENCE = "interrupted; the same command goes on where it stopped."
STOPPING = "stopping when this step is done and saved; a second signal stops at once."
Handler = Callable[[int, FrameType | None], object]


class Interrupted(KeyboardInterrupt):
    """A signal asks the process to stop. number: of the signal; status: the exit status that says so, 128 + number."""

    def __init__(self, number: int):
        super().__init__(SENTENCE)
        self.number, self.status = number, 128 + number


class Interrupts:
    """Handles signals: the first one raises Interrupted, and every later one ends the process at once.

    end_at_once: let the first one end the process as well.
    number: of the signal for which it has raised.
    """

    def __init__(self, end_at_once: bool = False):
        self.end_at_once = end_at_once
        self.number: int | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.end_at_once:
            os.write(2, f"limbeck: {SENTENCE}\n".encode())
            os._exit(128 + number)
        self.end_at_once, self.number = True, number
        raise Interrupted(number)

    def install(self) -> Interrupts:
        """Handle all signals that would otherwise end the process, or raise KeyboardInterrupt."""
        for number in SIGNALS:
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                signal.signal(number, self)
        sys.unraisablehook = self.send_again
        return self

    def send_again(self, ignored: sys.UnraisableHookArgs) -> None:
        """Let a signal come again that met a destructor, where Python passes over what is raised."""
        if isinstance(ignored.exc_value, Interrupted):
            self.end_at_once = False
            timer = threading.Timer(0.01, os.kill, (os.getpid(), ignored.exc_value.number))
            timer.daemon = True  # a process that ends meanwhile does not wait for it
            timer.start()
        else:
            sys.__unraisablehook__(ignored)


def find_interrupt() -> Interrupted | None:
    """The interruption that was raised in this process, also where it has become another error.

    Compiled code that converts an argument may call any exception a wrong argument: matplotlib's did with 2 of 300
    signals in an evaluation with a report.
    """
    handlers = [signal.getsignal(number) for number in SIGNALS]
    numbers = [one.number for one in handlers if isinstance(one, Interrupts) and one.number is not None]
    return Interrupted(numbers[0]) if numbers else None


class Pending:
    """A signal that waits for the end of a step: false as long as there is none. See `finish_step`."""

    def __init__(self) -> None:
        self.handlers: dict[int, Handler] = {}
        self.number: int | None = None

    def __bool__(self) -> bool:
        return self.number is not None

    def note(self, number: int, frame: FrameType | None) -> None:
        """Note the first signal, and pass on a second one at once."""
        handler = self.handlers[number]
        if self.number is not None:
            if isinstance(handler, Interrupts):
                handler.end_at_once = True
            handler(number, frame)
        self.number = number
        if isinstance(handler, Interrupts):  # a print could meet another one that the signal interrupted
            os.write(2, f"limbeck: {STOPPING}\n".encode())

    def pass_on(self) -> None:
        """Call the handler that the noted signal would have had, which usually raises; do nothing without one."""
        number, self.number = self.number, None
        if number is not None:
            self.handlers[number](number, None)


@contextmanager
def finish_step() -> Iterator[Pending]:
    """Note the first signal inside a `with` block instead of raising.

    The loop inside looks at the `Pending` after every step; where it is true, it saves its state and passes the signal
    on. The end of the block passes it on too. Only signals that have a handler are noted, and only in the main thread.
    """
    pending = Pending()
    if threading.current_thread() is threading.main_thread():
        handlers = {number: signal.getsignal(number) for number in SIGNALS}
        pending.handlers = {number: handler for number, handler in handlers.items() if callable(handler)}
    for number in pending.handlers:
        signal.signal(number, pending.note)
    try:
        yield pending
    finally:
        for number, handler in pending.handlers.items():
            signal.signal(number, handler)
    pending.pass_on()
