"""parallel_map yields every result once, cancels the other jobs on a failure, and restores the number of threads."""

from __future__ import annotations

import threading
import time
import weakref

import pytest
import torch

from limbeck.core.parallel import Cancelled, CheckCancelled, Workers, parallel_map, synchronized


@pytest.mark.parametrize("max_workers", [1, 2, 5])
def test_every_result_is_yielded_once_with_its_index(max_workers: int) -> None:
    jobs = [lambda _check, n=n: n * n for n in range(7)]
    assert dict(parallel_map(jobs, max_workers)) == {n: n * n for n in range(7)}
    assert list(parallel_map([], max_workers)) == []


def test_two_jobs_run_at_the_same_time_and_share_the_threads() -> None:
    threads, both = torch.get_num_threads(), threading.Barrier(2, timeout=20)

    def job(_check: CheckCancelled) -> int:
        both.wait()  # passes only when the other one is there too
        return torch.get_num_threads()

    shares = [share for _, share in parallel_map([job, job], 2)]
    assert shares == [max(1, threads // 2)] * 2
    assert torch.get_num_threads() == threads


def test_a_failure_cancels_the_other_jobs() -> None:
    ended = threading.Event()

    def endless(check: CheckCancelled) -> None:
        try:
            while True:
                check()
                time.sleep(0.001)
        except Cancelled:
            ended.set()
            raise

    def fails(_check: CheckCancelled) -> None:
        raise ZeroDivisionError("here")

    with pytest.raises(ZeroDivisionError, match="here"):
        list(parallel_map([endless, fails], 2))
    assert ended.is_set()


def test_closing_the_iterator_cancels_the_other_jobs() -> None:
    def endless(check: CheckCancelled) -> None:
        while True:
            check()
            time.sleep(0.001)

    results = parallel_map([lambda _check: None, endless], 2)
    assert next(results) == (0, None)
    results.close()  # as Ctrl-C does; returns only because the other job stopped


def test_a_synchronized_listener_hears_one_event_at_a_time() -> None:
    inside, peak = [0], [0]

    def listen(_event: dict[str, object]) -> None:
        inside[0] += 1
        peak[0] = max(peak[0], inside[0])
        time.sleep(0.001)
        inside[0] -= 1

    forward = synchronized(listen)
    crowd = [threading.Thread(target=forward, args=({},)) for _ in range(8)]
    for thread in crowd:
        thread.start()
    for thread in crowd:
        thread.join()
    assert peak[0] == 1


@pytest.mark.parametrize("number", [1, 3, 5])
def test_a_fixed_share_does_not_depend_on_the_number_of_functions(number: int) -> None:
    """Without one the last functions have more threads, and other bits under autograd."""
    before = torch.get_num_threads()
    try:
        for threads, share in ((1, 1), (2, 1), (4, 1), (8, 2)):
            torch.set_num_threads(threads)
            workers = Workers.of_fixed_share()
            jobs = [lambda _check: torch.get_num_threads()] * number
            assert dict(parallel_map(jobs, *workers)) == dict.fromkeys(range(number), share)
            assert (workers.at_once, torch.get_num_threads()) == (min(threads, 4), threads)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("max_workers", [1, 2])
def test_a_result_is_released_before_the_last_job_ends(max_workers: int) -> None:
    """A hundred recorded experts were once 6.5 GB, all alive until the last was trained."""

    class Result:
        pass

    alive: weakref.WeakSet[Result] = weakref.WeakSet()
    peak = 0

    def job(_check: CheckCancelled) -> Result:
        time.sleep(0.01)
        result = Result()
        alive.add(result)
        return result

    for _place, result in parallel_map([job] * 20, max_workers):
        del result
        peak = max(peak, len(alive))
    assert peak <= 2 * max_workers
