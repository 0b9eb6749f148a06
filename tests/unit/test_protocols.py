"""Protocols of evaluation: the field's is unchanged, and every option of the others does what a plain loop does."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from small_runs import distill_minimal, result_rows
from torch import Tensor

import limbeck
from limbeck import EvalConfig, ModelConfig, UserError
from limbeck.core.evaluation_records import EvaluationRow
from limbeck.core.rng import derive_seed, make_generator
from limbeck.core.types import Batch
from limbeck.data.augment import DSA
from limbeck.data.cutmix import cutmix, mixup
from limbeck.derivatives.autograd import Loss
from limbeck.evaluation.protocol import ADAMW_LRS, ADDED, PROTOCOLS
from limbeck.evaluation.regression import RegressionConfig
from limbeck.evaluation.run import run_evaluations
from limbeck.evaluation.sets import prepare_evaluation
from limbeck.evaluation.training import LabelledLoss, Training, make_training, stand_in_training, teacher_path
from limbeck.task import Task
from limbeck.training.plain import Schedule, final_parameters, score, train

pytestmark = pytest.mark.usefixtures("home")
TEACHER = {"labels": "teacher", "full_epochs": 2}


def train_to_end(loss: Any, theta: Tensor, task: Task, schedule: Schedule) -> Tensor:
    images, labels = task.train
    return final_parameters(train(loss, theta, images[:40], labels[:40], schedule, seed=3))


# --- the field's protocol


def test_the_fields_protocol_is_written_as_before() -> None:
    """It is part of the keys of runs, baselines and logged rows."""
    assert EvalConfig(epochs=7).model_dump(mode="json") == {
        "networks": 5,
        "epochs": 7,
        "batch_size": 256,
        "momentum": 0.9,
        "weight_decay": 0.0005,
        "baseline_lrs": [0.003, 0.01, 0.03],
        "full_epochs": 30,
        "full_batch_size": 64,
        "full_networks": 3,
    }
    assert EvalConfig().model_dump(include={"momentum", *ADDED}) == {"momentum": 0.9}
    assert EvalConfig(ema=0.5).model_dump(include={"momentum", *ADDED}) == {"momentum": 0.9, "ema": 0.5}
    assert limbeck.JobConfig().model_dump()["eval"] == EvalConfig().model_dump()
    assert EvalConfig().label is None
    assert EvalConfig(baselines=("random",)).model_dump()["baselines"] == ("random",)
    assert EvalConfig(baselines=()).label is None


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_protocol_is_read_as_it_was_written(name: Any) -> None:
    config = EvalConfig(protocol=name, epochs=11)
    assert EvalConfig(**config.model_dump()) == config
    assert config.epochs == 11
    assert {field: getattr(config, field) for field in PROTOCOLS[name] if field != "epochs"} == {
        field: value for field, value in PROTOCOLS[name].items() if field != "epochs"
    }
    assert config.plain.model_dump() == EvalConfig(**config.plain.model_dump()).model_dump()
    assert config.plain.label is None


@pytest.mark.parametrize(
    ("options", "label"),
    [
        ({"protocol": "quick"}, "quick"),
        ({"protocol": "ddranking"}, "ddranking, best test accuracy over time"),
        ({"labels": "teacher", "mix": "cutmix"}, "field, labels teacher, mix cutmix"),
        ({"test_every": 5}, "field, test every 5, best test accuracy over time"),
        ({"protocol": "field-max", "dsa": "none"}, "field-max, dsa none, best test accuracy over time"),
    ],
)
def test_rows_say_what_is_not_the_fields(options: Any, label: str) -> None:
    assert EvalConfig(**options).label == label


# --- optimisers and schedules, against plain loops of torch


@pytest.mark.parametrize("batch_size", [40, 16])
def test_adamw_along_a_cosine_is_torchs(task: Task, batch_size: int) -> None:
    schedule = Schedule(6, 0.01, batch_size, weight_decay=0.1, optimiser="adamw", cosine=True)
    ours = train_to_end(Loss(task.loss.function), task.model.init(0), task, schedule)  # Adam amplifies rounding
    theta = task.model.init(0).requires_grad_()
    images, labels = (tensor[:40] for tensor in task.train)
    optimiser = torch.optim.AdamW([theta], 0.01, weight_decay=0.1)
    steps = 6 * -(-40 // batch_size)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for epoch in range(6):
        order = torch.randperm(40, generator=make_generator(3, "order", epoch))
        for step, rows in enumerate(order.split(batch_size)):
            augmented = task.augment(images[rows], derive_seed(3, "augment", epoch, step))
            optimiser.zero_grad()
            F.cross_entropy(task.model(theta, augmented), labels[rows]).backward()
            optimiser.step()
            scheduler.step()
    torch.testing.assert_close(ours, theta.detach())
    assert (ours - task.model.init(0)).norm() > 0.1


def test_the_average_of_parameters_is_that_of_every_step(task: Task) -> None:
    """The decay rises with the steps: without that the start would weigh 0.9^20."""
    schedule = Schedule(20, 0.05, 40)
    path = list(train(task.loss, task.model.init(0), *(tensor[:40] for tensor in task.train), schedule, seed=3))
    average = path[0]
    for t, theta in enumerate(path[1:], 1):
        decay = min(0.9, (1 + t) / (10 + t))
        average = decay * average + (1 - decay) * theta
    ours = train_to_end(task.loss, task.model.init(0), task, schedule._replace(ema=0.9))
    torch.testing.assert_close(ours, average, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(ours, path[-1], atol=1e-3)


def test_the_schedule_follows_the_options() -> None:
    assert EvalConfig(epochs=10).schedule(0.1) == Schedule(10, 0.1, 256, 0.9, 5e-4, 6)
    config = EvalConfig(epochs=10, optimiser="adamw", decay="cosine", ema=0.9)
    assert config.schedule(0.1) == Schedule(10, 0.1, 256, 0.9, 5e-4, None, "adamw", True, 0.9)
    assert config.baseline_lrs == ADAMW_LRS
    assert EvalConfig(optimiser="adamw", baseline_lrs=(0.5,)).baseline_lrs == (0.5,)
    assert config.plain.schedule(0.1) == EvalConfig(epochs=10).schedule(0.1)


# --- labels


def teach_with(task: Task, **options: Any) -> Any:
    return stand_in_training(task, EvalConfig(labels="teacher", **options)).teach


def test_a_teacher_at_a_high_temperature_knows_nothing(task: Task) -> None:
    probabilities = teach_with(task, temperature=1e6)(task.train[0][:5])
    torch.testing.assert_close(probabilities, torch.full((5, 10), 0.1), rtol=0, atol=1e-5)


def test_the_mean_of_teachers_is_that_of_their_logits(task: Task) -> None:
    images = task.train[0][:5]
    logits = [task.model(task.model.init(index), images) for index in range(3)]
    expected = (torch.stack(logits).sum(0) / 3 / 2).softmax(1)
    torch.testing.assert_close(teach_with(task, teachers=3, temperature=2.0)(images), expected, rtol=1e-4, atol=1e-5)


def test_one_teacher_without_augmentation_is_stored_soft_labels(task: Task) -> None:
    training = stand_in_training(task, EvalConfig(labels="teacher", dsa="none"))
    images = task.train[0][:40]
    soft = task.model(task.model.init(0), images).softmax(1)
    schedule = Schedule(5, 0.05, 16)
    loss, theta, labels = training.loss_and_network()[0], task.model.init(7), task.train[1][:40]
    taught = final_parameters(train(loss, theta, images, labels, schedule, 3))
    stored = final_parameters(train(task.loss_with(None), theta, images, soft, schedule, 3))
    torch.testing.assert_close(taught, stored, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_gradient_is_that_of_the_divergence_times_the_squared_temperature(task: Task, temperature: float) -> None:
    config = EvalConfig(labels="teacher", dsa="none", temperature=temperature)
    training = stand_in_training(task, config)
    images = task.train[0][:8]
    theta = task.model.init(5)
    ours = training.loss_and_network()[0].gradient(theta, Batch(images, task.train[1][:8], 1))
    leaf = theta.clone().requires_grad_()
    target = (task.model(task.model.init(0), images) / temperature).softmax(1)
    log_probabilities = (task.model(leaf, images) / temperature).log_softmax(1)
    divergence = F.kl_div(log_probabilities, target, reduction="batchmean")
    (expected,) = torch.autograd.grad(temperature**2 * divergence, leaf)
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-5)
    assert training.workers == (task.workers if temperature == 1 else task.autograd_workers)


def test_the_teacher_sees_the_augmented_and_mixed_images(task: Task) -> None:
    """One-hot classes are mixed where there is no teacher, and the seed alone decides."""
    views: list[Tensor] = []

    def teach(images: Tensor) -> Tensor:
        views.append(images)
        return torch.full((len(images), 10), 0.1)

    images, labels = (tensor[:6] for tensor in task.train)
    inner = Loss(lambda theta, batch: theta.sum())
    loss = LabelledLoss(inner.function, inner, DSA("crop"), mixup, teach, 10)
    prepared = loss.prepare(Batch(images, labels, 4))
    augmented = DSA("crop")(images, 4)
    expected, mixed_labels = mixup(augmented, F.one_hot(labels, 10).float(), make_generator(4, "mix"))
    assert torch.equal(prepared.images, expected)
    assert torch.equal(views[0], expected)
    assert prepared.seed is None
    plain = replace(loss, teach=None).prepare(Batch(images, labels, 4))
    assert torch.equal(plain.labels, mixed_labels)
    assert torch.equal(loss.prepare(Batch(images, labels)).images, images)


def test_classes_alone_are_trained_on_where_labels_are_soft(run: Path, tmp_path: Path) -> None:
    distilled = limbeck.load(run)
    soft = F.one_hot(distilled.labels, 10).float() * 0.6 + 0.04
    options: dict[str, Any] = {"num_networks": 2, "epochs": 4}
    softened = replace(distilled, labels=soft)
    (hard,) = limbeck.evaluate(distilled, **options)
    quick = EvalConfig(epochs=4, networks=2, labels="hard")
    (alone,) = limbeck.evaluate(softened, protocol=quick)
    assert alone == hard.model_copy(update={"protocol": "field, labels hard"})
    assert limbeck.evaluate(softened, **options)[0].accuracy_mean != hard.accuracy_mean


def test_labels_count_in_the_budget(run: Path) -> None:
    distilled = limbeck.load(run)
    soft = replace(distilled, labels=F.one_hot(distilled.labels, 10).float())
    parameters = 4 * prepare_evaluation(distilled)[0].task.model.layout.count

    def measure(one: limbeck.DistilledSet, **options: Any) -> tuple[int | None, int | None]:
        config = EvalConfig(networks=1, epochs=1, **options)
        (row,) = run_evaluations(prepare_evaluation(one, protocol=config))
        return row.image_bytes, row.label_bytes

    assert measure(distilled) == (4 * 10 * 64, 8 * 10)
    assert measure(soft) == (4 * 10 * 64, 4 * 10 * 10)
    assert measure(soft, labels="hard") == (4 * 10 * 64, 8 * 10)
    assert measure(soft, **TEACHER, teachers=2) == (4 * 10 * 64, 8 * 10 + 2 * parameters)


def test_teachers_are_trained_once_and_learn(task: Task) -> None:
    config = EvalConfig(labels="teacher", full_epochs=4, teachers=2)
    events: list[dict[str, Any]] = []
    training = make_training(task, config, events.append)
    assert [event["total"] for event in events if event["event"] == "stage"] == [4, 4]
    assert sum(event["event"] == "advance" for event in events) == 8
    events.clear()
    again = make_training(task, config, events.append)
    assert events == []
    assert training.teach is not None
    assert again.teach is not None
    images, labels = task.validation
    assert torch.equal(training.teach(images), again.teach(images))
    assert (training.teach(images).argmax(1) == labels).double().mean() > 0.2  # chance is 0.1
    assert teacher_path(task, config, 0)[0] != teacher_path(task, config, 1)[0]


# --- CutMix and MixUp


def test_mixup_mixes_images_and_labels_by_one_number() -> None:
    images = torch.arange(5.0)[:, None, None, None].expand(5, 1, 3, 3)
    labels = torch.eye(5)
    mixed, mixed_labels = mixup(images, labels, make_generator(1, "mix"))
    torch.testing.assert_close(mixed[:, 0, 0, 0], mixed_labels @ torch.arange(5.0))
    low, high = (mixed_labels[0].sort().values[-2:]).tolist()
    assert low + high == pytest.approx(1)
    others = {round(float(value), 5) for value in mixed_labels.flatten()} - {round(low, 5), round(high, 5)}
    assert others <= {0.0, 1.0}  # the last for an image that is mixed with itself


def test_mixups_number_is_of_a_beta_distribution() -> None:
    labels = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    pairs = [mixup(torch.zeros(2, 1, 1, 1), labels, make_generator(seed, "mix"))[1] for seed in range(400)]
    values = [float(pair[0, 0]) for pair in pairs if not torch.equal(pair, labels)]
    assert 150 < len(values) < 250  # the other half of the permutations of two is the identity
    assert scipy.stats.kstest(values, scipy.stats.beta(0.8, 0.8).cdf).pvalue > 0.01


@pytest.mark.parametrize("mix", [cutmix, mixup])
def test_a_network_is_trained_on_mixed_images(task: Task, mix: Any) -> None:
    config = EvalConfig(mix=mix.__name__, dsa="none")
    images, labels = (tensor[:16] for tensor in task.train)
    loss = Training(task, config).loss_and_network()[0]
    theta = task.model.init(0)
    mixed, soft = mix(images, F.one_hot(labels, 10).float(), make_generator(9, "mix"))
    expected = task.loss_with(None).gradient(theta, Batch(mixed, soft))
    torch.testing.assert_close(loss.gradient(theta, Batch(images, labels, 9)), expected)


# --- the best over time


def test_the_best_test_accuracy_over_time_is_the_largest_along_the_path(run: Path) -> None:
    config = EvalConfig(networks=1, epochs=10, test_every=3)
    (evaluation,) = prepare_evaluation(run / "set-last.safetensors", protocol=config)
    (row,) = run_evaluations([evaluation])
    task, distilled = evaluation.task, evaluation.distilled
    seed = derive_seed(derive_seed(0, "evaluate"), "network", 0)
    schedule = config.schedule(distilled.lr)
    path = train(task.loss, task.model.init(seed), distilled.images, distilled.labels, schedule, seed)
    scores = [score(task.logits, theta, *task.test).accuracy for theta in path]
    assert row.accuracy_mean == max(scores[epoch] for epoch in (3, 6, 9, 10))
    assert row.protocol == "field, test every 3, best test accuracy over time"


# --- on the way from a command to a row


def test_a_run_with_another_protocol_says_so_in_every_row(tmp_path: Path) -> None:
    config = EvalConfig(
        protocol="field-max", networks=1, epochs=3, baseline_lrs=(0.01,), full_networks=1, full_epochs=1
    )
    path = distill_minimal(tmp_path / "run", eval=config)
    assert {row["protocol"] for row in result_rows(path)} == {"field-max, best test accuracy over time"}
    assert limbeck.load(path).recipe["protocol"] == "field-max"
    (row,) = limbeck.evaluate(path / "set-last.safetensors")
    assert row.to_json() == result_rows(path)[0]
    assert "best test accuracy over time, tested every 20 epochs" in (path / "results.json").read_text()
    headline = re.search("<h1>(.*?)</h1>", (path / "report.html").read_text())
    assert headline is not None
    assert headline[1].startswith("10 images (1 per class) of digits train a convnet to ")
    assert headline[1].endswith("(protocol: field-max, best test accuracy over time).")


def test_the_protocol_of_a_set_is_replaced_by_a_named_one(run: Path) -> None:
    (own,) = prepare_evaluation(run / "set-last.safetensors")
    assert own.config.epochs == 5
    assert own.config.label is None
    (field,) = prepare_evaluation(run / "set-last.safetensors", protocol="field", changes={"networks": 2})
    assert field.config == EvalConfig(networks=2)
    (ranking,) = prepare_evaluation(run / "set-last.safetensors", protocol="ddranking", changes={"epochs": 4})
    assert ranking.config == EvalConfig(protocol="ddranking", epochs=4)


def test_a_learned_step_size_is_for_sgd(run: Path) -> None:
    config = EvalConfig(networks=2, epochs=5, optimiser="adamw", full_networks=1, full_epochs=1)
    rows = limbeck.evaluate(run, networks=["convnet", "mlp"], protocol=config)
    assert {
        (row.lr_from, row.lr in ADAMW_LRS) for row in rows if isinstance(row, EvaluationRow) and row.set != "full"
    } == {("validation", True)}
    assert {row.lr for row in rows if row.set == "full"} == {0.001}
    assert limbeck.evaluate(run / "set-last.safetensors", protocol=config)[0].lr in ADAMW_LRS


def test_batch_norm_is_evaluated_by_every_protocol(run: Path) -> None:
    config = EvalConfig(
        networks=1, epochs=3, full_epochs=1, labels="teacher", temperature=4, mix="cutmix", decay="cosine", ema=0.5
    )
    (row,) = limbeck.evaluate(run / "set-last.safetensors", protocol=config, model=ModelConfig(width=4, norm="batch"))
    again = limbeck.evaluate(run / "set-last.safetensors", protocol=config, model=ModelConfig(width=4, norm="batch"))
    assert row == again[0]
    assert row.protocol == "field, labels teacher, temperature 4.0, mix cutmix, decay cosine, ema 0.5"


def test_regression_is_for_sets_with_targets(run: Path) -> None:
    with pytest.raises(UserError, match="real-valued targets"):
        limbeck.evaluate(run, protocol="regression")
    with pytest.raises(UserError, match="network of its own"):
        limbeck.evaluate(run, protocol="regression", networks="mlp")


def test_regression_has_rows_without_and_with_augmentation(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("limbeck.evaluation.run.RegressionConfig", partial(RegressionConfig, steps=2, width=2))
    distilled = limbeck.load(run)
    distilled = replace(distilled, targets=F.one_hot(distilled.labels, 10).float() - 0.1)
    rows = limbeck.evaluate(distilled, protocol="regression", num_networks=2)
    lines = [(row.set, row.which, row.model, row.protocol, row.n) for row in rows]
    names = ("regression", "regression, augmented")
    assert lines == [("distilled", "chosen", "widening", name, 2) for name in names] + [
        ("random", None, "widening", name, 2) for name in names
    ]
