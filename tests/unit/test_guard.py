"""The outer loop refuses steps that are of no use, goes back to its last good state, and stops if that is in vain."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import MINIMAL
from torch import Tensor

import limbeck
from limbeck.synthetic.clipping import ClippedAdam
from limbeck.synthetic.guard import PATIENCE, Guard
from limbeck.synthetic.loop import DivergenceError, outer_loop
from limbeck.synthetic.set import SyntheticSet

NAN = float("nan")
Objective = Callable[[SyntheticSet, int, int], Tensor]


def make_set() -> tuple[SyntheticSet, torch.optim.Optimizer]:
    synthetic = SyntheticSet.from_images(torch.ones(2, 1, 4, 4), torch.tensor([0, 1]), lr=0.1, learned=("images",))
    return synthetic, torch.optim.Adam([synthetic.images], lr=0.1)


def faulty(factors: dict[int, float]) -> Objective:
    """The mean square of the images, times a factor at some steps."""
    return lambda synthetic, step, seed: synthetic.images.square().mean() * factors.get(step, 1.0)


def run(objective: Objective, steps: range, guard: Guard) -> list[Tensor]:
    """The images after every step."""
    images: list[Tensor] = []
    outer_loop(
        objective,
        guard.synthetic,
        guard.optimisers,
        steps,
        0,
        hooks=[lambda synthetic, *_: images.append(synthetic.images.detach().clone())],
        admit=guard.admit,
    )
    return images


def make_guard(**options: Any) -> tuple[Guard, list[str]]:
    sentences: list[str] = []
    synthetic, optimiser = make_set()
    return Guard(synthetic, [optimiser], sentences.append, "Lower it.", **options), sentences


def test_a_loss_that_is_no_number_undoes_the_step_that_led_to_it() -> None:
    guard, sentences = make_guard()
    images = run(faulty({3: NAN}), range(6), guard)
    assert torch.equal(images[3], images[1])  # where the loss of step 2 was measured
    assert torch.equal(images[4], images[2])  # the same step again, by the same state of the optimiser
    assert not torch.equal(images[5], images[4])
    (sentence,) = sentences
    assert sentence.startswith("step 3: the gradient of images is not finite (loss nan")
    assert sentence.endswith("Lower it.")


@pytest.mark.parametrize(
    "make",
    [
        lambda images: torch.optim.Adam([images], lr=0.1),
        lambda images: torch.optim.SGD([images], lr=0.1, momentum=0.9),
        lambda images: ClippedAdam([images], lr=0.1, clip=2.0),
    ],
    ids=["adam", "sgd", "clipped-adam"],
)
def test_where_the_first_step_is_undone_the_next_one_is_as_the_first(
    make: Callable[[Tensor], torch.optim.Optimizer],
) -> None:
    guard, _ = make_guard()
    guard.optimisers = [make(guard.synthetic.images)]
    images = run(faulty({1: NAN}), range(4), guard)
    assert torch.equal(images[1], torch.ones_like(images[1]))
    assert torch.equal(images[2], images[0])  # a zero in place of what Adam remembers of norms would stop it for good
    assert not torch.equal(images[3], images[2])


def test_a_loss_far_above_its_median_is_refused_unless_the_method_judges_it() -> None:
    for judges, refusals in ((True, 1), (False, 0)):
        guard, sentences = make_guard(judges_size=judges)
        run(faulty({25: 1e6}), range(27), guard)
        assert len(sentences) == refusals, sentences


def test_few_losses_have_no_median() -> None:
    guard, sentences = make_guard()
    run(faulty({5: 1e6}), range(7), guard)
    assert sentences == []


def test_it_stops_after_some_refusals_in_a_row() -> None:
    guard, sentences = make_guard()
    with pytest.raises(DivergenceError, match=rf"step {2 + PATIENCE}: .*{PATIENCE} steps were refused.*Lower it\."):
        run(faulty(dict.fromkeys(range(3, 20), NAN)), range(20), guard)
    assert len(sentences) == 1
    assert bool(torch.isfinite(guard.synthetic.images).all())


def test_it_stops_where_every_second_step_fails() -> None:
    """The state to which it goes back is good, and what follows from it never is."""
    guard, _ = make_guard()
    with pytest.raises(DivergenceError):
        run(faulty(dict.fromkeys(range(1, 40, 2), NAN)), range(40), guard)


def test_refusals_with_progress_between_them_are_forgotten() -> None:
    guard, sentences = make_guard()
    run(faulty(dict.fromkeys(range(3, 60, 3), NAN)), range(60), guard)
    assert len(sentences) == 1


@pytest.mark.parametrize("stop", [3, 4, 5])
def test_a_guard_goes_on_where_it_was(stop: int) -> None:
    """A state is saved after any step, before a refusal or after one: the bits are the same."""
    objective = faulty({4: NAN})
    whole = run(objective, range(8), make_guard()[0])
    first, second = make_guard()[0], make_guard()[0]
    run(objective, range(stop), first)
    second.synthetic.load({name: tensor.clone() for name, tensor in first.synthetic.state().items()})
    second.optimisers[0].load_state_dict(first.optimisers[0].state_dict())
    second.restore({name: tensor.clone() for name, tensor in first.state().items()}, stop)
    assert torch.equal(run(objective, range(stop, 8), second)[-1], whole[-1])


def test_a_state_without_a_guard_is_of_an_earlier_version() -> None:
    guard, _ = make_guard()
    guard.restore({}, 3)
    assert guard.good == {}


def test_a_run_that_diverges_says_what_to_change(tmp_path: Path) -> None:
    model = limbeck.ModelConfig(width=4, norm="none")  # a norm takes all of the size out of the images
    options = {**MINIMAL, "iterations": 20, "validate_every": 20, "lr_img": 1e9, "model": model}
    with pytest.raises(DivergenceError, match=r"--lr-img 1e\+08 \(now 1e\+09\)") as caught:
        limbeck.distill("digits", out=tmp_path / "run", **options)
    assert len(str(caught.value)) < 450
