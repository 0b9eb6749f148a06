"""Which real images a class matcher compares with: random ones at every step, or those that a policy chooses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.core.rng import derive_seed, make_generator
from limbeck.select.coresets import Selector
from limbeck.synthetic.loop import StatefulHook
from limbeck.synthetic.set import SyntheticSet


@dataclass(frozen=True, eq=False)
class RandomRows:
    """A `RowSampler`: `count` random rows of a class, drawn at every step; all rows of a smaller class.

    class_rows: The rows of each class, from `rows_by_class`.
    """

    class_rows: Sequence[Tensor]
    count: int

    def __call__(self, step: int, label: int, seed: int) -> Tensor:
        """Rows (m,) of the class `label`."""
        rows = self.class_rows[label]
        order = torch.randperm(len(rows), generator=make_generator(seed, "real", step, label))[: self.count]
        return rows[order.to(rows.device)]


class Query(StatefulHook):
    """Rows of each class that a policy chooses by their features under the present network (DREAM, section 3.3).

    images:     All training images (n, c, h, w).
    class_rows: The rows of each class, from `rows_by_class`.
    policy:     Chooses `count` rows by their features; see select/policy.py.
    features:   (images (m, c, h, w), outer step) -> features (m, d) under the network of that step.
    seed:       Of the policy's random numbers.
    every:      Outer steps for which a network lives (`OnlineNetwork.every`); rows are chosen again for a new network,
    interval:   and after each `interval` steps of its life.
    pool:       The policy chooses from this many random images of a class; None for all.

    It is a hook, and has to come after that of the network. Its state is the rows, so that a run can be resumed between
    two choices.
    """

    def __init__(
        self,
        images: Tensor,
        class_rows: Sequence[Tensor],
        policy: Selector,
        count: int,
        features: Callable[[Tensor, int], Tensor],
        seed: int,
        every: int = 1,
        interval: int = 1,
        pool: int | None = None,
    ):
        self.images, self.class_rows, self.policy, self.count = images, class_rows, policy, count
        self.features, self.seed, self.every, self.interval, self.pool = features, seed, every, interval, pool
        self.rows = self.choose_rows(0)

    def choose_rows(self, step: int) -> list[Tensor]:
        """The rows (m,) of each class that the policy chooses at this step."""
        return [self._choose_of_class(step, label) for label in range(len(self.class_rows))]

    def _choose_of_class(self, step: int, label: int) -> Tensor:
        rows = self.class_rows[label]
        if self.pool is not None and len(rows) > max(self.pool, self.count):
            order = torch.randperm(len(rows), generator=make_generator(self.seed, "sub-pool", step, label))
            rows = rows[order[: max(self.pool, self.count)].to(rows.device)]
        features = self.features(self.images[rows], step).flatten(1)
        return rows[self.policy(features, self.count, derive_seed(self.seed, "query", step, label)).to(rows.device)]

    def __call__(self, synthetic: SyntheticSet, step: int, loss: float) -> None:
        """Choose rows again where the network, or its interval, is over after `step` outer steps."""
        if step % self.every % self.interval == 0:
            self.rows = self.choose_rows(step)

    @property
    def cycle(self) -> int:
        """Outer steps between two choices, at most."""
        return min(self.every, self.interval)

    def sample(self, step: int, label: int, seed: int) -> Tensor:
        """The rows (m,) of the class `label` that were chosen last: a `RowSampler`."""
        return self.rows[label]

    def state(self) -> dict[str, Tensor]:
        """The rows of all classes in one tensor, and how many each class has."""
        return {"rows": torch.cat(self.rows), "counts": torch.tensor([len(rows) for rows in self.rows])}

    def restore(self, state: dict[str, Tensor], step: int) -> None:
        """Restore the rows from a state."""
        device = self.images.device
        self.rows = [rows.to(device) for rows in state["rows"].split(state["counts"].tolist())]
