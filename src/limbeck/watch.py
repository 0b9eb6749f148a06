"""Hooks of the outer loop: log each step, keep the best set by validation, save the state."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from limbeck.record import Run
from limbeck.synthetic import SyntheticSet
from limbeck.types import Listener

SAVE_SECONDS = 20.0


@dataclass
class Log:
    """One line per step in the run's log, and one event for whoever watches."""

    run: Run
    listen: Listener
    before: float = 0.0
    start: float = field(default_factory=time.perf_counter)

    def seconds(self) -> float:
        """Time spent on this run's outer loop, earlier sessions included."""
        return self.before + time.perf_counter() - self.start

    def __call__(self, synthetic: SyntheticSet, step: int, loss: float) -> None:
        lr = float(synthetic.lr.detach())
        self.run.line("step", step=step, loss=loss, lr=lr, seconds=round(self.seconds(), 2))
        self.listen({"event": "advance", "text": f"loss {loss:.3f}, step size {lr:.4f}"})


@dataclass
class Choose:
    """Every `every` steps, and before the first: validate, and keep the set that did best so far.

    measure: set -> (mean, std, n) on the validation part; keep: called with a better set and its step.
    """

    run: Run
    every: int
    last: int
    measure: Callable[[SyntheticSet], tuple[float, float, int]]
    keep: Callable[[SyntheticSet, int], None]
    listen: Listener
    best: float = -1.0
    step: int = 0

    def __call__(self, synthetic: SyntheticSet, step: int, loss: float = 0.0) -> None:
        if step % self.every and step != self.last:
            return
        mean, std, n = self.measure(synthetic.snapshot())
        fields = {"step": step, "which": "distilled", "accuracy_mean": mean, "accuracy_std": std, "n": n}
        self.run.line("validate", **fields)
        self.listen({"event": "validate", **fields})
        if mean > self.best:
            self.best, self.step = mean, step
            self.keep(synthetic.snapshot(), step)


@dataclass
class Save:
    """Write the state after every validation, at the end, and when the last one is older than SAVE_SECONDS."""

    run: Run
    optimisers: Sequence[torch.optim.Optimizer]
    chooser: Choose
    log: Log
    written: float = field(default_factory=time.perf_counter)

    def more(self) -> dict[str, Any]:
        return {"best": self.chooser.best, "best_step": self.chooser.step, "seconds": self.log.seconds()}

    def __call__(self, synthetic: SyntheticSet, step: int, loss: float) -> None:
        due = step % self.chooser.every == 0 or step == self.chooser.last
        if due or time.perf_counter() - self.written > SAVE_SECONDS:
            self.run.save_state(synthetic, self.optimisers, step, self.more())
            self.written = time.perf_counter()
