"""Laws of batch norm: training is pure in (theta, batch), and evaluation is by running statistics, as in torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from elsewhere import DEVICE, Elsewhere
from small_runs import MINIMAL, result_rows, set_bytes
from torch import Tensor, nn

import limbeck
from limbeck import METHODS, EvalConfig, ExpertConfig, ImageData, JobConfig, ModelConfig, UserError, load
from limbeck.core.rng import derive_seed, make_generator
from limbeck.core.types import Batch
from limbeck.derivatives.autograd import Loss, NeedsGrad
from limbeck.evaluation.trials import evaluate_set, make_trials
from limbeck.experts import Store
from limbeck.experts.make import describe_experts, make_experts
from limbeck.methods.coreset import grand_scores
from limbeck.methods.plan import MethodInputs
from limbeck.networks.flat import FlatModel
from limbeck.networks.losses import CrossEntropy, cross_entropy
from limbeck.networks.registry import flat_model
from limbeck.networks.statistics import Calibrated, RunningStatistics
from limbeck.select.scores import el2n, extract_features
from limbeck.task import Task, make_task
from limbeck.training import Backprop, Replay, unroll
from limbeck.training.plain import Gsam, Schedule, final_parameters, score, train

CLASSES = 3


class Residual(nn.Module):
    """A user's network with torch's own batch norm, with a momentum of its own and a constant buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4, momentum=0.3)
        self.branch, self.branch_norm = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4, affine=False)
        self.register_buffer("scale", torch.tensor(0.5))
        self.classifier = nn.Linear(4, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.norm(self.stem(images)).relu()
        hidden = hidden + self.scale * self.branch_norm(self.branch(hidden)).relu()
        logits: Tensor = self.classifier(hidden.mean((2, 3)))
        return logits


def convnet() -> nn.Module:
    return flat_model(ModelConfig(width=8, norm="batch"), (1, 8, 8), CLASSES).build()


NETWORKS: dict[str, Callable[[], nn.Module]] = {"convnet": convnet, "residual": Residual}


def make_images(count: int, purpose: str = "images") -> Tensor:
    return torch.randn(count, 1, 8, 8, generator=make_generator(0, purpose))


@pytest.fixture(params=NETWORKS)
def model(request: pytest.FixtureRequest) -> FlatModel:
    return FlatModel(NETWORKS[request.param], (1, 8, 8))


def torch_network(model: FlatModel, theta: Tensor) -> nn.Module:
    """A plain module with the parameters theta."""
    module = model.build()
    with torch.no_grad():
        for parameter, value in zip(module.parameters(), model.layout.split(theta)):
            parameter.copy_(value)
    return module


def train_by_torch(module: nn.Module, images: Tensor, labels: Tensor, schedule: Schedule, seed: int) -> None:
    """A training loop as one writes it for torch, over the same batches as `train`."""
    module.train()
    optimiser = torch.optim.SGD(module.parameters(), schedule.lr, schedule.momentum, 0, schedule.weight_decay)
    for epoch in range(schedule.epochs):
        for rows in torch.randperm(len(images), generator=make_generator(seed, "order", epoch)).split(
            schedule.batch_size
        ):
            optimiser.zero_grad()
            cross_entropy(module(images[rows]), labels[rows]).backward()
            optimiser.step()


def test_training_and_testing_are_those_of_torch_bit_for_bit(model: FlatModel) -> None:
    images, labels, schedule = make_images(22), torch.arange(22) % CLASSES, Schedule(3, 0.1, 6, 0.9, 5e-4)
    theta = model.init(1)
    module = torch_network(model, theta)
    train_by_torch(module, images, labels, schedule, 5)
    network = RunningStatistics(model)
    end = final_parameters(train(CrossEntropy(model, statistics=network), theta, images, labels, schedule, 5))
    assert torch.equal(end, model.layout.join([parameter.detach() for parameter in module.parameters()]))
    assert network.buffers is not None
    for name, buffer in module.named_buffers():
        assert torch.equal(network.buffers[name], buffer), name
    module.eval()
    test = make_images(9, "test")
    assert torch.equal(network(end, test), module(test))


def test_a_test_image_is_classified_without_regard_to_the_others(model: FlatModel) -> None:
    network, calibrated = RunningStatistics(model), Calibrated(model, make_images(30))
    theta, test = model.init(1), make_images(6, "test")
    network.record(theta, make_images(12))
    for function in (network, calibrated):
        alone = torch.cat([function(theta, image[None]) for image in test])
        torch.testing.assert_close(alone, function(theta, test), rtol=1e-5, atol=1e-6)
        assert not torch.allclose(alone, model(theta, test), rtol=1e-2)  # by the statistics of the batch
    assert torch.equal(network(theta, test), network(theta, test))  # it leaves the statistics alone


def test_a_call_in_training_is_pure_and_equals_torch(model: FlatModel) -> None:
    theta, images = model.init(1), make_images(7)
    first = model(theta, images)
    RunningStatistics(model).record(theta, make_images(5, "others"))
    assert torch.equal(model(theta, images), first)
    assert torch.equal(torch_network(model, theta)(images), first)
    assert all(module.training for module in model.module.modules())


@pytest.mark.parametrize("soft", [True, False], ids=["soft labels", "hard labels"])
def test_derivatives_are_those_of_the_module_in_float64(model: FlatModel, soft: bool) -> None:
    """The gradient and the Hessian-vector product against autograd of a module with its own parameters."""
    double = FlatModel(lambda: model.build().double(), (1, 8, 8))
    theta, images = double.init(1), make_images(7).double()
    logits = torch.randn(7, CLASSES, generator=make_generator(0, "labels"), dtype=torch.double)
    labels = logits.softmax(1) if soft else logits.argmax(1)
    direction = torch.randn(len(theta), generator=make_generator(0, "direction"), dtype=torch.double)
    module, leaf = torch_network(double, theta).double(), images.clone().requires_grad_()
    parameters = list(module.parameters())
    expected = torch.autograd.grad(cross_entropy(module(leaf), labels), parameters, create_graph=True)
    flat = torch.cat([part.reshape(-1) for part in expected])
    second = torch.autograd.grad(flat @ direction, [*parameters, leaf])
    loss = Loss(CrossEntropy(double))
    torch.testing.assert_close(loss.gradient(theta, Batch(images, labels)), flat.detach(), rtol=1e-10, atol=1e-12)
    hvp = loss.hvp(theta, Batch(images, labels), direction, NeedsGrad(True, True, False))
    assert hvp.theta is not None
    torch.testing.assert_close(hvp.theta, double.layout.join(list(second[:-1])), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(hvp.images, second[-1], rtol=1e-9, atol=1e-12)


def test_a_student_is_differentiated_exactly_and_updates_nothing(model: FlatModel) -> None:
    """The adjoint computes every step again; running statistics are no part of it."""
    double = FlatModel(lambda: model.build().double(), (1, 8, 8))
    gradients = []
    for adjoint in (Replay(), Backprop()):
        images = make_images(6).double().requires_grad_()
        statistics = RunningStatistics(double)
        loss = CrossEntropy(double, statistics=statistics)  # of which a student takes the pure one
        theta = unroll(loss, double.init(1), [Batch(images, torch.arange(6) % 3)] * 4, 0.3, adjoint)
        assert statistics.buffers is None
        gradients.append(torch.autograd.grad((theta - 1).square().sum(), images)[0])
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)
    fresh = dict(double.build().named_buffers())
    assert all(torch.equal(buffer, fresh[name]) for name, buffer in double.module.named_buffers())


def test_gsam_updates_the_statistics_once_a_step_at_the_unperturbed_parameters(model: FlatModel) -> None:
    """The authors' code switches running statistics off for the second gradient."""
    theta, batch = model.init(1), Batch(make_images(8), torch.arange(8) % CLASSES)
    plain, sharp = RunningStatistics(model), RunningStatistics(model)
    Loss(CrossEntropy(model, statistics=plain)).gradient(theta, batch)
    Gsam(0.5, 0.1)(Loss(CrossEntropy(model, statistics=sharp)), theta, batch)
    assert plain.buffers is not None
    assert sharp.buffers is not None
    counts = [value for name, value in sharp.buffers.items() if name.endswith("num_batches_tracked")]
    assert counts
    assert {int(count) for count in counts} == {1}
    assert all(torch.equal(value, sharp.buffers[name]) for name, value in plain.buffers.items())


def test_calibrated_statistics_are_those_of_torchs_update_bn(model: FlatModel) -> None:
    images, theta = make_images(1203), model.init(1)
    network = Calibrated(model, images)
    assert sorted(len(batch) for batch in network.batches) == [401, 401, 401]
    assert torch.cat(network.batches).sum() == pytest.approx(float(images.sum()), abs=1e-2)
    module = torch_network(model, theta)
    torch.optim.swa_utils.update_bn(network.batches, module)
    module.eval()
    test = make_images(9, "test")
    assert torch.equal(network(theta, test), module(test))
    other = model.init(2)
    assert not torch.equal(network(other, test), network(theta, test))
    assert torch.equal(network(theta, test), module(test))  # the statistics are those of the last theta


def test_a_large_split_is_calibrated_on_four_batches(model: FlatModel) -> None:
    network = Calibrated(model, torch.arange(10_000.0)[:, None, None, None])
    firsts = [batch.flatten().tolist() for batch in network.batches]
    assert [(len(rows), rows[1] - rows[0]) for rows in firsts] == [(500, 20)] * 4
    assert len({row for rows in firsts for row in rows}) == 2000


# --- evaluation, experts and scores


@pytest.fixture
def task(digits: ImageData) -> Task:
    return make_task(digits, ModelConfig(width=4, norm="batch"))


def test_an_evaluated_network_is_tested_by_the_statistics_of_its_training(task: Task) -> None:
    images, labels = (tensor[:60] for tensor in task.train)
    schedule = EvalConfig().schedule(0.05, epochs=3)
    summary = evaluate_set(task, lambda _seed: (images, labels), schedule, 1, task.test, seed=3)
    (trial,) = make_trials(lambda _seed: (images, labels), schedule, 1, 3)
    statistics = RunningStatistics(task.model)
    path = train(task.loss_with(task.augment, statistics), task.model.init(trial.seed), *trial[:3], trial.seed)
    assert summary.accuracy_mean == score(statistics, final_parameters(path), *task.test).accuracy


def test_an_expert_is_measured_by_the_statistics_of_its_training(task: Task, tmp_path: Any) -> None:
    config = ExpertConfig(epochs=2, keep="recorded", batch_size=256)
    store = Store.create(tmp_path / "store", describe_experts(task, config, 0))
    make_experts(task, config, 1, 0, store)
    expert, seed, statistics = store.read(0), derive_seed(0, "expert", 0), RunningStatistics(task.model)
    schedule = Schedule(config.epochs, config.lr, config.batch_size, config.momentum, config.weight_decay)
    loss = task.loss_with(task.augment, statistics)
    accuracies = [
        score(statistics, theta, *task.validation).accuracy
        for theta in train(loss, task.model.init(seed), *task.train, schedule, seed)
    ]
    assert list(expert.validation) == accuracies
    end = expert.trajectory("recorded")
    assert end is not None
    calibrated = score(task.logits, end.at(2), *task.test).accuracy  # a stored expert has no running statistics
    assert abs(calibrated - expert.test) < 0.1


def test_features_and_scores_of_real_images_do_not_depend_on_their_order(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor on which of them go through the network together."""
    monkeypatch.setattr("limbeck.select.scores.CHUNK", 60)
    theta = task.model.init(0)
    images, labels = task.train
    order = torch.randperm(len(images), generator=make_generator(0, "order"))
    features, scores = extract_features(task.model, theta, images), el2n(task.model, [theta], images, labels)
    shuffled = (
        extract_features(task.model, theta, images[order]),
        el2n(task.model, [theta], images[order], labels[order]),
    )
    torch.testing.assert_close(shuffled[0], features[order], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(shuffled[1], scores[order], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(task.model.features(theta, images[:5]), features[:5], rtol=1e-2)


def test_grand_refuses_batch_norm(task: Task) -> None:
    with pytest.raises(UserError, match="one image at a time, and batch norm needs several; take el2n"):
        grand_scores(MethodInputs(task, [], 1, 0))


def test_a_batch_of_one_value_per_channel_is_refused_in_a_sentence() -> None:
    model = FlatModel(lambda: nn.Sequential(nn.Conv2d(1, 4, 8), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 3)))
    assert model(model.init(0), make_images(2)).shape == (2, 3)
    with pytest.raises(UserError, match="one value per channel to normalise in a batch of 1 image; take larger"):
        model(model.init(0), make_images(1))
    network = RunningStatistics(model)
    network.record(model.init(0), make_images(4))
    assert network(model.init(0), make_images(1)).shape == (1, 3)


# --- distilling with batch norm

CLASSWISE = ("dc", "dm", "idc", "dream-plus", "tgdd", "ncfm")


@pytest.mark.parametrize("method", ["mct", "mtt", "ftd", "datm", "ptm", *CLASSWISE, "herding", "el2n"])
def test_every_kind_of_method_distils_with_a_batch_norm_network(method: str, digits: ImageData, tmp_path: Path) -> None:
    """Students, online networks, teachers of labels, features and scores; finite, and the same bits twice."""
    options: dict[str, Any] = {
        **{name: value for name, value in MINIMAL.items() if name in JobConfig.model_fields},
        "model": ModelConfig(width=4, norm="batch"),
    }
    own = {**MINIMAL, "batch_real": 8, "inner": 2, "net_epochs": 1, "net_steps": 1, "pool": 4, "pool_width": 2}
    own |= {"warm_up": 1, "factor": 1, "overlap_every": 2, "batch_size": None}
    options |= {name: own[name] for name in METHODS[method].config.model_fields if own.get(name) is not None}
    runs = [limbeck.distill(digits, method=method, ipc=2, out=tmp_path / name, **options) for name in ("a", "b")]
    assert set_bytes(runs[0]) == set_bytes(runs[1])
    assert load(runs[0]).images.isfinite().all()
    assert 0 <= result_rows(runs[0])[0]["accuracy_mean"] <= 1


def test_compiled_kernels_leave_batch_norm_to_autograd(task: Task) -> None:
    assert task.explicit is None
    assert task.implementation == "autograd"


def test_on_another_device_the_processor_never_waits_and_statistics_stay_there(task: Task) -> None:
    """The initial statistics are sent over once, with the first call."""
    schedule, elsewhere = Schedule(2, 0.05, 32, 0.9, 5e-4), Elsewhere()

    def work(place: Task) -> tuple[Tensor, Tensor]:
        (loss, network), pair = place.loss_and_network(), place.train
        theta = place.model.init(1).to(place.device)
        loss.pure.gradient(theta, Batch(pair[0][:4], pair[1][:4]))
        with elsewhere.nothing_crosses("in a copy of the statistics"):
            place.model.copy_buffers(theta)
        elsewhere.reads.clear()
        end = final_parameters(train(loss, theta, *pair, schedule, 3))
        logits = network(end, pair[0])
        assert elsewhere.reads == []
        return logits.cpu(), place.logits(end, pair[0]).cpu()

    with elsewhere:
        actual = work(replace(task, device=DEVICE, preprocess=task.preprocess.to(DEVICE)))
    for there, here in zip(actual, work(task)):
        torch.testing.assert_close(there, here, rtol=1e-3, atol=1e-3)
