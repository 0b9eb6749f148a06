"""FTD (Du et al., CVPR 2023): MTT on flat expert trajectories, and the average of the images."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from limbeck.experts.segments import WholeEpochs
from limbeck.methods.coreset import Init
from limbeck.methods.plan import Method, MethodInputs, Plan
from limbeck.methods.trajectory_matching import RecordedConfig, match, optimisers, real_set, whole_epochs
from limbeck.synthetic.hooks import Ema

FLAT = {"keep": "both", "sam_rho": 0.01, "sam_alpha": 0.3, "sam_adaptive": True}


class FTDConfig(RecordedConfig):
    """Options of FTD."""

    ema_decay: float = Field(default=0.99, ge=0, lt=1)
    """of the average of the images, which is what is kept (the authors: 0.999 to 0.9999 over 5000 outer steps)"""
    gradient: Literal["exact", "backprop"] = "exact"
    """the same gradient in two ways: exact keeps one step's graph at a time, backprop all (as the authors do)"""
    init: Init = "random"
    """real images to start from: a coreset's name"""


def plan(config: FTDConfig, inputs: MethodInputs) -> Plan:
    """Recorded experts (flat, where they were trained for this method), whole epochs; the averaged set is evaluated."""
    assert config.max_start_epoch is not None
    assert config.expert_epochs is not None
    synthetic = real_set(config.init, inputs, config.lr_teacher)
    sampler = WholeEpochs(config.max_start_epoch, config.expert_epochs)
    objective = match(config, inputs, sampler, config.gradient)
    ema = Ema(synthetic, config.ema_decay)
    steps = optimisers(config, synthetic)
    return Plan(objective, synthetic, steps, config.iterations, hooks=[ema], as_evaluated=ema.average)


FTD = Method(
    name="ftd",
    summary="MTT on flat expert trajectories (GSAM), with the average of the images",
    source="Du et al., Minimizing the Accumulated Trajectory Error to Improve Dataset Distillation, CVPR 2023",
    config=FTDConfig,
    experts="recorded",
    plan=plan,
    resolve=whole_epochs,
    expert_defaults=FLAT,
)
