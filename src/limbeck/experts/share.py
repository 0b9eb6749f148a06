"""Several processes on one store: each missing expert is computed by one of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from functools import partial
from typing import TYPE_CHECKING

from filelock import FileLock

from limbeck.core.events import Listener
from limbeck.core.parallel import CheckCancelled, parallel_map

if TYPE_CHECKING:
    from limbeck.experts.store import Expert, Store

POLL_SECONDS = 0.5


def compute_missing(
    store: Store,
    indices: Collection[int],
    compute: Callable[[int, CheckCancelled], Expert],
    max_workers: int | None = 1,
    listen: Listener = lambda event: None,
) -> None:
    """Compute those of the experts `indices` that the store lacks, and write an expert as soon as it is computed.

    An expert is claimed before it is computed. Those that other processes have claimed are waited for, and computed
    here where their process ends without them.
    compute: Called in threads as `parallel_map` calls its functions, `max_workers` at a time.
    """
    is_waiting = False
    while missing := sorted(set(indices) - set(store.indices())):
        claims: dict[int, FileLock] = {}
        functions = [partial(_claim_and_compute, store, index, compute, claims) for index in missing]
        try:
            for place, expert in parallel_map(functions, max_workers):
                if expert is not None:
                    store.write(missing[place], expert)
                    claims.pop(missing[place]).release()
        finally:
            for claim in claims.values():
                claim.release()
        left = sorted(set(missing) - set(store.indices()))
        if left and not is_waiting:
            is_waiting = True
            names = ", ".join(str(index + 1) for index in left)
            listen(
                {"event": "note", "text": f"waiting for another process that computes experts {names} of {store.path}"}
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
    store: Store,
    index: int,
    compute: Callable[[int, CheckCancelled], Expert],
    claims: dict[int, FileLock],
    check: CheckCancelled,
) -> Expert | None:
    """One expert, whose claim is kept until it is written; None where another process computes it, or has done so."""
    claim = store.try_claim(index)
    if claim is None:
        return None
    claims[index] = claim
    return None if store.file(index).exists() else compute(index, check)
