"""A process of a study: it does one run, tries options in one without evaluation, or trains the experts of a store.

It reads an order from standard input, a JSON object, and writes events to standard output, one JSON object a line. The
last one, "end", has the sentence of the error, or None. Where the parent has ended, the next event ends this process.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

from limbeck.core.allocator import keep_freed_memory
from limbeck.core.errors import UserError, explain_memory
from limbeck.core.events import Event
from limbeck.core.interrupts import Interrupted, Interrupts
from limbeck.jobs.stages import run
from limbeck.studies.calls import Call

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


def carry_out(order: dict[str, Any], listen: Reporter) -> None:
    """Do the run of an order, or train its experts."""
    torch.set_num_threads(order["threads"])
    path = Path(order["path"])
    job = Call(**order["call"]).prepare(path)
    if order["kind"] == "experts":
        if job.experts is not None:
            job.experts.train(listen)
        return
    if job.record().key != order["key"]:
        raise UserError("the data or the options have changed since the study was planned; start it again.")
    run(job, listen, evaluate=order["kind"] == "run")


def main() -> None:
    """Read an order, carry it out, and say how it ended: exit status 0, or 1 after an error."""
    keep_freed_memory()
    Interrupts().install()
    listen = Reporter()
    sentence: str | None = None
    try:
        try:
            carry_out(json.load(sys.stdin), listen)
        except (UserError, OSError, RuntimeError, MemoryError) as error:
            is_defect = isinstance(error, RuntimeError) and explain_memory(error) is None
            if isinstance(error, BrokenPipeError) or is_defect:
                raise
            sentence = explain_memory(error) or str(error)
        listen({"event": "end", "sentence": sentence})
    except BrokenPipeError:  # the parent has ended; Python is not to flush again at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Interrupted as error:
        sys.exit(error.status)
    sys.exit(0 if sentence is None else 1)
