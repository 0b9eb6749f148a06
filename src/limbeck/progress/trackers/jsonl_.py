"""All events as lines of JSON: events.jsonl in the folder, to which further sessions append."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TextIO

from limbeck.core.events import Event, Listener

FILE = "events.jsonl"


@contextmanager
def track(folder: Path, config: Mapping[str, Any]) -> Iterator[Listener]:
    """A listener that appends events with their `time`, in seconds since the epoch; a number that is none is null."""
    with ExitStack() as stack:
        files: list[TextIO] = []

        def write(event: Event) -> None:
            if not files:
                if event["event"] != "stage":
                    return
                files.append(stack.enter_context((folder / FILE).open("a", encoding="utf-8")))
            line = {"time": round(time.time(), 3), **{name: _finite(value) for name, value in event.items()}}
            files[0].write(json.dumps(line, default=str) + "\n")
            files[0].flush()

        yield write


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
