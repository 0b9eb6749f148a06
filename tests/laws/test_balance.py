"""Balanced batches: as many real images of every class wherever real images are drawn across classes."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import EVAL
from torch import Tensor

import limbeck
from limbeck import ExpertConfig, ModelConfig, UserError
from limbeck.core.rng import make_generator
from limbeck.core.sampling import balanced_rows, split_by_class
from limbeck.core.types import Batch
from limbeck.data import ImageData, Split
from limbeck.jobs.job import prepare
from limbeck.methods import METHODS, DataFacts, MethodInputs
from limbeck.objectives.fit import Fit
from limbeck.objectives.online_network import OnlineNetwork, RealBatches
from limbeck.synthetic.set import SyntheticSet
from limbeck.task import Task, make_task
from limbeck.training.plain import Schedule, train

SIZES = (3, 30, 7, 1)


def uneven(digits: ImageData) -> ImageData:
    """Four digits, of which a class has as many training images as `SIZES` says."""
    labels = digits.train.labels
    rows = torch.cat([(labels == label).nonzero().squeeze(1)[:size] for label, size in enumerate(SIZES)])
    counts = labels[rows].bincount().tolist()

    def part(split: Split, rows: Tensor) -> Split:
        return Split(split.images[rows], split.labels[rows])

    assert len(counts) == 4
    held_out = {name: part(getattr(digits, name), getattr(digits, name).labels < 4) for name in ("validation", "test")}
    return replace(digits, train=part(digits.train, rows), classes=digits.classes[:4], **held_out)


@pytest.fixture(scope="module")
def uneven_digits(digits: ImageData) -> ImageData:
    return uneven(digits)


@pytest.fixture(scope="module")
def uneven_task(uneven_digits: ImageData) -> Task:
    return make_task(uneven_digits, ModelConfig(width=4))


@pytest.mark.parametrize("count", [1, 3, 4, 10, 51, 200])
def test_classes_and_the_rows_of_a_class_come_equally_often(count: int) -> None:
    labels = torch.tensor([label for label, size in enumerate(SIZES) for _ in range(size)])
    labels = labels[torch.randperm(len(labels), generator=make_generator(0, "labels"))]
    rows = balanced_rows(split_by_class(labels), count, make_generator(1, "rows"))
    assert torch.equal(rows, balanced_rows(split_by_class(labels), count, make_generator(1, "rows")))
    drawn = labels[rows].bincount(minlength=len(SIZES))
    assert int(drawn.sum()) == count
    assert int(drawn.max() - drawn.min()) <= 1
    for label in range(len(SIZES)):
        times = rows.bincount(minlength=len(labels))[labels == label]
        assert int(times.max() - times.min()) <= 1
    if count > 50:
        assert not torch.equal(labels[rows], labels[rows].sort().values), "classes come one after the other"


def test_an_epoch_of_training_is_balanced() -> None:
    """The labels that the loss is given, over three epochs of as many steps each."""
    labels = torch.tensor([0] * 9 + [1] * 3)
    images = torch.arange(12.0)[:, None]
    batches: list[list[int]] = []

    def loss(theta: Tensor, batch: Batch) -> Tensor:
        batches.append(batch.labels.tolist())
        return (theta * batch.images).sum()

    for is_balanced in (False, True):
        batches.clear()
        list(train(loss, torch.ones(1), images, labels, Schedule(3, 0.1, 5, balanced=is_balanced), 0))
        assert [len(batch) for batch in batches] == [5, 5, 2] * 3
        epochs = [tuple(chain.from_iterable(batches[start : start + 3])) for start in (0, 3, 6)]
        counts = Counter({0: 6, 1: 6} if is_balanced else {0: 9, 1: 3})
        assert [Counter(epoch) for epoch in epochs] == [counts] * 3
        assert len(set(epochs)) > 1


def test_the_loss_on_real_images_is_of_balanced_batches(uneven_task: Task) -> None:
    """The classes whose images the student is asked about, for a batch and for as many images as there are."""
    labels = uneven_task.train[1]
    counts: list[list[int]] = []

    def outer_loss(logits: Tensor, labels: Tensor, synthetic: SyntheticSet) -> Tensor:
        counts.append(sorted(labels.bincount(minlength=4).tolist()))
        return logits.sum()

    synthetic = SyntheticSet.from_images(uneven_task.train[0][:4], torch.arange(4), 0.1)
    objective = Fit(lambda *_: lambda images: images, uneven_task.train, 8, outer_loss, split_by_class(labels))
    for step in range(3):
        objective(synthetic, step, 0)
    replace(objective, batch_size=None)(synthetic, 0, 0)
    assert counts == [[2, 2, 2, 2]] * 3 + [[10, 10, 10, 11]]


DRAWING = ("rcig", "rat-bptt", "idc", "dream", "dream-plus")


@pytest.mark.parametrize("name", DRAWING)
def test_methods_that_draw_across_classes_can_be_balanced(name: str, uneven_task: Task) -> None:
    method = METHODS[name]
    options = method.resolve_options(method.config(), DataFacts(41, 1, ExpertConfig()))
    for is_balanced in (False, True):
        plan = method.plan(options, MethodInputs(uneven_task, [], 1, 0, "repeat", balanced=is_balanced))
        parts: list[Any] = [hook.batches for hook in plan.hooks if isinstance(hook, OnlineNetwork)] or [plan.objective]
        assert [part.class_rows is not None for part in parts] == [is_balanced]
        if isinstance(parts[0], RealBatches):
            first = replace(parts[0], batch=8, cutmix=0.0)
            drawn = [sorted(target.sum(0).tolist()) for _, target in first(plan.synthetic, 1)]
            assert all((classes == [2, 2, 2, 2]) == is_balanced for classes in drawn)


def test_a_balanced_job_has_balanced_experts_of_their_own(uneven_digits: ImageData, tmp_path: Path) -> None:
    """And keys say nothing where nothing is balanced, so that older stores and runs are recognised."""
    options: dict[str, Any] = {"model": ModelConfig(width=4), "num_experts": 1, "eval": EVAL, "fill": "repeat"}
    plain, balanced = (
        prepare(uneven_digits, method="mtt", out=tmp_path / str(switch), balanced=switch, **options)
        for switch in (False, True)
    )
    assert plain.experts is not None
    assert balanced.experts is not None
    assert balanced.experts.path != plain.experts.path
    assert "balanced" not in plain.resolved
    assert "balanced" not in plain.resolved["expert"]
    assert balanced.resolved["balanced"] is balanced.resolved["expert"]["balanced"] is True
    assert set(ExpertConfig(balanced=True).model_dump()) - set(ExpertConfig().model_dump()) == {"balanced"}
    short = {"expert": ExpertConfig(epochs=1), "model": ModelConfig(width=4), "num_experts": 1}
    stores = {
        switch: limbeck.train_experts(uneven_digits, out=tmp_path / f"store-{switch}", balanced=switch, **short)
        for switch in (False, True)
    }
    assert not torch.equal(*(store.read(0).convex.at(1) for store in stores.values() if store.read(0).convex))
    assert stores[True].config.balanced
    named = {**options, "method": "mct", "out": tmp_path / "run", "balanced": True}
    assert prepare(uneven_digits, experts=stores[True].path, **named).experts is not None
    with pytest.raises(UserError, match="trained on batches that are not balanced"):
        prepare(uneven_digits, experts=stores[False].path, **named)
    with pytest.raises(UserError, match="random takes no batches of real images"):
        prepare(uneven_digits, method="random", out=tmp_path / "random", balanced=True, **options)
