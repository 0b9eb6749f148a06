"""progress.json in a run folder: how far the job is, for `limbeck watch` and whoever else reads it."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Literal

from limbeck.core.errors import UserError
from limbeck.core.events import Event
from limbeck.core.files import write_atomically
from limbeck.core.progress_records import ProgressRecord
from limbeck.core.record_files import read_record
from limbeck.core.records import ValidationLine

FILE = "progress.json"
WRITE_SECONDS = 1.0  # between two writes within a stage


def read_progress(path: Path) -> ProgressRecord | None:
    """The record in progress.json; None where there is none, or it is damaged: it is written anew all the time."""
    if not path.exists():
        return None
    try:
        return read_record(path, ProgressRecord, "limbeck-progress")
    except UserError:
        return None


class ProgressFile:
    """A listener that keeps a `ProgressRecord` at `path`. A file that cannot be written does not stop the work."""

    def __init__(self, path: Path):
        self.path, self.last_write = path, 0.0
        earlier = read_progress(path) or ProgressRecord()
        self.record = ProgressRecord(
            format="limbeck-progress",
            version=1,
            state="running",
            validation=earlier.validation,
            best=earlier.best,
        )
        self._update()

    def __call__(self, event: Event) -> None:
        """Note the stage, and how many of its units are done."""
        if event["event"] == "stage":
            done = event.get("done", 0)
            stage = {"stage": event["name"], "unit": event.get("unit", "unit"), "total": event["total"], "text": ""}
            self._update(**stage, done=done, before=done, started=time.time())
        elif event["event"] == "advance":
            is_due = time.perf_counter() - self.last_write > WRITE_SECONDS
            self._update(is_due, done=self.record.done + 1, text=event.get("text", ""))

        elif event["event"] == "validate":
            line = ValidationLine(**{name: value for name, value in event.items() if name != "event"})
            self._update(validation=line, best=max(self.record.best or 0.0, line.accuracy_mean))

    def end(self, state: Literal["finished", "interrupted", "failed"], sentence: str = "") -> None:
        """Note how the session ended; sentence: the error, where there was one."""
        self._update(state=state, sentence=sentence)

    def _update(self, write: bool = True, **changes: object) -> None:
        self.record = self.record.model_copy(update={**changes, "updated": time.time()})
        if write:
            self.last_write = time.perf_counter()
            text = json.dumps(self.record.to_json(), indent=2)
            with suppress(OSError):
                write_atomically(self.path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
