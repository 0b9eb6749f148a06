"""MTT, Matching Training Trajectories (Cazenavette et al., CVPR 2022)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from limbeck.experts.segments import WholeEpochs
from limbeck.methods.coreset import Init
from limbeck.methods.plan import Method, MethodInputs, Plan
from limbeck.methods.trajectory_matching import RecordedConfig, match, optimisers, real_set, whole_epochs


class MTTConfig(RecordedConfig):
    """Options of MTT."""

    gradient: Literal["exact", "backprop"] = "exact"
    """the same gradient in two ways: exact keeps one step's graph at a time, backprop all (as the authors do)"""
    init: Init = "random"
    """real images to start from: a coreset's name"""
    canvas: int = Field(default=1, ge=1)
    """images are canvases of so many image sides, cropped at random (textures)"""


def plan(config: MTTConfig, inputs: MethodInputs) -> Plan:
    """Recorded experts, whole epochs, exact gradient, hard labels."""
    assert config.max_start_epoch is not None
    assert config.expert_epochs is not None
    synthetic = real_set(config.init, inputs, config.lr_teacher, config.canvas)
    sampler = WholeEpochs(config.max_start_epoch, config.expert_epochs)
    objective = match(config, inputs, sampler, config.gradient)
    return Plan(objective, synthetic, optimisers(config, synthetic), config.iterations)


MTT = Method(
    name="mtt",
    summary="match recorded expert trajectories, from whole epochs",
    source="Cazenavette et al., Dataset Distillation by Matching Training Trajectories, CVPR 2022",
    config=MTTConfig,
    experts="recorded",
    plan=plan,
    resolve=whole_epochs,
    expert_defaults={"keep": "both"},
)
