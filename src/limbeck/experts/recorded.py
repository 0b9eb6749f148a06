"""A trajectory as MTT stores it: the expert's parameters after every epoch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.core.files import LazyRows


@dataclass(frozen=True, eq=False)
class Recorded:
    """points (K + 1, P): the parameters at epochs 0 ... K. Answers at whole epochs and refuses others.

    They may stay in their file (`Rows`): of 100 experts they are gigabytes, and a step needs two rows.
    """

    points: Tensor | LazyRows

    @property
    def end(self) -> int:
        return len(self.points) - 1

    def at(self, t: float) -> Tensor:
        """Parameters (P,) at whole epoch `t`; ValueError for any other."""
        if not 0 <= t <= self.end or t != int(t):
            raise ValueError(f"a recorded trajectory has whole epochs 0 to {self.end}, not {t}")
        return self.points[int(t)].float()

    def tensor(self) -> Tensor:
        """All points (K + 1, P) in memory."""
        return self.points if isinstance(self.points, Tensor) else torch.stack(list(self.points))
