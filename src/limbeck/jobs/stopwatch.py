"""Time what a job does often, a few times each, and say in words what the whole of it takes."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from math import sqrt
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor

from limbeck.core.parallel import CheckCancelled, parallel_map

try:
    import resource
except ImportError:  # pragma: no cover
    resource = None  # type: ignore[assignment]

QUICK, PART, MOST = 0.4, 0.02, 20.0  # seconds spent at least, part of the estimate, and seconds at most
WORDS = {"distill": "distillation", "evaluate": "evaluation"}


@dataclass(frozen=True)
class Estimate:
    """What is left of a job.

    seconds: by stage, as results.json names them. memory: bytes of the process at its peak, None where the system does
    not tell. device: bytes on the GPU, None without one. disk: bytes of files that are yet to be written.
    """

    seconds: Mapping[str, float]
    memory: int | None
    device: int | None
    disk: int

    @property
    def total(self) -> float:
        """Seconds of all stages."""
        return sum(self.seconds.values())

    @property
    def text(self) -> str:
        """One sentence."""
        long = {name: took for name, took in self.seconds.items() if took >= max(1.0, 0.02 * self.total)}
        parts = ", ".join(f"{WORDS.get(name, name)} {duration(took)}" for name, took in long.items())
        memory = [f"{size(self.memory)} of memory"] if self.memory is not None else []
        memory += [f"{size(self.device)} on the GPU"] if self.device is not None else []
        stages = f" ({parts})" if len(long) > 1 else ""
        return f"about {duration(self.total)}{stages}, {', '.join([*memory, f'{size(self.disk)} of disk'])}"

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        stages = {name: round(took, 2) for name, took in self.seconds.items()}
        numbers = {"memory_bytes": self.memory, "device_bytes": self.device, "disk_bytes": self.disk}
        return {"seconds": round(self.total, 2), "stages": stages, **numbers, "text": self.text}


def duration(seconds: float) -> str:
    """Two digits and a unit.

    >>> duration(0.3), duration(48.4), duration(130), duration(754), duration(9000)
    ('1 s', '48 s', '2.2 min', '13 min', '2.5 h')
    """
    if seconds < 100:
        return f"{max(1, round(seconds))} s"
    value, unit = (seconds / 60, "min") if seconds < 6000 else (seconds / 3600, "h")
    return f"{value:.{int(value < 10)}f} {unit}"


def size(count: float) -> str:
    """Bytes in words.

    >>> size(160_000), size(18_200_000), size(615_000_000)
    ('0.2 MB', '18 MB', '0.6 GB')
    """
    value, unit = (count / 1e6, "MB") if count < 1e8 else (count / 1e9, "GB")
    return f"{value:.{int(value < 10)}f} {unit}"


Make = Callable[[], Callable[[], object]]
"""Gives a call that does once what the job does often; one for each of those at work at the same time."""


class Piece:
    """Something that a job does often, and how long it takes when `workers` of it are at work at the same time."""

    def __init__(self, make: Make, workers: int, device: torch.device):
        self.calls = [make() for _ in range(workers)]
        self.device, self.repeats = device, 1
        self.uses: dict[str, float] = {}
        self.seconds: list[float] = []

    def run(self) -> None:
        """Time it once more; calls that are short are made several times."""

        def work(call: Callable[[], object]) -> Callable[[CheckCancelled], None]:
            def repeat(check: CheckCancelled) -> None:
                for _ in range(self.repeats):
                    call()

            return repeat

        start = time.perf_counter()
        for _ in parallel_map([work(call) for call in self.calls], len(self.calls)):
            pass
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds.append((time.perf_counter() - start) / self.repeats)
        self.repeats = min(20, max(1, int(0.02 * len(self.calls) / self.seconds[-1])))  # threads take a while to start

    @property
    def times(self) -> float:
        """How often the job does it."""
        return sum(self.uses.values())

    def _middle(self) -> list[float]:
        """The middle half of what was measured; the first, which warms up, only where there is no other."""
        found = sorted(self.seconds[1:] or self.seconds)
        cut = len(found) // 4
        return found[cut : len(found) - cut]

    def once(self) -> float:
        """Seconds it takes: as sure as a median, and right for calls whose length is drawn."""
        return fmean(self._middle())

    def doubt(self) -> float:
        """By how many seconds the job may be misjudged because of it."""
        middle = self._middle()
        if len(self.seconds) < 4:
            return self.times * self.once() / len(self.seconds)
        return self.times * stdev([*middle, self.once()]) / sqrt(len(middle))


def measure(pieces: Collection[Piece], seconds: Callable[[], float]) -> None:
    """Time all pieces, and then what matters most until it is sure to a few per cent or time is up.

    seconds: of the whole job, from what was measured so far.
    """
    for piece in pieces:
        if not piece.seconds:
            piece.run()
    begun = time.perf_counter()
    while pieces:
        total = seconds()
        worst = max(pieces, key=Piece.doubt)
        spent = time.perf_counter() - begun
        ahead = 0.0 if len(worst.seconds) == 1 and worst.once() < 1 else worst.once()  # the first one says little
        if worst.doubt() < PART * total or spent + ahead > min(MOST, max(QUICK, PART * total)):
            return
        worst.run()


def peak(more: int) -> int | None:
    """The most that this process has had of memory, and `more`, in bytes."""
    if resource is None:
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most * (1 if sys.platform == "darwin" else 1024) + more


def device_peak(device: torch.device) -> int | None:
    """The same of a GPU's memory."""
    return torch.cuda.max_memory_reserved(device) if device.type == "cuda" else None


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Of all of them."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
