"""DC (Zhao, Mopuri and Bilen, ICLR 2021): synthetic images whose gradients are those of real ones."""

from __future__ import annotations

from functools import partial

from limbeck.core.ranges import Count, Size, StepSize
from limbeck.core.rng import derive_seed
from limbeck.methods.class_matching import (
    LR_NET,
    OnlineNetworkConfig,
    choose_network,
    init_synthetic_set,
    make_image_optimiser,
    make_row_sampler,
)
from limbeck.methods.plan import DataFacts, Method, MethodInputs, Plan
from limbeck.networks.losses import Augment
from limbeck.objectives.classes import MatchClasses
from limbeck.objectives.gradient import DISTANCES, GradientDistance, weight_indices
from limbeck.objectives.online_network import OnlineNetwork, RandomInit, Sgd, SyntheticBatches


class DCConfig(OnlineNetworkConfig):
    """Options of DC and DSA. The augmentation of DSA is --augment."""

    lr_img: StepSize = 0.1
    """Step size of the images, in network input space as in the authors' code."""
    inner: Count | None = None
    """Outer steps per network (the paper's T, outer_loop in its code); the default is images per class, at most 50."""
    net_epochs: Size | None = None
    """Passes of the network over the synthetic set between two steps (inner_loop); the default is 500 over --inner."""
    lr_net: StepSize = LR_NET
    """Step size of the network."""
    batch_net: Count = 256
    """Synthetic images per step of the network."""


class DCOptions(DCConfig):
    """Options of DC and DSA with every default resolved."""

    inner: int
    net_epochs: int


def resolve(config: DCConfig, facts: DataFacts) -> DCOptions:
    """Return the options with the papers' loops: 1 x 500 at one image per class, 10 x 50 at 10, 50 x 10 at 50."""
    inner = config.inner or min(facts.ipc, 50)
    loops = {"inner": inner, "net_epochs": config.net_epochs or max(1, 500 // inner)}
    return DCOptions(**config.model_dump() | loops)


def make_plan(options: DCOptions, inputs: MethodInputs, siamese: Augment | None, augment: Augment | None) -> Plan:
    """Match the gradients of all weights, row by row, under a network that learns from the synthetic set.

    siamese: augmentation of real and synthetic images when they are compared; augment: of those the network learns.
    """
    task, layout = inputs.task, inputs.task.model.layout
    init = RandomInit(task.model, inputs.seed, task.device)
    batches = SyntheticBatches(options.net_epochs, options.batch_net, derive_seed(inputs.seed, "lessons"), augment)
    own = partial(OnlineNetwork, task.loss_with(None), init, options.inner, batches, Sgd(options.lr_net))
    network = choose_network(options, inputs, own)
    synthetic = init_synthetic_set(options, inputs, network.parameters)
    rows, hooks = make_row_sampler(options, inputs, network)
    distance = GradientDistance(task.loss_with(None), layout, weight_indices(layout), DISTANCES["cosine"])
    objective = MatchClasses(task.train, rows, network.parameters, distance, siamese)
    optimiser = make_image_optimiser(synthetic, options.lr_img, options.momentum)
    return Plan(objective, synthetic, [optimiser], options.iterations, hooks=hooks)


def plan(options: DCOptions, inputs: MethodInputs) -> Plan:
    """Match gradients without augmentation."""
    return make_plan(options, inputs, None, None)


DC = Method(
    name="dc",
    summary="match the gradients of real and synthetic images, class by class, along short trainings",
    source="Zhao, Mopuri and Bilen, Dataset Condensation with Gradient Matching, ICLR 2021",
    config=DCConfig,
    experts=None,
    plan=plan,
    resolve=resolve,
    learns=("images",),
)
