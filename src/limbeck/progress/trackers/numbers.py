"""The numbers of an event, by name."""

from __future__ import annotations

import math
from typing import NamedTuple

from limbeck.core.events import Event


class Numbers(NamedTuple):
    """Values by name, with the name and the value of what they are drawn against."""

    axis: str
    step: int
    values: dict[str, float]


def numbers_of(event: Event) -> Numbers | None:
    """The finite numbers of an event; None where it has none.

    >>> numbers_of({"event": "advance", "text": "", "step": 3, "loss": 0.5, "lr": float("nan")})
    Numbers(axis='distill/step', step=3, values={'distill/loss': 0.5})
    """
    kind = event["event"]
    values: dict[str, float | None] = {}
    axis, step = "distill/step", event.get("step") or 0
    if kind == "advance" and "loss" in event:
        values = {"distill/loss": event["loss"], "distill/step size": event["lr"]}
    elif kind == "advance" and "epoch" in event:
        axis, step = "experts/epoch", event["epoch"]
        values = {f"experts/validation {event['expert']}": event["validation"]}
    elif kind == "validate":
        values = {"distill/validation": event["accuracy_mean"], "distill/validation std": event["accuracy_std"]}
    elif kind == "result":
        name = f"{event['set']} {event['which']}" if event.get("which") else event["set"]
        values = {f"test/{name}": event["accuracy_mean"], f"test/{name} std": event["accuracy_std"]}
    finite = {name: float(value) for name, value in values.items() if value is not None and math.isfinite(value)}
    return Numbers(axis, step, finite) if finite else None
