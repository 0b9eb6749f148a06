"""Methods by name. To add one: a file with a config, a plan and a `Method`, and a line here.

>>> import limbeck
>>> limbeck.METHODS["mct"].summary
'match convexified expert trajectories, from any real start epoch'
>>> limbeck.METHODS["mct"].config(syn_steps=30).syn_steps
30
"""

from __future__ import annotations

from limbeck.core.errors import UserError, suggest_names
from limbeck.methods.coreset import CORESET_METHODS
from limbeck.methods.datm import DATM
from limbeck.methods.dc import DC
from limbeck.methods.dm import DM
from limbeck.methods.dream import DREAM, DREAM_PLUS
from limbeck.methods.dsa import DSA
from limbeck.methods.ftd import FTD
from limbeck.methods.idc import IDC
from limbeck.methods.mct import MCT
from limbeck.methods.mtt import MTT
from limbeck.methods.plan import DataFacts, Method, MethodConfig, MethodInputs, Plan
from limbeck.methods.ptm import PTM
from limbeck.methods.rcig import RCIG
from limbeck.methods.tesla import TESLA

__all__ = ["METHODS", "DataFacts", "Method", "MethodConfig", "MethodInputs", "Plan", "find_method"]

METHODS: dict[str, Method] = {
    method.name: method
    for method in (MCT, MTT, TESLA, FTD, DATM, PTM, DC, DSA, DM, IDC, DREAM, DREAM_PLUS, RCIG, *CORESET_METHODS)
}


def find_method(name: str) -> Method:
    """Return the method of this name; UserError with the nearest names if there is none."""
    if name not in METHODS:
        raise UserError(f"there is no method called '{name}'; {suggest_names(name, METHODS)}")
    return METHODS[name]
