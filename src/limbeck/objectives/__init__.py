"""What methods minimise."""

from limbeck.objectives.distance import displacement
from limbeck.objectives.trajectory import MatchTrajectory

__all__ = ["MatchTrajectory", "displacement"]
