"""How well trained networks do on perturbed test images: under common corruptions, and under attack."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean, stdev
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from limbeck.core.errors import UserError
from limbeck.core.evaluation_records import CLEAN, RobustnessRow
from limbeck.core.ranges import NUMBER, Count
from limbeck.core.rng import make_generator
from limbeck.core.text import quote
from limbeck.evaluation.attacks import ATTACKS, margin_gradient
from limbeck.evaluation.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from limbeck.evaluation.training import TrainedNetwork
from limbeck.task import Task
from limbeck.training.plain import predict_logits, score_classes

CHUNK = 250  # images that are attacked at once


class RobustnessOptions(BaseModel):
    """How test images are perturbed."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    epsilon: Annotated[float, Field(ge=0, le=255), NUMBER] = 8.0
    """Largest change of a pixel by an attack, in 255ths of the range from black to white."""
    steps: Count = 10
    """Steps of PGD, each of 2.5 epsilon divided by their number."""
    images: Count = 1000
    """Test images to perturb: at random, as many of every class."""

    def describe(self) -> dict[str, Any]:
        """All of them as JSON values.

        >>> RobustnessOptions(epsilon=4).describe()
        {'epsilon': 4.0, 'steps': 10, 'images': 1000}
        """
        return self.model_dump(mode="json")


class RobustnessConfig(RobustnessOptions):
    """Attacks and corruptions under which trained networks are tested, by their names."""

    attacks: tuple[str, ...] = ()
    """Of `limbeck.evaluation.attacks.ATTACKS`."""
    corruptions: tuple[str, ...] = ()
    """Of `limbeck.evaluation.corruptions.CORRUPTIONS`."""

    @property
    def passes(self) -> tuple[int, int]:
        """How often a network sees every image: for its logits, and for a gradient."""
        gradients = sum(self.steps if ATTACKS[name].is_iterative else 1 for name in self.attacks)
        return 1 + len(self.attacks) + len(SEVERITIES) * len(self.corruptions), gradients


def make_robustness(
    attack: str | Sequence[str] | None = None,
    corruptions: bool | Sequence[str] = False,
    options: RobustnessOptions | None = None,
) -> RobustnessConfig | None:
    """What networks are tested under; None for no attack and no corruption.

    attack:      Names of attacks, or one string of them with commas.
    corruptions: True for all of them, or names.
    Raises UserError for a name that is not known, and for options where nothing is perturbed.

    >>> make_robustness("fgsm,pgd").attacks, make_robustness() is None
    (('fgsm', 'pgd'), True)
    """
    attacks = attack.split(",") if isinstance(attack, str) else attack or ()
    names = {
        "attack": tuple(dict.fromkeys(name.strip() for name in attacks)),
        "corruption": tuple(CORRUPTIONS) if corruptions is True else tuple(dict.fromkeys(corruptions or ())),
    }
    for kind, choices in (("attack", ATTACKS), ("corruption", CORRUPTIONS)):
        for name in names[kind]:
            if name not in choices:
                raise UserError(f"no {kind} called {quote(name)}; choose of: {', '.join(choices)}.")
    values = {} if options is None else options.model_dump(include={*RobustnessOptions.model_fields})
    if not any(names.values()):
        if options not in (None, RobustnessOptions()):
            raise UserError("options of robustness are for perturbed test images; add --attack pgd or --corruptions.")
        return None
    return RobustnessConfig(**values, attacks=names["attack"], corruptions=names["corruption"])


def balanced_rows(labels: Tensor, classes: int, count: int, seed: int) -> Tensor:
    """Rows (m,) of about `count` images, in order: of every class count // classes at random, or all that it has.

    >>> balanced_rows(torch.tensor([0, 0, 0, 1]), 2, 4, seed=0).numel()
    3
    """
    order = torch.randperm(len(labels), generator=make_generator(seed, "robustness", "images"))
    quota = max(1, count // classes)
    rows = [order[labels[order] == index][:quota] for index in range(classes)]
    return torch.cat(rows).sort().values


@dataclass(frozen=True)
class RobustnessTest:
    """Tests trained networks of one task on perturbed test images; random only through `seed`.

    Images are perturbed as pixels in [0, 1] and then preprocessed. Corrupted images are the same for every network.
    """

    task: Task
    config: RobustnessConfig
    seed: int

    @cached_property
    def images(self) -> tuple[Tensor, Tensor]:
        """Pixels (n, c, h, w) in [0, 1], float32 on the CPU, and their classes (n,)."""
        split = self.task.data.test
        rows = balanced_rows(split.labels, self.task.data.num_classes, self.config.images, self.seed)
        return split.images[rows].float() / 255, split.labels[rows]

    def run(
        self, networks: Sequence[TrainedNetwork], advance: Callable[[], None] = lambda: None
    ) -> list[RobustnessRow]:
        """The rows of networks: on the images as they are, under every attack, and under every corruption.

        advance: called after every network.
        """
        pixels, _ = self.images
        attacked: list[list[float]] = []
        for network in networks:
            attacked.append([self._accuracy(network, self.attack(network, name)) for name in self.config.attacks])
            advance()
        rows = [self._row(CLEAN, [self._accuracy(network, pixels) for network in networks])]
        for name, values in zip(self.config.attacks, zip(*attacked)):
            steps = self.config.steps if ATTACKS[name].is_iterative else 1
            rows.append(self._row(name, values, epsilon=self.config.epsilon, steps=steps))
        for name, severity in self._corruptions():
            images = corrupt(name, pixels, severity, self.seed)
            rows.append(self._row(name, [self._accuracy(network, images) for network in networks], severity=severity))
        return rows

    def attack(self, network: TrainedNetwork, name: str) -> Tensor:
        """The images under an attack on a network, on the CPU."""
        pixels, labels = self.images
        if not network.is_finite:
            return pixels
        attack, epsilon = ATTACKS[name].perturb, self.config.epsilon / 255
        # What is fast in inference has no gradient in the images; batch norm is differentiated as it is evaluated.
        logits = network.network if self.task.model.has_statistics else self.task.model
        parts = []
        for index, (part, classes) in enumerate(zip(pixels.split(CHUNK), labels.split(CHUNK))):
            generator = make_generator(self.seed, "attack", name, index)
            gradient = margin_gradient(logits, network.theta, classes.to(self.task.device), self.task.preprocess.apply)
            parts.append(attack(gradient, part.to(self.task.device), epsilon, self.config.steps, generator).cpu())
        return torch.cat(parts)

    def _corruptions(self) -> Iterator[tuple[str, int]]:
        yield from ((name, severity) for name in self.config.corruptions for severity in SEVERITIES)

    def _accuracy(self, network: TrainedNetwork, pixels: Tensor) -> float:
        if not network.is_finite:
            return 0.0
        images = self.task.preprocess.apply(pixels.to(self.task.device))
        predictions = predict_logits(network.network, network.theta, images).argmax(1).cpu()
        return score_classes(predictions, self.images[1]).accuracy

    def _row(self, name: str, accuracies: Sequence[float], **fields: Any) -> RobustnessRow:
        return RobustnessRow(
            perturbation=name,
            images=len(self.images[1]),
            accuracy_mean=fmean(accuracies),
            accuracy_std=stdev(accuracies) if len(accuracies) > 1 else None,
            n=len(accuracies),
            accuracies=list(accuracies),
            **fields,
        )
