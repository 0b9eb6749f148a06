"""Laws of every method in the registry: it builds from defaults, survives JSON, runs, and repeats bit for bit."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from limbeck import METHODS, JobConfig
from limbeck.loop import descend
from limbeck.methods import Facts, Material, Method, MethodConfig, Plan, find_method
from limbeck.synthetic import SyntheticSet
from limbeck.task import Task
from limbeck.trajectory import Expert, ExpertConfig

pytestmark = [
    pytest.mark.usefixtures("untouched_generators"),
    pytest.mark.parametrize("method", METHODS.values(), ids=METHODS),
]


FACTS = [
    Facts(images, ipc, ExpertConfig(epochs=epochs, batch_size=32))
    for images in (300, 50000)
    for ipc in (1, 10, 50)
    for epochs in (1, 3, 50)
]


def resolved(method: Method, task: Task, expert: Expert, ipc: int) -> MethodConfig:
    epochs = len(expert.validation) - 1
    config = method.resolve(method.config(), Facts(len(task.data.train), ipc, ExpertConfig(epochs=epochs)))
    assert isinstance(config, MethodConfig)
    return config


def plan(method: Method, task: Task, expert: Expert, seed: int, ipc: int = 1) -> Plan:
    trajectory = None if method.experts is None else expert.trajectory(method.experts)
    trajectories = [] if trajectory is None else [trajectory]
    return method.plan(resolved(method, task, expert, ipc), Material(task, trajectories, ipc, seed))


def five_steps(method: Method, task: Task, expert: Expert, seed: int) -> tuple[SyntheticSet, list[float]]:
    losses: list[float] = []
    made = plan(method, task, expert, seed)
    hooks = [*made.hooks, lambda held, step, loss: losses.append(loss)]
    descend(made.objective, made.synthetic, made.optimisers, range(5), seed, made.accept, hooks)
    return made.synthetic, losses


def test_it_is_listed_under_its_name(method: Method) -> None:
    assert find_method(method.name) is method
    assert method.summary
    assert method.source


def test_its_config_survives_json(method: Method) -> None:
    config = method.config()
    assert method.config.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize("facts", FACTS, ids=lambda facts: f"{facts.train_images}-{facts.ipc}-{facts.expert.epochs}")
def test_its_defaults_can_be_worked_out(method: Method, facts: Facts) -> None:
    """Once, to values that its config accepts, survive JSON, and leave alone what was given."""
    config = method.resolve(method.config(), facts)
    assert method.resolve(config, facts) == config
    assert method.config(**config.model_dump()) == config
    assert method.config.model_validate_json(config.model_dump_json()) == config
    given = method.config().model_dump(exclude_none=True)
    assert {name: getattr(config, name) for name in given} == given


def test_an_unknown_option_is_refused(method: Method) -> None:
    with pytest.raises(ValidationError, match="no_such_option"):
        method.config(no_such_option=1)


def test_every_option_is_described_and_its_own(method: Method) -> None:
    fields = method.config.model_fields
    assert [name for name, field in fields.items() if not field.description] == []
    assert set(fields) & set(JobConfig.model_fields) == set()


def test_it_starts_with_a_balanced_set(method: Method, task: Task, expert: Expert) -> None:
    made = plan(method, task, expert, seed=0, ipc=2)
    _, labels = made.synthetic.training_pair()
    classes = labels.argmax(1) if labels.dtype.is_floating_point else labels
    assert classes.bincount(minlength=10).tolist() == [2] * 10
    held = {
        id(parameter)
        for optimiser in made.optimisers
        for group in optimiser.param_groups
        for parameter in group["params"]
    }
    assert held == {id(parameter) for parameter in made.synthetic.parameters().values()}


def test_five_steps_repeat_bit_for_bit(method: Method, task: Task, expert: Expert) -> None:
    first, losses = five_steps(method, task, expert, seed=0)
    second, again = five_steps(method, task, expert, seed=0)
    other, _ = five_steps(method, task, expert, seed=1)
    assert len(losses) == 5
    assert losses == again
    assert all(torch.equal(tensor, second.state()[name]) for name, tensor in first.state().items())
    assert not torch.equal(first.images, other.images)
    start, elsewhere = (plan(method, task, expert, seed).synthetic for seed in (0, 1))
    assert not torch.equal(start.images, elsewhere.images)
    assert all(not torch.equal(tensor, start.state()[name]) for name, tensor in first.parameters().items())
