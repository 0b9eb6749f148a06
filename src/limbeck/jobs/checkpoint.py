"""Hooks of the outer loop: log each step, keep the best set by validation, save the state."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from limbeck.core.records import LoopProgress, StepLine, ValidationLine
from limbeck.core.types import Listener
from limbeck.jobs.record import RunFolder
from limbeck.synthetic.loop import Hook
from limbeck.synthetic.set import SyntheticSet

SAVE_SECONDS = 20.0


@dataclass
class Log:
    """One line per step in the run's log, and one event for whoever watches."""

    run: RunFolder
    listen: Listener
    before: float = 0.0
    start: float = field(default_factory=time.perf_counter)

    def seconds(self) -> float:
        """Time spent on this run's outer loop, earlier sessions included."""
        return self.before + time.perf_counter() - self.start

    def __call__(self, synthetic: SyntheticSet, step: int, loss: float) -> None:
        lr = float(synthetic.lr.detach())
        self.run.line(StepLine(step=step, loss=loss, lr=lr, seconds=round(self.seconds(), 2)))
        self.listen({"event": "advance", "text": f"loss {loss:.3f}, step size {lr:.4f}"})


@dataclass
class KeepBest:
    """Every `every` steps, and before the first: validate, and keep the set that did best so far.

    measure: set -> (mean, std, n) on the validation part; keep: called with a better set and its step;
    evaluated_set: returns the set to validate, as it is now.
    """

    run: RunFolder
    every: int
    last: int
    measure: Callable[[SyntheticSet], tuple[float, float | None, int]]
    keep: Callable[[SyntheticSet, int], None]
    listen: Listener
    evaluated_set: Callable[[], SyntheticSet]
    best: float = -1.0
    step: int = 0

    def __call__(self, synthetic: SyntheticSet, step: int, loss: float = 0.0) -> None:
        if step % self.every and step != self.last:
            return
        candidate = self.evaluated_set()
        mean, std, n = self.measure(candidate)
        line = ValidationLine(step=step, which="distilled", accuracy_mean=mean, accuracy_std=std, n=n)
        self.run.line(line)
        self.listen(line.to_json())
        if mean > self.best:
            self.best, self.step = mean, step
            self.keep(candidate, step)


@runtime_checkable
class Stateful(Protocol):
    """A hook that remembers something between steps, and so has to be saved with the run."""

    def state(self) -> dict[str, Tensor]: ...

    def restore(self, state: dict[str, Tensor], step: int) -> None: ...


@dataclass
class Checkpoint:
    """Write the state after every validation, at the end, and when the last one is older than SAVE_SECONDS."""

    run: RunFolder
    optimisers: Sequence[torch.optim.Optimizer]
    hooks: Sequence[Hook]
    chooser: KeepBest
    log: Log
    written: float = field(default_factory=time.perf_counter)

    def _stateful(self) -> dict[str, Stateful]:
        return {str(i): hook for i, hook in enumerate(self.hooks) if isinstance(hook, Stateful)}

    def restore(self, synthetic: SyntheticSet) -> int:
        """Take up the saved state, in place; returns how many steps are done."""
        header, tensors = self.run.load_state(synthetic, self.optimisers)
        if header is None:
            return 0
        progress = header.more
        self.chooser.best, self.chooser.step, self.log.before = progress.best, progress.best_step, progress.seconds
        for name, hook in self._stateful().items():
            prefix = f"{name}."
            state = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
            hook.restore(state, header.step)
        return header.step

    def __call__(self, synthetic: SyntheticSet, step: int, loss: float) -> None:
        is_due = step % self.chooser.every == 0 or step == self.chooser.last
        if is_due or time.perf_counter() - self.written > SAVE_SECONDS:
            progress = LoopProgress(best=self.chooser.best, best_step=self.chooser.step, seconds=self.log.seconds())
            states = {f"{name}.{key}": t for name, hook in self._stateful().items() for key, t in hook.state().items()}
            self.run.save_state(synthetic, self.optimisers, step, progress, states)
            self.written = time.perf_counter()
