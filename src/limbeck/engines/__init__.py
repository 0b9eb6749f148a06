"""Where independent work is carried out: `local` on this machine, `ray` on the machines of a Ray cluster.

A work is a call that is named by its content (`work.py`); a pool carries out works in their order (`pool.py`) on an
engine, of which there is one a file.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Literal

from limbeck.engines.cluster import open_cluster
from limbeck.engines.local import Local, open_local
from limbeck.engines.pool import Ended, Pool, scatter
from limbeck.engines.work import Engine, LostError, Running, Work

EngineName = Literal["local", "ray"]
OpenEngine = Callable[[str | None, int | None], AbstractContextManager[Engine]]
ENGINES: dict[EngineName, OpenEngine] = {"local": open_local, "ray": open_cluster}
"""Engines by name: (address, most works at a time) -> an engine inside a `with` block."""

__all__ = [
    "ENGINES",
    "Ended",
    "Engine",
    "EngineName",
    "Local",
    "LostError",
    "Pool",
    "Running",
    "Work",
    "scatter",
]
