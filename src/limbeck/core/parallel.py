"""Independent pieces of work at the same time, each with its share of the processor's threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from threading import Event, Lock
from typing import Any, TypeVar

import torch

from limbeck.core.types import Listener

T = TypeVar("T")
Check = Callable[[], None]
"""To be called now and then while working: raises where the others have been given up."""


class GivenUp(Exception):
    """Another piece of work failed, or was interrupted."""


def side_by_side(jobs: Sequence[Callable[[Check], T]], at_once: int | None = None) -> Iterator[tuple[int, T]]:
    """Yield (place, result) of every job, in the order in which they end.

    A small network does not keep several threads busy: they wait for each other in every layer. Several networks do.
    at_once: how many jobs work at the same time; by default one per thread of torch, and 1 is a plain loop.
    A job must not use torch's global generator. What one raises is raised here, after the others have stopped.

    >>> sorted(side_by_side([lambda check: "a", lambda check: "b"], at_once=2))
    [(0, 'a'), (1, 'b')]
    """
    threads = torch.get_num_threads()
    workers = min(len(jobs), threads if at_once is None else at_once)
    if workers <= 1:
        yield from ((place, job(lambda: None)) for place, job in enumerate(jobs))
        return
    even = len(jobs) - len(jobs) % workers  # what is left over then shares the threads anew
    for begin, end in ((0, even), (even, len(jobs))):
        if begin < end:
            yield from _together(jobs, range(begin, end), min(workers, end - begin), threads)


def _together(
    jobs: Sequence[Callable[[Check], T]], chosen: range, workers: int, threads: int
) -> Iterator[tuple[int, T]]:
    """These jobs, `workers` at a time."""
    given_up = Event()

    def check() -> None:
        if given_up.is_set():
            raise GivenUp

    share = max(1, threads // workers)
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(share,))
    try:
        places: dict[Future[T], int] = {pool.submit(jobs[place], check): place for place in chosen}
        for future in as_completed(list(places)):
            yield places.pop(future), future.result()
            del future  # a result is not kept until the last job ends
    finally:
        given_up.set()
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # one setting of torch's is for all threads


def one_at_a_time(listen: Listener) -> Listener:
    """A listener that several threads may call."""
    lock = Lock()

    def hear(event: dict[str, Any]) -> None:
        with lock:
            listen(event)

    return hear
