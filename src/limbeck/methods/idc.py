"""IDC (Kim et al., ICML 2022): gradient matching of images cut into tiles, under networks trained on real images."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Literal

from pydantic import Field

from limbeck.core.ranges import Count, CountOrZero, Share, Size, StepSize, Tiles, Weight
from limbeck.core.rng import derive_seed
from limbeck.data.augment import DSA, ComposedDSA
from limbeck.methods.class_matching import (
    LR_NET,
    OnlineNetworkConfig,
    choose_network,
    init_synthetic_set,
    make_image_optimiser,
    make_row_sampler,
    make_tiles,
    mean_pixel_variance,
)
from limbeck.methods.plan import DataFacts, Method, MethodInputs, Plan
from limbeck.objectives.classes import Discrepancy, MatchClasses, WeightedSum
from limbeck.objectives.features import FeatureDistance
from limbeck.objectives.gradient import DISTANCES, GradientDistance, convolution_indices
from limbeck.objectives.online_network import OnlineNetwork, RandomInit, RealBatches, Sgd, WarmUp
from limbeck.synthetic.hooks import make_clamp_hooks
from limbeck.training.plain import Schedule

WarmUpEpochs = Annotated[CountOrZero, Field(le=100)]
"""The type of the option --warm-up; the first network is trained for so long before the first outer step."""


class IDCConfig(OnlineNetworkConfig):
    """Options of IDC and DREAM."""

    factor: Tiles = 2
    """f: every image holds f x f tiles, each a training image when enlarged; 1 turns tiles off."""
    how: Literal["single", "multi", "bound"] = "single"
    """Cut by f (single), by 1 to f (multi), or by up to f for at most 128 training images a class (bound)."""
    batch_syn: Count = 128
    """Synthetic training images per class and outer step, at most."""
    distance: Literal["mse", "l1", "l1_mean", "cosine"] = "l1"
    """Distance of gradients: mse (a sum) for the papers' coloured images, l1 for grey ones."""
    lr_img: StepSize | None = None
    """Step size of the images in pixel space (0 to 1), as the authors' when scaled; the default grows with --ipc."""
    inner: Count = 10
    """Outer steps per network (the authors: 100)."""
    net_steps: Size = 4
    """Steps of the network on real images between two outer steps."""
    batch_net: Count = 64
    """Real images per step of the network."""
    lr_net: StepSize = LR_NET
    """Step size of the network; its momentum is 0.9, its weight decay 5e-4."""
    cutmix: Share = 0.5
    """Fraction of the network's batches that CutMix mixes."""
    match_augment: str = "color_crop_cutout"
    """Families of the siamese augmentation; of those other than flip, color and cutout one is drawn at a time."""
    net_augment: str = "color_crop"
    """Families of the augmentation of the images that the network learns, drawn image by image."""
    warm_up: WarmUpEpochs = 0
    """Epochs on all real images that every new network is trained for first (DREAM+: 1)."""
    feature_weight: Weight = 0.0
    """Weight of the distance of mean features; that of gradients has weight 1 (DREAM+: 1)."""

    def initial_images(self, ipc: int) -> int:
        """Return one real image per tile."""
        return ipc * self.factor**2


class IDCOptions(IDCConfig):
    """Options of IDC with every default resolved."""

    lr_img: float


BASE_LR = {"l1": 1e-3, "mse": 5e-3, "l1_mean": 1e-2, "cosine": 1e-2}
"""Default step size of the images at one image per class, by distance."""


def resolve_step_size(config: IDCConfig, facts: DataFacts) -> dict[str, float]:
    """Return lr_img, which grows with images per class: the gradient is of a mean over them."""
    return {"lr_img": config.lr_img or BASE_LR[config.distance] * facts.ipc}


def resolve(config: IDCConfig, facts: DataFacts) -> IDCOptions:
    """Return the options with a number for the step size of the images."""
    return IDCOptions(**config.model_dump() | resolve_step_size(config, facts))


def make_network(options: IDCOptions, inputs: MethodInputs) -> OnlineNetwork:
    """Return networks that learn from real images, with a warm-up if the options ask for one."""
    task, augment, sgd = inputs.task, ComposedDSA(DSA(options.net_augment)), Sgd(options.lr_net, 0.9, 5e-4)
    schedule = Schedule(options.warm_up, sgd.lr, options.batch_net, sgd.momentum, sgd.weight_decay)
    schedule = schedule._replace(balanced=inputs.balanced)
    warm_up = WarmUp(task.loss_with(augment), task.train, schedule) if options.warm_up else None
    batches = RealBatches(
        task.train,
        classes=task.data.num_classes,
        steps=options.net_steps,
        batch=options.batch_net,
        seed=derive_seed(inputs.seed, "lessons"),
        augment=augment,
        cutmix=options.cutmix,
        class_rows=inputs.class_rows(),
    )
    init = RandomInit(task.model, inputs.seed, task.device, warm_up)
    return OnlineNetwork(task.loss_with(None), init, options.inner, batches, sgd)


def plan(options: IDCOptions, inputs: MethodInputs) -> Plan:
    """Match the gradients of convolutions for enlarged tiles; pixels stay between 0 and 1."""
    task, layout = inputs.task, inputs.task.model.layout
    network = choose_network(options, inputs, partial(make_network, options, inputs))
    tiles = make_tiles(options.factor, options.how, inputs)
    synthetic = init_synthetic_set(options, inputs, network.parameters, tiles)
    rows, hooks = make_row_sampler(options, inputs, network)
    distance = DISTANCES[options.distance]
    discrepancy: Discrepancy = GradientDistance(task.loss_with(None), layout, convolution_indices(layout), distance)
    if options.feature_weight:
        discrepancy = WeightedSum(((1.0, discrepancy), (options.feature_weight, FeatureDistance(task.model, distance))))
    siamese = ComposedDSA(DSA(options.match_augment, siamese=True))
    objective = MatchClasses(task.train, rows, network.parameters, discrepancy, siamese, options.batch_syn)
    lr = options.lr_img / mean_pixel_variance(task.preprocess)
    optimiser = make_image_optimiser(synthetic, lr, options.momentum)
    hooks = [*make_clamp_hooks(task.preprocess), *hooks]
    return Plan(objective, synthetic, [optimiser], options.iterations, hooks=hooks)


IDC = Method(
    name="idc",
    summary="match gradients of images cut into tiles, under networks trained on real images",
    source="Kim et al., Dataset Condensation via Efficient Synthetic-Data Parameterization, ICML 2022",
    config=IDCConfig,
    experts=None,
    plan=plan,
    resolve=resolve,
    learns=("images",),
)
