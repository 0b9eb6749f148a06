"""Several processes on one store: each missing expert is computed by one of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from limbeck.core.events import Listener
from limbeck.core.parallel import CheckCancelled, parallel_map

if TYPE_CHECKING:
    from limbeck.experts.store import Expert, Store

POLL_SECONDS = 0.5


class Claim(Protocol):
    """Says that this process computes an expert, until it is released."""

    def release(self) -> object:
        """Let others claim it."""


class ExpertPlace(Protocol):
    """Where experts that belong together are stored and claimed: a store, or one that other machines share."""

    @property
    def path(self) -> Path:
        """The folder on this machine's disk."""

    def missing(self, indices: Collection[int]) -> list[int]:
        """Those of these experts that are nowhere, in order; the others are on the disk after this."""

    def try_claim(self, index: int) -> Claim | None:
        """Claim an expert; None where another process has claimed it."""

    def write(self, index: int, expert: Expert) -> None:
        """Write an expert that was computed."""


def compute_missing(
    place: ExpertPlace,
    indices: Collection[int],
    compute: Callable[[int, CheckCancelled], Expert],
    max_workers: int | None = 1,
    listen: Listener = lambda event: None,
) -> None:
    """Compute those of the experts `indices` that `place` lacks, and write an expert as soon as it is computed.

    An expert is claimed before it is computed. Those that other processes have claimed are waited for, and computed
    here where their process ends without them.
    compute: Called in threads as `parallel_map` calls its functions, `max_workers` at a time.
    """
    is_waiting = False
    while missing := place.missing(indices):
        claims: dict[int, Claim] = {}
        functions = [partial(_claim_and_compute, place, index, compute, claims) for index in missing]
        try:
            for position, expert in parallel_map(functions, max_workers):
                if expert is not None:
                    place.write(missing[position], expert)
                    claims.pop(missing[position]).release()
        finally:
            for claim in claims.values():
                claim.release()
        left = place.missing(missing)
        if left and not is_waiting:
            is_waiting = True
            names = ", ".join(str(index + 1) for index in left)
            listen(
                {"event": "note", "text": f"waiting for another process that computes experts {names} of {place.path}"}
            )
        if left:
            time.sleep(POLL_SECONDS)


def are_claimed(store: Store, indices: Collection[int]) -> bool:
    """Whether other processes compute all of these experts now."""
    for index in indices:
        if (claim := store.try_claim(index)) is not None:
            claim.release()
            return False
    return True


def _claim_and_compute(
    place: ExpertPlace,
    index: int,
    compute: Callable[[int, CheckCancelled], Expert],
    claims: dict[int, Claim],
    check: CheckCancelled,
) -> Expert | None:
    """One expert, whose claim is kept until it is written; None where another process computes it, or has done so."""
    claim = place.try_claim(index)
    if claim is None:
        return None
    claims[index] = claim
    return compute(index, check) if place.missing([index]) else None
