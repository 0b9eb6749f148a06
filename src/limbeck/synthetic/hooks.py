"""Values that act between the outer steps: averages, decays, and what watches the student."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import nan

import torch
from torch import Tensor

from limbeck.core.sums import reproducible_sum
from limbeck.data import Preprocess
from limbeck.synthetic.loop import DivergenceError
from limbeck.synthetic.set import LOG_LR_RANGE, SyntheticSet


class Ema:
    """The exponential average of parts of a set: e <- decay e + (1 - decay) x after every step.

    It starts at the set it is given, and keeps it apart; a part that is not averaged is shown as it is. `average`
    is for `Plan.show`: the average is what is validated and kept, on networks of its own.
    unbiased: it starts at 0 and is divided by 1 - decay^steps where it is shown (Kingma & Ba 2015), as RCIG has it:
              a mean of what was reached, without the start.
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
        self.steps = step
        for name, mean in self.mean.items():
            mean.mul_(self.decay).add_(synthetic.state()[name], alpha=1 - self.decay)

    def average(self, synthetic: SyntheticSet) -> SyntheticSet:
        """The set with its averaged parts."""
        shown = synthetic.snapshot()
        if self.unbiased and not self.steps:
            return shown
        total = 1 - self.decay**self.steps if self.unbiased else 1.0
        shown.load({**shown.state(), **{name: mean / total for name, mean in self.mean.items()}})
        return shown

    def state(self) -> dict[str, Tensor]:
        """The averages by name."""
        return dict(self.mean)

    def restore(self, state: dict[str, Tensor], step: int) -> None:
        """Take them up again."""
        self.steps = step
        for name, mean in self.mean.items():
            mean.copy_(state[name])


class StepDecay:
    """Step decay of an optimiser's step sizes: times `factor` after every `every` outer steps.

    A function of the step alone, so that there is nothing to save.
    """

    def __init__(self, optimiser: torch.optim.Optimizer, every: int, factor: float):
        self.optimiser, self.every, self.factor = optimiser, every, factor
        self.start = [group["lr"] for group in optimiser.param_groups]

    def __call__(self, synthetic: SyntheticSet, step: int, loss: float) -> None:
        for group, lr in zip(self.optimiser.param_groups, self.start):
            group["lr"] = lr * self.factor ** (step // self.every)

    def state(self) -> dict[str, Tensor]:
        """Nothing."""
        return {}

    def restore(self, state: dict[str, Tensor], step: int) -> None:
        """The step sizes of this step."""
        for group, lr in zip(self.optimiser.param_groups, self.start):
            group["lr"] = lr * self.factor ** (step // self.every)


@torch.no_grad()
def reset_optimiser_state(optimiser: torch.optim.Optimizer, parameter: Tensor, rows: Tensor | None = None) -> None:
    """Zero what an optimiser remembers of a parameter, or of these rows of it."""
    for slot in optimiser.state.get(parameter, {}).values():
        if isinstance(slot, Tensor) and slot.shape == parameter.shape:
            slot[... if rows is None else rows] = 0


OVERSHOOT = 2.0  # a normalised loss above it: the student ends well farther from the target than where it started
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
class StudentMonitor:
    """Watches students that match trajectories, whose loss is 1 where they do not move, and says what goes wrong.

    warn:     hears one sentence, once for each of `WARNINGS`.
    patience: steps in a row that count as standing still (the loss is within 0.001 of 1) or as stuck (the loss is far
              above 1 while neither images nor step size move).
    Raises DivergenceError where nothing can come of it any more: standing still with the least step size, or stuck.
    """

    warn: Callable[[str], None]
    patience: int = 20
    still: int = 0
    stuck: int = 0
    position: tuple[float, float] = (nan, nan)
    warned: set[str] = field(default_factory=set)

    def __call__(self, synthetic: SyntheticSet, step: int, loss: float) -> None:
        lr, log_lr = float(synthetic.lr.detach()), float(synthetic.log_lr.detach())
        far = loss > OVERSHOOT
        self._count(far, loss, (log_lr, float(reproducible_sum(synthetic.images.detach()))))
        still = self.still >= self.patience
        facts = {
            "step": step,
            "loss": f"{loss:,.1f}" if loss < 1e6 else f"{loss:.0e}",
            "lr": lr,
            "patience": self.patience,
            "smaller": lr / max(loss, 1.0) ** 0.5,
        }
        low, high = LOG_LR_RANGE
        for name, holds in {"far": far, "bound": not low < log_lr < high, "still": still}.items():
            if holds and name not in self.warned:
                self.warned.add(name)
                self.warn(WARNINGS[name].format(**facts))
        for name, holds in {"still": still and log_lr <= low, "stuck": self.stuck >= self.patience}.items():
            if holds:
                raise DivergenceError(DEAD_ENDS[name].format(**facts))

    def _count(self, far: bool, loss: float, position: tuple[float, float]) -> None:
        self.still = self.still + 1 if abs(loss - 1) < 1e-3 else 0
        self.stuck = self.stuck + 1 if far and position == self.position else 0
        self.position = position

    def state(self) -> dict[str, Tensor]:
        """The counts, where the set was, and which warnings were given."""
        flags = [name in self.warned for name in WARNINGS]
        return {"numbers": torch.tensor([self.still, self.stuck, *self.position, *flags], dtype=torch.double)}

    def restore(self, state: dict[str, Tensor], step: int) -> None:
        """Take them up again."""
        still, stuck, log_lr, pixels, *flags = state["numbers"].tolist()
        self.still, self.stuck, self.position = int(still), int(stuck), (log_lr, pixels)
        self.warned = {name for name, flag in zip(WARNINGS, flags) if flag}


class Clamp:
    """Keep stored images between `low` and `high`, each (c, 1, 1) in network input space, after every step."""

    def __init__(self, low: Tensor, high: Tensor):
        self.low, self.high = low, high

    @torch.no_grad()
    def __call__(self, synthetic: SyntheticSet, step: int, loss: float) -> None:
        synthetic.images.copy_(synthetic.images.maximum(self.low).minimum(self.high))


def make_clamp_hooks(preprocess: Preprocess) -> list[Clamp]:
    """The hook that keeps pixels between 0 and 1; none for whitening, which knows no range of one pixel."""
    if preprocess.std is None:
        return []
    low, high = ((pixel - preprocess.mean) / preprocess.std for pixel in (0.0, 1.0))
    return [Clamp(low[:, None, None], high[:, None, None])]
