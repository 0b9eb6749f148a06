"""Objectives: what methods minimise."""

from limbeck.objectives.distance import displacement
from limbeck.objectives.fit import Fit, Solved, Trained
from limbeck.objectives.trajectory import MatchTrajectory

__all__ = ["Fit", "MatchTrajectory", "Solved", "Trained", "displacement"]
