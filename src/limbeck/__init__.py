"""limbeck: dataset distillation. The names below are the public surface; each is loaded when it is first used."""

from __future__ import annotations

TYPE_CHECKING = False  # as in typing, which takes 5 ms to import
if TYPE_CHECKING:  # what editors and type checkers see; a test compares it with the table below
    from typing import Any

    from limbeck.core.errors import UserError as UserError
    from limbeck.core.types import Batch as Batch
    from limbeck.data import ImageData as ImageData
    from limbeck.data import load_data as load_data
    from limbeck.data.augment import DSA as DSA
    from limbeck.derivatives.autograd import Loss as Loss
    from limbeck.evaluation.protocol import EvalConfig as EvalConfig
    from limbeck.evaluation.robustness import RobustnessOptions as RobustnessOptions
    from limbeck.evaluation.run import evaluate as evaluate
    from limbeck.experts import Continuous as Continuous
    from limbeck.experts import Convexified as Convexified
    from limbeck.experts import ExpertConfig as ExpertConfig
    from limbeck.experts import Recorded as Recorded
    from limbeck.experts import Store as Store
    from limbeck.experts import WholeEpochs as WholeEpochs
    from limbeck.experts import convexify as convexify
    from limbeck.jobs.config import JobConfig as JobConfig
    from limbeck.jobs.estimate import Estimate as Estimate
    from limbeck.jobs.estimate import estimate as estimate
    from limbeck.jobs.job import Job as Job
    from limbeck.jobs.job import prepare as prepare
    from limbeck.jobs.stages import distill as distill
    from limbeck.jobs.stages import run as run
    from limbeck.jobs.stages import train_experts as train_experts
    from limbeck.methods import METHODS as METHODS
    from limbeck.networks.flat import FlatModel as FlatModel
    from limbeck.networks.losses import CrossEntropy as CrossEntropy
    from limbeck.networks.registry import MODELS as MODELS
    from limbeck.networks.registry import ModelConfig as ModelConfig
    from limbeck.objectives import Fit as Fit
    from limbeck.objectives import MatchTrajectory as MatchTrajectory
    from limbeck.objectives import Solved as Solved
    from limbeck.objectives import Trained as Trained
    from limbeck.report.page import write_report as write_report
    from limbeck.synthetic.distilled import DistilledSet as DistilledSet
    from limbeck.synthetic.distilled import load as load
    from limbeck.synthetic.loop import outer_loop as outer_loop
    from limbeck.synthetic.set import SyntheticSet as SyntheticSet
    from limbeck.training import Adam as Adam
    from limbeck.training import Backprop as Backprop
    from limbeck.training import Implicit as Implicit
    from limbeck.training import Momentum as Momentum
    from limbeck.training import Plain as Plain
    from limbeck.training import Replay as Replay
    from limbeck.training import State as State
    from limbeck.training import advance as advance
    from limbeck.training import linearised as linearised
    from limbeck.training import solve as solve
    from limbeck.training import unroll as unroll

_WHERE = {
    "Adam": "training",
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
    "Loss": "derivatives.autograd",
    "METHODS": "methods",
    "MODELS": "networks.registry",
    "MatchTrajectory": "objectives",
    "ModelConfig": "networks.registry",
    "Momentum": "training",
    "Plain": "training",
    "Recorded": "experts",
    "Replay": "training",
    "RobustnessOptions": "evaluation.robustness",
    "Solved": "objectives",
    "State": "training",
    "Store": "experts",
    "SyntheticSet": "synthetic.set",
    "Trained": "objectives",
    "UserError": "core.errors",
    "WholeEpochs": "experts",
    "advance": "training",
    "convexify": "experts",
    "distill": "jobs.stages",
    "estimate": "jobs.estimate",
    "evaluate": "evaluation.run",
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
