"""limbeck: dataset distillation. The names below are the public surface; each is loaded when it is first used."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import Any

_WHERE = {
    "Backprop": "student",
    "Batch": "types",
    "Continuous": "trajectory",
    "Convexified": "trajectory",
    "CrossEntropy": "student",
    "DSA": "data.augment",
    "DistilledSet": "distilled",
    "EvalConfig": "evaluation",
    "ExpertConfig": "trajectory",
    "Fit": "objectives",
    "FlatModel": "flat",
    "ImageData": "data",
    "Implicit": "student",
    "JobConfig": "config",
    "METHODS": "methods",
    "MODELS": "models",
    "MatchTrajectory": "objectives",
    "ModelConfig": "models",
    "Recorded": "trajectory",
    "Replay": "student",
    "Solved": "objectives",
    "Store": "trajectory",
    "SyntheticSet": "synthetic",
    "Trained": "objectives",
    "UserError": "errors",
    "WholeEpochs": "trajectory",
    "convexify": "trajectory",
    "descend": "loop",
    "distill": "job",
    "evaluate": "evaluation",
    "linearised": "student",
    "load": "distilled",
    "load_data": "data",
    "solve": "student",
    "train_experts": "job",
    "unroll": "student",
    "write_report": "report",
}

__all__ = [*sorted(_WHERE), "__version__"]
__version__ = version("limbeck")


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'limbeck' has no attribute '{name}'")
    return getattr(import_module(f"limbeck.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return __all__
