"""The only source of randomness: generators derived from (seed, purpose, step), never the global one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derive_seed(seed: int, *path: str | int) -> int:
    """A 63-bit seed for one purpose, independent of every other purpose under the same `seed`.

    >>> seeds = [derive_seed(0, "expert", index) for index in (3, 3, 4)]
    >>> seeds[0] == seeds[1], seeds[0] == seeds[2]
    (True, False)
    """
    text = "/".join([str(int(seed)), *(f"{type(part).__name__}:{part}" for part in path)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def make_generator(seed: int, *path: str | int) -> torch.Generator:
    """A fresh CPU generator for one purpose.

    Draws are made on the CPU and moved, so that a device does not change what is drawn.

    >>> torch.rand(2, generator=make_generator(0, "a")).equal(torch.rand(2, generator=make_generator(0, "a")))
    True
    """
    return torch.Generator().manual_seed(derive_seed(seed, *path))


@contextmanager
def fork_rng(seed: int, *path: str | int) -> Iterator[None]:
    """Run code that can only read the global generator (a module's own initialiser), and leave that as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(seed, *path))
        yield
