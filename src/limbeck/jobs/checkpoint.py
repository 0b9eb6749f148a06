"""Hooks of the outer loop: log each step, keep the best set by validation, save the state."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from limbeck.core.errors import UserError
from limbeck.core.events import Listener
from limbeck.core.interrupts import Pending
from limbeck.core.records import LoopProgress, StepLine, ValidationLine
from limbeck.core.text import shorten
from limbeck.evaluation.trials import Summary
from limbeck.jobs.record import RunFolder
from limbeck.synthetic.loop import Hook, StatefulHook
from limbeck.synthetic.set import SyntheticSet

SAVE_SECONDS = 20.0
MAX_LINES = 50_000
"""About how many outer steps of a run have a line in its log, which are 5 MB."""


@dataclass
class Log:
    """Writes one line a step, or one every few steps of a long run, to its log, and sends one event to the listener.

    every: steps a line, so that the log stays bounded, see `MAX_LINES`.
    """

    run: RunFolder
    listen: Listener
    every: int = 1
    earlier_seconds: float = 0.0
    start: float = field(default_factory=time.perf_counter)

    def seconds(self) -> float:
        """Time spent on this run's outer loop, earlier sessions included."""
        return self.earlier_seconds + time.perf_counter() - self.start

    def __call__(self, synthetic: SyntheticSet, step: int, loss: float) -> None:
        lr = float(synthetic.lr.detach())
        if step % self.every == 0:
            self.run.line(StepLine(step=step, loss=loss, lr=lr, seconds=round(self.seconds(), 2)))
        text = f"loss {loss:.3f}, step size {lr:.4f}"
        self.listen({"event": "advance", "text": text, "step": step, "loss": loss, "lr": lr})


@dataclass
class KeepBest:
    """Validates the set every `every` steps and at step `last`, and keeps the best one; of equals, the last.

    Validation cannot tell equals apart, and the last one is distilled most: where all are equal, the first would be the
    images that the set starts from, not distilled at all.

    measure: set -> accuracies of fresh networks on the validation part; choice: the figure among them to choose by;
    keep: called with a better set and its step; show: called with every validated set and its step;
    evaluated_set: returns the set to validate, as it is now.
    """

    run: RunFolder
    every: int
    last: int
    measure: Callable[[SyntheticSet], Summary]
    choice: Callable[[Summary], float]
    keep: Callable[[SyntheticSet, int], None]
    listen: Listener
    evaluated_set: Callable[[], SyntheticSet]
    best: float = -1.0
    step: int = 0
    show: Callable[[SyntheticSet, int], None] = lambda synthetic, step: None

    def __call__(self, synthetic: SyntheticSet, step: int, loss: float = 0.0) -> None:
        if step % self.every and step != self.last:
            return
        start, candidate = time.perf_counter(), self.evaluated_set()
        summary = self.measure(candidate)
        line = ValidationLine(
            step=step,
            which="distilled",
            accuracy_mean=summary.accuracy_mean,
            accuracy_std=summary.accuracy_std,
            n=summary.n,
            seconds=round(time.perf_counter() - start, 2),
            balanced_accuracy_mean=summary.balanced_accuracy_mean,
        )
        self.run.line(line)
        self.listen(line.to_json())
        if (value := self.choice(summary)) >= self.best:
            self.best, self.step = value, step
            self.keep(candidate, step)
        self.show(candidate, step)


@dataclass
class Checkpoint:
    """Writes the state after every validation, at the end, and where the last save is older than SAVE_SECONDS.

    pending: Where a signal asks to stop, the state is written, and then the signal is passed on.
    """

    run: RunFolder
    optimisers: Sequence[torch.optim.Optimizer]
    hooks: Sequence[Hook]
    chooser: KeepBest
    log: Log
    pending: Pending = field(default_factory=Pending)
    last_save: float = field(default_factory=time.perf_counter)

    def _stateful_hooks(self) -> dict[str, StatefulHook]:
        """The hooks with a state, by their places among all hooks."""
        return {str(i): hook for i, hook in enumerate(self.hooks) if isinstance(hook, StatefulHook)}

    def restore(self, synthetic: SyntheticSet) -> int:
        """Restore the saved state in place, and return how many steps are done; 0 where nothing was saved.

        Raises UserError for a state that is damaged.
        """
        try:
            return self._restore(synthetic)
        except UserError:
            raise
        except (LookupError, TypeError, ValueError, ArithmeticError, RuntimeError) as error:  # of a hook's tensors
            path, reason = self.run.path / "state.safetensors", shorten(error)
            raise UserError(f"{path} is damaged ({reason}); delete it to begin the distillation again.") from None

    def _restore(self, synthetic: SyntheticSet) -> int:
        header, tensors = self.run.load_state(synthetic, self.optimisers)
        if header is None:
            return 0
        progress = header.more
        self.chooser.best, self.chooser.step, self.log.earlier_seconds = (
            progress.best,
            progress.best_step,
            progress.seconds,
        )
        for name, hook in self._stateful_hooks().items():
            prefix = f"{name}."
            state = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
            hook.restore(state, header.step)
        return header.step

    def __call__(self, synthetic: SyntheticSet, step: int, loss: float) -> None:
        is_due = step % self.chooser.every == 0 or step == self.chooser.last
        if is_due or self.pending or time.perf_counter() - self.last_save > SAVE_SECONDS:
            progress = LoopProgress(best=self.chooser.best, best_step=self.chooser.step, seconds=self.log.seconds())
            hooks = self._stateful_hooks().items()
            states = {f"{name}.{key}": tensor for name, hook in hooks for key, tensor in hook.state().items()}
            self.run.save_state(synthetic, self.optimisers, step, progress, states)
            self.last_save = time.perf_counter()
        self.pending.pass_on()
