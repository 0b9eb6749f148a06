"""Progress through the stages of a trajectory, and a guard against divergence: PTM's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf, isnan, nan

import torch
from torch import Tensor

from limbeck.experts.segments import WholeEpochs
from limbeck.synthetic.hooks import reset_optimiser_state
from limbeck.synthetic.loop import DivergenceError
from limbeck.synthetic.set import SyntheticSet


@dataclass
class Progress:
    """A start range that widens when the loss stops falling, and a guard that steps back when it diverges.

    Its three faces: `sample` is a `Sampler`, `accept` the loop's gate, and the value itself a hook.

    bounds:    start epochs of stage k are whole and below bounds[k]; span: epochs to match.
    patience:  steps without a new least running mean (of 0.9 memory) before the next stage.
    limit:     a loss above it is refused: the set goes back to where its loss was last accepted, what the optimisers
               remember is forgotten, and the range goes back a stage. DivergenceError after `patience` refusals
               in a row.
    """

    synthetic: SyntheticSet
    optimisers: Sequence[torch.optim.Optimizer]
    bounds: tuple[int, ...]
    span: int
    patience: int
    limit: float
    stage: int = 0
    running: float = nan
    best: float = inf
    stale: int = 0
    refused: int = 0
    good: dict[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.good = self._copy()

    def _copy(self) -> dict[str, Tensor]:
        return {name: tensor.detach().clone() for name, tensor in self.synthetic.state().items()}

    def sample(self, step: int, end: int, generator: torch.Generator) -> tuple[float, float]:
        """A segment from the present start range."""
        return WholeEpochs(self.bounds[self.stage], self.span)(step, end, generator)

    def accept(self, loss: float) -> bool:
        """Whether the step may be taken."""
        if loss <= self.limit:
            self.good, self.refused = self._copy(), 0
            return True
        self.refused += 1
        if self.refused > self.patience:
            raise DivergenceError(
                f"{self.refused} steps in a row had a loss above {self.limit:g}; lower --lr-img or --lr-lr."
            )
        self.synthetic.load(self.good)
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                for parameter in group["params"]:
                    reset_optimiser_state(optimiser, parameter)
        self._enter(max(self.stage - 1, 0))
        return False

    def _enter(self, stage: int) -> None:
        self.stage, self.running, self.best, self.stale = stage, nan, inf, 0

    def __call__(self, synthetic: SyntheticSet, step: int, loss: float) -> None:
        if self.refused:
            return
        self.running = loss if isnan(self.running) else 0.9 * self.running + 0.1 * loss
        if self.running < 0.999 * self.best:
            self.best, self.stale = self.running, 0
            return
        self.stale += 1
        if self.stale >= self.patience and self.stage + 1 < len(self.bounds):
            self._enter(self.stage + 1)

    def state(self) -> dict[str, Tensor]:
        """Stage, running means and the last good set."""
        numbers = [self.stage, self.running, self.best, self.stale, self.refused]
        return {"numbers": torch.tensor(numbers, dtype=torch.double), **{f"good.{k}": t for k, t in self.good.items()}}

    def restore(self, state: dict[str, Tensor], step: int) -> None:
        """Take them up again."""
        stage, self.running, self.best, stale, refused = state["numbers"].tolist()
        self.stage, self.stale, self.refused = int(stage), int(stale), int(refused)
        self.good = {name: state[f"good.{name}"].to(tensor.device) for name, tensor in self.good.items()}
