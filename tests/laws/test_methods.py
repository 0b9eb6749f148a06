"""Laws of every method in the registry: it builds from defaults, survives JSON, runs, and repeats bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from limbeck import METHODS, UserError
from limbeck.core.records import RunRecord
from limbeck.evaluation.trials import Summary
from limbeck.experts import Expert, ExpertConfig
from limbeck.jobs.checkpoint import Checkpoint, KeepBest, Log
from limbeck.jobs.record import RunFolder
from limbeck.jobs.rehearsal import subset
from limbeck.laws import METHOD_LAWS, MethodTrial, check_laws
from limbeck.laws.law import Law
from limbeck.methods import DataFacts, Method, MethodConfig, MethodInputs, Plan, find_method
from limbeck.methods.initial import draw_noise
from limbeck.select import FillName
from limbeck.synthetic.loop import StatefulHook, outer_loop
from limbeck.synthetic.set import SyntheticSet, hard_labels
from limbeck.task import Task

pytestmark = [
    pytest.mark.usefixtures("untouched_generators"),
    pytest.mark.parametrize("method", METHODS.values(), ids=METHODS),
]


def resolved(method: Method, task: Task, expert: Expert, ipc: int) -> MethodConfig:
    epochs = len(expert.validation) - 1
    config = method.resolve_options(method.config(), DataFacts(len(task.data.train), ipc, ExpertConfig(epochs=epochs)))
    assert isinstance(config, MethodConfig)
    return config


def plan(method: Method, task: Task, expert: Expert, seed: int, ipc: int = 1) -> Plan:
    trajectory = None if method.experts is None else expert.trajectory(method.experts)
    trajectories = [] if trajectory is None else [trajectory]
    return method.plan(resolved(method, task, expert, ipc), MethodInputs(task, trajectories, ipc, seed))


def five_steps(method: Method, task: Task, expert: Expert, seed: int) -> tuple[SyntheticSet, list[float]]:
    """Five outer steps, or none of a method that has none."""
    losses: list[float] = []
    recipe = plan(method, task, expert, seed)
    hooks = [*recipe.hooks, lambda synthetic, step, loss: losses.append(loss)]
    outer_loop(
        recipe.objective,
        recipe.synthetic,
        recipe.optimisers,
        range(min(5, recipe.iterations)),
        seed,
        recipe.accept,
        hooks,
    )
    return recipe.synthetic, losses


@pytest.mark.parametrize("law", METHOD_LAWS, ids=lambda law: law.__name__)
def test_it_meets_the_laws_of_limbeck_check(method: Method, law: Law[MethodTrial], task: Task, expert: Expert) -> None:
    """On a real expert."""
    trajectory = None if method.experts is None else expert.trajectory(method.experts)
    trial = MethodTrial(method, task, [] if trajectory is None else [trajectory], len(expert.validation) - 1)
    (outcome,) = check_laws([law], trial)
    if outcome.status == "skipped":
        assert not method.learns or not method.exact_gradient, outcome.reason
        pytest.skip(outcome.reason)
    assert outcome.status == "passed", outcome.reason


def test_it_is_listed_under_its_name(method: Method) -> None:
    assert find_method(method.name) is method
    assert method.summary
    assert method.source


def test_five_steps_repeat_bit_for_bit(method: Method, task: Task, expert: Expert) -> None:
    first, losses = five_steps(method, task, expert, seed=0)
    second, again = five_steps(method, task, expert, seed=0)
    other, _ = five_steps(method, task, expert, seed=1)
    assert losses == again
    assert all(torch.equal(tensor, second.state()[name]) for name, tensor in first.state().items())
    if method.name in NOTHING_RANDOM:
        return
    assert not torch.equal(first.images, other.images)
    if not method.learns:
        return
    assert len(losses) == 5
    start, elsewhere = (plan(method, task, expert, seed).synthetic for seed in (0, 1))
    assert not torch.equal(start.images, elsewhere.images)
    assert all(not torch.equal(tensor, start.state()[name]) for name, tensor in first.parameters().items())


NOTHING_RANDOM = {"kmeans", "kmeans-features", "herding", "el2n", "grand"}  # at one image per class


# The loss at the second step, so that the first update is in it too; one line a method. A value changes with the
# method's defaults or mathematics, and with nothing else.
GOLDEN = {
    "mct": 0.644048273563385,
    "mtt": 0.6242251396179199,
    "tesla": 0.623752236366272,
    "ftd": 0.6242251396179199,  # as MTT on the same experts: only what is shown differs
    "datm": 0.8468345999717712,
    "ptm": 0.598050594329834,
    "att": 0.3962510824203491,
    "hop-tm": 0.014137614518404007,
    "dc": 45.63323211669922,
    "dsa": 43.421714782714844,
    "dm": 3.9769256114959717,
    "idc": 321.7193298339844,
    "dream": 308.8785400390625,
    "dream-plus": 337.0792236328125,
    "ncfm": 180.0618896484375,
    "tgdd": 64.53526306152344,
    "rcig": 1.8433247804641724,
    "rat-bptt": 1.644248127937317,
}


def test_the_loss_after_one_step_is_what_it_was(method: Method, task: Task, expert: Expert) -> None:
    _, losses = five_steps(method, task, expert, seed=0)
    if not method.learns:
        assert losses == []
        pytest.skip("a coreset takes no steps")
    assert method.name in GOLDEN, f"note the golden loss of {method.name}: {losses[1]!r}"
    assert losses[1] == pytest.approx(GOLDEN[method.name], rel=1e-4)


RHYTHMS: dict[str, dict[str, object]] = {
    "ptm": {"overlap_every": 1, "overlap": -0.9, "retrain": 1, "patience": 1},
    "mct": {"lr_img_every": 2, "first_max_start_epoch": 0.5, "expansion_steps": 3},
    "dream": {"interval": 1},
}
"""Options by which what happens at some steps happens within the first five."""


def test_more_iterations_leave_the_first_steps_as_they_are(method: Method, task: Task, expert: Expert) -> None:
    """Where every option is resolved, so that a run can be continued: a schedule of their number is an option."""
    if "iterations" not in method.config.model_fields:
        pytest.skip("a coreset takes no steps")

    def path(iterations: int) -> list[torch.Tensor]:
        trajectories = [] if method.experts is None else [expert.trajectory(method.experts)]
        options = config.model_copy(update={"iterations": iterations})
        recipe = method.plan(options, MethodInputs(task, [path for path in trajectories if path is not None], 2, 0))
        images: list[torch.Tensor] = []
        hooks = [*recipe.hooks, lambda synthetic, step, loss: images.append(synthetic.images.detach().clone())]
        outer_loop(recipe.objective, recipe.synthetic, recipe.optimisers, range(5), 0, recipe.accept, hooks)
        return images

    facts = DataFacts(len(task.data.train), 2, ExpertConfig(epochs=3))
    config = method.resolve_options(method.config(iterations=5, **RHYTHMS.get(method.name, {})), facts)
    for ours, theirs in zip(path(5), path(50), strict=True):
        assert torch.equal(ours, theirs)


def test_a_run_is_taken_up_bit_for_bit(method: Method, task: Task, expert: Expert, tmp_path: Path) -> None:
    """What is learned, what is shown, and what hooks remember, by way of the run folder."""
    if not method.learns:
        pytest.skip("a coreset takes no steps")

    def begin(folder: str) -> tuple[Plan, Checkpoint, list[StatefulHook]]:
        recipe = plan(method, task, expert, seed=0, ipc=2)
        run = RunFolder.begin(tmp_path / folder, RunRecord(format="limbeck-run", version=1, config={}))
        log = Log(run, lambda event: None)
        chooser = KeepBest(
            run,
            3,
            6,
            lambda synthetic: Summary(0.0, None, 0.0, None, 1, [0.0]),
            lambda summary: summary.accuracy_mean,
            lambda synthetic, step: None,
            lambda event: None,
            recipe.evaluated_set,
        )
        save = Checkpoint(run, recipe.optimisers, recipe.hooks, chooser, log)
        return recipe, save, [hook for hook in recipe.hooks if isinstance(hook, StatefulHook)]

    def go(recipe: Plan, save: Checkpoint, steps: range) -> None:
        outer_loop(
            recipe.objective, recipe.synthetic, recipe.optimisers, steps, 0, recipe.accept, [*recipe.hooks, save]
        )

    whole, save, memory = begin("whole")
    go(whole, save, range(6))
    first, save, _ = begin("parts")
    go(first, save, range(3))
    again, save, recalled = begin("parts")
    assert save.restore(again.synthetic) == 3
    go(again, save, range(3, 6))
    for ours, theirs in (
        (again.synthetic, whole.synthetic),
        (again.evaluated_set(), whole.evaluated_set()),
    ):
        assert all(torch.equal(tensor, theirs.state()[name]) for name, tensor in ours.state().items())
    assert not torch.equal(again.synthetic.images, first.synthetic.images)
    for hook, other in zip(recalled, memory, strict=True):
        state = other.state()
        assert all(torch.equal(tensor, state[name]) for name, tensor in hook.state().items())
    rates = [
        [group["lr"] for optimiser in recipe.optimisers for group in optimiser.param_groups]
        for recipe in (again, whole)
    ]
    assert rates[0] == rates[1]


STARTS_FROM_IMAGES = (
    "mct",
    "mtt",
    "tesla",
    "ftd",
    "datm",
    "ptm",
    "att",
    "hop-tm",
    "dc",
    "dsa",
    "dm",
    "idc",
    "dream",
    "dream-plus",
    "ncfm",
    "tgdd",
    "rcig",
    "rat-bptt",
)


def test_it_runs_from_noise(method: Method, task: Task, expert: Expert) -> None:
    """Two steps from N(0, 1) in network input space, which is the same for every method."""
    assert ("init" in method.config.model_fields) == (method.name in STARTS_FROM_IMAGES) == bool(method.learns)
    if not method.learns:
        pytest.skip("a coreset is real images")
    trajectories = [] if method.experts is None else [expert.trajectory(method.experts)]
    options = method.resolve_options(method.config(init="noise"), DataFacts(300, 2, ExpertConfig(epochs=3)))
    inputs = MethodInputs(task, [path for path in trajectories if path is not None], 2, 0)
    recipe, noise = method.plan(options, inputs), draw_noise(inputs)
    start = recipe.synthetic.snapshot()
    assert torch.equal(start.images, noise[0])
    assert torch.equal(hard_labels(start.labels), noise[1])
    assert noise[1].tolist() == [label for label in range(10) for _ in range(2)]
    assert abs(float(noise[0].mean())) < 0.1
    assert float(noise[0].std()) == pytest.approx(1, abs=0.1)
    outer_loop(recipe.objective, recipe.synthetic, recipe.optimisers, range(2), 0, None, recipe.hooks)
    assert torch.isfinite(recipe.synthetic.images).all()
    assert not torch.equal(recipe.synthetic.images, start.images)


@pytest.mark.parametrize("fill", ["repeat", "augment", "noise"])
def test_it_starts_from_classes_that_are_filled_up(method: Method, fill: FillName, task: Task, expert: Expert) -> None:
    """One class has two training images and the set three; it is refused where it is not to be filled up."""
    small = subset(task, 2)
    trajectory = None if method.experts is None else expert.trajectory(method.experts)
    options = resolved(method, small, expert, 3)
    inputs = MethodInputs(small, [] if trajectory is None else [trajectory], 3, 0, fill)
    start = method.plan(options, inputs).synthetic
    assert hard_labels(start.labels).bincount().tolist() == [3] * 10
    assert torch.isfinite(start.images).all()
    with pytest.raises(UserError, match="--fill repeat, augment or noise"):
        method.plan(options, inputs._replace(fill="none"))
    repeat = method.plan(options, inputs._replace(fill="repeat")).synthetic
    assert torch.equal(start.images, repeat.images) == (fill == "repeat")
    again = method.plan(options, inputs).synthetic
    assert torch.equal(start.images, again.images)
