"""PTM's repair of overlap: synthetic images of a class that have become alike are replaced and trained alone."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.synthetic.hooks import reset_optimiser_state
from limbeck.synthetic.loop import StatefulHook
from limbeck.synthetic.set import SyntheticSet, hard_labels


def find_overlaps(features: Tensor, threshold: float, max_count: int) -> list[int]:
    """Return at most `max_count` rows of features (n, d) whose removal leaves no two with a cosine above `threshold`.

    Of the closest pair, the row with the larger sum of cosines to all others is removed first.

    >>> find_overlaps(torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]), 0.9, 1)
    [1]
    """
    unit = F.normalize(features, dim=1)
    cosine = (unit @ unit.T).cpu()  # read pair by pair: each read would wait for a GPU
    cosine.fill_diagonal_(-1.0)
    overlaps: list[int] = []
    while len(overlaps) < min(max_count, len(features) - 1):
        row, column = divmod(int(cosine.argmax()), len(features))
        if not float(cosine[row, column]) > threshold:
            break
        overlap = row if float(cosine[row].sum()) > float(cosine[column].sum()) else column
        cosine[overlap, :] = cosine[:, overlap] = -1.0
        overlaps.append(overlap)
    return overlaps


def farthest_candidate(candidates: Tensor, references: Tensor) -> int:
    """Return the row of candidates (m, d) with the largest distance to its nearest row of references (n, d).

    This is one step of k-centre.

    >>> farthest_candidate(torch.tensor([[0.0], [4.0], [9.0]]), torch.tensor([[1.0], [8.0]]))
    1
    """
    return int(torch.cdist(candidates, references).min(1).values.argmax())


class OverlapRepair(StatefulHook):
    """A hook: every `every` outer steps up to `until`, replace images that overlap with another one of their class.

    Two images overlap where the cosine of their features, less the mean feature of the class's candidates, is above
    `threshold`. An image that overlaps becomes the candidate farthest from the images that remain; the optimiser's
    state of it is reset, and for the next `retrain` steps all other images stand still. At most a quarter of a class,
    but always one image, is replaced at a time.

    features: images (m, c, h, w) -> features (m, d).
    candidates: real images and their labels.
    """

    def __init__(
        self,
        synthetic: SyntheticSet,
        optimiser: torch.optim.Optimizer,
        features: Callable[[Tensor], Tensor],
        candidates: tuple[Tensor, Tensor],
        threshold: float,
        every: int,
        retrain: int,
        until: int,
    ):
        self.optimiser, self.features, self.candidates = optimiser, features, candidates
        self.threshold, self.every, self.retrain, self.until = threshold, every, retrain, until
        self.candidate_features = features(candidates[0])
        self.frozen_images = synthetic.images.detach().clone()
        self.is_replaced = torch.zeros(len(synthetic.images), dtype=torch.bool, device=synthetic.images.device)
        self.steps_left = 0
        self.num_replaced = 0

    @property
    def cycle(self) -> int:
        """Outer steps between two checks."""
        return self.every

    @torch.no_grad()
    def __call__(self, synthetic: SyntheticSet, step: int, loss: float) -> None:
        if self.steps_left:
            self.steps_left -= 1
            synthetic.images[~self.is_replaced] = self.frozen_images[~self.is_replaced]
        elif step % self.every == 0 and step <= self.until:
            self.repair(synthetic)

    def repair(self, synthetic: SyntheticSet) -> None:
        """Check every class once and replace the images that overlap."""
        self.is_replaced.zero_()
        all_features = self.features(synthetic.images)
        classes = hard_labels(synthetic.labels)
        for label in classes.unique().tolist():
            rows = (classes == label).nonzero().squeeze(1)
            candidates = (self.candidates[1] == label).nonzero().squeeze(1)
            centre = self.candidate_features[candidates].mean(0)
            features = all_features[rows] - centre
            candidate_features = self.candidate_features[candidates] - centre
            for index in find_overlaps(features, self.threshold, max(1, len(rows) // 4)):
                others = torch.cat([features[:index], features[index + 1 :]])
                best = farthest_candidate(candidate_features, others)
                features[index] = candidate_features[best]
                synthetic.images[rows[index]] = self.candidates[0][candidates[best]]
                self.is_replaced[rows[index]] = True
        if bool(self.is_replaced.any()):
            reset_optimiser_state(self.optimiser, synthetic.images, self.is_replaced)
            self.frozen_images, self.steps_left = synthetic.images.detach().clone(), self.retrain
            self.num_replaced += int(self.is_replaced.sum())

    def state(self) -> dict[str, Tensor]:
        """Return which images were replaced, for how many steps they are trained alone, and where the others stand."""
        numbers = torch.tensor([self.steps_left, self.num_replaced])
        return {"still": self.frozen_images, "fresh": self.is_replaced, "numbers": numbers}

    def restore(self, state: dict[str, Tensor], step: int) -> None:
        """Continue from a saved state."""
        self.frozen_images.copy_(state["still"])
        self.is_replaced.copy_(state["fresh"])
        self.steps_left, self.num_replaced = state["numbers"].tolist()
