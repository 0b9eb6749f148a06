"""RCIG (Loo et al., ICML 2023): fit real images by a linearised network that is solved for on the set, exactly."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from limbeck.core.ranges import Count, Size, StepSize, Weight, Width
from limbeck.methods.initial import InitName
from limbeck.methods.plan import Method, MethodConfig, MethodInputs, Plan
from limbeck.methods.rcig_pool import Pool
from limbeck.methods.trajectory_matching import init_synthetic_set
from limbeck.networks.flat import FlatModel
from limbeck.networks.losses import cross_entropy
from limbeck.networks.registry import ModelConfig, flat_model
from limbeck.objectives.fit import Fit, Solved
from limbeck.synthetic.set import SyntheticSet
from limbeck.task import Task
from limbeck.training.implicit import Cholesky, ConjugateGradient, Implicit, PrimalAdam, Solver

LEARNED = ("images", "labels", "tau")


class RCIGConfig(MethodConfig):
    """Options of RCIG."""

    iterations: Count = 1000
    """Number of outer steps."""
    batch_real: Count = 256
    """Real images per outer step (the authors: 1024)."""
    ridge: StepSize = 5e-4
    """Ridge penalty per stored image; the regression's lambda is this times their number (l2_rate)."""
    solver: Literal["auto", "cholesky", "cg", "adam"] = "auto"
    """auto is cholesky where memory allows, else conjugate gradient (cg); adam is the authors' 20 steps."""
    cg_tolerance: Weight = 1e-3
    """Conjugate gradient ends at this norm of the residual, relative to the right-hand side."""
    cg_steps: Size = 30
    """Conjugate gradient ends after so many products at the latest."""
    lr_img: StepSize = 3e-3
    """Step size of the images (Adam; the authors use AdaBelief)."""
    lr_y: StepSize = 3e-3
    """Step size of the targets."""
    lr_tau: StepSize = 3e-2
    """Step size of the logarithm of the inverse temperature (Platt scaling)."""
    margin: bool = True
    """Reward targets whose largest entry is above the next, up to 1/(2 classes)."""
    flip: bool = False
    """Train on mirror images too (the authors do, on all but digits and clothes)."""
    grad_images: Count | None = None
    """Stored images per outer step whose gradient is taken, scaled up; the default is all."""
    pool: Annotated[Size, Field(le=1000)] = 8
    """Number of networks that are linearised (the authors: 30)."""
    pool_width: Width = 16
    """Channels of the first block of the pool's networks, doubled from block to block (the authors: 128)."""
    pool_activation: Literal["softplus", "relu"] = "softplus"
    """Activation of the pool's networks: softplus(60 x)/60, or ReLU (the authors, from 64 pixels on)."""
    pool_steps: Size = 15
    """Steps of Adam, at most, for which the network of an outer step then learns the set."""
    pool_reset: Count = 100
    """Steps of Adam after which a network is initialised anew."""
    pool_batch: Count | None = None
    """Synthetic images per step of Adam on a network; the default is all."""
    lr_pool: StepSize = 5e-5
    """Step size of Adam on a network."""
    label_scale: StepSize = 5.0
    """Common protocol: labels are softmax(label_scale x targets); on digits 2 to 5 beat exp(tau)."""
    lr_net: StepSize = 0.01
    """Step size of the networks that evaluate the set until one is chosen on validation (--eval.baseline-lrs)."""
    init: InitName = "random"
    """Images to start from: a coreset of real ones, or noise."""

    def real_images_per_step(self) -> int:
        """Return the batch of real images, which may all be of one class."""
        return self.batch_real


def make_pool_network(options: RCIGConfig, task: Task) -> FlatModel:
    """Return FRePo's ConvNet for the task's images; its depth follows from their size."""
    config = ModelConfig(name="widening", width=options.pool_width, activation=options.pool_activation)
    return flat_model(config.resolved(task.data.size), task.data.shape, task.data.num_classes)


MAX_JACOBIAN = 1e8  # numbers in the Jacobian, 400 MB, above which 'auto' takes conjugate gradient


def make_solver(options: RCIGConfig, parameters: int, rows: int) -> Solver:
    """Return the solver that --solver names. rows: images times classes."""
    conjugate_gradient = ConjugateGradient(options.cg_tolerance, options.cg_steps)
    if options.solver == "adam":
        return PrimalAdam()
    fits = rows * (parameters + rows) <= MAX_JACOBIAN
    return Cholesky() if options.solver == "cholesky" or (options.solver == "auto" and fits) else conjugate_gradient


def platt_loss(margin: bool, logits: Tensor, labels: Tensor, synthetic: SyntheticSet) -> Tensor:
    """Return the cross-entropy of exp(tau) times the logits, less a reward for targets with a margin.

    margin: whether there is the reward, the mean of min(largest - next entry, 1/(2 classes)) of the targets.
    """
    fit = cross_entropy(synthetic.extra["tau"].exp() * logits, labels)
    if not margin:
        return fit
    top = synthetic.labels.topk(2, dim=1).values
    return fit - (top[:, 0] - top[:, 1]).clamp_max(0.5 / synthetic.labels.shape[1]).mean()


def set_for_both_protocols(scale: float, synthetic: SyntheticSet) -> SyntheticSet:
    """Return the set with its targets as they are, for RCIG's protocol, and logits for the common one."""
    evaluated = synthetic.snapshot()
    extra = {**evaluated.extra, "targets": evaluated.labels}
    return replace(evaluated, labels=scale * evaluated.labels, extra=extra)


def init_with_targets(options: RCIGConfig, inputs: MethodInputs) -> SyntheticSet:
    """Return the initial images, real or noise, with targets, one-hot less 1/classes, and tau = 0."""
    real = init_synthetic_set(options.init, inputs, options.lr_net)
    classes = inputs.task.data.num_classes
    targets = F.one_hot(real.labels, classes).to(real.images) - 1 / classes
    extra = {"tau": torch.zeros_like(targets[0, 0])}
    return SyntheticSet.from_images(real.images, targets, options.lr_net, LEARNED, extra=extra)


def plan(options: RCIGConfig, inputs: MethodInputs) -> Plan:
    """Linearise a network of a pool and solve it on the set; take the implicit gradient."""
    task, synthetic = inputs.task, init_with_targets(options, inputs)
    model = make_pool_network(options, task)
    count = len(synthetic.images)
    rows = count * (1 + options.flip) * task.data.num_classes
    adjoint = Implicit(make_solver(options, model.layout.count, rows))
    pool = Pool(
        model,
        count=options.pool,
        seed=inputs.seed,
        lr=options.lr_pool,
        steps=options.pool_steps,
        reset=options.pool_reset,
        flip=options.flip,
        batch=options.pool_batch,
        device=task.device,
    )
    student = Solved(model, pool.at, options.ridge * count, adjoint, options.flip, options.grad_images)
    loss = partial(platt_loss, options.margin)
    objective = Fit(student, task.train, options.batch_real, loss, inputs.class_rows())
    groups = [
        {"params": [synthetic.images], "lr": options.lr_img},
        {"params": [synthetic.labels], "lr": options.lr_y},
        {"params": [synthetic.extra["tau"]], "lr": options.lr_tau},
    ]
    return Plan(
        objective,
        synthetic,
        [torch.optim.Adam(groups)],
        options.iterations,
        hooks=[pool],
        as_evaluated=partial(set_for_both_protocols, options.label_scale),
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
    ema_decay=0.99,
    ema_unbiased=True,
)
