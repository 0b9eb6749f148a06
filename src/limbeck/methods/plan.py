"""The interface of a method: its options, its inputs, the plan that it returns, and its line in the registry."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from limbeck.core.sampling import split_by_class
from limbeck.core.short_repr import changed_options, short_repr
from limbeck.core.types import Trajectory
from limbeck.experts.config import ExpertConfig
from limbeck.experts.store import Kind
from limbeck.select.fill import FillName
from limbeck.synthetic.hooks import Ema
from limbeck.synthetic.loop import Hook, Objective
from limbeck.synthetic.set import SyntheticSet
from limbeck.task import Task


class MethodInputs(NamedTuple):
    """The inputs of a plan.

    trajectories: of the experts, of the kind that the method needs. A method that needs none gets some only where the
        user named a store of experts.
    ipc: images per class of the synthetic set.
    seed: of everything random.
    fill: what to do about classes with fewer images than the set starts from.
    balanced: whether batches of real images are to have as many of every class.
    """

    task: Task
    trajectories: Sequence[Trajectory]
    ipc: int
    seed: int
    fill: FillName = "none"
    balanced: bool = False

    def __repr__(self) -> str:
        return short_repr(self)

    def class_rows(self) -> tuple[Tensor, ...] | None:
        """Return the training rows of every class where real batches are to be balanced; None where they are not."""
        return split_by_class(self.task.train[1]) if self.balanced else None


class DataFacts(NamedTuple):
    """Facts on which the defaults of a method may depend.

    train_images: how many there are, over all classes.
    ipc: images per class of the synthetic set.
    expert: how the experts are trained.
    """

    train_images: int
    ipc: int
    expert: ExpertConfig

    @property
    def steps_per_epoch(self) -> int:
        """Steps that an expert takes per epoch; its last batch may be smaller."""
        return -(-self.train_images // self.expert.batch_size)


class Plan(NamedTuple):
    """A method made concrete: what to minimise, from where, by which optimisers, for how many outer steps.

    accept: loss -> whether the outer step may be taken.
    hooks: called after every outer step, in this order.
    as_evaluated: the set that is optimised, or its average -> the set to evaluate and to keep; None: the same set.
    """

    objective: Objective
    synthetic: SyntheticSet
    optimisers: Sequence[torch.optim.Optimizer]
    iterations: int
    accept: Callable[[float], bool] | None = None
    hooks: Sequence[Hook] = ()
    as_evaluated: Callable[[SyntheticSet], SyntheticSet] | None = None

    def __repr__(self) -> str:
        return short_repr(self)

    def evaluated_set(self) -> SyntheticSet:
        """Return a detached copy of the set to evaluate and to keep, as it is now."""
        evaluated = self.synthetic if self.as_evaluated is None else self.as_evaluated(self.synthetic)
        return evaluated.snapshot()

    def with_average(self, decay: float, *, unbiased: bool = False) -> Plan:
        """Return the plan in which an exponential average of the set takes the place of the set that is evaluated.

        All that is learned is averaged, but the student's step size. decay, unbiased: as in `Ema`.
        """
        names = [name for name in self.synthetic.learned if name != "log_lr"]
        ema = Ema(self.synthetic, decay, names, unbiased=unbiased)
        after = self.as_evaluated
        as_evaluated = ema.average if after is None else lambda synthetic: after(ema.average(synthetic))
        return self._replace(hooks=[*self.hooks, ema], as_evaluated=as_evaluated)


class MethodConfig(BaseModel):
    """Options of a method as a user gives them. Its fields are flags; the docstring under each is its help.

    added: Names of options that came after runs had been recorded without them; a subclass names its own.
    The methods below are estimates for `prepare` and `estimate`, which try a plan on a part of the real images.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)
    __repr_args__ = changed_options

    added: ClassVar[tuple[str, ...]] = ()

    def initial_images(self, ipc: int) -> int:
        """Return how many real images of a class a set of `ipc` images per class starts from."""
        return ipc

    def real_images_per_step(self) -> int:
        """Return how many real images of a class an outer step takes at most; 0 where it takes none."""
        return 0

    def recorded(self) -> dict[str, Any]:
        """Return the options as the record and the key of a run hold them, JSON-able.

        An option in `added` is left out at its default, so that earlier runs are recognised.
        """
        fields, values = type(self).model_fields, self.model_dump(mode="json")
        added = {name for base in type(self).__mro__ for name in vars(base).get("added", ())}
        return {name: value for name, value in values.items() if name not in added or value != fields[name].default}


@dataclass(frozen=True)
class Method:
    """A line of the registry: the name of a method, its source, its options, the experts it needs, and its recipe.

    config: the options as a user gives them.
    experts: which trajectories the method needs ("any": whichever a store has); None: no experts are trained for it.
    plan: (resolved options, inputs) -> the plan; UserError for what cannot work.
    resolve: (config, facts) -> the config with a value for every default that depends on the data, so that the record
        of a run holds numbers; None: there is no such default.
    expert_defaults: fields of `ExpertConfig` for experts that are trained for this method, unless the user sets them.
    learns: names of the parameters of the synthetic set that the method optimises.
    threads_matter: whether the bits of a run depend on the number of threads although the network is compiled, because
        some gradient of the method goes through autograd.
    experimental: whether the method is not a reproduction of its source.
    exact_gradient: whether the gradient of the objective is the derivative of its value; `limbeck check` asks.
    ema_decay: the default of the job's option of this name, the decay of an average of the set; 0 for no average.
    ema_unbiased: whether that average leaves out the set that it starts at, see `Ema`.
    """

    __repr__ = short_repr

    name: str
    summary: str
    source: str
    config: type[MethodConfig]
    experts: Kind | None
    plan: Callable[[Any, MethodInputs], Plan]
    resolve: Callable[[Any, DataFacts], Any] | None = None
    expert_defaults: Mapping[str, Any] = field(default_factory=dict)
    learns: tuple[str, ...] = ("images", "log_lr")
    threads_matter: bool = False
    experimental: bool = False
    exact_gradient: bool = True
    ema_decay: float = 0.0
    ema_unbiased: bool = False

    def resolve_options(self, config: Any, facts: DataFacts) -> Any:
        """Return the options that `plan` takes; UserError for options that do not fit together."""
        return config if self.resolve is None else self.resolve(config, facts)

    def depends_on_threads(self, options: Any) -> bool:
        """Return whether the bits of a run with these options depend on the number of threads.

        With --gradient backprop they do for every method: the gradient is then that of autograd's graph. With
        --learn-labels they do by the backward pass of torch's softmax.
        """
        return (
            self.threads_matter
            or getattr(options, "gradient", None) == "backprop"
            or getattr(options, "learn_labels", False)
        )
