"""Experts: training them, their trajectories and store, and the segments that a student matches."""

from limbeck.experts.config import ExpertConfig
from limbeck.experts.convexified import (
    SCHEDULES,
    SMOOTHING,
    Convexified,
    Convexifier,
    Smoothing,
    arc_length,
    convexify,
    waypoint_epochs,
)
from limbeck.experts.recorded import Recorded
from limbeck.experts.segments import Continuous, WholeEpochs
from limbeck.experts.store import Expert, Store

__all__ = [
    "SCHEDULES",
    "SMOOTHING",
    "Continuous",
    "Convexified",
    "Convexifier",
    "Expert",
    "ExpertConfig",
    "Recorded",
    "Smoothing",
    "Store",
    "WholeEpochs",
    "arc_length",
    "convexify",
    "waypoint_epochs",
]
