"""A trajectory as MTT stores it: the expert's parameters after every epoch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.core.short_repr import short_repr
from limbeck.core.tensors import LazyRows


@dataclass(frozen=True, eq=False)
class Recorded:
    """An expert's trajectory as its parameters at epochs 0 ... K. It answers at whole epochs and refuses others.

    points: (K + 1, P), float32 or float16. They may stay in their file (`LazyRows`): those of 100 experts are
        gigabytes, and an outer step needs two rows.

    >>> import limbeck, torch
    >>> path = limbeck.Recorded(torch.tensor([[0.0, 0.0], [3.0, 1.0], [4.0, 2.0]]))
    >>> path.end, path.at(1).tolist()
    (2, [3.0, 1.0])
    """

    __repr__ = short_repr

    points: Tensor | LazyRows

    @property
    def end(self) -> int:
        """The last epoch, K."""
        return len(self.points) - 1

    def at(self, t: float) -> Tensor:
        """Return the parameters (P,), float32, at whole epoch `t`; ValueError for any other."""
        if not 0 <= t <= self.end or t != int(t):
            raise ValueError(f"a recorded trajectory has whole epochs 0 to {self.end}, not {t}")
        return self.points[int(t)].float()

    def tensor(self) -> Tensor:
        """Return all points (K + 1, P) in memory."""
        return self.points if isinstance(self.points, Tensor) else torch.stack(list(self.points))
