"""Training a network: plainly, unrolled with an adjoint, and solved for with an implicit gradient."""

from limbeck.networks.losses import CrossEntropy, cross_entropy
from limbeck.training.descent import Adam, Descent, Momentum, Plain, State
from limbeck.training.implicit import Implicit, linearised, solve
from limbeck.training.unroll import Backprop, Replay, advance, unroll

__all__ = [
    "Adam",
    "Backprop",
    "CrossEntropy",
    "Descent",
    "Implicit",
    "Momentum",
    "Plain",
    "Replay",
    "State",
    "advance",
    "cross_entropy",
    "linearised",
    "solve",
    "unroll",
]
