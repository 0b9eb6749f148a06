"""DREAM (Liu et al., ICCV 2023): IDC with representative real images, by clusters; and DREAM+ (arXiv 2310.15052)."""

from __future__ import annotations

from typing import Literal

from limbeck.core.ranges import Weight
from limbeck.methods.idc import IDCConfig, IDCOptions, WarmUpEpochs, plan, resolve_step_size
from limbeck.methods.initial import DreamInitName
from limbeck.methods.plan import DataFacts, Method


class DREAMConfig(IDCConfig):
    """Options of DREAM: those of IDC, with other defaults."""

    init: DreamInitName = "dream"
    """A coreset, real images by clusters of an untrained network's features (dream), or noise."""
    policy: Literal["random", "dream", "centre", "boundary"] = "dream"
    """Real images: random, by clusters of features (dream), or by distance to the class mean (centre, boundary)."""


class DREAMOptions(IDCOptions, DREAMConfig):
    """Options of DREAM with every default resolved."""


def resolve(config: DREAMConfig, facts: DataFacts) -> DREAMOptions:
    """Return the options with a number for the step size of the images."""
    return DREAMOptions(**config.model_dump() | resolve_step_size(config, facts))


class DREAMPlusConfig(DREAMConfig):
    """Options of DREAM+: those of DREAM, with a warm-up and the distance of features."""

    warm_up: WarmUpEpochs = 1
    """Epochs on all real images that every new network is trained for first."""
    feature_weight: Weight = 1.0
    """Weight of the distance of mean features; that of gradients has weight 1."""


class DREAMPlusOptions(DREAMOptions, DREAMPlusConfig):
    """Options of DREAM+ with every default resolved."""


def resolve_plus(config: DREAMPlusConfig, facts: DataFacts) -> DREAMPlusOptions:
    """Return the options with a number for the step size of the images."""
    return DREAMPlusOptions(**config.model_dump() | resolve_step_size(config, facts))


DREAM = Method(
    name="dream",
    summary="IDC with real images that represent their class, chosen by clusters of features",
    source="Liu et al., DREAM: Efficient Dataset Distillation by Representative Matching, ICCV 2023",
    config=DREAMConfig,
    experts=None,
    plan=plan,
    resolve=resolve,
    learns=("images",),
)

DREAM_PLUS = Method(
    name="dream-plus",
    summary="DREAM under warmed-up networks, matching mean features as well as gradients",
    source="Liu et al., DREAM+: Efficient Dataset Distillation by Bidirectional Representative Matching, 2310.15052",
    config=DREAMPlusConfig,
    experts=None,
    plan=plan,
    resolve=resolve_plus,
    learns=("images",),
)
