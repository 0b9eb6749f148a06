"""How an expert is trained, and what of its trajectory is stored."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    computed_field,
    model_serializer,
    model_validator,
)

from limbeck.core.errors import UserError
from limbeck.core.ranges import Count, CountOrZero, Decay, Size, StepSize, Weight
from limbeck.core.short_repr import changed_options
from limbeck.core.text import quote
from limbeck.experts.convexified import SCHEDULES, SMOOTHING, growing_epochs, waypoint_epochs

DTYPES = {"float32": torch.float32, "float16": torch.float16}
STORED_FORM = ("waypoints", "waypoint_at", "smoothing", "schedule", "keep", "dtype", "form")
"""Fields of `ExpertConfig` that say what is stored of an expert; its training does not depend on them."""


class ExpertConfig(BaseModel):
    """How an expert is trained, and what of its trajectory is stored."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)
    __repr_args__ = changed_options

    epochs: Count = 30
    """Passes over the training images (the papers: 50)."""
    lr: StepSize = 0.01
    """Step size of SGD."""
    momentum: Decay = 0.0
    """Momentum of SGD; 0 in every paper, since the student takes plain steps."""
    weight_decay: Weight = 0.0
    """Weight decay of SGD; 0 in every paper."""
    batch_size: Count = 256
    """Real images per step."""
    waypoints: Annotated[Size, Field(ge=2)] | None = None
    """Equally spaced points of the trajectory to store (MCT's paper: 2, its code: 4); the default is the first and the
    last epoch, a third of it, a ninth and so on, down to 5 steps times step size."""
    waypoint_at: tuple[CountOrZero, ...] = ()
    """Epochs of the waypoints, from 0 to the last, where they are to be others."""
    smoothing: str = "mct"
    """Averages around waypoints, where there are more than two: none, or those of the authors' training (mct) or
    parallel script (mct-older)."""
    schedule: str = "arc"
    """How beta grows: by arc length per tensor (arc), or as in one of MCT's ablations (uniform, decreasing)."""
    keep: Literal["convex", "recorded", "both"] = "convex"
    """Store the convexified trajectory, every epoch's parameters, or both."""
    dtype: Literal["float32", "float16"] = "float32"
    """Number format of the stored parameters."""
    sam_rho: Weight = 0.0
    """Radius in which SAM looks for the sharpest point (FTD and DATM: 0.01); 0 trains by plain gradients."""
    sam_alpha: Weight = 0.3
    """Weight of the gradient's component across the perturbed gradient in GSAM (FTD: 0.3 or 1); 0 is SAM."""
    sam_adaptive: bool = True
    """Scale the radius by each parameter's size (ASAM), as FTD's code does."""
    balanced: bool = False
    """Train on as many images of every class in an epoch of as many steps: those of rare classes come again."""

    @model_serializer(mode="wrap")
    def _leave_out_balanced(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out `balanced` where it is off: keys of stores from before there was the option do not change."""
        values: dict[str, Any] = serialize(self)
        return {name: value for name, value in values.items() if name != "balanced" or value}

    def waypoint_epochs(self) -> tuple[int, ...]:
        """Return the epochs of the waypoints, from 0 to the last.

        Raises UserError for waypoints that do not fit the epochs, and for an unknown smoothing or schedule.

        >>> ExpertConfig(epochs=50, waypoints=4).waypoint_epochs()
        (0, 17, 33, 50)
        """
        if self.smoothing not in SMOOTHING:
            raise UserError(f"no smoothing is called {quote(self.smoothing)}; choose one of {', '.join(SMOOTHING)}.")
        if self.schedule not in SCHEDULES:
            raise UserError(f"no schedule is called {quote(self.schedule)}; choose one of {', '.join(SCHEDULES)}.")
        epochs = self.waypoint_at
        if not epochs:
            return waypoint_epochs(self.waypoints or 2, self.epochs)
        if epochs[0] != 0 or epochs[-1] != self.epochs or list(epochs) != sorted(set(epochs)):
            raise UserError(
                f"waypoints (waypoint-at) go up from 0 to the expert's last epoch, {self.epochs}; {epochs} do not."
            )
        return epochs

    def with_waypoints(self, steps_per_epoch: int) -> ExpertConfig:
        """Return the config with the waypoints that follow from the data, where they were left open.

        >>> ExpertConfig().with_waypoints(211).waypoint_epochs(), ExpertConfig().with_waypoints(6).waypoint_epochs()
        ((0, 3, 10, 30), (0, 30))
        """
        if self.waypoints is not None or self.waypoint_at:
            return self
        epochs = growing_epochs(self.epochs, steps_per_epoch * self.lr)
        two = {"waypoints": 2, "smoothing": "none"}  # as these were described before there were others by default
        several = {"waypoints": len(epochs), "waypoint_at": epochs}
        return self.model_copy(update=two if len(epochs) == 2 else several)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def form(self) -> str:
        """The form of the path between waypoints. There is one, but keys of stores and runs contain its name."""
        return "convex"

    @model_validator(mode="before")
    @classmethod
    def _drop_form(cls, fields: Any) -> Any:
        """Accept what `model_dump` returns."""
        if isinstance(fields, dict) and fields.get("form") == "convex":
            return {name: value for name, value in fields.items() if name != "form"}
        return fields
