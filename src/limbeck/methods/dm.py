"""DM (Zhao and Bilen, WACV 2023): synthetic images whose mean features under random networks are those of real ones."""

from __future__ import annotations

from dataclasses import replace

from pydantic import Field

from limbeck.methods.class_matching import MatchingConfig, image_sgd, real_rows, start
from limbeck.methods.plan import Method, MethodInputs, Plan
from limbeck.objectives.classes import MatchClasses
from limbeck.objectives.features import FeatureDistance
from limbeck.objectives.pool import Ageing, Fresh


class DMConfig(MatchingConfig):
    """Options of DM."""

    lr_img: float = Field(default=1.0, gt=0)
    """step size of the images, in network input space as the authors'"""


def plan(config: DMConfig, inputs: MethodInputs) -> Plan:
    """A new untrained network at every step; one augmentation draw for real and synthetic images of a class."""
    task = inputs.task
    network = Ageing(task.loss_with(None), Fresh(task.model, inputs.seed, task.device), every=1)
    synthetic = start(config, inputs, network)
    rows, hooks = real_rows(config, inputs, network)
    siamese = replace(task.augment, siamese=True)
    objective = MatchClasses(task.train, rows, network.network, FeatureDistance(task.model), siamese)
    steps = [image_sgd(synthetic, config.lr_img, config.momentum)]
    return Plan(objective, synthetic, steps, config.iterations, hooks=hooks)


DM = Method(
    name="dm",
    summary="match the mean features of real and synthetic images under random networks",
    source="Zhao and Bilen, Dataset Condensation with Distribution Matching, WACV 2023",
    config=DMConfig,
    experts=None,
    plan=plan,
    learns=("images",),
    threads_matter=True,
)
