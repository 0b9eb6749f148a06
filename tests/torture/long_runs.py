"""Long runs in a child: whether memory grows over outer steps."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path
from typing import Any

from small_runs import MINIMAL
from torture.campaigns import Campaign
from torture.sandbox import Sandbox

import limbeck

GROWTH = 4 << 20
"""Bytes by which the second half of a run may exceed the first one: what the allocator keeps."""
METHODS: dict[str, dict[str, Any]] = {
    "mct": {name: value for name, value in MINIMAL.items() if name not in ("ipc", "iterations")},
    "dc": {"model": {"width": 4}, "batch_real": 8, "inner": 5, "net_epochs": 1, "validate_networks": 1},
}


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def distil(method: str, steps: int, report: Path) -> None:
    """Distil digits in this process, and write to `report` its bytes in memory after every outer step."""
    sizes: list[int] = []

    def listen(event: dict[str, Any]) -> None:
        if event["event"] == "advance" and "loss" in event["text"]:
            sizes.append(resident())

    options = {**METHODS[method], "iterations": steps, "validate_every": steps // 10, "validate_epochs": 2}
    limbeck.run(limbeck.prepare("digits", method=method, out="run", **options), listen, evaluate=False)
    report.write_text(json.dumps(sizes))
    os._exit(0)


def memory_over_steps(root: Path, materials: Path, steps: int) -> Campaign:
    """Memory does not grow over many outer steps, with validations between them."""
    sandbox, report = Sandbox(root, materials), root.with_suffix(".sizes")

    def attempt(method: str) -> str | None:
        sandbox.reset()
        ending = sandbox.run([], partial(distil, method, steps, report))
        if ending.status != 0:
            return f"{method}: {ending}"
        sizes, half = json.loads(report.read_text()), steps // 2
        growth = max(sizes[half:]) - max(sizes[:half])
        return None if len(sizes) == steps and growth < GROWTH else f"{method}: {len(sizes)} steps, {growth} bytes more"

    return Campaign(f"memory does not grow over {steps} outer steps", [partial(attempt, method) for method in METHODS])
