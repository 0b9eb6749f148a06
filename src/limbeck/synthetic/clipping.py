"""Adam whose gradients are clipped to what is usual for them."""

from __future__ import annotations

from typing import Any

import torch


class ClippedAdam(torch.optim.Adam):
    """Adam that scales a gradient down to `clip` times the moving average of its norm, where it is longer.

    The gradient of a long training has rare, very long values (Feng et al. 2024). The average moves by a tenth towards
    the norm after clipping, so that no gradient can move it far. It starts at the first norm, is kept for each tensor,
    and is part of the optimiser's state.

    >>> x = torch.zeros(1, requires_grad=True)
    >>> optimiser = ClippedAdam([x], lr=0.1, clip=2.0)
    >>> for size in (1.0, 100.0):
    ...     x.grad = torch.tensor([size])
    ...     optimiser.step()
    >>> x.grad, optimiser.state[x]["norm"]
    (tensor([2.]), tensor(1.1000))
    """

    RATE = 0.1

    def __init__(self, params: Any, lr: float, clip: float):
        super().__init__(params, lr)
        self.clip = clip

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Clip every gradient in place and take a step of Adam."""
        parameters = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        averages = []
        for parameter in parameters:
            norm = parameter.grad.norm()
            average = self.state[parameter].get("norm", norm)
            parameter.grad.mul_((self.clip * average / norm).nan_to_num(1.0).clamp_max(1))
            averages.append(average + self.RATE * (norm.minimum(self.clip * average) - average))
        loss = super().step(closure)  # which makes its own state where there is none
        for parameter, average in zip(parameters, averages):
            self.state[parameter]["norm"] = average
        return loss
