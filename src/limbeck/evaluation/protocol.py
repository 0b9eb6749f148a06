"""The protocol of an evaluation: how networks are trained on a set, and how many."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from limbeck.training.plain import Schedule


class EvalConfig(BaseModel):
    """The field's protocol: SGD on the set from a random start, with the set's own step size."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    networks: int = Field(default=5, ge=1)
    """Number of fresh networks, each with its own seed."""
    epochs: int = Field(default=1000, ge=1)
    """Passes over the set; the step size drops to a tenth after half of them."""
    batch_size: int = Field(default=256, ge=1)
    """Images per step."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Momentum of SGD."""
    weight_decay: float = Field(default=5e-4, ge=0)
    """Weight decay of SGD."""
    baseline_lrs: tuple[Annotated[float, Field(gt=0)], ...] = Field(default=(0.003, 0.01, 0.03), min_length=1)
    """Step sizes to choose from on validation, for sets without a step size of their own, such as real images."""
    full_epochs: int = Field(default=30, ge=1)
    """Passes over the whole training part, for the full-data accuracy."""
    full_batch_size: int = Field(default=64, ge=1)
    """Images per step, for the full-data accuracy."""
    full_networks: int = Field(default=3, ge=0)
    """Number of networks for the full-data accuracy; 0 leaves it out."""

    def schedule(self, lr: float, epochs: int | None = None) -> Schedule:
        """The schedule with the step size `lr`; epochs: the default is the protocol's.

        >>> EvalConfig(networks=10).schedule(lr=0.01).epochs
        1000
        """
        epochs = self.epochs if epochs is None else epochs
        return Schedule(epochs, lr, self.batch_size, self.momentum, self.weight_decay, epochs // 2 + 1)

    def full_schedule(self, lr: float) -> Schedule:
        """The schedule of training on the whole training part, with the step size `lr`."""
        return self.model_copy(update={"batch_size": self.full_batch_size}).schedule(lr, self.full_epochs)

    def describe(self, augment: str) -> str:
        """The protocol in words, with the families of its augmentation.

        >>> EvalConfig(epochs=300).describe("flip")[:58]
        '300 epochs of SGD with momentum 0.9, weight decay 0.0005, '
        """
        return (
            f"{self.epochs} epochs of SGD with momentum {self.momentum}, weight decay {self.weight_decay}, "
            f"batch {self.batch_size}, step size x 0.1 after half of them, augmentation {augment}; std is "
            "the sample standard deviation over networks"
        )
