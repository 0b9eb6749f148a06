"""Progressive trajectory matching for medical images (Yu, Liu and Chen 2024): experimental, built from its abstract.

Neither the text of the paper nor code was at hand. From the abstract: the matched part of the trajectory is chosen
progressively instead of at random, for stability; overlap between synthetic images is detected and eliminated during
training, and a part of the images is trained again. Ours is everything that makes this exact: the start windows and
when they widen, the gate that refuses a step and goes back a window, the measure of overlap and its threshold, what
replaces an image, and for how long the other images stand still. Compare nothing with the paper's numbers.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated

import torch
from pydantic import Field

from limbeck.core.ranges import NUMBER, Count, CountOrZero, Size, StepSize
from limbeck.core.rng import derive_seed
from limbeck.methods.initial import InitName
from limbeck.methods.plan import DataFacts, Method, MethodInputs, Plan
from limbeck.methods.ptm_overlap import OverlapRepair
from limbeck.methods.ptm_progress import ProgressiveWindow
from limbeck.methods.trajectory_matching import (
    RecordedConfig,
    RecordedOptions,
    init_learned_set,
    make_objective,
    make_optimisers,
    resolve_lengths,
)
from limbeck.objectives.combine import FiniteOr
from limbeck.select import select_per_class
from limbeck.select.scores import extract_features
from limbeck.synthetic.loop import Hook
from limbeck.synthetic.set import SyntheticSet


class PTMConfig(RecordedConfig):
    """Options of PTM; those that MTT does not have are ours."""

    stages: Size = 3
    """Number of start windows, from narrow to U."""
    patience: Count = 20
    """Outer steps without a new minimum of the running loss before the window widens."""
    stage_steps: Count | None = None
    """Outer steps after which the window widens even if the loss still falls; the default is an equal share of all."""
    divergence: StepSize = 2.0
    """A loss above it refuses the step, restores the last accepted set, and narrows the window."""
    overlap: Annotated[float, Field(gt=-1, le=1), NUMBER] = 0.95
    """Two images of a class overlap above this cosine of their centred features; 1 turns the repair off."""
    overlap_every: Count = 50
    """Outer steps between checks for overlap."""
    overlap_until: CountOrZero | None = None
    """Outer step of the last check for overlap; the default is four fifths of all."""
    retrain: Size = 10
    """Outer steps in which only replaced images are trained."""
    init: InitName = "random"
    """Images to start from: a coreset of real ones, or noise."""


class PTMOptions(RecordedOptions, PTMConfig):
    """Options of PTM with every default resolved."""

    stage_steps: int
    overlap_until: int


def resolve(config: PTMConfig, facts: DataFacts) -> PTMOptions:
    """Return the options with numbers for M, U, the steps of a window and the last check for overlap."""
    lengths = resolve_lengths(config, facts)
    windows = window_bounds(lengths["max_start_epoch"], config.stages)
    steps = {
        # with patience alone it never widened in 150 steps on ten images per class of Fashion-MNIST
        "stage_steps": config.stage_steps or max(1, config.iterations // len(windows)),
        "overlap_until": config.iterations * 4 // 5 if config.overlap_until is None else config.overlap_until,
    }
    return PTMOptions(**config.model_dump() | lengths | steps)


MAX_CANDIDATES = 200  # real images of a class that may replace a synthetic one


def make_overlap_repair(
    options: PTMOptions, inputs: MethodInputs, synthetic: SyntheticSet, optimiser: torch.optim.Optimizer
) -> OverlapRepair:
    """Return the hook that replaces overlapping images, by features of the first expert half way along."""
    task, expert = inputs.task, inputs.trajectories[0]
    theta = expert.at(expert.end // 2).to(task.device)
    images, labels = task.train
    classes = task.data.num_classes
    count = min(MAX_CANDIDATES, int(labels.bincount(minlength=classes).min()))
    rows = select_per_class("random", images, labels, classes, count, derive_seed(inputs.seed, "pool"))
    rows = rows.to(images.device)
    return OverlapRepair(
        synthetic,
        optimiser,
        features=partial(extract_features, task.model, theta),
        candidates=(images[rows], labels[rows]),
        threshold=options.overlap,
        every=options.overlap_every,
        retrain=options.retrain,
        until=options.overlap_until,
    )


def window_bounds(last: int, stages: int) -> tuple[int, ...]:
    """Return at most `stages` equally spaced bounds of start epochs, rising to `last`.

    >>> window_bounds(10, 3), window_bounds(2, 3)
    ((4, 7, 10), (1, 2))
    """
    return tuple(sorted({-(-last * (k + 1) // stages) for k in range(stages)}))


def plan(options: PTMOptions, inputs: MethodInputs) -> Plan:
    """Match recorded experts from windows that widen, refuse diverging steps, replace overlapping images."""
    synthetic = init_learned_set(options, options.init, inputs)
    optimisers = make_optimisers(options, synthetic)
    bounds = window_bounds(options.max_start_epoch, options.stages)
    window = ProgressiveWindow(
        synthetic,
        optimisers,
        bounds,
        span=options.expert_epochs,
        patience=options.patience,
        limit=options.divergence,
        max_steps=options.stage_steps,
    )
    objective = FiniteOr(make_objective(options, inputs, synthetic, window.sample), fallback=2 * options.divergence)
    hooks: list[Hook] = [window]
    if options.overlap < 1:
        hooks.append(make_overlap_repair(options, inputs, synthetic, optimisers[0]))
    return Plan(objective, synthetic, optimisers, options.iterations, window.accept, hooks)


PTM = Method(
    name="ptm",
    summary="widen the matched part during training, and replace images that overlap",
    source="after the abstract of Yu, Liu and Chen, Progressive Trajectory Matching for Medical Dataset Distillation, "
    "arXiv 2403.13469",
    config=PTMConfig,
    experts="recorded",
    plan=plan,
    resolve=resolve,
    expert_defaults={"keep": "both"},
    experimental=True,
)
