"""PTM's start window, which widens as the loss stops falling, and its gate against divergence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf, isnan, nan

import torch
from torch import Tensor

from limbeck.experts.segments import WholeEpochs
from limbeck.synthetic.hooks import reset_optimiser_state
from limbeck.synthetic.loop import DivergenceError, StatefulHook
from limbeck.synthetic.set import SyntheticSet


@dataclass
class ProgressiveWindow(StatefulHook):
    """A start window that widens when the loss stops falling or its share of steps is over, and narrows at high losses.

    `sample` is a `Sampler`, `accept` the loop's gate, and the object itself a hook.

    bounds:    start epochs of stage k are whole and below bounds[k]; span: epochs to match.
    patience:  steps without a new minimum of the running loss (0.9 old + 0.1 new) before the next stage.
    max_steps: steps of a stage after which the next one starts even if the loss still falls.
    limit:     a loss above it refuses the step: the set goes back to where a loss was last accepted, the optimisers'
               state is reset, and the window goes back a stage. More than `patience` refusals in a row raise
               DivergenceError.
    """

    synthetic: SyntheticSet
    optimisers: Sequence[torch.optim.Optimizer]
    bounds: tuple[int, ...]
    span: int
    patience: int
    limit: float
    max_steps: int
    stage: int = 0
    steps_in_stage: int = 0
    running_loss: float = nan
    best_loss: float = inf
    steps_since_best: int = 0
    num_refused: int = 0
    last_accepted: dict[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.last_accepted = self._copy_set()

    def _copy_set(self) -> dict[str, Tensor]:
        return {name: tensor.detach().clone() for name, tensor in self.synthetic.state().items()}

    def sample(self, step: int, end: int, generator: torch.Generator) -> tuple[float, float]:
        """Return the first and last epoch of a segment from the present window."""
        return WholeEpochs(self.bounds[self.stage], self.span)(step, end, generator)

    def accept(self, loss: float) -> bool:
        """Return whether the step may be taken; if not, restore the last accepted set and go back a stage."""
        if loss <= self.limit:
            self.last_accepted, self.num_refused = self._copy_set(), 0
            return True
        self.num_refused += 1
        if self.num_refused > self.patience:
            raise DivergenceError(
                f"{self.num_refused} steps in a row had a loss above {self.limit:g}; lower --lr-img or --lr-lr."
            )
        self.synthetic.load(self.last_accepted)
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                for parameter in group["params"]:
                    reset_optimiser_state(optimiser, parameter)
        self._start_stage(max(self.stage - 1, 0))
        return False

    def _start_stage(self, stage: int) -> None:
        self.stage, self.running_loss, self.best_loss = stage, nan, inf
        self.steps_since_best = self.steps_in_stage = 0

    def __call__(self, synthetic: SyntheticSet, step: int, loss: float) -> None:
        if self.num_refused:
            return
        self.steps_in_stage += 1
        self.running_loss = loss if isnan(self.running_loss) else 0.9 * self.running_loss + 0.1 * loss
        if self.running_loss < 0.999 * self.best_loss:
            self.best_loss, self.steps_since_best = self.running_loss, 0
        else:
            self.steps_since_best += 1
        is_over = self.steps_since_best >= self.patience or self.steps_in_stage >= self.max_steps
        if is_over and self.stage + 1 < len(self.bounds):
            self._start_stage(self.stage + 1)

    def state(self) -> dict[str, Tensor]:
        """Return the stage, the running loss and the last accepted set."""
        counts = [self.steps_since_best, self.num_refused, self.steps_in_stage]
        numbers = [self.stage, self.running_loss, self.best_loss, *counts]
        accepted = {f"good.{name}": tensor for name, tensor in self.last_accepted.items()}
        return {"numbers": torch.tensor(numbers, dtype=torch.double), **accepted}

    def restore(self, state: dict[str, Tensor], step: int) -> None:
        """Continue from a saved state."""
        stage, self.running_loss, self.best_loss, *counts = state["numbers"].tolist()
        self.stage = int(stage)
        self.steps_since_best, self.num_refused, self.steps_in_stage = map(int, counts)
        self.last_accepted = {
            name: state[f"good.{name}"].to(tensor.device) for name, tensor in self.last_accepted.items()
        }
