"""DC (Zhao, Mopuri and Bilen, ICLR 2021): synthetic images whose gradients are those of real ones."""

from __future__ import annotations

from pydantic import Field

from limbeck.core.rng import derive_seed
from limbeck.methods.class_matching import LR_NET, MatchingConfig, image_sgd, real_rows, start
from limbeck.methods.plan import DataFacts, Method, MethodInputs, Plan
from limbeck.objectives.classes import Augment, MatchClasses, unchanged
from limbeck.objectives.gradient import DISTANCES, GradientDistance, weights
from limbeck.objectives.pool import Ageing, Fresh, Sgd, SyntheticLessons


class DCConfig(MatchingConfig):
    """Options of DC."""

    lr_img: float = Field(default=0.1, gt=0)
    """step size of the images, in network input space as the authors'"""
    inner: int | None = Field(default=None, ge=1)
    """steps that a network lives (the paper's T, outer_loop in its code); by default images per class, at most 50"""
    net_epochs: int | None = Field(default=None, ge=1)
    """passes over the synthetic set between them (inner_loop); by default 500 over --inner"""
    lr_net: float = Field(default=LR_NET, gt=0)
    """step size of the network"""
    batch_net: int = Field(default=256, ge=1)
    """synthetic images per step of the network"""


def loops(config: DCConfig, facts: DataFacts) -> DCConfig:
    """The papers' pairs: one step a network at one image per class, 10 and 50 at 10, 50 and 10 at 50."""
    inner = config.inner or min(facts.ipc, 50)
    return config.model_copy(update={"inner": inner, "net_epochs": config.net_epochs or max(1, 500 // inner)})


def compose(config: DCConfig, inputs: MethodInputs, siamese: Augment, lesson: Augment) -> Plan:
    """All weights' gradients, row by row, under a network that learns from the synthetic set."""
    assert config.inner is not None
    assert config.net_epochs is not None
    task, layout = inputs.task, inputs.task.model.layout
    fresh = Fresh(task.model, inputs.seed, task.device)
    lessons = SyntheticLessons(config.net_epochs, config.batch_net, derive_seed(inputs.seed, "lessons"), lesson)
    network = Ageing(task.loss_with(None), fresh, config.inner, lessons, Sgd(config.lr_net))
    synthetic = start(config, inputs, network)
    rows, hooks = real_rows(config, inputs, network)
    distance = GradientDistance(task.loss_with(None), layout, weights(layout), DISTANCES["cosine"])
    objective = MatchClasses(task.train, rows, network.network, distance, siamese)
    steps = [image_sgd(synthetic, config.lr_img, config.momentum)]
    return Plan(objective, synthetic, steps, config.iterations, hooks=hooks)


def plan(config: DCConfig, inputs: MethodInputs) -> Plan:
    """Nothing is augmented."""
    return compose(config, inputs, unchanged, unchanged)


DC = Method(
    name="dc",
    summary="match the gradients of real and synthetic images, class by class, along short trainings",
    source="Zhao, Mopuri and Bilen, Dataset Condensation with Gradient Matching, ICLR 2021",
    config=DCConfig,
    experts=None,
    plan=plan,
    resolve=loops,
    learns=("images",),
)
