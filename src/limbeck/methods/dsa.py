"""DSA (Zhao and Bilen, ICML 2021): DC with the same augmentation of real and synthetic images."""

from __future__ import annotations

from dataclasses import replace

from limbeck.methods.dc import DCConfig, DCOptions, make_plan, resolve
from limbeck.methods.plan import Method, MethodInputs, Plan


def plan(options: DCOptions, inputs: MethodInputs) -> Plan:
    """Match gradients under one draw of the augmentation per class; the network's own images are augmented singly."""
    augment = inputs.task.augment
    return make_plan(options, inputs, replace(augment, siamese=True), augment)


DSA = Method(
    name="dsa",
    summary="DC with the same differentiable augmentation of real and synthetic images",
    source="Zhao and Bilen, Dataset Condensation with Differentiable Siamese Augmentation, ICML 2021",
    config=DCConfig,
    experts=None,
    plan=plan,
    resolve=resolve,
    learns=("images",),
)
