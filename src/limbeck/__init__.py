"""limbeck: dataset distillation. The names below are the public surface; each is loaded when it is first used."""

from __future__ import annotations

TYPE_CHECKING = False  # as in typing, which takes 5 ms to import
if TYPE_CHECKING:
    from typing import Any

_WHERE = {
    "Backprop": "training",
    "Batch": "core.types",
    "Continuous": "experts",
    "Convexified": "experts",
    "CrossEntropy": "networks.losses",
    "DSA": "data.augment",
    "DistilledSet": "synthetic.distilled",
    "Estimate": "jobs.estimate",
    "EvalConfig": "evaluation.protocol",
    "ExpertConfig": "experts",
    "Fit": "objectives",
    "FlatModel": "networks.flat",
    "ImageData": "data",
    "Implicit": "training",
    "Job": "jobs.job",
    "JobConfig": "jobs.config",
    "METHODS": "methods",
    "MODELS": "networks.registry",
    "MatchTrajectory": "objectives",
    "ModelConfig": "networks.registry",
    "Recorded": "experts",
    "Replay": "training",
    "Solved": "objectives",
    "Store": "experts",
    "SyntheticSet": "synthetic.set",
    "Trained": "objectives",
    "UserError": "core.errors",
    "WholeEpochs": "experts",
    "convexify": "experts",
    "distill": "jobs.stages",
    "estimate": "jobs.estimate",
    "evaluate": "evaluation.protocol",
    "linearised": "training",
    "load": "synthetic.distilled",
    "load_data": "data",
    "outer_loop": "synthetic.loop",
    "prepare": "jobs.job",
    "run": "jobs.stages",
    "solve": "training",
    "train_experts": "jobs.stages",
    "unroll": "training",
    "write_report": "report.page",
}

_DEPRECATED = {"descend": "outer_loop"}  # old name: new name, for one release

__all__ = [*sorted(_WHERE), "__version__"]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name == "__version__":
        from importlib.metadata import version  # 20 ms of a command's 40

        return version("limbeck")
    if name in _DEPRECATED:
        from warnings import warn

        current = _DEPRECATED[name]
        warn(f"limbeck.{name} is now limbeck.{current}; the next release drops the old name", DeprecationWarning, 2)
        return __getattr__(current)
    if name not in _WHERE:
        raise AttributeError(f"module 'limbeck' has no attribute '{name}'")
    return getattr(import_module(f"limbeck.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return __all__
