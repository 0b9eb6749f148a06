"""The record of a job's progress: `progress` writes it and those who watch the job read it."""

from __future__ import annotations

from typing import Literal

from limbeck.core.records import Record, ValidationLine


class ProgressRecord(Record):
    """progress.json: how far a job is, for those who watch it from outside.

    state: running, or how its last session ended: finished, interrupted (by Ctrl-C) or failed; a process that was
        killed leaves "running" behind, and no lock.
    stage, unit, done, total: the stage at work, and how many of its units are done.
    before: units that were done before this session, which took none of its seconds.
    started, updated: seconds since the epoch, of the stage and of this file.
    text: what the last unit was. sentence: the error of a session that failed.
    validation, best: the last validation of the distilled set, and the best accuracy so far.
    """

    format: str = "limbeck-progress"
    version: int = 1
    state: Literal["running", "finished", "interrupted", "failed"] = "running"
    stage: str = ""
    unit: str = "unit"
    done: int = 0
    total: int = 0
    before: int = 0
    started: float = 0.0
    updated: float = 0.0
    text: str = ""
    sentence: str = ""
    validation: ValidationLine | None = None
    best: float | None = None
