"""Hooks, called between outer steps: an average, a step-size decay, a monitor of the student, a clamp."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import nan

import torch
from torch import Tensor

from limbeck.core.sums import reproducible_sum
from limbeck.data import Preprocess
from limbeck.synthetic.loop import DivergenceError, StatefulHook
from limbeck.synthetic.set import LOG_LR_RANGE, SyntheticSet


class Ema(StatefulHook):
    """The exponential moving average of parts of a set: e <- decay e + (1 - decay) x after every outer step.

    start:    the set at which the average starts; its tensors are copied.
    decay:    between 0 and 1.
    names:    the raw parameters that are averaged; all others are used as they are.
    unbiased: start at 0 instead and divide by 1 - decay^steps (Kingma & Ba 2015, section 3), as RCIG does: a mean of
              the values that were reached, without the start.
    """

    def __init__(
        self, start: SyntheticSet, decay: float, names: Sequence[str] = ("images",), *, unbiased: bool = False
    ):
        self.decay, self.unbiased, self.steps = decay, unbiased, 0
        self.mean = {name: start.state()[name].detach().clone() for name in names}
        if unbiased:
            self.mean = {name: torch.zeros_like(mean) for name, mean in self.mean.items()}

    @torch.no_grad()
    def __call__(self, synthetic: SyntheticSet, step: int, loss: float) -> None:
        """Update the averages after step `step`."""
        self.steps = step
        for name, mean in self.mean.items():
            mean.mul_(self.decay).add_(synthetic.state()[name], alpha=1 - self.decay)

    def average(self, synthetic: SyntheticSet) -> SyntheticSet:
        """A copy of the set with the averages in place of the averaged parts: the set to evaluate and to save."""
        averaged = synthetic.snapshot()
        if self.unbiased and not self.steps:
            return averaged
        weight = 1 - self.decay**self.steps if self.unbiased else 1.0
        averaged.load({**averaged.state(), **{name: mean / weight for name, mean in self.mean.items()}})
        return averaged

    def state(self) -> dict[str, Tensor]:
        """The averages by name."""
        return dict(self.mean)

    def restore(self, state: dict[str, Tensor], step: int) -> None:
        """Continue from the averages after `step` outer steps."""
        self.steps = step
        for name, mean in self.mean.items():
            mean.copy_(state[name])


class StepDecay(StatefulHook):
    """Multiplies an optimiser's step sizes by `factor` after every `period` outer steps.

    They are a function of the step alone, so that the state is empty.
    """

    def __init__(self, optimiser: torch.optim.Optimizer, period: int, factor: float):
        self.optimiser, self.period, self.factor = optimiser, period, factor
        self.start = [group["lr"] for group in optimiser.param_groups]

    def __call__(self, synthetic: SyntheticSet, step: int, loss: float) -> None:
        """Set the step sizes of the step after `step`."""
        self.restore({}, step)

    def state(self) -> dict[str, Tensor]:
        """Nothing."""
        return {}

    def restore(self, state: dict[str, Tensor], step: int) -> None:
        """Set the step sizes that belong to `step`."""
        for group, lr in zip(self.optimiser.param_groups, self.start):
            group["lr"] = lr * self.factor ** (step // self.period)


@torch.no_grad()
def reset_optimiser_state(optimiser: torch.optim.Optimizer, parameter: Tensor, rows: Tensor | None = None) -> None:
    """Set the moments that an optimiser keeps of a parameter to zero: all of them, or those of `rows` (m,)."""
    for moment in optimiser.state.get(parameter, {}).values():
        if isinstance(moment, Tensor) and moment.shape == parameter.shape:
            moment[... if rows is None else rows] = 0


OVERSHOOT = 2.0  # a normalised loss above which the student ends much farther from its target than it started
WARNINGS = {
    "far": "step {step}: the matching loss is {loss}, where 1 is a student that did not move: it goes far past "
    "its target, and the images wait until its step size has come down. Start from a smaller one (--lr-teacher "
    "{smaller:.1g}), or train the experts longer (--expert.epochs).",
    "bound": "step {step}: the learned step size is at its bound, {lr:.2g}. Lower --lr-lr, or start elsewhere with "
    "--lr-teacher.",
    "still": "step {step}: the matching loss was within 0.001 of 1 for {patience} steps: at step size {lr:.2g} the "
    "student hardly moves, and the images learn next to nothing. Start from a larger step size (--lr-teacher), or "
    "match shorter segments (--expert-epochs).",
}
DEAD_ENDS = {
    "still": "step {step}: the student stands still, and its step size {lr:.1g} is the least there is, from which "
    "nothing brings it back. Lower --lr-lr, or train the experts longer (--expert.epochs), and run again in a new "
    "folder.",
    "stuck": "step {step}: the matching loss was far above 1 for {patience} steps in which nothing moved; the last is "
    "{loss}. Start from a smaller step size (--lr-teacher {smaller:.1g}), let it be learned (--lr-lr above 0), or "
    "train the experts longer (--expert.epochs), and run again in a new folder.",
}


@dataclass
class StudentMonitor(StatefulHook):
    """Watches the loss of trajectory matching, which is 1 where the student does not move, and warns what goes wrong.

    warn:     called with one sentence, once for each entry of `WARNINGS`.
    patience: steps in a row that count as standing still (the loss is within 0.001 of 1) or as stuck (the loss is far
              above 1 while neither images nor step size change).
    Raises DivergenceError where the run cannot recover: the student stands still with the least step size, or is stuck.
    """

    warn: Callable[[str], None]
    patience: int = 20
    still_steps: int = 0
    stuck_steps: int = 0
    position: tuple[float, float] = (nan, nan)
    warnings: set[str] = field(default_factory=set)

    def __call__(self, synthetic: SyntheticSet, step: int, loss: float) -> None:
        """Look at the loss of step `step`, and warn or raise DivergenceError."""
        lr, log_lr = float(synthetic.lr.detach()), float(synthetic.log_lr.detach())
        is_far = loss > OVERSHOOT
        self._count(is_far, loss, (log_lr, float(reproducible_sum(synthetic.images.detach()))))
        is_still = self.still_steps >= self.patience
        facts = {
            "step": step,
            "loss": f"{loss:,.1f}" if loss < 1e6 else f"{loss:.0e}",
            "lr": lr,
            "patience": self.patience,
            "smaller": lr / max(loss, 1.0) ** 0.5,
        }
        low, high = LOG_LR_RANGE
        for name, applies in {"far": is_far, "bound": not low < log_lr < high, "still": is_still}.items():
            if applies and name not in self.warnings:
                self.warnings.add(name)
                self.warn(WARNINGS[name].format(**facts))
        is_stuck = self.stuck_steps >= self.patience
        for name, applies in {"still": is_still and log_lr <= low, "stuck": is_stuck}.items():
            if applies:
                raise DivergenceError(DEAD_ENDS[name].format(**facts))

    def _count(self, is_far: bool, loss: float, position: tuple[float, float]) -> None:
        self.still_steps = self.still_steps + 1 if abs(loss - 1) < 1e-3 else 0
        self.stuck_steps = self.stuck_steps + 1 if is_far and position == self.position else 0
        self.position = position

    def state(self) -> dict[str, Tensor]:
        """The two counts, the position of the set, and which warnings were given: one vector of float64."""
        flags = [name in self.warnings for name in WARNINGS]
        numbers = [self.still_steps, self.stuck_steps, *self.position, *flags]
        return {"numbers": torch.tensor(numbers, dtype=torch.double)}

    def restore(self, state: dict[str, Tensor], step: int) -> None:
        """Continue from a state."""
        still_steps, stuck_steps, log_lr, pixel_sum, *flags = state["numbers"].tolist()
        self.still_steps, self.stuck_steps, self.position = int(still_steps), int(stuck_steps), (log_lr, pixel_sum)
        self.warnings = {name for name, flag in zip(WARNINGS, flags) if flag}


class Clamp:
    """Keeps the stored images between `low` and `high`, each (c, 1, 1) in network input space, after every step."""

    def __init__(self, low: Tensor, high: Tensor):
        self.low, self.high = low, high

    @torch.no_grad()
    def __call__(self, synthetic: SyntheticSet, step: int, loss: float) -> None:
        """Clamp the images of the set in place."""
        synthetic.images.copy_(synthetic.images.maximum(self.low).minimum(self.high))


def make_clamp_hooks(preprocess: Preprocess) -> list[Clamp]:
    """The hook that keeps pixels in [0, 1]; an empty list for whitening, where a single pixel has no range."""
    low, high = preprocess.input_value(0.0), preprocess.input_value(1.0)
    return [] if low is None or high is None else [Clamp(low[:, None, None], high[:, None, None])]
