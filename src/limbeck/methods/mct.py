"""MCT, Matching Convexified Trajectory (Zhong et al., CVPR 2025)."""

from __future__ import annotations

from typing import Literal

from limbeck.core.errors import UserError
from limbeck.core.ranges import Count, Epoch, StepSize, Weight
from limbeck.core.types import Sampler
from limbeck.experts.segments import Continuous, GrowingEpochs
from limbeck.methods.plan import DataFacts, Method, MethodInputs, Plan
from limbeck.methods.trajectory_matching import (
    StartConfig,
    StartNoise,
    TeacherLabels,
    WithTeacherLabels,
    default_expert_epochs,
    default_max_start_epoch,
    init_learned_set,
    make_objective,
    make_optimisers,
)
from limbeck.synthetic.hooks import StepDecay
from limbeck.synthetic.loop import Hook


class MCTConfig(StartConfig):
    """Options of MCT. N, M and U are the papers' symbols; M and U are in epochs of the expert."""

    iterations: Count = 300
    """Number of outer steps."""
    expert_epochs: Epoch | None = None
    """M, epochs of the expert for the student to cover; the default is 5 times as far as its own steps can reach."""
    max_start_epoch: Epoch | None = None
    """U, start epochs are uniform in [0, U); the default grows with images per class."""
    sampling: Literal["continuous", "whole"] = "continuous"
    """Start and target epochs are real numbers (continuous), or whole numbers as in MTT (whole)."""
    first_max_start_epoch: Epoch | None = None
    """U at the first step, from where it grows to --max-start-epoch; the default is not to grow."""
    expansion_steps: Count = 1
    """Outer steps in which U grows."""
    gradient: Literal["exact", "backprop", "tesla", "tesla-corrected"] = "exact"
    """exact (constant graph memory), backprop (the full graph), or TESLA's, as derived or as released (halved)."""
    optimizer: Literal["sgd", "adam"] = "adam"
    """Optimiser of the images (the authors': sgd)."""
    lr_img: StepSize = 0.1
    """Step size of the images."""
    lr_img_every: Count | None = None
    """Halve the step size of the images after every so many outer steps (the authors' --lr_decay: 2000)."""
    lr_teacher: StepSize = 0.02
    """The student's step size at the start."""
    teacher_labels: bool = False
    """Train the student on the expert's probabilities at epoch U, computed anew at every outer step."""
    noise_start: Weight = 0.0
    """Epsilon: the student starts at theta + epsilon |theta| N(0, 1), per tensor."""


class MCTOptions(MCTConfig):
    """Options of MCT with every default resolved."""

    expert_epochs: float
    max_start_epoch: float


def resolve(config: MCTConfig, facts: DataFacts) -> MCTOptions:
    """Return the options with numbers for M and U; UserError for an M that is longer than the experts."""
    span = config.expert_epochs or default_expert_epochs(config, facts)
    if span > facts.expert.epochs:
        raise UserError(
            f"experts of {facts.expert.epochs} epochs have no segment of {span:g} epochs; lower --expert-epochs, or "
            "train them longer (--expert.epochs)."
        )
    start = config.max_start_epoch or default_max_start_epoch(span, facts)
    if config.sampling == "whole":
        span, start = max(1, round(span)), max(1, round(start))
    return MCTOptions(**config.model_dump() | {"expert_epochs": span, "max_start_epoch": start})


def make_sampler(options: MCTOptions) -> Sampler:
    """Return the sampler of segments: real or whole epochs, below a bound that may grow."""
    first = options.first_max_start_epoch or options.max_start_epoch
    if options.sampling == "whole":
        last, span = int(options.max_start_epoch), int(options.expert_epochs)
        return GrowingEpochs(max(1, round(first)), last, options.expansion_steps, span)
    return Continuous(options.max_start_epoch, options.expert_epochs, first, options.expansion_steps)


def plan(options: MCTOptions, inputs: MethodInputs) -> Plan:
    """Match convexified experts from continuous start epochs by the exact gradient."""
    task, t = inputs.task, options.max_start_epoch
    if options.teacher_labels and max(options.canvas, options.factor) > 1:
        name = "--canvas" if options.canvas > 1 else "--factor"
        raise UserError(f"--teacher-labels and {name} do not go together, since a label is of an image: leave out one.")
    synthetic = init_learned_set(options, options.init, inputs, options.canvas, options.factor)
    optimisers = make_optimisers(options, synthetic)
    labels = TeacherLabels(task.logits, t) if options.teacher_labels else None
    noise = StartNoise(task.model.layout, options.noise_start) if options.noise_start else None
    objective = make_objective(options, inputs, synthetic, make_sampler(options), options.gradient, labels, noise)
    hooks: list[Hook] = [StepDecay(optimisers[0], options.lr_img_every, 0.5)] if options.lr_img_every else []
    as_evaluated = WithTeacherLabels(inputs, t) if options.teacher_labels else None
    return Plan(objective, synthetic, optimisers, options.iterations, hooks=hooks, as_evaluated=as_evaluated)


MCT = Method(
    name="mct",
    summary="match convexified expert trajectories, from any real start epoch",
    source="Zhong et al., Towards Stable and Storage-efficient Dataset Distillation: Matching Convexified Trajectory, "
    "CVPR 2025",
    config=MCTConfig,
    experts="convex",
    plan=plan,
    resolve=resolve,
    ema_decay=0.98,  # ours: the paper evaluates the images of its last step
)
