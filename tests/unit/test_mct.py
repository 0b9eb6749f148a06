"""What MCT has beside its core: grown bounds, whole epochs, teacher labels, start noise, decay, averages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from limbeck.core.rng import make_generator
from limbeck.core.types import Segment
from limbeck.experts import Continuous, Expert, ExpertConfig
from limbeck.methods import DataFacts, MethodInputs, Plan
from limbeck.methods.mct import MCTConfig, MCTOptions, make_sampler, plan, resolve
from limbeck.methods.trajectory_matching import StartNoise, TeacherLabels
from limbeck.networks.flat import Layout
from limbeck.objectives import MatchTrajectory
from limbeck.synthetic.loop import outer_loop
from limbeck.task import Task

pytestmark = pytest.mark.usefixtures("untouched_generators")


def planned(task: Task, expert: Expert, expert_config: ExpertConfig, **options: Any) -> Plan:
    assert expert.convex is not None
    config = resolve(MCTConfig(syn_steps=3, **options), DataFacts(len(task.data.train), 1, expert_config))
    return plan(config, MethodInputs(task, [expert.convex], 1, 0))


def matched(recipe: Plan) -> MatchTrajectory:
    assert isinstance(recipe.objective, MatchTrajectory)
    return recipe.objective


def test_the_bound_grows_linearly_and_then_stays() -> None:
    sampler = Continuous(4.0, 1.0, first=1.0, steps=10)
    assert [sampler.bound(step) for step in (0, 5, 10, 99)] == [1.0, 2.5, 4.0, 4.0]
    for step, bound in ((0, 1.0), (10, 4.0)):
        starts = [sampler(step, 50, make_generator(0, i))[0] for i in range(400)]
        assert 0.9 * bound < max(starts) < bound
    assert Continuous(4.0, 1.0).bound(0) == 4.0


def test_whole_epochs_on_a_convexified_path(task: Task, expert: Expert, expert_config: ExpertConfig) -> None:
    objective = matched(planned(task, expert, expert_config, sampling="whole", max_start_epoch=2.2, expert_epochs=0.7))
    segments = {(s.t0, s.t1) for s in (objective.segment(step, 0, torch.device("cpu")) for step in range(40))}
    assert segments == {(0.0, 1.0), (1.0, 2.0)}


def test_m_and_u_follow_the_students_reach(task: Task) -> None:
    """M is five times N lr / (expert lr x steps an epoch), U at least M; both stay within the expert."""
    facts = DataFacts(1000, 1, ExpertConfig(epochs=30, lr=0.05, batch_size=50))
    config = resolve(MCTConfig(syn_steps=10, lr_teacher=0.02), facts)
    assert config.expert_epochs == pytest.approx(5 * 10 * 0.02 / (0.05 * 20))
    assert config.max_start_epoch == pytest.approx(max(1.0, 0.05 * 30))
    larger = resolve(MCTConfig(syn_steps=10, lr_teacher=0.02), facts._replace(ipc=25))
    assert larger.max_start_epoch == pytest.approx(0.25 * 30)
    explicit = resolve(MCTConfig(expert_epochs=7.5, max_start_epoch=2.5), facts)
    assert (explicit.expert_epochs, explicit.max_start_epoch) == (7.5, 2.5)
    long = resolve(MCTConfig(syn_steps=10**4), facts)
    whole = resolve(MCTConfig(sampling="whole"), facts)
    assert '"expert_epochs":2.0,' in whole.model_dump_json(), "the key of a run tells 2 from 2.0"
    assert long.expert_epochs == 15.0


def test_teacher_labels_are_what_the_expert_says_at_u(task: Task, expert: Expert, expert_config: ExpertConfig) -> None:
    assert expert.convex is not None
    recipe = planned(task, expert, expert_config, teacher_labels=True, max_start_epoch=1.5)
    labeller = matched(recipe).labels
    assert isinstance(labeller, TeacherLabels)
    images = recipe.synthetic.images.detach()
    segment = Segment(expert.convex.at(0), expert.convex.at(1), 0, 1, expert.convex)
    expected = task.model(expert.convex.at(1.5), images).softmax(1)
    torch.testing.assert_close(labeller(images, segment), expected)
    evaluated = recipe.evaluated_set()
    torch.testing.assert_close(evaluated.training_pair()[1], expected)
    assert recipe.synthetic.labels.dtype == torch.int64  # the set that is optimised keeps its classes
    recipe.objective(recipe.synthetic, 0, 0).backward()
    assert recipe.synthetic.images.grad is not None


def test_start_noise_scales_with_each_parameter() -> None:
    layout = Layout(("weight", "zeros", "one", "bias"), ((200, 200), (3,), (1,), (50,)))
    theta = torch.cat(
        [torch.randn(40000, generator=make_generator(1)), torch.zeros(3), torch.ones(1), torch.full((50,), 2.0)]
    )
    noisy = StartNoise(layout, 0.1)(theta, make_generator(0))
    noise = noisy - theta
    assert torch.equal(noise[40000:40004], torch.zeros(4))  # absolute sums 0 and 1 are left alone
    relative = noise[:40000] / (0.1 * theta[:40000].abs())
    assert float(relative.mean()) == pytest.approx(0, abs=0.02)
    assert float(relative.std()) == pytest.approx(1, abs=0.02)
    assert bool(noise[40004:].abs().max() > 0)
    assert torch.equal(noisy, StartNoise(layout, 0.1)(theta, make_generator(0)))


def test_the_noise_is_in_the_segment_that_is_normalised(
    task: Task, expert: Expert, expert_config: ExpertConfig
) -> None:
    plain, noisy = (
        matched(planned(task, expert, expert_config, noise_start=epsilon)).segment(0, 0, torch.device("cpu"))
        for epsilon in (0.0, 0.05)
    )
    assert (plain.t0, plain.t1) == (noisy.t0, noisy.t1)
    assert torch.equal(plain.target, noisy.target)
    assert not torch.equal(plain.start, noisy.start)


def test_the_image_step_is_halved(task: Task, expert: Expert, expert_config: ExpertConfig) -> None:
    recipe = planned(task, expert, expert_config, lr_img=0.4, lr_img_every=2)
    rates: list[float] = []

    def look(synthetic: Any, step: int, loss: float) -> None:
        rates.append(recipe.optimisers[0].param_groups[0]["lr"])

    outer_loop(recipe.objective, recipe.synthetic, recipe.optimisers, range(5), 0, hooks=[*recipe.hooks, look])
    assert rates == pytest.approx([0.4, 0.2, 0.2, 0.1, 0.1])


def test_the_bound_of_whole_start_epochs_grows_too() -> None:
    options = MCTOptions(
        sampling="whole", first_max_start_epoch=1, expansion_steps=4, max_start_epoch=5, expert_epochs=2
    )
    sampler, generator = make_sampler(options), make_generator(0, "starts")
    starts = {step: {sampler(step, 9, generator)[0] for _ in range(200)} for step in (0, 2, 4)}
    assert starts == {0: {0.0}, 2: {0.0, 1.0, 2.0}, 4: {0.0, 1.0, 2.0, 3.0, 4.0}}


OPTIONS: list[Mapping[str, Any]] = [
    {"sampling": "whole"},
    {"first_max_start_epoch": 0.1, "expansion_steps": 2},
    {"gradient": "tesla"},
    {"gradient": "backprop", "optimizer": "sgd", "lr_img": 10.0},
    {"teacher_labels": True},
    {"noise_start": 0.01},
    {"grad_accum": 2},
    {"init": "kmeans"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options))
def test_every_option_takes_steps(
    task: Task, expert: Expert, expert_config: ExpertConfig, options: Mapping[str, Any]
) -> None:
    recipe = planned(task, expert, expert_config, **options)
    before = recipe.synthetic.images.detach().clone()
    outer_loop(recipe.objective, recipe.synthetic, recipe.optimisers, range(3), 0, recipe.accept, recipe.hooks)
    assert bool(recipe.synthetic.images.isfinite().all())
    assert not torch.equal(recipe.synthetic.images.detach(), before)
    plain = planned(task, expert, expert_config)
    outer_loop(plain.objective, plain.synthetic, plain.optimisers, range(3), 0, plain.accept, plain.hooks)
    assert not torch.equal(recipe.evaluated_set().images, plain.evaluated_set().images)  # it does something
