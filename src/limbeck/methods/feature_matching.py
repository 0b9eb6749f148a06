"""Parts of the recipes that match features under networks on the paths of experts: options, and the plan."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch

from limbeck.core.ranges import Count, Decay, StepSize, Tiles
from limbeck.data.augment import DSA, ComposedDSA
from limbeck.methods.class_matching import (
    ClassMatchingConfig,
    MatchingNetwork,
    init_synthetic_set,
    make_image_optimiser,
    make_row_sampler,
    make_tiles,
    mean_pixel_variance,
)
from limbeck.methods.plan import MethodInputs, Plan
from limbeck.objectives.along_experts import AlongExperts, Anywhere, Place
from limbeck.objectives.classes import ClassPairs
from limbeck.objectives.combine import Sum
from limbeck.objectives.features import IMAGES, ClassCrossEntropy, ClassDistance, MatchFeatures
from limbeck.synthetic.hooks import make_clamp_hooks
from limbeck.synthetic.set import SyntheticSet


class FeatureMatchingConfig(ClassMatchingConfig):
    """Options of the methods that match features along the paths of experts."""

    factor: Tiles = 2
    """f: every image holds f x f tiles, each a training image when enlarged; 1 turns tiles off."""
    how: Literal["single", "multi", "bound"] = "single"
    """Cut by f (single), by 1 to f (multi), or by up to f for at most 128 training images a class (bound)."""
    batch_syn: Count = 200
    """Synthetic training images per class and outer step, at most."""
    optimizer: Literal["sgd", "adam"] = "adam"
    """Optimiser of the images."""
    lr_img: StepSize = 0.02
    """Step size of the images in pixel space (0 to 1), as the authors'."""
    momentum: Decay = 0.9
    """Momentum of SGD on the images; of Adam it is beta1."""
    match_augment: str = "color_crop_cutout"
    """Families of the siamese augmentation; of those other than flip, color and cutout one is drawn at a time."""

    def initial_images(self, ipc: int) -> int:
        """Return one real image per tile."""
        return ipc * self.factor**2


def make_optimiser(
    options: FeatureMatchingConfig, inputs: MethodInputs, synthetic: SyntheticSet
) -> torch.optim.Optimizer:
    """Return the optimiser of the images, whose step in network input space is that of `lr_img` in pixel space."""
    variance = mean_pixel_variance(inputs.task.preprocess)
    if options.optimizer == "sgd":
        return make_image_optimiser(synthetic, options.lr_img / variance, options.momentum)
    return torch.optim.Adam([synthetic.images], options.lr_img / variance**0.5, betas=(options.momentum, 0.999))


def make_plan(
    options: FeatureMatchingConfig, inputs: MethodInputs, distance: ClassDistance, weight: float, trained: Place
) -> Plan:
    """Match features at random places on the paths of experts, and add a cross-entropy under networks farther on.

    weight: of the cross-entropy. trained: where on the path of the same expert its network lies.
    """
    task = inputs.task
    experts = AlongExperts(inputs.trajectories, Anywhere(), task.device)
    synthetic = init_synthetic_set(options, inputs, experts, make_tiles(options.factor, options.how, inputs))
    rows, hooks = make_row_sampler(options, inputs, MatchingNetwork(experts, 1, []))
    pairs = ClassPairs(task.train, rows, ComposedDSA(DSA(options.match_augment, siamese=True)), options.batch_syn)
    is_fast_together = task.image_functions.derivatives is not None or task.device.type != "cpu"  # docs/LOG.md
    together = IMAGES if is_fast_together and not task.model.has_statistics else 1
    match = MatchFeatures(pairs, experts, task.image_functions.features, distance, together)
    classify = ClassCrossEntropy(pairs, replace(experts, place=trained), task.image_functions.logits, together)
    objective = Sum(((1.0, match), (weight, classify))) if weight else match
    hooks = [*make_clamp_hooks(task.preprocess), *hooks]
    optimiser = make_optimiser(options, inputs, synthetic)
    return Plan(objective, synthetic, [optimiser], options.iterations, hooks=hooks)
