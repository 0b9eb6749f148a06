"""RCIG (Loo et al., ICML 2023): fit real images by a linearised network that is solved for on the set, exactly."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from limbeck.methods.coreset import Init
from limbeck.methods.plan import Method, MethodConfig, MethodInputs, Plan
from limbeck.methods.rcig_pool import Pool
from limbeck.methods.trajectory_matching import init_synthetic_set
from limbeck.networks.flat import FlatModel
from limbeck.networks.losses import cross_entropy
from limbeck.networks.registry import ModelConfig, flat_model
from limbeck.objectives.fit import Fit, Solved
from limbeck.synthetic.hooks import Ema
from limbeck.synthetic.set import SyntheticSet
from limbeck.task import Task
from limbeck.training.implicit import Cholesky, ConjugateGradient, Implicit, PrimalAdam, Solver

LEARNED = ("images", "labels", "tau")


class RCIGConfig(MethodConfig):
    """Options of RCIG."""

    iterations: int = Field(default=1000, ge=1)
    """outer steps"""
    batch_real: int = Field(default=256, ge=1)
    """real images per outer step (the authors: 1024)"""
    ridge: float = Field(default=5e-4, gt=0)
    """lambda per stored image: the regression's is this times their number (l2_rate)"""
    solver: Literal["auto", "cholesky", "cg", "adam"] = "auto"
    """of the regression and its adjoint; auto: cholesky where memory allows, else cg; adam: the authors' 20 steps"""
    cg_tolerance: float = Field(default=1e-3, ge=0)
    """conjugate gradient ends when the residual is so small, relative to the right-hand side"""
    cg_steps: int = Field(default=30, ge=1)
    """or after so many products"""
    lr_img: float = Field(default=3e-3, gt=0)
    """step size of the images (Adam; the authors use AdaBelief)"""
    lr_y: float = Field(default=3e-3, gt=0)
    """step size of the targets"""
    lr_tau: float = Field(default=3e-2, gt=0)
    """step size of the logarithm of the inverse temperature (Platt scaling)"""
    margin: bool = True
    """reward targets whose largest entry is above the next, up to 1/(2 classes)"""
    flip: bool = False
    """train on mirror images too (the authors, on all but digits and clothes)"""
    grad_images: int | None = Field(default=None, ge=1)
    """stored images per outer step whose gradient is taken, scaled up; by default all"""
    pool: int = Field(default=8, ge=1)
    """networks that are linearised (the authors: 30)"""
    pool_width: int = Field(default=16, ge=1)
    """channels of their first block, doubled from block to block, without normalisation (the authors: 128)"""
    pool_activation: Literal["softplus", "relu"] = "softplus"
    """of the pool's networks: softplus(60 x)/60, or ReLU (the authors, from 64 pixels on)"""
    pool_steps: int = Field(default=15, ge=1)
    """the network of an outer step then learns the set for 1 to so many steps of Adam"""
    pool_reset: int = Field(default=100, ge=1)
    """a network that has learned for so many steps is made anew"""
    pool_batch: int | None = Field(default=None, ge=1)
    """synthetic images per step of that; by default all"""
    lr_pool: float = Field(default=5e-5, gt=0)
    """step size of that"""
    ema_decay: float = Field(default=0.99, ge=0, lt=1)
    """of the average of images, targets and temperature, which is what is kept; 0 keeps the last ones"""
    label_scale: float = Field(default=5.0, gt=0)
    """for the common protocol labels are softmax(it times the targets); on digits 2 to 5 beat exp(tau) and classes"""
    lr_net: float = Field(default=0.01, gt=0)
    """step size of the networks that judge it before one is chosen on validation (--eval.baseline-lrs)"""
    init: Init = "random"
    """real images to start from"""


def pool_network(config: RCIGConfig, task: Task) -> FlatModel:
    """FRePo's ConvNet for the task's images, of the depth that their size asks for."""
    options = {"width": config.pool_width, "activation": config.pool_activation}
    model = ModelConfig(name="widening", **options).resolved(task.data.size)
    return flat_model(model, task.data.shape, task.data.num_classes)


MEMORY = 1e8  # numbers in the Jacobian above which 'auto' takes conjugate gradient: 400 MB


def solver(config: RCIGConfig, parameters: int, rows: int) -> Solver:
    """The solver of this name; rows: images times classes."""
    conjugate = ConjugateGradient(config.cg_tolerance, config.cg_steps)
    auto = Cholesky() if rows * (parameters + rows) <= MEMORY else conjugate
    return {"auto": auto, "cholesky": Cholesky(), "cg": conjugate, "adam": PrimalAdam()}[config.solver]


def platt(margin: bool, logits: Tensor, labels: Tensor, synthetic: SyntheticSet) -> Tensor:
    """CE of exp(tau) times the logits, less the mean of min(largest - next entry, 1/(2 classes)) of the targets."""
    fit = cross_entropy(synthetic.extra["tau"].exp() * logits, labels)
    if not margin:
        return fit
    top = synthetic.labels.topk(2, dim=1).values
    return fit - (top[:, 0] - top[:, 1]).clamp_max(0.5 / synthetic.labels.shape[1]).mean()


def set_for_both_protocols(average: Ema | None, scale: float, synthetic: SyntheticSet) -> SyntheticSet:
    """Return the averaged set with its targets as they are, for RCIG's protocol, and logits for the common one."""
    shown = synthetic.snapshot() if average is None else average.average(synthetic)
    return replace(shown, labels=scale * shown.labels, extra={**shown.extra, "targets": shown.labels})


def start(config: RCIGConfig, inputs: MethodInputs) -> SyntheticSet:
    """Real images; targets one-hot less 1/classes; tau 0."""
    real, classes = init_synthetic_set(config.init, inputs, config.lr_net), inputs.task.data.num_classes
    targets = F.one_hot(real.labels, classes).to(real.images) - 1 / classes
    return SyntheticSet.from_images(
        real.images, targets, config.lr_net, LEARNED, extra={"tau": torch.zeros_like(targets[0, 0])}
    )


def plan(config: RCIGConfig, inputs: MethodInputs) -> Plan:
    """A pool of networks, each linearised and solved on the set, its implicit gradient, and the averaged set."""
    task, synthetic = inputs.task, start(config, inputs)
    model = pool_network(config, task)
    count = len(synthetic.images)
    adjoint = Implicit(solver(config, model.layout.count, count * (1 + config.flip) * task.data.num_classes))
    pool = Pool(
        model,
        config.pool,
        inputs.seed,
        config.lr_pool,
        config.pool_steps,
        config.pool_reset,
        config.flip,
        config.pool_batch,
        task.device,
    )
    student = Solved(model, pool.at, config.ridge * count, adjoint, config.flip, config.grad_images)
    objective = Fit(student, task.train, config.batch_real, partial(platt, config.margin))
    average = Ema(synthetic, config.ema_decay, LEARNED, unbiased=True) if config.ema_decay else None
    groups = [
        {"params": [synthetic.images], "lr": config.lr_img},
        {"params": [synthetic.labels], "lr": config.lr_y},
        {"params": [synthetic.extra["tau"]], "lr": config.lr_tau},
    ]
    return Plan(
        objective,
        synthetic,
        [torch.optim.Adam(groups)],
        config.iterations,
        hooks=[pool] if average is None else [pool, average],
        as_evaluated=partial(set_for_both_protocols, average, config.label_scale),
    )


RCIG = Method(
    name="rcig",
    summary="fit real images by linearised networks that are solved for on the set; implicit gradient, learned labels",
    source="Loo et al., Dataset Distillation with Convexified Implicit Gradients, ICML 2023",
    config=RCIGConfig,
    experts=None,
    plan=plan,
    learns=LEARNED,
    threads_matter=True,
)
