"""Laws that every method, network and selector meets: of limbeck's own in its tests, of a user's by `limbeck check`."""

from limbeck.laws.law import NotApplicable, Outcome, Violation, check_laws
from limbeck.laws.methods import METHOD_LAWS, MethodTrial
from limbeck.laws.networks import NETWORK_LAWS, NetworkTrial
from limbeck.laws.selectors import SELECTOR_LAWS

__all__ = [
    "METHOD_LAWS",
    "NETWORK_LAWS",
    "SELECTOR_LAWS",
    "MethodTrial",
    "NetworkTrial",
    "NotApplicable",
    "Outcome",
    "Violation",
    "check_laws",
]
