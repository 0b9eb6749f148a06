"""A long run takes no more memory than a short one, and its log stays bounded."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from small_runs import MINIMAL, logged_steps

import limbeck
from limbeck.jobs import stages

STEPS = 200


def resident() -> int:
    """Bytes of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is of Linux")
def test_memory_does_not_grow_over_outer_steps(tmp_path: Path) -> None:
    sizes: list[int] = []

    def listen(event: dict[str, Any]) -> None:
        if event["event"] == "advance" and "loss" in event["text"]:
            sizes.append(resident())

    options = {**MINIMAL, "iterations": STEPS, "validate_every": STEPS}
    limbeck.run(limbeck.prepare("digits", out=tmp_path / "run", **options), listen, evaluate=False)
    assert len(sizes) == STEPS
    assert max(sizes[STEPS // 2 :]) - max(sizes[: STEPS // 2]) < 4 << 20


def test_the_log_of_a_long_run_has_a_line_every_few_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "MAX_LINES", 4)
    options = {**MINIMAL, "iterations": 12, "validate_every": 12}
    limbeck.run(limbeck.prepare("digits", out=tmp_path / "run", **options), evaluate=False)
    assert logged_steps(tmp_path / "run") == [3, 6, 9, 12]
