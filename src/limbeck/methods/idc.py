"""IDC (Kim et al., ICML 2022): gradient matching of images cut into tiles, under networks trained on real images."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from limbeck.core.rng import derive_seed
from limbeck.data.augment import DSA, ComposedDSA
from limbeck.methods.class_matching import (
    LR_NET,
    MatchingConfig,
    image_sgd,
    partition,
    pixel_variance,
    real_rows,
    start,
)
from limbeck.methods.plan import DataFacts, Method, MethodInputs, Plan
from limbeck.objectives.classes import Discrepancy, MatchClasses, Sum
from limbeck.objectives.features import FeatureDistance
from limbeck.objectives.gradient import DISTANCES, GradientDistance, convolutions
from limbeck.objectives.pool import Ageing, Fresh, RealLessons, Sgd, WarmUp
from limbeck.synthetic.hooks import make_clamp_hooks
from limbeck.task import Task
from limbeck.training.plain import Schedule


class IDCConfig(MatchingConfig):
    """Options of IDC and DREAM."""

    factor: int = Field(default=2, ge=1)
    """f: every image holds f x f tiles, each a training image when enlarged; 1 turns it off"""
    how: Literal["single", "multi", "bound"] = "single"
    """cut by f; by 1 to f, all together; by up to f while a class has no more than 128 training images"""
    batch_syn: int = Field(default=128, ge=1)
    """synthetic training images of a class per step, at most"""
    distance: Literal["mse", "l1", "l1_mean", "cosine"] = "l1"
    """of gradients; mse (a sum) for the papers' coloured images, l1 for grey ones"""
    lr_img: float | None = Field(default=None, gt=0)
    """step size of the images in pixel space (0 to 1), as the authors' once scaled; by default it grows with --ipc"""
    inner: int = Field(default=10, ge=1)
    """steps that a network lives (the authors: 100)"""
    net_steps: int = Field(default=4, ge=1)
    """steps of the network on real images between them"""
    batch_net: int = Field(default=64, ge=1)
    """real images per step of the network"""
    lr_net: float = Field(default=LR_NET, gt=0)
    """step size of the network; momentum is 0.9, weight decay 5e-4"""
    cutmix: float = Field(default=0.5, ge=0, le=1)
    """part of the network's batches that CutMix mixes"""
    match_augment: str = "color_crop_cutout"
    """families of the siamese augmentation: of other than flip, color and cutout one at a time"""
    net_augment: str = "color_crop"
    """families for the network's lessons, image by image"""
    warm_up: int = Field(default=0, ge=0)
    """epochs on all real images that every new network gets first (1 in DREAM+)"""
    feature_weight: float = Field(default=0.0, ge=0)
    """of the distance of mean features beside that of gradients (1 in DREAM+)"""


BASE_LR = {"l1": 1e-3, "mse": 5e-3, "l1_mean": 1e-2, "cosine": 1e-2}


def step_size(config: IDCConfig, facts: DataFacts) -> IDCConfig:
    """The gradient in one image falls with images per class, being of a mean: the authors' lr_img grows with them."""
    return config.model_copy(update={"lr_img": config.lr_img or BASE_LR[config.distance] * facts.ipc})


def ageing(config: IDCConfig, task: Task, seed: int) -> Ageing:
    """Networks that learn from real images, perhaps with a warm-up."""
    lesson, sgd = ComposedDSA(DSA(config.net_augment)), Sgd(config.lr_net, 0.9, 5e-4)
    schedule = Schedule(config.warm_up, sgd.lr, config.batch_net, sgd.momentum, sgd.weight_decay)
    warm_up = WarmUp(task.loss_with(lesson), task.train, schedule) if config.warm_up else None
    lessons = RealLessons(
        task.train,
        task.data.num_classes,
        config.net_steps,
        config.batch_net,
        derive_seed(seed, "lessons"),
        lesson,
        config.cutmix,
    )
    return Ageing(task.loss_with(None), Fresh(task.model, seed, task.device, warm_up), config.inner, lessons, sgd)


def plan(config: IDCConfig, inputs: MethodInputs) -> Plan:
    """Gradients of convolutions for enlarged tiles; pixels stay between 0 and 1."""
    assert config.lr_img is not None
    task = inputs.task
    network = ageing(config, task, inputs.seed)
    synthetic = start(config, inputs, network, partition(config.factor, config.how, inputs))
    rows, hooks = real_rows(config, inputs, network)
    distance = DISTANCES[config.distance]
    discrepancy: Discrepancy = GradientDistance(
        task.loss_with(None), task.model.layout, convolutions(task.model.layout), distance
    )
    if config.feature_weight:
        discrepancy = Sum(((1.0, discrepancy), (config.feature_weight, FeatureDistance(task.model, distance))))
    siamese = ComposedDSA(DSA(config.match_augment, siamese=True))
    objective = MatchClasses(task.train, rows, network.network, discrepancy, siamese, config.batch_syn)
    steps = [image_sgd(synthetic, config.lr_img / pixel_variance(task.preprocess), config.momentum)]
    return Plan(objective, synthetic, steps, config.iterations, hooks=[*make_clamp_hooks(task.preprocess), *hooks])


IDC = Method(
    name="idc",
    summary="match gradients of images cut into tiles, under networks trained on real images",
    source="Kim et al., Dataset Condensation via Efficient Synthetic-Data Parameterization, ICML 2022",
    config=IDCConfig,
    experts=None,
    plan=plan,
    resolve=step_size,
    learns=("images",),
)
