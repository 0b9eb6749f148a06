"""TGDD (Ran et al., AAAI 2026): mean features along the paths of experts, and a cross-entropy a little farther on."""

from __future__ import annotations

from limbeck.core.ranges import Share, Weight
from limbeck.methods.feature_matching import FeatureMatchingConfig, make_plan
from limbeck.methods.plan import Method, MethodInputs, Plan
from limbeck.objectives.along_experts import Ahead
from limbeck.objectives.features import mean_distance


class TGDDConfig(FeatureMatchingConfig):
    """Options of TGDD."""

    alpha: Weight = 2.5
    """Weight of the cross-entropy under the network farther on (the authors: 2.5, and 0.5 at 50 images per class)."""
    ahead: Share = 0.1
    """How much farther on that network lies at most, as a part of the expert's path (the authors: 6 of 60 epochs)."""


def plan(options: TGDDConfig, inputs: MethodInputs) -> Plan:
    """Match mean features at a random place on the path of an expert, and classify at a place ahead of it."""
    return make_plan(options, inputs, mean_distance, options.alpha, Ahead(options.ahead))


TGDD = Method(
    name="tgdd",
    summary="match mean features along the paths of experts, with a cross-entropy under a later network",
    source="Ran et al., TGDD: Trajectory Guided Dataset Distillation with Balanced Distribution, AAAI 2026",
    config=TGDDConfig,
    experts="convex",
    plan=plan,
    expert_defaults={"waypoints": 2, "smoothing": "none"},
    learns=("images",),
    threads_matter=True,
)
