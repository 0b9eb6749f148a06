"""The student and its adjoints."""

from limbeck.student.losses import CrossEntropy, cross_entropy
from limbeck.student.unroll import Backprop, Replay, unroll

__all__ = ["Backprop", "CrossEntropy", "Replay", "cross_entropy", "unroll"]
