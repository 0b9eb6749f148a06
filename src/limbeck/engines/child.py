"""The process of a work, started by `limbeck.engines.local.Process` on this machine or on another one.

It reads one line from standard input, a JSON object (`Work.message`), and writes events to standard output, one JSON
object a line. The last one, "end", has the sentence of the error, or None, and whether it is a mistake of the user. It
ends when its standard input does, which is when the process that started it has ended, however that was.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from importlib import import_module
from typing import Any

import torch

from limbeck.core.allocator import keep_freed_memory
from limbeck.core.errors import UserError, explain_memory
from limbeck.core.events import Event
from limbeck.core.interrupts import Interrupted, Interrupts

BETWEEN_EVENTS = 0.2
"""Seconds between two "advance" events, of which there may be a thousand a second."""


class Reporter:
    """A listener that writes events to standard output; an "advance" says how many units are done."""

    def __init__(self) -> None:
        self.last, self.done = 0.0, 0

    def __call__(self, event: Event) -> None:
        if event["event"] == "stage":
            self.done = event.get("done", 0)
        elif event["event"] == "advance":
            self.done += 1
            event = {**event, "done": self.done}
            now = time.perf_counter()
            if now - self.last < BETWEEN_EVENTS:
                return
            self.last = now
        print(json.dumps(event), flush=True)


def carry_out(message: dict[str, Any], listen: Reporter) -> None:
    """Call the function of a work, with its number of threads."""
    torch.set_num_threads(message["threads"])
    module, _, name = message["function"].partition(":")
    getattr(import_module(module), name)(message["order"], listen)


def _end_with_the_parent() -> None:
    """Wait for the end of standard input, to which nothing more is written."""
    while os.read(0, 1):  # of the descriptor: a thread that waits in sys.stdin would have its lock when Python ends
        pass
    os._exit(1)


def main() -> None:
    """Read a work, carry it out, and say how it ended: exit status 0, or 1 after an error."""
    keep_freed_memory()
    Interrupts().install()
    listen = Reporter()
    sentence, is_mistake = None, False
    try:
        message = json.loads(sys.stdin.readline())
        threading.Thread(target=_end_with_the_parent, daemon=True).start()
        try:
            carry_out(message, listen)
        except (UserError, OSError, RuntimeError, MemoryError) as error:
            is_defect = isinstance(error, RuntimeError) and explain_memory(error) is None
            if isinstance(error, BrokenPipeError) or is_defect:
                raise
            sentence, is_mistake = explain_memory(error) or str(error), isinstance(error, UserError)
        listen({"event": "end", "sentence": sentence, "is_mistake": is_mistake})
    except BrokenPipeError:  # nobody reads any more; Python is not to flush again at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Interrupted as error:
        sys.exit(error.status)
    sys.exit(0 if sentence is None else 1)
