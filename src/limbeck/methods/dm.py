"""DM (Zhao and Bilen, WACV 2023): synthetic images whose mean features under random networks are those of real ones."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from limbeck.core.ranges import StepSize
from limbeck.methods.class_matching import (
    OnlineNetworkConfig,
    choose_network,
    init_synthetic_set,
    make_image_optimiser,
    make_row_sampler,
)
from limbeck.methods.plan import Method, MethodInputs, Plan
from limbeck.objectives.classes import MatchClasses
from limbeck.objectives.features import FeatureDistance
from limbeck.objectives.online_network import OnlineNetwork, RandomInit


class DMConfig(OnlineNetworkConfig):
    """Options of DM."""

    lr_img: StepSize = 1.0
    """Step size of the images, in network input space as in the authors' code."""


def plan(options: DMConfig, inputs: MethodInputs) -> Plan:
    """Match mean features under a new untrained network at every step, with one draw of the augmentation per class."""
    task = inputs.task
    init = RandomInit(task.model, inputs.seed, task.device)
    network = choose_network(options, inputs, partial(OnlineNetwork, task.loss_with(None), init, every=1))
    synthetic = init_synthetic_set(options, inputs, network.parameters)
    rows, hooks = make_row_sampler(options, inputs, network)
    siamese = replace(task.augment, siamese=True)
    objective = MatchClasses(task.train, rows, network.parameters, FeatureDistance(task.model), siamese)
    optimiser = make_image_optimiser(synthetic, options.lr_img, options.momentum)
    return Plan(objective, synthetic, [optimiser], options.iterations, hooks=hooks)


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
