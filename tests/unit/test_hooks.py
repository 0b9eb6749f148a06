"""Hooks, objectives made of an objective, progress through stages, overlap, and records that stay in their files."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Iterator
from copy import deepcopy
from importlib import import_module
from math import inf
from typing import Any

import pytest
import torch
from torch import Tensor

import limbeck
from limbeck.core.rng import derive_seed, make_generator
from limbeck.experts import Expert, ExpertConfig, Recorded
from limbeck.methods import METHODS, DataFacts, MethodInputs
from limbeck.methods.ptm import window_bounds
from limbeck.methods.ptm_overlap import OverlapRepair, find_overlaps
from limbeck.methods.ptm_progress import ProgressiveWindow
from limbeck.objectives.combine import Average, FiniteOr
from limbeck.synthetic.hooks import Ema, StepDecay, reset_optimiser_state
from limbeck.synthetic.loop import DivergenceError, StatefulHook, outer_loop
from limbeck.synthetic.set import SyntheticSet
from limbeck.task import Task

pytestmark = pytest.mark.usefixtures("untouched_generators")


def classes_of_source() -> Iterator[type]:
    for module in pkgutil.walk_packages(limbeck.__path__, "limbeck."):
        if not module.name.endswith("__main__"):
            yield from (value for value in vars(import_module(module.name)).values() if isinstance(value, type))


def test_hooks_with_a_state_are_recognised_by_their_class() -> None:
    """A run saves the state of a `StatefulHook` alone: a hook that forgets its base would start anew."""
    hooks = {c for c in classes_of_source() if {"__call__", "state", "restore"} <= set(dir(c))}
    assert {c.__name__ for c in hooks if not issubclass(c, StatefulHook)} == set()
    assert {"Ema", "OnlineNetwork", "Pool", "ProgressiveWindow"} <= {c.__name__ for c in hooks}


def test_options_say_how_many_real_images_a_plan_takes() -> None:
    config = METHODS["mct"].config(canvas=2)
    assert (config.initial_images(10), config.real_images_per_step()) == (40, 0)
    config = METHODS["dream"].config(factor=3, batch_real=32)
    assert (config.initial_images(10), config.real_images_per_step()) == (90, 32)
    assert METHODS["random"].config().initial_images(10) == 10


def toy() -> SyntheticSet:
    return SyntheticSet.from_images(torch.arange(4.0).reshape(1, 1, 2, 2), torch.tensor([0]), 0.1)


def test_the_average_starts_at_the_first_set() -> None:
    synthetic = toy()
    ema = Ema(synthetic, 0.9, ("images", "log_lr"))
    assert torch.equal(ema.average(synthetic).images, synthetic.images)
    with torch.no_grad():
        synthetic.images.zero_()
        synthetic.log_lr.zero_()
    ema(synthetic, 1, 0.0)
    torch.testing.assert_close(ema.average(synthetic).images, 0.9 * toy().images)
    torch.testing.assert_close(ema.average(synthetic).log_lr, 0.9 * toy().log_lr)
    restored = Ema(synthetic, 0.9, ("images", "log_lr"))
    restored.restore(ema.state(), 1)
    assert torch.equal(restored.average(synthetic).images, ema.average(synthetic).images)


def test_step_decay_is_a_function_of_the_step() -> None:
    """That of torch's StepLR, also after it was taken up in the middle."""
    optimiser, reference = (torch.optim.SGD([torch.zeros(1)], 8.0) for _ in range(2))
    hook, expected = StepDecay(optimiser, 3, 0.5), torch.optim.lr_scheduler.StepLR(reference, 3, 0.5)
    for step in range(1, 11):
        hook(toy(), step, 0.0)
        reference.step()
        expected.step()
        assert optimiser.param_groups[0]["lr"] == pytest.approx(reference.param_groups[0]["lr"])
    second = torch.optim.SGD([torch.zeros(1)], 8.0)
    StepDecay(second, 3, 0.5).restore({}, 7)
    assert second.param_groups[0]["lr"] == 2.0


# --- objectives made of an objective


def test_an_average_of_draws_is_the_mean_of_them(task: Task, expert: Expert) -> None:
    method, facts = METHODS["mtt"], DataFacts(300, 2, ExpertConfig(epochs=3))
    config = method.resolve_options(method.config(batch_syn=7), facts)
    assert expert.recorded is not None
    plan = method.plan(config, MethodInputs(task, [expert.recorded], 2, 0))
    parameters = list(plan.synthetic.parameters().values())
    losses = [plan.objective(plan.synthetic, 3, derive_seed(0, "draw", i)) for i in range(3)]
    expected = torch.autograd.grad(sum(losses) / 3, parameters)
    loss = Average(plan.objective, 3)(plan.synthetic, 3, 0)
    torch.testing.assert_close(loss.detach(), torch.stack(losses).mean().detach())
    for gradient, expected_gradient in zip(torch.autograd.grad(loss, parameters), expected):
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-6)
    assert len({float(item.detach()) for item in losses}) == 3


BROKEN: list[Callable[[SyntheticSet], Tensor]] = [
    lambda synthetic: synthetic.images.sum() * synthetic.lr * torch.nan,
    lambda synthetic: synthetic.images.sum() * synthetic.lr * torch.inf,
    lambda synthetic: (synthetic.images * 0).sqrt().sum() + synthetic.lr,
]


@pytest.mark.parametrize("broken", BROKEN)
def test_finite_hands_back_a_number_without_a_gradient(broken: Callable[[SyntheticSet], Tensor]) -> None:
    synthetic = toy()
    loss = FiniteOr(lambda synthetic, step, seed: broken(synthetic), 7.0)(synthetic, 0, 0)
    loss.backward()
    assert loss.item() == 7.0
    for parameter in synthetic.parameters().values():
        assert parameter.grad is not None
        assert not parameter.grad.any()


def test_finite_leaves_alone_what_is() -> None:
    synthetic, second = toy(), toy()
    loss = FiniteOr(lambda synthetic, step, seed: synthetic.images.square().sum() * synthetic.lr, 7.0)(synthetic, 0, 0)
    expected = second.images.square().sum() * second.lr
    loss.backward()
    expected.backward()
    assert torch.equal(loss, expected)
    for parameter, reference in zip(synthetic.parameters().values(), second.parameters().values()):
        assert parameter.grad is not None
        assert reference.grad is not None
        assert torch.equal(parameter.grad, reference.grad)


# --- records that stay in their files


def test_a_lazy_expert_is_the_stored_one(store: Any, expert: Expert) -> None:
    eager, lazy = store.read(0), store.read(0, lazy=True)
    assert isinstance(eager.recorded.points, Tensor)
    assert not isinstance(lazy.recorded.points, Tensor)
    assert lazy.recorded.end == eager.recorded.end
    for epoch in range(4):
        assert torch.equal(lazy.recorded.at(epoch), eager.recorded.at(epoch))
    assert torch.equal(lazy.recorded.tensor(), eager.recorded.tensor())
    with pytest.raises(ValueError, match="whole epochs 0 to 3"):
        lazy.recorded.at(4)
    with pytest.raises(IndexError):
        lazy.recorded.points[-1]
    store.write(1, lazy)
    assert torch.equal(store.read(1).recorded.points, eager.recorded.points)


def test_a_damaged_lazy_expert_is_refused_when_it_is_opened(store: Any) -> None:
    data = bytearray(store.file(0).read_bytes())
    data[-5] ^= 1
    store.file(0).write_bytes(bytes(data))
    with pytest.raises(ValueError, match="damaged"):
        store.read(0, lazy=True)


def test_recorded_points_may_be_a_tensor() -> None:
    points = torch.arange(6.0).reshape(3, 2)
    assert torch.equal(Recorded(points).tensor(), points)


# --- progress through stages, and the guard


def progress(bounds: tuple[int, ...] = (1, 3, 6), patience: int = 4) -> tuple[ProgressiveWindow, torch.optim.Optimizer]:
    synthetic = toy()
    optimiser = torch.optim.SGD([synthetic.images], 0.1, momentum=0.9)
    window = ProgressiveWindow(synthetic, [optimiser], bounds, span=2, patience=patience, limit=2.0, max_steps=40)
    return window, optimiser


def test_windows_rise_to_the_last() -> None:
    assert window_bounds(10, 3) == (4, 7, 10)
    assert window_bounds(1, 3) == (1,)
    assert window_bounds(6, 1) == (6,)


def test_the_window_widens_when_the_loss_stops_falling() -> None:
    progress_hook, _ = progress()
    for step in range(30):
        progress_hook(progress_hook.synthetic, step, 1.0 / (step + 1))
    assert progress_hook.stage == 0  # it fell all the time
    stages = []
    for step in range(14):
        progress_hook(progress_hook.synthetic, step, 0.5)
        stages.append(progress_hook.stage)
    assert stages[0] == 0
    assert sorted(stages) == stages
    assert stages[-1] == 2
    assert {int(progress_hook.sample(s, 8, make_generator(0, s))[0]) for s in range(200)} == set(range(6))
    assert {
        progress_hook.sample(s, 8, make_generator(0, s))[1] - progress_hook.sample(s, 8, make_generator(0, s))[0]
        for s in range(20)
    } == {2.0}


def test_the_window_widens_while_the_loss_still_falls() -> None:
    """Every start window has its share of a short run: one whose loss falls to the end would match the first alone."""
    progress_hook, _ = progress()
    stages = []
    for step in range(130):
        progress_hook(progress_hook.synthetic, step, 0.9**step)
        stages.append(progress_hook.stage)
        if step == 20:
            restored, _ = progress()
            restored.restore(progress_hook.state(), step)
            progress_hook = restored
    assert [stages.index(stage) for stage in (1, 2)] == [39, 79]
    assert not progress_hook.accept(3.0)  # back a stage, which has its share again
    for step in range(40):
        assert progress_hook.accept(0.1)
        assert progress_hook.stage == 1
        progress_hook(progress_hook.synthetic, step, 0.9**step)
    assert progress_hook.stage == 2


def test_a_step_that_diverges_is_taken_back() -> None:
    """The set returns to where its loss was last good, the momentum is forgotten, the window is one narrower."""
    progress_hook, optimiser = progress()
    progress_hook.stage = 2
    first = progress_hook.synthetic.images.detach().clone()
    losses = iter([1.0, 5.0, 1.0])

    def objective(synthetic: SyntheticSet, step: int, seed: int) -> Tensor:
        value = synthetic.images.sum()
        return value + (next(losses) - value).detach() + 0 * synthetic.lr

    outer_loop(objective, progress_hook.synthetic, [optimiser], range(1), 0, progress_hook.accept, [progress_hook])
    assert not torch.equal(progress_hook.synthetic.images, first)
    outer_loop(objective, progress_hook.synthetic, [optimiser], range(1, 2), 0, progress_hook.accept, [progress_hook])
    assert torch.equal(progress_hook.synthetic.images, first)
    assert (progress_hook.stage, progress_hook.num_refused) == (1, 1)
    assert not optimiser.state[progress_hook.synthetic.images]["momentum_buffer"].any()
    outer_loop(objective, progress_hook.synthetic, [optimiser], range(2, 3), 0, progress_hook.accept, [progress_hook])
    assert (progress_hook.stage, progress_hook.num_refused) == (1, 0)


def test_divergence_without_end_is_an_error() -> None:
    progress_hook, _ = progress(patience=3)
    assert [progress_hook.accept(inf) for _ in range(3)] == [False] * 3
    with pytest.raises(DivergenceError, match="4 steps in a row"):
        progress_hook.accept(inf)


def test_progress_is_taken_up() -> None:
    progress_hook, _ = progress()
    for step in range(8):
        progress_hook.accept(0.5)
        progress_hook(progress_hook.synthetic, step, 0.5)
    with torch.no_grad():
        progress_hook.synthetic.images.add_(1.0)
    progress_hook.accept(0.5)
    restored, _ = progress()
    restored.restore({name: tensor.clone() for name, tensor in progress_hook.state().items()}, 8)
    assert (restored.stage, restored.running_loss, restored.best_loss, restored.steps_since_best) == (
        progress_hook.stage,
        progress_hook.running_loss,
        progress_hook.best_loss,
        progress_hook.steps_since_best,
    )
    assert torch.equal(restored.last_accepted["images"], progress_hook.last_accepted["images"])


# --- overlap


def test_what_is_alike_is_found() -> None:
    features = torch.tensor([[1.0, 0.0], [1.0, 0.05], [0.9, 0.1], [0.0, 1.0]])
    assert find_overlaps(features, 0.9, 1) == [1]  # nearest to all the others
    assert sorted(find_overlaps(features, 0.9, 3)) == [0, 1] or len(find_overlaps(features, 0.9, 3)) == 2
    assert find_overlaps(features, 1.0, 3) == []
    assert find_overlaps(torch.ones(3, 2), 0.9, 9) != [0, 1, 2]  # one always stays
    assert find_overlaps(features[:1], 0.9, 1) == []


def test_forget_zeroes_rows_alone() -> None:
    parameter = torch.ones(3, 2, requires_grad=True)
    optimiser = torch.optim.SGD([parameter], 0.1, momentum=0.9)
    parameter.sum().backward()
    optimiser.step()
    reset_optimiser_state(optimiser, parameter, torch.tensor([False, True, False]))
    assert optimiser.state[parameter]["momentum_buffer"].tolist() == [[1, 1], [0, 0], [1, 1]]


def overlapping() -> tuple[SyntheticSet, torch.optim.Optimizer, OverlapRepair]:
    """Two classes of three images, of which two of the first class are the same."""
    pool = torch.randn(40, 1, 2, 2, generator=make_generator(0, "pool"))
    labels = torch.arange(2).repeat_interleave(20)
    images = pool[[0, 0, 1, 20, 21, 22]]
    synthetic = SyntheticSet.from_images(images, torch.tensor([0, 0, 0, 1, 1, 1]), 0.1)
    optimiser = torch.optim.SGD([synthetic.images], 0.1, momentum=0.9)
    hook = OverlapRepair(
        synthetic, optimiser, lambda x: x.flatten(1), (pool, labels), 0.9999, every=2, retrain=3, until=4
    )
    return synthetic, optimiser, hook


def test_an_image_that_overlaps_is_replaced_and_trained_alone() -> None:
    synthetic, optimiser, hook = overlapping()
    history: list[Tensor] = []

    def objective(synthetic: SyntheticSet, step: int, seed: int) -> Tensor:
        return (
            synthetic.images.sum() + 0 * synthetic.lr
        )  # all images go the same way, so that what overlaps stays alike

    hooks = [hook, lambda synthetic, step, loss: history.append(synthetic.images.detach().clone())]
    outer_loop(objective, synthetic, [optimiser], range(6), 0, hooks=hooks)
    fresh = hook.is_replaced.tolist()
    assert sum(fresh[:2]) == 1
    assert sum(fresh) == 1
    new, unchanged_rows = fresh.index(True), [not item for item in fresh]
    pool = hook.candidates[0][:20]
    assert (pool == history[1][new]).flatten(1).all(1).any()  # after step 2: a real image of its class
    for later in history[2:5]:
        assert torch.equal(later[unchanged_rows], history[1][unchanged_rows])
        assert not torch.equal(later[new], history[1][new])
    torch.testing.assert_close(history[2][new], history[1][new] - 0.1)  # without the momentum of what was there
    assert not torch.equal(history[5][unchanged_rows], history[4][unchanged_rows])  # and then all go on
    assert hook.num_replaced == 1


def test_the_repair_takes_the_classes_of_learned_labels() -> None:
    hard, _, hook = overlapping()
    hook(hard, 2, 0.0)
    soft, _, other = overlapping()
    logits = torch.nn.functional.one_hot(soft.labels, 2).float() + 0.1
    learned = SyntheticSet.from_images(soft.images.detach(), logits, 0.1)
    other(learned, 2, 0.0)
    assert hook.num_replaced == other.num_replaced == 1
    assert torch.equal(learned.images, hard.images)


def test_the_repair_is_taken_up_bit_for_bit() -> None:
    def objective(synthetic: SyntheticSet, step: int, seed: int) -> Tensor:
        return synthetic.images.square().sum() + 0 * synthetic.lr

    synthetic, optimiser, hook = overlapping()
    outer_loop(objective, synthetic, [optimiser], range(3), 0, hooks=[hook])
    second, second_optimiser, restored = overlapping()
    second.load(synthetic.state())
    second_optimiser.load_state_dict(deepcopy(optimiser.state_dict()))
    restored.restore({name: tensor.clone() for name, tensor in hook.state().items()}, 3)
    for current, steps, value in ((synthetic, optimiser, hook), (second, second_optimiser, restored)):
        outer_loop(objective, current, [steps], range(3, 8), 0, hooks=[value])
    assert hook.num_replaced == 1
    assert torch.equal(synthetic.images, second.images)


def test_no_repair_late_in_the_run() -> None:
    synthetic, _, hook = overlapping()
    before = synthetic.images.detach().clone()
    hook(synthetic, 10, 0.0)
    hook(synthetic, 3, 0.0)
    assert torch.equal(synthetic.images, before)
