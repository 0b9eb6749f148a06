"""Import and export of files of other code: experts and distilled sets of MTT, TESLA, FTD, DATM and MCT; DD-Ranking."""

from limbeck.interop.describe import describe_pt
from limbeck.interop.experts import import_experts
from limbeck.interop.export import EXPERT_STYLES, SET_STYLES, export_experts, export_set
from limbeck.interop.sets import import_set

__all__ = [
    "EXPERT_STYLES",
    "SET_STYLES",
    "describe_pt",
    "export_experts",
    "export_set",
    "import_experts",
    "import_set",
]
