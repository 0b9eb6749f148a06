"""A job over several processes: which draws each takes, that all do the same job, and that only rank 0 writes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from limbeck.core.distributed import Ranks
from limbeck.core.errors import UserError
from limbeck.core.files import content_key
from limbeck.methods.plan import Method
from limbeck.task import Task


def share_draws(method: Method, ranks: Ranks, options: dict[str, Any]) -> dict[str, Any]:
    """The options of a job, with one segment a rank in an outer step where they do not say how many.

    Raises UserError where the ranks cannot share the segments evenly, and for methods whose steps they cannot share.
    """
    if ranks.size == 1 or not method.learns:  # a coreset takes no outer steps
        return options
    if "grad_accum" not in method.config.model_fields:
        raise UserError(
            f"the outer steps of {method.name} cannot be shared by {ranks.size} processes, since it has no "
            "--grad-accum; start it without torchrun, or choose a method that matches trajectories (limbeck methods)."
        )
    draws = options.get("grad_accum", ranks.size)
    if draws % ranks.size:
        raise UserError(
            f"{ranks.size} processes cannot share --grad-accum {draws} evenly; give a multiple of {ranks.size}, or "
            "start as many processes as divide it."
        )
    return {**options, "grad_accum": draws}


def require_same_job(task: Task, resolved: dict[str, Any], path: Path) -> None:
    """Raise UserError where the ranks differ in the job, in what computes it, or in what they see of its folder."""
    files = sorted(
        (file.name, file.stat().st_size) for file in path.glob("*") if file.is_file() and file.name != ".lock"
    )
    views = {
        "the options or the data": resolved,
        "what computes them": task.conditions(),
        "the files of the run": files,
    }
    keys = {name: content_key({"view": view}) for name, view in views.items()}
    ranks = task.ranks.gather_json(keys)
    for name in keys:
        others = [rank for rank, other in enumerate(ranks) if other[name] != ranks[0][name]]
        if others:
            raise UserError(
                f"rank {others[0]} does not agree with rank 0 about {name} of {path}: on several machines the command, "
                "the processor, the number of threads and torch have to be the same, and the run folder one that all "
                "of them share."
            )


@contextmanager
def own_folder(ranks: Ranks, path: Path) -> Iterator[Path]:
    """The folder in which this rank works on a run, inside a `with` block: for rank 0 the run's own.

    Every other rank has a copy that is removed in the end, so that the same code reads and writes there and nothing
    is written twice.
    """
    if ranks.is_first:
        ranks.barrier()
        yield path
        return
    with TemporaryDirectory(prefix="limbeck-rank-") as scratch:
        copy = Path(scratch) / path.name
        if path.exists():
            shutil.copytree(path, copy, ignore=shutil.ignore_patterns(".lock", "*.part"))
        ranks.barrier()
        yield copy
