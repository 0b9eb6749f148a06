"""Which real images a matcher compares with: random ones at every step, or those that a policy queries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.core.rng import derive_seed, make_generator
from limbeck.select.coresets import Selector
from limbeck.synthetic.set import SyntheticSet


def rows_by_class(labels: Tensor, classes: int) -> tuple[Tensor, ...]:
    """Rows of every class (m_c,), in order."""
    return tuple((labels == label).nonzero().squeeze(1) for label in range(classes))


@dataclass(frozen=True, eq=False)
class RandomRows:
    """`count` random rows of a class, new at every step; all of them where there are no more."""

    members: Sequence[Tensor]
    count: int

    def __call__(self, step: int, label: int, seed: int) -> Tensor:
        held = self.members[label]
        order = torch.randperm(len(held), generator=make_generator(seed, "real", step, label))[: self.count]
        return held[order.to(held.device)]


class Query:
    """Rows of every class that a policy chooses by features under the present network, kept for some steps.

    They are chosen anew for every network and every `interval` steps of its life (DREAM, section 3.3), from all
    images of a class, or from `pool` random ones of them. A hook: it has to come after the network's own, whose
    parameters `represent` looks at. What it remembers is the rows, so that a run can be taken up between two choices.

    represent: images (m, c, h, w) -> features (m, d).
    every:     steps that a network lives (`OnlineNetwork.every`).
    """

    def __init__(
        self,
        images: Tensor,
        members: Sequence[Tensor],
        policy: Selector,
        count: int,
        represent: Callable[[Tensor], Tensor],
        seed: int,
        every: int = 1,
        interval: int = 1,
        pool: int | None = None,
    ):
        self.images, self.members, self.policy, self.count = images, members, policy, count
        self.represent, self.seed, self.every, self.interval, self.pool = represent, seed, every, interval, pool
        self.chosen = self.choose(0)

    def choose(self, step: int) -> list[Tensor]:
        """What would be chosen now, for the step of this number, class by class."""
        return [self._of_class(step, label) for label in range(len(self.members))]

    def _of_class(self, step: int, label: int) -> Tensor:
        held = self.members[label]
        if self.pool is not None and len(held) > max(self.pool, self.count):
            order = torch.randperm(len(held), generator=make_generator(self.seed, "sub-pool", step, label))
            held = held[order[: max(self.pool, self.count)].to(held.device)]
        features = self.represent(self.images[held]).flatten(1)
        return held[self.policy(features, self.count, derive_seed(self.seed, "query", step, label)).to(held.device)]

    def __call__(self, synthetic: SyntheticSet, step: int, loss: float) -> None:
        if step % self.every % self.interval == 0:
            self.chosen = self.choose(step)

    def rows(self, step: int, label: int, seed: int) -> Tensor:
        """A `Rows`: those chosen last."""
        return self.chosen[label]

    def state(self) -> dict[str, Tensor]:
        """The rows of all classes one after the other, and how many each has."""
        return {"rows": torch.cat(self.chosen), "counts": torch.tensor([len(rows) for rows in self.chosen])}

    def restore(self, state: dict[str, Tensor], step: int) -> None:
        """Take them up again."""
        device = self.images.device
        self.chosen = [rows.to(device) for rows in state["rows"].split(state["counts"].tolist())]
