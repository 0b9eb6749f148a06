"""Laws of methods: options, plan, objective, gradient, and the same bits from a seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from limbeck.core.rng import make_generator
from limbeck.core.types import Trajectory
from limbeck.experts.config import ExpertConfig
from limbeck.jobs.config import JobConfig
from limbeck.jobs.rehearsal import stand_in
from limbeck.laws.law import Law, NotApplicable, Violation, require
from limbeck.methods import DataFacts, Method, MethodConfig, MethodInputs, Plan
from limbeck.synthetic.loop import outer_loop
from limbeck.synthetic.set import SyntheticSet, hard_labels
from limbeck.task import Task

FACTS = [
    DataFacts(images, ipc, ExpertConfig(epochs=epochs, batch_size=32))
    for images in (300, 50000)
    for ipc in (1, 10, 50)
    for epochs in (1, 3, 50)
]
STEPS = 3
"""Outer steps of a trial."""
DIRECTIONS = 2
STEP_SIZES = (1e-2, 3e-3, 3e-2, 1e-3, 1e-1, 3e-4, 1e-4)
TOLERANCE = 1e-2
"""Random directions along which a gradient is compared, the steps of the finite differences, of which one has to agree,
and the error relative to the gradient's norm: at most 0.003 for limbeck's own methods, 0.02 to 0.1 for TESLA's."""


@dataclass(frozen=True)
class MethodTrial:
    """A method on a small task.

    trajectories: of experts of the kind that the method needs, `epochs` long; none for a method that needs none.
    """

    method: Method
    task: Task
    trajectories: Sequence[Trajectory]
    epochs: int
    ipc: int = 2

    @classmethod
    def on_stand_in(cls, method: Method, task: Task, epochs: int = 10) -> MethodTrial:
        """A trial with a straight line between two random networks in place of an expert."""
        return cls(method, task, [] if method.experts is None else [stand_in(task, epochs, 0)], epochs)

    def options(self) -> Any:
        """The method's own defaults, resolved for the task."""
        facts = DataFacts(len(self.task.data.train), self.ipc, ExpertConfig(epochs=self.epochs))
        return self.method.resolve_options(self.method.config(), facts)

    def smooth(self) -> MethodTrial:
        """The same trial with a network without kinks, across which a finite difference would not be the derivative."""
        model = self.task.model_config.model_copy(update={"activation": "swish"})
        return replace(self, task=self.task.with_model(model))

    def plan(self, seed: int = 0) -> Plan:
        """The method's plan on the task."""
        return self.method.plan(self.options(), MethodInputs(self.task, self.trajectories, self.ipc, seed))

    def require_learning(self) -> None:
        """Raise `NotApplicable` for a method that learns nothing."""
        if not self.method.learns:
            raise NotApplicable("it learns nothing")


def check_options_have_help(trial: MethodTrial) -> None:
    """every option has a default and a description, and no name of another option of a job"""
    fields = trial.method.config.model_fields
    require(bool(trial.method.summary and trial.method.source), "the method has no summary, or no source")
    for name, field in fields.items():
        require(not field.is_required(), f"the option '{name}' has no default")
        require(bool(field.description), f"the option '{name}' has no text below it")
        require(name not in JobConfig.model_fields, f"'{name}' is an option of every job; give yours another name")


def check_options_are_strict(trial: MethodTrial) -> None:
    """options survive JSON, and an unknown option is refused"""
    config = trial.method.config()
    require(trial.method.config.model_validate_json(config.model_dump_json()) == config, "JSON changes the options")
    try:
        trial.method.config.model_validate({"no_such_option": 1})
    except ValidationError:
        return
    require(False, "an unknown option is accepted; derive the config from MethodConfig and keep its model_config")


def check_defaults_resolve(trial: MethodTrial) -> None:
    """defaults that depend on the data are resolved once, and explicit options stay as they are"""
    method = trial.method
    explicit = method.config().model_dump(exclude_none=True)
    for facts in FACTS:
        config = method.resolve_options(method.config(), facts)
        place = f"with {facts.train_images} images, {facts.ipc} per class, {facts.expert.epochs} epochs"
        require(isinstance(config, method.config), f"resolve returns a {type(config).__name__}")
        require(isinstance(config, MethodConfig), f"resolve returns a {type(config).__name__}")
        require({*config.model_dump()} == {*method.config().model_dump()}, f"resolve adds or drops an option {place}")
        require(method.resolve_options(config, facts) == config, f"resolved options are resolved to others {place}")
        again = method.resolve_options(method.config(**config.model_dump()), facts)
        require(again == config, f"options that were resolved before are resolved to others {place}")
        restored = method.config.model_validate_json(config.model_dump_json()).model_dump()
        require(restored == config.model_dump(), f"JSON changes the resolved options {place}")
        for name, value in explicit.items():
            require(getattr(config, name) == value, f"resolve changes '{name}', which has a value already, {place}")


def check_set_is_balanced(trial: MethodTrial) -> None:
    """the plan starts from a set with as many images of every class"""
    synthetic, classes = trial.plan().synthetic, trial.task.data.num_classes
    counts = hard_labels(synthetic.labels).bincount(minlength=classes).tolist()
    require(counts == [trial.ipc] * classes, f"images per class: {counts}, for {trial.ipc} per class")
    images, labels = synthetic.training_pair()
    counts = hard_labels(labels).bincount(minlength=classes).tolist()  # more of them where images are mosaics
    require(counts == [len(images) // classes] * classes, f"training images per class: {counts}")
    require(bool(torch.isfinite(images).all()), "some pixels are not finite")


def check_what_is_learned(trial: MethodTrial) -> None:
    """the optimisers step exactly the parameters that the method says it learns"""
    plan = trial.plan()
    require({*plan.synthetic.learned} == {*trial.method.learns}, f"the set learns {plan.synthetic.learned}")
    require(bool(trial.method.learns) == bool(plan.iterations), f"it takes {plan.iterations} outer steps")
    stepped = [id(p) for rule in plan.optimisers for group in rule.param_groups for p in group["params"]]
    for name, tensor in plan.synthetic.parameters().items():
        require(stepped.count(id(tensor)) == 1, f"{stepped.count(id(tensor))} optimisers step '{name}'")
    require(len(stepped) == len(plan.synthetic.learned), "an optimiser steps a tensor that is not learned")


def check_objective_is_pure(trial: MethodTrial) -> None:
    """the objective is a scalar, the same bits at the same set, step and seed, and changes nothing"""
    trial.require_learning()
    plan = trial.plan()
    state, data = plan.synthetic.snapshot().state(), [tensor.clone() for tensor in trial.task.train]
    first, second = (plan.objective(plan.synthetic, 0, 0) for _ in range(2))
    require(first.ndim == 0, f"the objective has the shape {tuple(first.shape)}")
    require(torch.equal(first, second), f"two calls at one step give {first.item():.9g} and {second.item():.9g}")
    for name, tensor in plan.synthetic.state().items():
        require(torch.equal(tensor, state[name]), f"the objective changes '{name}' of the set")
    require(all(map(torch.equal, trial.task.train, data)), "the objective changes the real images or labels")


def check_gradients_are_finite(trial: MethodTrial) -> None:
    """gradients are finite, and there are some for what is learned and nowhere else"""
    trial.require_learning()
    for ipc in (1, trial.ipc):
        plan = replace(trial, ipc=ipc).plan()
        plan.objective(plan.synthetic, 0, 0).backward()
        for name, tensor in plan.synthetic.state().items():
            gradient, place = tensor.grad, f"at {ipc} per class"
            if name not in plan.synthetic.learned:
                require(gradient is None, f"'{name}' is not learned and has a gradient {place}")
            elif gradient is None:
                raise Violation(f"'{name}' has no gradient {place}")
            else:
                require(bool(torch.isfinite(gradient).all()), f"the gradient of '{name}' is not finite {place}")
                require(bool(gradient.norm() > 0), f"the gradient of '{name}' is 0 {place}")
    network = trial.task.model.module.parameters()
    require(all(parameter.grad is None for parameter in network), "the network has a gradient")


def check_gradient_is_the_derivative(trial: MethodTrial) -> None:
    """the gradient agrees with finite differences of the objective along random directions"""
    trial.require_learning()
    if not trial.method.exact_gradient:
        raise NotApplicable("the method says that its gradient is approximate")
    plan = trial.smooth().plan()
    plan.objective(plan.synthetic, 0, 0).backward()
    for name, tensor in plan.synthetic.parameters().items():
        assert tensor.grad is not None
        gradient = tensor.grad
        for number in range(DIRECTIONS):
            generator = make_generator(0, "direction", name, number)
            direction = torch.randn(tensor.shape, generator=generator).to(tensor)
            slope = float((gradient * direction).sum())
            nearest = _nearest_difference(plan, tensor, direction, slope, TOLERANCE * float(gradient.norm()))
            require(
                abs(nearest - slope) <= TOLERANCE * float(gradient.norm()),
                f"along a direction of '{name}' the gradient says {slope:.4g} and the objective changes by "
                f"{nearest:.4g}; where that is meant, say Method(exact_gradient=False)",
            )


def _nearest_difference(plan: Plan, tensor: Tensor, direction: Tensor, slope: float, error: float) -> float:
    """The first difference of `STEP_SIZES` within `error` of the slope, else the one nearest to it."""
    differences: list[float] = []
    for size in STEP_SIZES:
        differences.append(_difference(plan, tensor, direction, size))
        if abs(differences[-1] - slope) <= error:
            break
    return min(differences, key=lambda difference: abs(difference - slope))


@torch.no_grad()
def _difference(plan: Plan, tensor: Tensor, direction: Tensor, size: float) -> float:
    """The central difference of the objective over `size` along a direction of one tensor of the set."""
    centre, values = tensor.clone(), []
    for sign in (1, -1):
        tensor.copy_(centre + sign * size * direction)
        with torch.enable_grad():  # an objective may take gradients of its own
            values.append(float(plan.objective(plan.synthetic, 0, 0).detach()))
    tensor.copy_(centre)
    return (values[0] - values[1]) / (2 * size)


def take_steps(trial: MethodTrial, seed: int, steps: int = STEPS) -> tuple[SyntheticSet, list[float]]:
    """The set after some outer steps, or after none of a method that has none, and the losses."""
    losses: list[float] = []
    plan = trial.plan(seed)
    hooks = [*plan.hooks, lambda synthetic, step, loss: losses.append(loss)]
    steps = min(steps, plan.iterations)
    outer_loop(plan.objective, plan.synthetic, plan.optimisers, range(steps), seed, plan.accept, hooks)
    return plan.synthetic, losses


def check_steps_repeat(trial: MethodTrial) -> None:
    """outer steps from the same seed give the same bits, and the set moves"""
    first, losses = take_steps(trial, seed=0)
    second, repeated = take_steps(trial, seed=0)
    require(losses == repeated, f"losses of two runs with one seed: {losses} and {repeated}")
    for name, tensor in first.state().items():
        require(torch.equal(tensor, second.state()[name]), f"'{name}' differs between two runs with one seed")
    start = trial.plan(seed=0).synthetic.state()
    for name, tensor in first.parameters().items():
        require(not torch.equal(tensor, start[name]), f"'{name}' is learned and does not move in {STEPS} steps")


METHOD_LAWS: tuple[Law[MethodTrial], ...] = (
    check_options_have_help,
    check_options_are_strict,
    check_defaults_resolve,
    check_set_is_balanced,
    check_what_is_learned,
    check_objective_is_pure,
    check_gradients_are_finite,
    check_gradient_is_the_derivative,
    check_steps_repeat,
)
