"""A trajectory of your own: experts recorded at whole epochs, read at any real epoch by straight lines between them.

limbeck distill digits --method my_trajectory:METHOD
"""

from dataclasses import dataclass, replace
from math import floor
from typing import Any

import torch
from torch import Tensor

from limbeck.core.types import Trajectory
from limbeck.methods import METHODS, MethodInputs, Plan


@dataclass(frozen=True, eq=False)
class Interpolated:
    """A `Trajectory`: `end`, and `at(t)` for every real t in 0 ... end."""

    recorded: Trajectory

    @property
    def end(self) -> int:
        """The last epoch."""
        return self.recorded.end

    def at(self, t: float) -> Tensor:
        """Parameters (P,) on the straight line between the snapshots of two epochs."""
        before = min(floor(t), self.end - 1)
        return torch.lerp(self.recorded.at(before), self.recorded.at(before + 1), t - before)


def plan(options: Any, inputs: MethodInputs) -> Plan:
    """MCT on these trajectories: its sampler, student, distance and optimisers do not know the difference."""
    return MCT.plan(options, inputs._replace(trajectories=[Interpolated(path) for path in inputs.trajectories]))


MCT = METHODS["mct"]
METHOD = replace(
    MCT,
    name="mct-recorded",
    summary="match recorded trajectories at real epochs, by straight lines between snapshots",
    experts="recorded",
    expert_defaults={"keep": "recorded"},
    plan=plan,
)
