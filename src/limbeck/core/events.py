"""Events: how a job tells its caller of its progress. This module loads no torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Event = dict[str, Any]
"""One event; "event" is its kind, on which the other keys depend:

estimate: "text", and the numbers of `limbeck.Estimate.to_json`, before a command starts to work.
stage:    "name", "total" units, "unit" in the singular; "done" where a stage is resumed.
advance:  "text", after every unit of a stage; of an outer step "step", "loss" and "lr" too, of an expert's epoch
          "expert", "epoch" and "validation".
validate: "step", "which", "accuracy_mean", "accuracy_std", "n", after a validation of the distilled set.
preview:  "step" and "path" of a small picture of the distilled set, after some validations.
result:   a row of results.json.
status:   "text", what a command is at before there is a stage; only terminals show it.
note:     "text".
warning:  "text".
"""

Listener = Callable[[Event], None]
"""Receives the events of a job, one at a time. Ignore events of a kind that you do not know."""
