"""The protocol of an evaluation: how networks are trained on a set and scored, and how many."""

from __future__ import annotations

from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from limbeck.core.ranges import Count, CountOrZero, Decay, Passes, Size, StepSize, Weight
from limbeck.core.short_repr import changed_options
from limbeck.training.plain import Schedule, make_schedule

ProtocolName = Literal["field", "field-max", "ddranking", "quick"]
PROTOCOLS: dict[str, dict[str, Any]] = {
    "field": {},
    "field-max": {"test_every": 20},
    "ddranking": {"test_every": 20, "baseline_lrs": (0.001, 0.005, 0.01, 0.05, 0.1)},
    "quick": {"networks": 3, "epochs": 200, "full_epochs": 5, "full_networks": 1},
}
"""The values in which a named protocol differs from the field's.

ddranking is DD-Ranking's (0.2.0) for DC, DSA, DM, MTT and DATM; the best test accuracy over time is a part of it.
"""
ADAMW_LRS = (3e-4, 1e-3, 3e-3)
BEST_OF_TEST = "best test accuracy over time"


class Chosen(Protocol):
    """What is measured on validation to choose by, such as `limbeck.evaluation.trials.Summary`."""

    @property
    def accuracy_mean(self) -> float:
        """The mean accuracy of networks."""

    @property
    def balanced_accuracy_mean(self) -> float:
        """The mean over networks of their mean accuracy over classes."""


class EvalConfig(BaseModel):
    """A protocol; the default is the field's: SGD on the set from a random start, with the set's own step size.

    A `protocol` by name sets the fields that are not given.

    >>> EvalConfig(protocol="quick", networks=2).epochs, EvalConfig(protocol="quick", networks=2).networks
    (200, 2)
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)
    __repr_args__ = changed_options

    networks: Size = 5
    """Number of fresh networks, each with its own seed."""
    epochs: Passes = 1000
    """Passes over the set; the step size drops to a tenth after half of them."""
    batch_size: Count = 256
    """Images per step."""
    momentum: Decay = 0.9
    """Momentum of SGD."""
    weight_decay: Weight = 5e-4
    """Weight decay of the optimiser."""
    baseline_lrs: tuple[StepSize, ...] = Field(default=(0.003, 0.01, 0.03), min_length=1)
    """Step sizes to choose from on validation, for sets without a step size of their own, such as real images."""
    baselines: tuple[Literal["random", "kmeans"], ...] = ("random", "kmeans")
    """Real images to compare with: random, k-means or, without a word, none; full-networks is for all images."""
    full_epochs: Count = 30
    """Passes over the whole training part, for the full-data accuracy."""
    full_batch_size: Count = 64
    """Images per step, for the full-data accuracy."""
    full_networks: CountOrZero = 3
    """Number of networks for the full-data accuracy; 0 leaves it out."""
    protocol: ProtocolName = "field"
    """A named protocol, which sets the options that are not given."""
    test_every: CountOrZero = 0
    """Test after every so many epochs and report the best accuracy, which chooses by the test images; 0: at the end."""
    labels: Literal["set", "hard", "teacher"] = "set"
    """Labels: as the set has them, its classes alone, or those of a network trained on real images on each batch."""
    teachers: Size = 1
    """Networks whose mean logits label the batches."""
    temperature: StepSize = 1.0
    """Temperature of the teachers' labels and of the loss on them, which is multiplied by its square."""
    mix: Literal["none", "cutmix", "mixup"] = "none"
    """Mix the images of a batch by CutMix or MixUp; teachers label the mixed images."""
    optimiser: Literal["sgd", "adamw"] = "sgd"
    """Optimiser; a step size that was learned with a set is for SGD, so that adamw has one chosen on validation."""
    decay: Literal["step", "cosine"] = "step"
    """Step size: a tenth after half of the epochs, or along half a cosine to 0."""
    dsa: Literal["set", "none"] = "set"
    """Augment each batch as the recipe of the set says, or not at all."""
    ema: Decay = 0.0
    """Score an average of the parameters over steps with this decay; 0 scores the parameters."""
    choose_by: Literal["accuracy", "balanced"] = "accuracy"
    """The validation accuracy by which steps and step sizes are chosen: plain, or its mean over classes (balanced)."""

    @model_validator(mode="before")
    @classmethod
    def _start_from_the_protocol(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        lrs = {"baseline_lrs": ADAMW_LRS} if values.get("optimiser") == "adamw" else {}
        protocol = next((fields for name, fields in PROTOCOLS.items() if name == values.get("protocol", "field")), {})
        return {**lrs, **protocol, **values}

    @model_serializer(mode="wrap")
    def _leave_out_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out options that came later at their defaults: keys and files of the field's protocol do not change."""
        values: dict[str, Any] = handler(self)
        if tuple(values.get("baselines", ())) == ("random", "kmeans"):
            del values["baselines"]
        return {name: value for name, value in values.items() if name not in ADDED or value != ADDED[name]}

    @property
    def plain(self) -> EvalConfig:
        """The same numbers with the field's optimiser, labels and scoring: by it sets are validated on the way."""
        return self.model_copy(update=ADDED)

    @property
    def label(self) -> str | None:
        """What rows say of the protocol; None for the field's.

        >>> EvalConfig(protocol="field-max").label, EvalConfig(labels="hard").label
        ('field-max, best test accuracy over time', 'field, labels hard')
        """
        preset = {**ADDED, **PROTOCOLS[self.protocol]}
        own = ("protocol", "choose_by")  # the second one trains the networks of a row no differently
        changes = [name for name in ADDED if name not in own and getattr(self, name) != preset[name]]
        words = [self.protocol, *(f"{name} {getattr(self, name)}".replace("_", " ") for name in changes)]
        words += [BEST_OF_TEST] if self.test_every else []
        return None if words == ["field"] else ", ".join(words)

    def choice(self, summary: Chosen) -> float:
        """The figure of validation by which steps and step sizes are chosen: the largest is best."""
        return summary.accuracy_mean if self.choose_by == "accuracy" else summary.balanced_accuracy_mean

    def schedule(self, lr: float, epochs: int | None = None) -> Schedule:
        """The schedule with the step size `lr`; epochs: the default is the protocol's.

        >>> EvalConfig(networks=10).schedule(lr=0.01).epochs
        1000
        """
        epochs = self.epochs if epochs is None else epochs
        parts = self.batch_size, self.momentum, self.weight_decay, self.optimiser, self.decay, self.ema
        return make_schedule(epochs, lr, *parts)

    def full_schedule(self, lr: float) -> Schedule:
        """The schedule of training on the whole training part, with the step size `lr`."""
        return self.model_copy(update={"batch_size": self.full_batch_size}).schedule(lr, self.full_epochs)

    def describe(self, augment: str) -> str:
        """The protocol in words, with the families of its augmentation.

        >>> EvalConfig(epochs=300).describe("flip")[:58]
        '300 epochs of SGD with momentum 0.9, weight decay 0.0005, '
        >>> EvalConfig(optimiser="adamw", decay="cosine", dsa="none").describe("flip")[:95]
        '1000 epochs of AdamW with weight decay 0.0005, batch 256, step size along a cosine to 0, augmen'
        """
        optimiser = f"SGD with momentum {self.momentum}, " if self.optimiser == "sgd" else "AdamW with "
        decay = "step size x 0.1 after half of them" if self.decay == "step" else "step size along a cosine to 0"
        teachers = f"{self.teachers} network{'s' * (self.teachers > 1)} trained on all images"
        parts = [
            f"batch {self.batch_size}",
            decay,
            f"augmentation {augment if self.dsa == 'set' else 'none'}",
            *([f"images mixed by {self.mix}"] if self.mix != "none" else []),
            *(["labels: the classes alone"] if self.labels == "hard" else []),
            *([f"labels by {teachers}, temperature {self.temperature:g}"] if self.labels == "teacher" else []),
            *([f"parameters averaged with decay {self.ema:g}"] if self.ema else []),
            *(["steps and step sizes chosen by balanced accuracy"] if self.choose_by == "balanced" else []),
        ]
        best = f"; {BEST_OF_TEST}, tested every {self.test_every} epochs" if self.test_every else ""
        return (
            f"{self.epochs} epochs of {optimiser}weight decay {self.weight_decay}, {', '.join(parts)}{best}; std is "
            "the sample standard deviation over networks"
        )


ADDED: dict[str, Any] = {
    name: EvalConfig.model_fields[name].default
    for name in (
        *(
            "protocol",
            "test_every",
            "labels",
            "teachers",
            "temperature",
            "mix",
            "optimiser",
            "decay",
            "dsa",
            "ema",
            "choose_by",
        ),
    )
}
"""Options that the field's protocol does not have, with their defaults."""
