"""Work at the same time: every result once, failures and interruptions stop the rest, threads are as before."""

from __future__ import annotations

import threading
import time
import weakref

import pytest
import torch

from limbeck.core.parallel import Check, GivenUp, one_at_a_time, side_by_side


@pytest.mark.parametrize("at_once", [1, 2, 5])
def test_every_result_comes_once_with_its_place(at_once: int) -> None:
    jobs = [lambda _check, n=n: n * n for n in range(7)]
    assert dict(side_by_side(jobs, at_once)) == {n: n * n for n in range(7)}
    assert list(side_by_side([], at_once)) == []


def test_two_jobs_are_at_work_at_the_same_time_with_a_share_of_the_threads_each() -> None:
    threads, both = torch.get_num_threads(), threading.Barrier(2, timeout=20)

    def job(_check: Check) -> int:
        both.wait()  # passes only when the other one is there too
        return torch.get_num_threads()

    shares = [share for _, share in side_by_side([job, job], 2)]
    assert shares == [max(1, threads // 2)] * 2
    assert torch.get_num_threads() == threads


def test_a_failure_ends_the_others() -> None:
    ended = threading.Event()

    def endless(check: Check) -> None:
        try:
            while True:
                check()
                time.sleep(0.001)
        except GivenUp:
            ended.set()
            raise

    def fails(_check: Check) -> None:
        raise ZeroDivisionError("here")

    with pytest.raises(ZeroDivisionError, match="here"):
        list(side_by_side([endless, fails], 2))
    assert ended.is_set()


def test_whoever_stops_listening_ends_the_rest() -> None:
    def endless(check: Check) -> None:
        while True:
            check()
            time.sleep(0.001)

    results = side_by_side([lambda _check: None, endless], 2)
    assert next(results) == (0, None)
    results.close()  # as Ctrl-C does; returns only because the other job stopped


def test_a_listener_hears_one_at_a_time() -> None:
    inside, most = [0], [0]

    def listen(_event: dict[str, object]) -> None:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        time.sleep(0.001)
        inside[0] -= 1

    heard = one_at_a_time(listen)
    crowd = [threading.Thread(target=heard, args=({},)) for _ in range(8)]
    for each in crowd:
        each.start()
    for each in crowd:
        each.join()
    assert most[0] == 1


@pytest.mark.parametrize("at_once", [1, 2])
def test_a_result_is_let_go_before_the_last_job_ends(at_once: int) -> None:
    """A hundred recorded experts were once 6.5 GB, all alive until the last was trained."""

    class Result:
        pass

    alive: weakref.WeakSet[Result] = weakref.WeakSet()
    most = 0

    def job(_check: Check) -> Result:
        time.sleep(0.01)
        result = Result()
        alive.add(result)
        return result

    for _place, result in side_by_side([job] * 20, at_once):
        del result
        most = max(most, len(alive))
    assert most <= 2 * at_once
