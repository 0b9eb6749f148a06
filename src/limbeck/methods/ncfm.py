"""NCFM (Wang et al., CVPR 2025): characteristic functions of features under networks on the paths of experts."""

from __future__ import annotations

from limbeck.core.ranges import Share, Size, StepSize, Weight
from limbeck.methods.feature_matching import FeatureMatchingConfig, make_plan
from limbeck.methods.plan import Method, MethodInputs, Plan
from limbeck.objectives.along_experts import AtEnd
from limbeck.objectives.characteristic import CharacteristicDistance


class NCFMConfig(FeatureMatchingConfig):
    """Options of NCFM."""

    frequencies: Size = 256
    """Frequencies per outer step at which characteristic functions are compared (the authors: 4096)."""
    scale: StepSize = 100.0
    """Weight of their distance (the authors: 300)."""
    amplitude: Share = 0.5
    """Weight of the difference of amplitudes; that of phases has what is left to 1."""
    calibration: Weight = 1.0
    """Weight of the cross-entropy under the trained expert."""


def plan(options: NCFMConfig, inputs: MethodInputs) -> Plan:
    """Match characteristic functions at a random place on the path of an expert, and classify at its end."""
    distance = CharacteristicDistance(options.frequencies, options.scale, options.amplitude)
    return make_plan(options, inputs, distance, options.calibration, AtEnd())


NCFM = Method(
    name="ncfm",
    summary="match the characteristic functions of features along the paths of experts",
    source="Wang et al., Dataset Distillation with Neural Characteristic Function: A Minmax Perspective, CVPR 2025",
    config=NCFMConfig,
    experts="convex",
    plan=plan,
    expert_defaults={"waypoints": 2, "smoothing": "none"},
    learns=("images",),
    threads_matter=True,
)
