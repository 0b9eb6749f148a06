"""Runs independent functions in threads, each with its share of torch's threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from typing import TypeVar

import torch

from limbeck.core.events import Event, Listener

T = TypeVar("T")
CheckCancelled = Callable[[], None]
"""Call periodically; raises `Cancelled` once the pool is cancelled."""


class Cancelled(Exception):
    """The pool was cancelled: another function failed, or the caller stopped reading results."""


def parallel_map(
    functions: Sequence[Callable[[CheckCancelled], T]], max_workers: int | None = None
) -> Iterator[tuple[int, T]]:
    """Call every function and yield (index, result) pairs in the order in which the calls end.

    A small network cannot keep several threads busy, because they wait for each other in every layer. Several networks
    can.
    functions:   Functions of a `CheckCancelled`. They must not use torch's global generator.
    max_workers: How many calls run at the same time. The default is one per thread of torch; 1 is a plain loop.
    An exception of a call is raised here, after the other calls have stopped.

    >>> sorted(parallel_map([lambda check: "a", lambda check: "b"], max_workers=2))
    [(0, 'a'), (1, 'b')]
    """
    threads = torch.get_num_threads()
    workers = min(len(functions), threads if max_workers is None else max_workers)
    if workers <= 1:
        yield from ((index, function(lambda: None)) for index, function in enumerate(functions))
        return
    remainder = len(functions) % workers  # the last calls share all threads among fewer workers
    even = len(functions) - remainder
    for indices in (range(even), range(even, len(functions))):
        if indices:
            yield from _run_pool(functions, indices, min(workers, len(indices)), threads)


def _run_pool(
    functions: Sequence[Callable[[CheckCancelled], T]], indices: range, workers: int, threads: int
) -> Iterator[tuple[int, T]]:
    """Call the functions of these indices in a pool of `workers` threads."""
    cancelled = threading.Event()

    def check() -> None:
        if cancelled.is_set():
            raise Cancelled

    share = max(1, threads // workers)
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(share,))
    try:
        futures: dict[Future[T], int] = {pool.submit(functions[index], check): index for index in indices}
        for future in as_completed(list(futures)):
            yield futures.pop(future), future.result()
            del future  # otherwise every result would live until the last call ends
    finally:
        cancelled.set()
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # torch's setting is global: a worker's share would stay in force


def synchronized(listen: Listener) -> Listener:
    """Wrap a listener so that several threads may call it: one event at a time gets through."""
    lock = threading.Lock()

    def forward(event: Event) -> None:
        with lock:
            listen(event)

    return forward
