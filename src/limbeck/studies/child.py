"""What the process of a unit of a study does; see `limbeck.engines.child`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from limbeck.core.errors import UserError
from limbeck.core.events import Listener
from limbeck.jobs.stages import run
from limbeck.studies.calls import Call


def carry_out(order: dict[str, Any], listen: Listener) -> None:
    """Do the run of an order, or train some of its experts; the orders are made by `Unit.work`."""
    path = Path(order["path"])
    job = Call(**order["call"]).prepare(path)
    if order["kind"] == "experts":
        if job.experts is not None:
            job.experts.train(listen, order["indices"])
        return
    if job.record().key != order["key"]:
        raise UserError("the data or the options have changed since the study was planned; start it again.")
    run(job, listen, evaluate=order["kind"] == "run")
