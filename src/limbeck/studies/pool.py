"""Child processes of a study: as many at a time as there are slots, in the order of the plan."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from limbeck.core.events import Event
from limbeck.studies.plan import PlannedRun

PATIENCE = 30.0
"""Seconds that interrupted children have to write what they know."""


@dataclass(frozen=True)
class Unit:
    """The work of one child process: a run, or the training of the experts in `store`.

    kind:   run, trial (a run without evaluation), or experts.
    run:    The run; for experts, one of those that need them.
    number: Of a trial.
    needs: The store that has to be trained before.
    """

    kind: str
    run: PlannedRun
    needs: Path | None = None
    store: Path | None = None
    number: int | None = None

    @property
    def name(self) -> str:
        """The unit as a message names it."""
        names = {"experts": f"experts of {self.run.name}", "trial": f"{self.run.cell.name}, trial {self.number}"}
        return names.get(self.kind, self.run.name)

    def order(self, threads: int) -> dict[str, Any]:
        """What the child reads from standard input."""
        path, call = str(self.run.path), self.run.call.to_json()
        return {"kind": self.kind, "call": call, "path": path, "key": self.run.key, "threads": threads}


@dataclass
class Child:
    """A process at work: its unit, its threads in multiples of those of a run, and what it said last."""

    unit: Unit
    process: subprocess.Popen[str]
    slots: int
    errors: Path
    start: float = field(default_factory=time.perf_counter)
    stage: str = "begins"
    total: int = 0
    done: int = 0
    sentence: str | None = None
    has_said_end: bool = False

    def hear(self, event: Event) -> None:
        """Take in an event of the process."""
        if event["event"] == "stage":
            self.stage, self.total, self.done = event["name"], event["total"], event.get("done", 0)
        elif event["event"] == "advance":
            self.done = event["done"]
        elif event["event"] == "end":
            self.sentence, self.has_said_end = event["sentence"], True

    @property
    def progress(self) -> str:
        """Where it is, in words."""
        return f"{self.unit.name}: {self.stage}" + (f" {self.done}/{self.total}" if self.total else "")

    def failure(self, status: int) -> str | None:
        """Why it failed; None where it did not. status: of its exit."""
        if self.has_said_end:
            return self.sentence
        ends = self.errors.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
        reason = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
        hint = " (out of memory?)" if status == -signal.SIGKILL else ""
        return f"its process {reason}{hint}; {': '.join([str(self.errors), *ends])}"


def make_units(runs: Sequence[PlannedRun]) -> list[Unit]:
    """The units of these runs in their order, each store before the first run that needs it; it is trained once.

    The experts of a store are trained for the run that needs most of them.
    """
    needs: dict[Path, PlannedRun] = {}
    for run in runs:
        if run.store is not None and run.store.missing:
            other = needs.setdefault(run.store.path, run)
            if other.store is not None and run.store.count > other.store.count:
                needs[run.store.path] = run
    units: list[Unit] = []
    begun: set[Path] = set()
    for run in runs:
        path = run.store.path if run.store is not None and run.store.path in needs else None
        if path is not None and path not in begun:
            begun.add(path)
            units.append(Unit("experts", needs[path], store=path))
        units.append(Unit("run", run, needs=path))
    return units


def start_child(order: dict[str, Any], threads: int, errors: IO[str] | int) -> subprocess.Popen[str]:
    """Start a process that carries out an order, and writes events to its standard output; see `studies.child`."""
    process = subprocess.Popen(
        [sys.executable, "-c", "from limbeck.studies import child; child.main()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        encoding="utf-8",
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        start_new_session=True,  # Ctrl-C reaches the parent alone, which passes it on
    )
    assert process.stdin is not None
    with suppress(BrokenPipeError):  # it ended at once; its exit status says so
        process.stdin.write(json.dumps(order))
        process.stdin.close()
    return process


class Pool:
    """Runs units in child processes, `jobs` at a time with `threads` threads each.

    children: Those at work, by their numbers.
    """

    def __init__(self, jobs: int, threads: int, errors: Path):
        self.jobs, self.threads, self.errors = jobs, threads, errors
        self.children: dict[int, Child] = {}
        self.waiting: list[Unit] = []
        self.untrained: set[Path] = set()
        self.begun: set[Path] = set()
        self.events: queue.Queue[tuple[int, Event | None]] = queue.Queue()

    def add(self, units: Sequence[Unit]) -> None:
        """Let these units wait for their turn, behind those that wait; a store is trained once."""
        for unit in units:
            if unit.store is None or unit.store not in self.begun:
                self.waiting.append(unit)
            if unit.store is not None and unit.store not in self.begun:
                self.begun.add(unit.store)
                self.untrained.add(unit.store)

    def run(self, units: Sequence[Unit]) -> Iterator[tuple[Unit, str | None] | None]:
        """Yield (unit, why it failed) as units end, and None about every second in between.

        The caller may add units in between. A run whose experts failed fails with their sentence. Where the caller
        stops, the children are interrupted.
        """
        self.add(units)
        failed: dict[Path, str] = {}
        try:
            while self.waiting or self.children:
                for unit in [unit for unit in self.waiting if unit.needs in failed]:
                    self.waiting.remove(unit)
                    yield unit, f"its experts failed: {failed[unit.needs]}" if unit.needs else None
                self._start()
                ended = self._listen()
                if ended is None:
                    yield None
                    continue
                unit, sentence = ended
                if unit.store is not None:
                    self.untrained.discard(unit.store)
                    if sentence is not None:
                        failed[unit.store] = sentence
                yield unit, sentence
        finally:
            self._interrupt()

    def _start(self) -> None:
        """Start units that are ready while there are free slots."""
        while free := self.jobs - sum(child.slots for child in self.children.values()):
            ready = [unit for unit in self.waiting if unit.needs not in self.untrained]
            if not ready:
                return
            unit = ready[0]
            self.waiting.remove(unit)
            widens = unit.store is not None and len(ready) == 1 and not unit.run.depends_on_threads
            self._begin(unit, free if widens else 1)  # experts are trained side by side, one a thread

    def _begin(self, unit: Unit, slots: int) -> None:
        threads = slots * self.threads
        number = max(self.children, default=-1) + 1
        self.errors.mkdir(parents=True, exist_ok=True)
        path = self.errors / f"{unit.run.path.name}-{unit.kind}.txt"
        with path.open("w", encoding="utf-8") as errors:
            process = start_child(unit.order(threads), threads, errors)
        self.children[number] = Child(unit, process, slots, path)
        threading.Thread(target=self._read, args=(number, process), daemon=True).start()

    def _read(self, number: int, process: subprocess.Popen[str]) -> None:
        """Pass on what a child writes, in a thread of its own, and None at its end."""
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                with suppress(ValueError):  # a line that a library printed
                    event = json.loads(line)
                    if isinstance(event, dict) and "event" in event:
                        self.events.put((number, event))
        self.events.put((number, None))

    def _listen(self) -> tuple[Unit, str | None] | None:
        """Take in one event, and wait a second for it; (unit, why it failed) where it is the end of a process."""
        try:
            number, event = self.events.get(timeout=1.0)
        except queue.Empty:
            return None
        child = self.children[number]
        if event is not None:
            child.hear(event)
            return None
        status = child.process.wait()
        del self.children[number]
        return child.unit, child.failure(status)

    def _interrupt(self) -> None:
        """Interrupt all children, and kill those that do not end."""
        for child in self.children.values():
            child.process.terminate()  # Ctrl-C may be ignored, as it is in a shell's background
        end = time.perf_counter() + PATIENCE
        for child in self.children.values():
            try:
                child.process.wait(max(0.0, end - time.perf_counter()))
            except subprocess.TimeoutExpired:
                child.process.kill()
                child.process.wait()
        self.children.clear()
