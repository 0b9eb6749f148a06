"""Carries out works on an engine: in their order, as many at a time as there is room for, and lost ones again."""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from limbeck.core.errors import UserError
from limbeck.core.events import Event, Listener
from limbeck.engines.work import Engine, EngineLostError, LostError, Running, Work, WorkError

PATIENCE = 30.0
"""Seconds that interrupted works have to write what they know."""
LOOK_SECONDS = 1.0
"""Seconds after which works that wait are looked at again."""
SEE_SECONDS = 60.0
"""Seconds until a result that another machine wrote must be seen here: a network file system remembers for a while that
there was none."""
ATTEMPTS = 3
"""How often a work is started whose worker is lost."""


@dataclass
class Child:
    """A work that was started: its threads in multiples of those of the work, and what it said last."""

    work: Work
    running: Running
    slots: int
    start: float = field(default_factory=time.perf_counter)
    stage: str = "begins"
    total: int = 0
    done: int = 0
    sentence: str | None = None
    warnings: list[str] = field(default_factory=list)
    has_said_end: bool = False
    is_mistake: bool = True

    def hear(self, event: Event) -> None:
        """Take in an event of the work."""
        if event["event"] == "stage":
            self.stage, self.total, self.done = event["name"], event["total"], event.get("done", 0)
        elif event["event"] == "advance":
            self.done = event["done"]
        elif event["event"] == "warning":
            self.warnings.append(event["text"])
        elif event["event"] == "end":
            self.sentence, self.has_said_end = event["sentence"], True
            self.is_mistake = event.get("is_mistake", True)

    @property
    def progress(self) -> str:
        """Where it is, in words."""
        return f"{self.work.name}: {self.stage}" + (f" {self.done}/{self.total}" if self.total else "")

    def failure(self) -> str | None:
        """Why it failed; None where it did not. Raises LostError where its worker went away before it could say."""
        self.running.stop(PATIENCE)
        return self.sentence if self.has_said_end else self.running.failure()


class Ended(NamedTuple):
    """A work that has ended, and why it failed; None where it did not.

    is_mistake: Whether it failed by a mistake of the user, and not by a fault of the machines.
    """

    work: Work
    sentence: str | None
    is_mistake: bool = True


class Pool:
    """Carries out works on an engine.

    listen:   Hears of lost workers.
    children: The works that were started and have not ended, by number.
    """

    def __init__(self, engine: Engine, listen: Listener = lambda event: None):
        self.engine, self.listen = engine, listen
        self.children: dict[int, Child] = {}
        self.waiting: list[Work] = []
        self.keys: set[str] = set()
        self.failed: dict[str, str] = {}
        self.losses: Counter[str] = Counter()
        self.events: queue.Queue[tuple[int, Event | None]] = queue.Queue()
        self.next_look = 0.0

    def add(self, works: Sequence[Work]) -> None:
        """Let these works wait for their turn, behind those that wait; works of one key are carried out once."""
        for work in works:
            if work.key not in self.keys:
                self.keys.add(work.key)
                self.waiting.append(work)

    def run(self, works: Sequence[Work]) -> Iterator[Ended | None]:
        """Yield works as they end, and None about every second in between.

        The caller may add works in between. A work whose needs failed fails with their sentence. Where the caller
        stops, the works are interrupted.
        """
        self.add(works)
        try:
            while self.waiting or self.children:
                if time.perf_counter() >= self.next_look:
                    self.next_look = time.perf_counter() + LOOK_SECONDS
                    self.engine.look()
                    yield from self._settle()
                    self._start()
                if self.waiting or self.children:
                    yield self._hear()
        except EngineLostError:  # nobody is there who could be asked to stop
            self.children.clear()
            raise
        finally:
            self._interrupt()

    def _settle(self) -> Iterator[Ended]:
        """Take out the works that wait for what failed, and those whose result another job has written."""
        for work in list(self.waiting):
            sentence = next((self.failed[key] for key in sorted(work.needs) if key in self.failed), None)
            if sentence is not None or (work.is_done is not None and work.is_done()):
                self.waiting.remove(work)
                yield Ended(work, sentence)

    def _start(self) -> None:
        """Start works that are ready while there is room; what another job computes is left to it."""
        unfinished = {work.key for work in self.waiting} | {child.work.key for child in self.children.values()}
        ready = [work for work in self.waiting if not work.needs & unfinished]
        for work in ready:
            room = self.engine.capacity(work.threads, work.gpus) - sum(child.slots for child in self.children.values())
            if room <= 0:
                return
            if not work.is_claimed():
                self._begin(work, room if work.is_wide and len(ready) == 1 else 1)

    def _begin(self, work: Work, slots: int) -> None:
        self.waiting.remove(work)
        number = max(self.children, default=-1) + 1
        running = self.engine.start(replace(work, threads=slots * work.threads))
        self.children[number] = Child(work, running, slots)
        threading.Thread(target=self._read, args=(number, running), daemon=True).start()

    def _read(self, number: int, running: Running) -> None:
        """Pass on the events of a work, in a thread of its own, and None at its end."""
        try:
            for event in running.events():
                self.events.put((number, event))
        finally:
            self.events.put((number, None))

    def _hear(self) -> Ended | None:
        """Take in one event, and wait a second for it; the work where it is its end."""
        try:
            number, event = self.events.get(timeout=LOOK_SECONDS)
        except queue.Empty:
            return None
        if event is not None:
            self.children[number].hear(event)
            return None
        self.next_look = 0.0
        return self._end(self.children.pop(number))

    def _end(self, child: Child) -> Ended | None:
        """The end of a work; None where its worker was lost and it waits again, before all others."""
        work = child.work
        try:
            sentence = child.failure()
        except LostError as error:
            self.losses[work.key] += 1
            sentence, child.is_mistake = f"{error}, {self.losses[work.key]} times", False
            if self.losses[work.key] < ATTEMPTS:
                self.listen({"event": "note", "text": f"{work.name}: {error}; it is done again"})
                self.waiting.insert(0, work)
                return None
        if sentence is None and not _can_see(work):
            sentence = (
                "what it wrote is not seen here; all machines of the engine need the run folders and LIMBECK_HOME in "
                "common."
            )
        if sentence is not None:
            self.failed[work.key] = f"{work.name} failed: {sentence}"
        return Ended(work, sentence, child.is_mistake)

    def _interrupt(self) -> None:
        """Interrupt all works, and kill those that do not end."""
        for child in self.children.values():
            child.running.interrupt()
        end = time.perf_counter() + PATIENCE
        for child in self.children.values():
            child.running.stop(end - time.perf_counter())
        self.children.clear()


def _can_see(work: Work) -> bool:
    """Whether the result of a finished work is seen here, soon."""
    end = time.perf_counter() + SEE_SECONDS
    while work.is_done is not None and not work.is_done():
        if time.perf_counter() > end:
            return False
        time.sleep(LOOK_SECONDS)
    return True


def scatter(engine: Engine, works: Sequence[Work], stage: Event, listen: Listener) -> Iterator[Work]:
    """Carry out works as one stage of the caller's progress, and yield them as they are done.

    stage: The event by which it begins, without "total", which is the sum of the works' units.
    Raises UserError or WorkError where works failed, after the others have ended: with the first sentence.
    """
    listen({**stage, "event": "stage", "total": sum(work.units for work in works)})
    pool, done, reported = Pool(engine, listen), dict.fromkeys((work.key for work in works), 0), 0
    finished, failures = 0, list[Ended]()
    for ended in pool.run(works):
        for child in pool.children.values():
            units = child.work.units
            if child.total == units:  # its stage is the one that is counted; a work may have others before it
                done[child.work.key] = max(done[child.work.key], min(child.done, units))  # done again, it counts once
            while child.warnings:
                listen({"event": "warning", "text": f"{child.work.name}: {child.warnings.pop(0)}"})
        if ended is not None and ended.sentence is None:
            done[ended.work.key], finished = ended.work.units, finished + 1
        elif ended is not None:
            failures.append(ended)
            listen({"event": "warning", "text": f"{ended.work.name} failed: {ended.sentence}"})
        while reported < sum(done.values()):
            reported += 1
            listen({"event": "advance", "text": f"{finished} of {len(works)} done, {len(pool.children)} at work"})
        if ended is not None and ended.sentence is None:
            yield ended.work
    if failures:
        raise (UserError if failures[0].is_mistake else WorkError)(
            f"{len(failures)} of {len(works)} failed, the first because {(failures[0].sentence or '').rstrip('.')}; "
            "the same command tries them again."
        )
