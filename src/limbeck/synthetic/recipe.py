"""Training of any torch module on a distilled set, by the recipe that the set carries."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from limbeck.core.errors import UserError
from limbeck.core.rng import make_generator
from limbeck.data.augment import DSA, CanvasCrop
from limbeck.data.cutmix import MIXES
from limbeck.synthetic.set import hard_labels
from limbeck.training.module import train_module
from limbeck.training.plain import make_schedule

if TYPE_CHECKING:
    from limbeck.synthetic.distilled import DistilledSet

CHOSEN_LR = "chosen on validation"
"""The `lr` in the provenance of a set whose method learns no step size."""
OPTIMISERS = {"sgd": "SGD", "adamw": "AdamW"}
SCHEDULE = ("batch_size", "momentum", "weight_decay", "optimiser", "decay", "ema")


def lr_optimiser(distilled: DistilledSet) -> str:
    """The optimiser that a set's step size is for: sgd if it was learned, the recipe's if validation chose it."""
    is_chosen = distilled.provenance.get("lr") == CHOSEN_LR
    return str(distilled.recipe.get("optimiser") or "sgd") if is_chosen else "sgd"


def name_optimiser(optimiser: object) -> str:
    """An optimiser of a recipe in words.

    >>> name_optimiser("adamw"), name_optimiser(None)
    ('AdamW', 'SGD')
    """
    return OPTIMISERS.get(str(optimiser or "sgd"), str(optimiser))


def train_by_recipe(
    module: nn.Module, distilled: DistilledSet, seed: int, epochs: int | None, lr: float | None
) -> None:
    """Train a module in place as the set's recipe says, on the device of its parameters; see `DistilledSet.train`."""
    recipe = {name: value for name, value in distilled.recipe.items() if value is not None}
    if recipe.get("labels") == "teacher":
        raise UserError("this set's recipe has labels from a teacher network: 'limbeck evaluate' trains that too.")
    if epochs is None and "epochs" not in recipe:
        raise UserError("the set's recipe says nothing of epochs; give them: small.train(network, epochs=1000).")
    parts = {name: recipe[name] for name in SCHEDULE if name in recipe}
    if lr is None and lr_optimiser(distilled) != recipe.get("optimiser", "sgd"):
        raise UserError(
            f"the set's step size {distilled.lr:.3g} was learned with {name_optimiser(lr_optimiser(distilled))}, and "
            f"its recipe trains by {name_optimiser(recipe['optimiser'])}; give one for that, such as "
            "small.train(network, lr=0.001): results.json of its run has the one that validation chose."
        )
    schedule = make_schedule(epochs or recipe["epochs"], distilled.lr if lr is None else lr, **parts)
    parameter = next(module.parameters(), None)
    if parameter is None:
        raise UserError("the network has no parameters to train.")
    images, labels = distilled.images.to(parameter.device), distilled.labels.to(parameter.device)
    if recipe.get("labels") == "hard":
        labels = hard_labels(labels)
    augment, mix, classes = distilled.augment, MIXES.get(str(recipe.get("mix"))), len(distilled.classes)
    if recipe.get("dsa") == "none":
        augment = CanvasCrop(augment.size, DSA("none"))

    def prepare(x: Tensor, y: Tensor, batch_seed: int) -> tuple[Tensor, Tensor]:
        x = augment(x, batch_seed)
        if mix is None:
            return x, y
        y = y if y.is_floating_point() else torch.nn.functional.one_hot(y, classes).to(x.dtype)
        return mix(x, y, make_generator(batch_seed, "mix"))

    deque(train_module(module, images, labels, schedule, seed, prepare), maxlen=0)
