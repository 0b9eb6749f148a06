"""Runs independent functions in threads, each with its share of torch's threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from typing import NamedTuple, TypeVar

import torch

from limbeck.core.events import Event, Listener

T = TypeVar("T")
CheckCancelled = Callable[[], None]
"""Call periodically; raises `Cancelled` once the pool is cancelled."""


AT_ONCE = 4
"""Networks that are trained at the same time under autograd, each with a quarter of the threads, and with one at least:
torch's operations round differently with another number of threads, which therefore must not depend on how many
networks there are."""


class Workers(NamedTuple):
    """How many functions run at the same time, and how many threads of torch each of them has.

    max_workers:  None stands for one per thread.
    threads_each: None stands for an equal share of the threads, of which the last functions have more; this is for
        functions whose bits do not depend on it.
    """

    max_workers: int | None = None
    threads_each: int | None = None

    @classmethod
    def of_fixed_share(cls) -> Workers:
        """`AT_ONCE` workers, each with its share of torch's threads, however many functions there are."""
        return cls(AT_ONCE, max(1, torch.get_num_threads() // AT_ONCE))

    @property
    def at_once(self) -> int:
        """The number of functions that run at the same time, if there are enough."""
        threads = torch.get_num_threads()
        return min(self.max_workers or threads, threads // (self.threads_each or 1))


class Cancelled(Exception):
    """The pool was cancelled: another function failed, or the caller stopped reading results."""


def parallel_map(
    functions: Sequence[Callable[[CheckCancelled], T]],
    max_workers: int | None = None,
    threads_each: int | None = None,
) -> Iterator[tuple[int, T]]:
    """Call every function and yield (index, result) pairs in the order in which the calls end.

    A small network cannot keep several threads busy, because they wait for each other in every layer. Several networks
    can.
    functions:   Functions of a `CheckCancelled`. They must not use torch's global generator.
    max_workers, threads_each: As in `Workers`. With max_workers = 1 it is a plain loop, unless threads_each says that
                 a call has fewer threads than there are.
    An exception of a call is raised here, after the other calls have stopped.

    >>> sorted(parallel_map([lambda check: "a", lambda check: "b"], max_workers=2))
    [(0, 'a'), (1, 'b')]
    """
    threads = torch.get_num_threads()
    workers = min(len(functions), threads if max_workers is None else max_workers)
    if threads_each is not None:
        workers = min(workers, threads // threads_each)
    if threads_each is not None and threads_each < threads:
        yield from _run_pool(functions, range(len(functions)), workers, threads_each)
        return
    if workers <= 1:
        yield from ((index, function(lambda: None)) for index, function in enumerate(functions))
        return
    remainder = len(functions) % workers  # the last calls share all threads among fewer workers
    even = len(functions) - remainder
    for indices in (range(even), range(even, len(functions))):
        if indices:
            pool = min(workers, len(indices))
            yield from _run_pool(functions, indices, pool, max(1, threads // pool))


def _run_pool(
    functions: Sequence[Callable[[CheckCancelled], T]], indices: range, workers: int, share: int
) -> Iterator[tuple[int, T]]:
    """Call the functions of these indices in a pool of `workers` threads, each with `share` threads of torch."""
    if not indices:
        return
    threads = torch.get_num_threads()
    cancelled = threading.Event()

    def check() -> None:
        if cancelled.is_set():
            raise Cancelled

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
