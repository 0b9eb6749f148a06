"""The global generator, which `fork_rng` seeds for a while."""

from __future__ import annotations

import threading

import torch

from limbeck.core.rng import fork_rng


def test_threads_do_not_draw_from_the_seeds_of_others() -> None:
    """Seen as two networks that were prepared at once, of which one was called random, in 1 of 3 attempts."""
    with fork_rng(0, "first"):
        alone = torch.rand(3)
    is_inside, drawn = threading.Event(), []

    def draw() -> None:
        with fork_rng(0, "second"):
            is_inside.set()
            drawn.append(torch.rand(3))

    other = threading.Thread(target=draw)
    with fork_rng(0, "first"):
        other.start()
        assert not is_inside.wait(0.2)
        beside = torch.rand(3)
    other.join(60)
    assert torch.equal(alone, beside)
    with fork_rng(0, "second"):
        assert torch.equal(torch.rand(3), drawn[0])
