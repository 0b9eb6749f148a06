"""A guard of the outer loop: a step whose loss or gradient is no measure of anything is not taken."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import isfinite
from statistics import median

import torch
from torch import Tensor

from limbeck.synthetic.loop import DivergenceError, StatefulHook, find_fault
from limbeck.synthetic.set import SyntheticSet

PATIENCE = 5
"""Refused steps without a new good state between them after which the run stops."""

WINDOW, FIRST = 51, 20
"""Losses of which the running median is taken, and how many there are before it counts."""

FACTOR = 1e4
"""Times the running median from which on a loss is that of a set gone astray. In 55 runs of mct, mtt, tesla, rat-bptt
and dream (150 to 2,000 steps, three data sets), no loss after the first 20 was over 6 times the median of the 100
before it."""


@dataclass
class Guard(StatefulHook):
    """Refuses a step with a loss or gradient that is not finite, or a loss far above its running median.

    The set and the optimisers go back to where the last good loss was measured, and the loop goes on with the next
    step, which draws something else. After `PATIENCE` refusals, between which no step led to a new good state, `admit`
    raises a DivergenceError.

    warn:   called with one sentence for each kind of fault.
    advice: what to change, as the end of a sentence.
    judges_size: whether a loss can be too large; methods with a gate of their own (PTM, DATM) judge that themselves.
    """

    synthetic: SyntheticSet
    optimisers: Sequence[torch.optim.Optimizer]
    warn: Callable[[str], None]
    advice: str
    judges_size: bool = True
    losses: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    refused: int = 0
    is_new: bool = True  # the set has changed since a loss was last good
    good: dict[str, Tensor] = field(default_factory=dict)
    warnings: set[str] = field(default_factory=set)

    def admit(self, step: int, loss: float) -> bool:
        """Whether the step may be taken; call it between the backward pass and the optimisers' steps."""
        fault = find_fault(loss, self.synthetic) or self._find_size(loss)
        if fault is None:
            self.losses.append(loss)
            self.refused = 0 if self.is_new else self.refused
            self.good, self.is_new = self._copy(), True
            return True
        self.refused, self.is_new = self.refused + 1, False
        lr = float(self.synthetic.lr.detach())
        facts = f"step {step}: {fault} (loss {loss:.4g}, student step size {lr:.4g})"
        self._go_back()
        if self.refused >= PATIENCE:
            raise DivergenceError(
                f"{facts}; {PATIENCE} steps were refused and none led on; the last good state is kept. {self.advice}"
            )
        if fault not in self.warnings:
            self.warnings.add(fault)
            self.warn(f"{facts}; the step is not taken, and the set goes back to its last good state. {self.advice}")
        return False

    def _find_size(self, loss: float) -> str | None:
        if not self.judges_size or len(self.losses) < FIRST:
            return None
        usual = median(self.losses)
        return f"the loss is over {FACTOR:.0e} times its median" if loss > FACTOR * usual > 0 else None

    def _tensors(self) -> dict[str, Tensor]:
        """The tensors that a step changes, by name: those of the set, and those that the optimisers remember."""
        tensors = {f"set.{name}": parameter for name, parameter in self.synthetic.parameters().items()}
        for place, optimiser in enumerate(self.optimisers):
            parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
            for number, parameter in enumerate(parameters):
                for name, value in optimiser.state.get(parameter, {}).items():
                    if isinstance(value, Tensor):
                        tensors[f"optimiser.{place}.{number}.{name}"] = value
        return tensors

    def _copy(self) -> dict[str, Tensor]:
        return {name: tensor.detach().clone() for name, tensor in self._tensors().items()}

    @torch.no_grad()
    def _go_back(self) -> None:
        for name, tensor in self._tensors().items():
            if name in self.good:
                tensor.copy_(self.good[name])
        if not any(name.startswith("optimiser.") for name in self.good):
            for optimiser in self.optimisers:  # what they remember came with the step that is undone
                optimiser.state.clear()

    def __call__(self, synthetic: SyntheticSet, step: int, loss: float) -> None:
        """Nothing: the loop asks `admit` before a step, and this after it."""

    def state(self) -> dict[str, Tensor]:
        """The losses, the number of refusals and the last good state, so that a run that goes on has the same bits."""
        good = {f"good.{name}": tensor for name, tensor in self.good.items()}
        losses = torch.tensor([self.refused, self.is_new, *self.losses], dtype=torch.double)
        return {**good, "losses": losses}

    def restore(self, state: dict[str, Tensor], step: int) -> None:
        """Continue from a state; that of an earlier version has nothing of the guard."""
        if "losses" not in state:
            return
        refused, is_new, *losses = state["losses"].tolist()
        self.refused, self.is_new, self.losses = int(refused), bool(is_new), deque(losses, maxlen=WINDOW)
        expected = self._tensors()
        good = {name.removeprefix("good."): tensor for name, tensor in state.items() if name != "losses"}
        if any(name not in expected or expected[name].shape != tensor.shape for name, tensor in good.items()):
            raise ValueError("its last good state does not fit the set")
        self.good = {name: tensor.to(expected[name].device) for name, tensor in good.items()}
        if not all(map(isfinite, losses)):
            raise ValueError("its losses are not finite")
