"""Synthetic images of a class that have become alike: found in feature space, replaced, and trained again alone."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.synthetic.hooks import reset_optimiser_state
from limbeck.synthetic.set import SyntheticSet


def alike(features: Tensor, threshold: float, most: int) -> list[int]:
    """Rows of features (n, d) to give up, at most `most`, until no two have a cosine above `threshold`.

    Of the closest pair, the one that is more like all others goes.

    >>> alike(torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]), 0.9, 1)
    [1]
    """
    unit = F.normalize(features, dim=1)
    cosine = (unit @ unit.T).cpu()  # looked at pair by pair: a GPU would be waited for at every one
    cosine.fill_diagonal_(-1.0)
    found: list[int] = []
    while len(found) < min(most, len(features) - 1):
        row, column = divmod(int(cosine.argmax()), len(features))
        if not float(cosine[row, column]) > threshold:
            break
        gone = row if float(cosine[row].sum()) > float(cosine[column].sum()) else column
        cosine[gone, :] = cosine[:, gone] = -1.0
        found.append(gone)
    return found


def farthest(candidates: Tensor, held: Tensor) -> int:
    """The candidate (m, d) whose nearest among `held` (n, d) is farthest away: one step of k-centre.

    >>> farthest(torch.tensor([[0.0], [4.0], [9.0]]), torch.tensor([[1.0], [8.0]]))
    1
    """
    return int(torch.cdist(candidates, held).min(1).values.argmax())


class Overlap:
    """A hook: every `every` steps up to `until`, replace images that overlap with another one of their class.

    An image that overlaps becomes the real image of `pool` (images, labels) farthest from those that stay, the
    optimiser forgets it, and for the next `retrain` steps the other images stand still. Two images overlap where the
    cosine of their features, less the mean feature of their class, is above `threshold`; at most a quarter of a class,
    but always one, is replaced at a time.
    """

    def __init__(
        self,
        synthetic: SyntheticSet,
        optimiser: torch.optim.Optimizer,
        features: Callable[[Tensor], Tensor],
        pool: tuple[Tensor, Tensor],
        threshold: float,
        every: int,
        retrain: int,
        until: int,
    ):
        self.optimiser, self.features, self.pool = optimiser, features, pool
        self.threshold, self.every, self.retrain, self.until = threshold, every, retrain, until
        self.known = features(pool[0])
        self.still = synthetic.images.detach().clone()
        self.fresh = torch.zeros(len(self.still), dtype=torch.bool, device=self.still.device)
        self.left = 0
        self.replaced = 0

    @torch.no_grad()
    def __call__(self, synthetic: SyntheticSet, step: int, loss: float) -> None:
        if self.left:
            self.left -= 1
            synthetic.images[~self.fresh] = self.still[~self.fresh]
        elif step % self.every == 0 and step <= self.until:
            self.repair(synthetic)

    def repair(self, synthetic: SyntheticSet) -> None:
        """Look at every class once."""
        self.fresh.zero_()
        found = self.features(synthetic.images)
        for label in synthetic.labels.unique().tolist():
            rows = (synthetic.labels == label).nonzero().squeeze(1)
            candidates = (self.pool[1] == label).nonzero().squeeze(1)
            known = self.known[candidates]
            own, known = found[rows] - known.mean(0), known - known.mean(0)
            for gone in alike(own, self.threshold, max(1, len(rows) // 4)):
                best = farthest(known, torch.cat([own[:gone], own[gone + 1 :]]))
                own[gone] = known[best]
                synthetic.images[rows[gone]] = self.pool[0][candidates[best]]
                self.fresh[rows[gone]] = True
        if bool(self.fresh.any()):
            reset_optimiser_state(self.optimiser, synthetic.images, self.fresh)
            self.still, self.left = synthetic.images.detach().clone(), self.retrain
            self.replaced += int(self.fresh.sum())

    def state(self) -> dict[str, Tensor]:
        """Which images are trained again, for how long yet, and where the others stand."""
        return {"still": self.still, "fresh": self.fresh, "numbers": torch.tensor([self.left, self.replaced])}

    def restore(self, state: dict[str, Tensor], step: int) -> None:
        """Take them up again."""
        self.still.copy_(state["still"])
        self.fresh.copy_(state["fresh"])
        self.left, self.replaced = state["numbers"].tolist()
