"""Runs independent jobs in threads, each with its share of torch's threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from threading import Event, Lock
from typing import Any, TypeVar

import torch

from limbeck.core.types import Listener

T = TypeVar("T")
CheckCancelled = Callable[[], None]
"""Call periodically; raises `Cancelled` once the pool is cancelled."""


class Cancelled(Exception):
    """The pool was cancelled: another job failed, or the caller stopped reading results."""


def parallel_map(
    jobs: Sequence[Callable[[CheckCancelled], T]], max_workers: int | None = None
) -> Iterator[tuple[int, T]]:
    """Run every job and yield (index, result) pairs in the order in which jobs end.

    A small network cannot keep several threads busy, because they wait for each other in every layer. Several networks
    can.
    jobs:        Functions of a `CheckCancelled`. A job must not use torch's global generator.
    max_workers: How many jobs run at the same time. The default is one per thread of torch; 1 is a plain loop.
    An exception of a job is raised here, after the other jobs have stopped.

    >>> sorted(parallel_map([lambda check: "a", lambda check: "b"], max_workers=2))
    [(0, 'a'), (1, 'b')]
    """
    threads = torch.get_num_threads()
    workers = min(len(jobs), threads if max_workers is None else max_workers)
    if workers <= 1:
        yield from ((index, job(lambda: None)) for index, job in enumerate(jobs))
        return
    remainder = len(jobs) % workers  # the last jobs share all threads among fewer workers
    even = len(jobs) - remainder
    for indices in (range(even), range(even, len(jobs))):
        if indices:
            yield from _run_pool(jobs, indices, min(workers, len(indices)), threads)


def _run_pool(
    jobs: Sequence[Callable[[CheckCancelled], T]], indices: range, workers: int, threads: int
) -> Iterator[tuple[int, T]]:
    """Run the jobs of these indices in a pool of `workers` threads."""
    cancelled = Event()

    def check() -> None:
        if cancelled.is_set():
            raise Cancelled

    share = max(1, threads // workers)
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(share,))
    try:
        futures: dict[Future[T], int] = {pool.submit(jobs[index], check): index for index in indices}
        for future in as_completed(list(futures)):
            yield futures.pop(future), future.result()
            del future  # otherwise every result would live until the last job ends
    finally:
        cancelled.set()
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # torch's setting is global: a worker's share would stay in force


def synchronized(listen: Listener) -> Listener:
    """Wrap a listener so that several threads may call it: one event at a time gets through."""
    lock = Lock()

    def forward(event: dict[str, Any]) -> None:
        with lock:
            listen(event)

    return forward
