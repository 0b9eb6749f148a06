"""The only source of randomness: generators that follow from (seed, purpose, step), never the global one."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_GLOBAL_GENERATOR = threading.RLock()


def derive_seed(seed: int, *path: str | int) -> int:
    """A 63-bit seed for one purpose, as good as independent of those for all other purposes under the same `seed`.

    path: names the purpose, as in ("expert", 3). The result is a part of a SHA-256 digest of `seed` and `path`.

    >>> seeds = [derive_seed(0, "expert", index) for index in (3, 3, 4)]
    >>> seeds[0] == seeds[1], seeds[0] == seeds[2]
    (True, False)
    """
    text = "/".join([str(int(seed)), *(f"{type(part).__name__}:{part}" for part in path)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def make_generator(seed: int, *path: str | int) -> torch.Generator:
    """A new CPU generator for one purpose, seeded with derive_seed(seed, *path).

    Draw on the CPU and move the result, so that the device does not change what is drawn.

    >>> torch.rand(2, generator=make_generator(0, "a")).equal(torch.rand(2, generator=make_generator(0, "a")))
    True
    """
    return torch.Generator().manual_seed(derive_seed(seed, *path))


@contextmanager
def fork_rng(seed: int, *path: str | int) -> Iterator[None]:
    """Seed the global CPU generator inside a `with` block and restore it afterwards.

    For code that reads no other generator, as the initialisers of torch's modules do. Threads wait for each other here:
    the generator is the process's, and one that draws from another's seed would have other weights than alone.
    """
    with _GLOBAL_GENERATOR, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(seed, *path))
        yield
