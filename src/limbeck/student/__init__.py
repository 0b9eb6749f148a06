"""The student and its adjoints."""

from limbeck.student.implicit import Implicit, linearised, solve
from limbeck.student.losses import CrossEntropy, cross_entropy
from limbeck.student.unroll import Backprop, Replay, unroll

__all__ = ["Backprop", "CrossEntropy", "Implicit", "Replay", "cross_entropy", "linearised", "solve", "unroll"]
