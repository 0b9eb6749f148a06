"""Training a network: plainly, unrolled with an adjoint, and solved for with an implicit gradient."""

from limbeck.networks.losses import CrossEntropy, cross_entropy
from limbeck.training.implicit import Implicit, linearised, solve
from limbeck.training.unroll import Backprop, Replay, unroll

__all__ = ["Backprop", "CrossEntropy", "Implicit", "Replay", "cross_entropy", "linearised", "solve", "unroll"]
