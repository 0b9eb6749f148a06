"""Progressive trajectory matching for medical images (Yu, Liu and Chen 2024), as far as its abstract tells.

The paper's text was not at hand, nor is its code public. From the abstract: the matched part of the trajectory is
chosen progressively instead of at random, for stability; overlap between synthetic images is detected and eliminated
while they are trained, and a part of them is trained again. Ours is everything that makes this exact: start windows
that widen when the running loss stops falling, the guard that refuses a step and goes back a window, overlap as the
cosine of centred features of an expert half way along, its threshold, what replaces an image, and for how long the
others stand still. No number of the paper should be expected of it.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from limbeck.core.rng import derive_seed
from limbeck.methods.coreset import Init
from limbeck.methods.overlap import Overlap
from limbeck.methods.plan import DataFacts, Method, MethodInputs, Plan
from limbeck.methods.ptm_progress import Progress
from limbeck.methods.trajectory_matching import RecordedConfig, match, optimisers, real_set, whole_epochs
from limbeck.objectives.combine import Finite
from limbeck.select import select_per_class
from limbeck.synthetic.loop import Hook
from limbeck.synthetic.set import SyntheticSet


class PTMConfig(RecordedConfig):
    """Options of PTM; all but those of MTT are ours."""

    stages: int = Field(default=3, ge=1)
    """start windows, from narrow to U"""
    patience: int = Field(default=20, ge=1)
    """outer steps without a new least running loss before the window widens"""
    divergence: float = Field(default=2.0, gt=0)
    """a loss above it refuses the step, takes the last one back, and narrows the window"""
    overlap: float = Field(default=0.95, gt=-1, le=1)
    """two images of a class overlap above this cosine of their centred features; 1 turns the repair off"""
    overlap_every: int = Field(default=50, ge=1)
    """outer steps between looks for overlap"""
    overlap_until: int | None = Field(default=None, ge=0)
    """outer step of the last look for overlap; by default four fifths of all"""
    retrain: int = Field(default=10, ge=1)
    """outer steps in which only replaced images are trained"""
    init: Init = "random"
    """real images to start from: a coreset's name"""


def resolve(config: PTMConfig, facts: DataFacts) -> PTMConfig:
    """M and U as everywhere; no look for overlap in the last fifth of all steps."""
    last = config.iterations * 4 // 5 if config.overlap_until is None else config.overlap_until
    resolved: PTMConfig = whole_epochs(config.model_copy(update={"overlap_until": last}), facts)
    return resolved


POOL = 200  # real images of a class that may replace a synthetic one


def overlap(
    config: PTMConfig, inputs: MethodInputs, synthetic: SyntheticSet, optimiser: torch.optim.Optimizer
) -> Overlap:
    """The repair, by the features of the first expert half way along."""
    assert config.overlap_until is not None
    task, expert = inputs.task, inputs.trajectories[0]
    theta = expert.at(expert.end // 2).to(task.device)
    images, labels = task.train
    classes = task.data.num_classes
    fewest = min(POOL, int(labels.bincount(minlength=classes).min()))
    rows = select_per_class("random", images, labels, classes, fewest, derive_seed(inputs.seed, "pool")).to(
        images.device
    )

    @torch.no_grad()
    def features(images: Tensor) -> Tensor:
        return torch.cat([task.model.features(theta, part) for part in images.split(500)])

    return Overlap(
        synthetic,
        optimiser,
        features,
        (images[rows], labels[rows]),
        config.overlap,
        config.overlap_every,
        config.retrain,
        until=config.overlap_until,
    )


def windows(last: int, stages: int) -> tuple[int, ...]:
    """At most `stages` bounds that rise to `last`, equally spaced.

    >>> windows(10, 3), windows(2, 3)
    ((4, 7, 10), (1, 2))
    """
    return tuple(sorted({-(-last * (k + 1) // stages) for k in range(stages)}))


def plan(config: PTMConfig, inputs: MethodInputs) -> Plan:
    """Recorded experts, windows that widen, a guard, and the repair of overlap."""
    assert config.max_start_epoch is not None
    assert config.expert_epochs is not None
    synthetic = real_set(config.init, inputs, config.lr_teacher)
    steps = optimisers(config, synthetic)
    bounds = windows(config.max_start_epoch, config.stages)
    progress = Progress(synthetic, steps, bounds, config.expert_epochs, config.patience, config.divergence)
    objective = Finite(match(config, inputs, progress.sample), instead=2 * config.divergence)
    hooks: list[Hook] = [progress]
    if config.overlap < 1:
        hooks.append(overlap(config, inputs, synthetic, steps[0]))
    return Plan(objective, synthetic, steps, config.iterations, progress.accept, hooks)


PTM = Method(
    name="ptm",
    summary="widen the matched part as training goes on, and renew images that overlap (after the abstract; see docs)",
    source="Yu, Liu and Chen, Progressive Trajectory Matching for Medical Dataset Distillation, arXiv 2403.13469",
    config=PTMConfig,
    experts="recorded",
    plan=plan,
    resolve=resolve,
    expert_defaults={"keep": "both"},
)
