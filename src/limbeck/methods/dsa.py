"""DSA (Zhao and Bilen, ICML 2021): DC with the same augmentation of real and synthetic images."""

from __future__ import annotations

from dataclasses import replace

from limbeck.methods.dc import DCConfig, compose, loops
from limbeck.methods.plan import Method, MethodInputs, Plan


class DSAConfig(DCConfig):
    """Options of DSA: those of DC. The families are --augment."""


def plan(config: DSAConfig, inputs: MethodInputs) -> Plan:
    """One draw for all images of a class, real and synthetic; the network's lessons are augmented image by image."""
    augment = inputs.task.augment
    return compose(config, inputs, replace(augment, siamese=True), augment)


DSA = Method(
    name="dsa",
    summary="DC with the same differentiable augmentation of real and synthetic images",
    source="Zhao and Bilen, Dataset Condensation with Differentiable Siamese Augmentation, ICML 2021",
    config=DSAConfig,
    experts=None,
    plan=plan,
    resolve=loops,
    learns=("images",),
)
