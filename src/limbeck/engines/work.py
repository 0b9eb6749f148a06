"""A unit of work as a value, and what an engine is: a place that carries out works in processes of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from limbeck.core.events import Event


@dataclass(frozen=True)
class Work:
    """A call of a function with JSON values, which any process can carry out, and which is known by its content.

    Its result lies in a store or a run folder, which all machines of the engine share.
    key:      The content key: of two works with one key only the first is carried out.
    name:     The work as a message names it.
    function: MODULE:NAME of limbeck, called with (order, listen).
    threads:  Torch's threads, on which bits may depend.
    errors:   The file for what the process writes to standard error.
    needs:    Keys of the works that have to be done before.
    gpus:     How many GPUs it takes.
    units:    How many units it is in the progress of `scatter`.
    is_wide:  Whether it can use the threads of several works, with the same bits.
    is_done:  Whether the result is there, as far as that can be seen; None where it cannot.
    is_claimed: Whether another job is computing the same result now.
    """

    key: str
    name: str
    function: str
    order: Mapping[str, Any]
    threads: int
    errors: Path
    needs: frozenset[str] = frozenset()
    gpus: int = 0
    units: int = 1
    is_wide: bool = False
    is_done: Callable[[], bool] | None = None
    is_claimed: Callable[[], bool] = lambda: False

    @property
    def message(self) -> dict[str, Any]:
        """What its process reads; see `limbeck.engines.child`."""
        return {"function": self.function, "order": dict(self.order), "threads": self.threads}


class LostError(ConnectionError):
    """The worker or the machine that carried out a work went away; the work can be carried out again."""


class WorkError(OSError):
    """Works failed by a fault of the machines that carried them out. The command line exits with status 1."""


class EngineLostError(ConnectionError):
    """The engine itself went away, with all works that it carried out. The command line exits with status 1."""


class Running(Protocol):
    """A work that was started."""

    def events(self) -> Iterator[Event]:
        """Wait for its events, and yield them until it has ended."""

    def failure(self) -> str | None:
        """Why its process failed, once it has ended; None where it did not. Raises LostError."""

    def interrupt(self) -> None:
        """Ask it to stop."""

    def stop(self, seconds: float) -> None:
        """Wait until it has ended, and kill it after so many seconds."""


class Engine(Protocol):
    """Where works are carried out. There is one implementation a file, and `limbeck.engines.ENGINES` names them.

    is_remote: Whether works go to other machines, so that this process should not do them itself.
    """

    is_remote: bool

    def look(self) -> None:
        """Look which machines are there, which `Pool` asks for every second. Raises EngineLostError."""

    def capacity(self, threads: int, gpus: int) -> int:
        """How many works of so many threads and GPUs it carries out at a time; 1 at least."""

    def shares(self, indices: Sequence[int]) -> list[tuple[int, ...]]:
        """How the experts of a store are divided among works."""

    def start(self, work: Work) -> Running:
        """Start a work."""
