"""Laws that every method, network, selector and reader meets: limbeck's own in tests, a user's by `limbeck check`."""

from limbeck.laws.law import NotApplicable, Outcome, Violation, check_laws
from limbeck.laws.methods import METHOD_LAWS, MethodTrial
from limbeck.laws.networks import NETWORK_LAWS, NetworkTrial
from limbeck.laws.readers import READER_LAWS, ReaderTrial
from limbeck.laws.selectors import SELECTOR_LAWS

__all__ = [
    "METHOD_LAWS",
    "NETWORK_LAWS",
    "READER_LAWS",
    "SELECTOR_LAWS",
    "MethodTrial",
    "NetworkTrial",
    "NotApplicable",
    "Outcome",
    "ReaderTrial",
    "Violation",
    "check_laws",
]
