"""What a run folder says of its run from outside: read from files alone, without torch."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout

from limbeck.core.progress_records import ProgressRecord
from limbeck.progress.file import FILE, read_progress
from limbeck.report.text import duration, percent

State = Literal["absent", "running", "finished", "interrupted", "failed", "killed"]
SILENT_SECONDS = 120.0  # without a write, after which a job counts as dead where its lock cannot be tried


@dataclass(frozen=True)
class Sight:
    """What can be seen of a run: its state, and the record of its progress where there is one."""

    state: State
    record: ProgressRecord | None

    @property
    def seconds_left(self) -> float | None:
        """Seconds that the stage at work will take at its pace so far; None where that is not known."""
        record = self.record
        if self.state != "running" or record is None or record.done <= record.before:
            return None
        pace = (record.updated - record.started) / (record.done - record.before)
        return max(0.0, pace * (record.total - record.done) - (time.time() - record.updated))

    def text(self) -> str:
        """What can be seen, in one line."""
        record = self.record
        if self.state == "absent":
            return "the run has not begun"
        if record is None or not record.stage:
            return self.state
        parts = [f"{record.stage} {record.done}/{record.total} {record.unit}{'s' * (record.total != 1)}"]
        if self.seconds_left is not None:
            parts.append(f"about {duration(self.seconds_left)} left")
        if record.text and self.state == "running":
            parts.append(record.text)
        if line := record.validation:
            best = f", best {100 * record.best:.1f} %" if record.best is not None else ""
            parts.append(f"validation {percent(line.accuracy_mean, line.accuracy_std)} at step {line.step}{best}")
        if record.sentence and self.state == "failed":
            parts.append(record.sentence)
        return f"{self.state}: {'; '.join(parts)}"


def look(folder: Path) -> Sight:
    """Look at a run folder, which may be not there yet."""
    if not (folder / "run.json").exists():
        return Sight("absent", None)
    record = read_progress(folder / FILE)
    is_locked = _is_locked(folder / ".lock")
    if is_locked is None:  # not to be tried, here or on this file system
        is_locked = record is not None and record.state == "running" and time.time() - record.updated < SILENT_SECONDS
    if is_locked:
        # the record is that of the session before where this one has just begun
        return Sight("running", record if record is not None and record.state == "running" else None)
    if record is not None and record.state != "running":
        return Sight(record.state, record)
    if record is None and (folder / "results.json").exists():  # of an earlier version
        return Sight("finished", None)
    return Sight("killed", record)


def _is_locked(path: Path) -> bool | None:
    """Whether a process holds the lock of a run; None where that cannot be found out."""
    if not path.exists():
        return False
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    except (OSError, NotImplementedError):
        return None
    lock.release()
    return False
