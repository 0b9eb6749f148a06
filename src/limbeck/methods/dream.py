"""DREAM (Liu et al., ICCV 2023): IDC with representative real images, by clusters; and DREAM+ (arXiv 2310.15052)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from limbeck.methods.coreset import Init
from limbeck.methods.idc import IDCConfig, plan, step_size
from limbeck.methods.plan import Method


class DREAMConfig(IDCConfig):
    """Options of DREAM: those of IDC, with other defaults."""

    init: Init | Literal["dream", "noise"] = "dream"
    """where images start: a coreset's name; dream: real ones by clusters of an untrained network's features; noise"""
    policy: Literal["random", "dream", "centre", "boundary"] = "dream"
    """which real images: random ones at every step; by clusters of features; nearest or farthest from the class mean"""


class DREAMPlusConfig(DREAMConfig):
    """Options of DREAM+: those of DREAM, with a warm-up and the term of features."""

    warm_up: int = Field(default=1, ge=0)
    """epochs on all real images that every new network gets first"""
    feature_weight: float = Field(default=1.0, ge=0)
    """of the distance of mean features beside that of gradients"""


DREAM = Method(
    name="dream",
    summary="IDC with real images that represent their class, chosen by clusters of features",
    source="Liu et al., DREAM: Efficient Dataset Distillation by Representative Matching, ICCV 2023",
    config=DREAMConfig,
    experts=None,
    plan=plan,
    resolve=step_size,
    learns=("images",),
)

DREAM_PLUS = Method(
    name="dream-plus",
    summary="DREAM under warmed-up networks, matching mean features as well as gradients",
    source="Liu et al., DREAM+: Efficient Dataset Distillation by Bidirectional Representative Matching, 2310.15052",
    config=DREAMPlusConfig,
    experts=None,
    plan=plan,
    resolve=step_size,
    learns=("images",),
)
