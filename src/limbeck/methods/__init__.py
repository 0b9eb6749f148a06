"""Methods by name. To add one: a file with a config, a plan and a `Method`, and a line here.

A user's own needs no line: `find_method` also takes MODULE:NAME, and entry points of the group `limbeck.methods`.

>>> import limbeck
>>> limbeck.METHODS["mct"].summary
'match convexified expert trajectories, from any real start epoch'
>>> limbeck.METHODS["mct"].config(syn_steps=30).syn_steps
30
"""

from __future__ import annotations

import re

from limbeck.core.errors import UserError
from limbeck.core.text import quote
from limbeck.core.user_imports import find_object
from limbeck.methods.att import ATT
from limbeck.methods.coreset import CORESET_METHODS
from limbeck.methods.datm import DATM
from limbeck.methods.dc import DC
from limbeck.methods.dm import DM
from limbeck.methods.dream import DREAM, DREAM_PLUS
from limbeck.methods.dsa import DSA
from limbeck.methods.ftd import FTD
from limbeck.methods.hop_tm import HOP_TM
from limbeck.methods.idc import IDC
from limbeck.methods.mct import MCT
from limbeck.methods.mtt import MTT
from limbeck.methods.ncfm import NCFM
from limbeck.methods.plan import DataFacts, Method, MethodConfig, MethodInputs, Plan
from limbeck.methods.ptm import PTM
from limbeck.methods.rat_bptt import RAT
from limbeck.methods.rcig import RCIG
from limbeck.methods.tesla import TESLA
from limbeck.methods.tgdd import TGDD

__all__ = ["METHODS", "DataFacts", "Method", "MethodConfig", "MethodInputs", "Plan", "find_method"]

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        MCT,
        MTT,
        TESLA,
        FTD,
        DATM,
        PTM,
        ATT,
        HOP_TM,
        DC,
        DSA,
        DM,
        IDC,
        DREAM,
        DREAM_PLUS,
        NCFM,
        TGDD,
        RCIG,
        RAT,
        *CORESET_METHODS,
    )
}


def name_methods_with(option: str) -> str:
    """The methods that have an option of their own of this name, as a sentence lists them; "" where none has.

    >>> name_methods_with("sampling"), name_methods_with("canvas"), name_methods_with("zoom")
    ('mct', 'mct, mtt', '')
    """
    return ", ".join(name for name, method in METHODS.items() if option in method.config.model_fields)


def find_method(name: str | Method) -> Method:
    """Return the method of this name: of `METHODS`, of an installed package, or a user's own MODULE:NAME.

    A `Method` is returned as it is, after the same checks. Raises UserError for a name that is none of these, for what
    cannot be imported or is no `Method`, and for a user's method that has the name of another one.

    >>> find_method("mct").learns
    ('images', 'log_lr')
    """
    method = find_object(name, "method", METHODS) if isinstance(name, str) else name
    if not isinstance(method, Method):
        raise UserError(
            f"the method {quote(name)} is a {type(method).__name__}; it has to be a limbeck.methods.Method."
        )
    if not (isinstance(method.config, type) and issubclass(method.config, MethodConfig)):
        raise UserError(f"the config of the method {quote(method.name)} has to be a class derived from MethodConfig.")
    if not re.fullmatch(r"\w[\w.+-]*", method.name):
        raise UserError(
            f"a method cannot be called {quote(method.name)}: a run folder has its name; take letters and '-'."
        )
    if METHODS.get(method.name, method) is not method:
        raise UserError(
            f"limbeck has a method called {quote(method.name)} already; give yours another name: Method(name='my-"
            f"{method.name}', ...)."
        )
    return method
