"""The references that benchmarks compare with are right: the field's steps equal the adjoints, its loops train."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from limbeck.core.types import Batch
from limbeck.data.augment import DSA, CanvasCrop
from limbeck.derivatives.autograd import Loss
from limbeck.objectives.distance import displacement
from limbeck.task import Task
from limbeck.training import Backprop, CrossEntropy, Replay, unroll
from limbeck.training.plain import Schedule, train
from limbeck.training.unroll import Adjoint

sys.path.insert(0, str(Path(__file__).parents[2]))  # the folder `benchmarks` is not installed
reference: Any = importlib.import_module("benchmarks.reference")
measure: Any = importlib.import_module("benchmarks.measure")
cases: Any = importlib.import_module("benchmarks.cases")

pytestmark = pytest.mark.usefixtures("untouched_generators")

ROWS = [torch.tensor(rows) for rows in ([3, 0, 5], [1, 2, 4], [6, 3, 1], [0, 1, 2])]
SEEDS = [11, 12, 17, 18]
LR = 0.3


def segment(task: Task) -> tuple[Tensor, Tensor]:
    """A start and a target in float64; the step size above is large, so that curvature matters."""
    start = task.model.init(1).double()
    return start, start + 0.05 * torch.randn(len(start), generator=torch.Generator().manual_seed(2)).double()


def ours(task: Task, adjoint: Adjoint) -> tuple[float, Tensor, float]:
    """Loss and gradients in images and step size, of the same step as the references are given."""
    images = task.train[0][:7].double().requires_grad_()
    labels, lr = task.train[1][:7], torch.tensor(LR, dtype=torch.double, requires_grad=True)
    start, target = segment(task)
    loss = CrossEntropy(task.model, CanvasCrop(task.data.size, task.augment))
    batches = [Batch(images, labels, seed, rows) for seed, rows in zip(SEEDS, ROWS)]
    distance = displacement(unroll(loss, start, batches, lr, adjoint), start, target)
    distance.backward()
    assert images.grad is not None
    assert lr.grad is not None
    return distance.item(), images.grad, float(lr.grad)


def field(task: Task, step: Any, augment: Any) -> Any:
    images, labels = task.train[0][:7].double(), task.train[1][:7]
    return step(task.model, images, labels, LR, segment(task), ROWS, SEEDS, augment)


@pytest.mark.parametrize(
    ("step", "adjoint"),
    [("mtt_step", Backprop()), ("mtt_step", Replay()), ("released_step", Replay(curvature=False, image_gain=0.5))],
)
def test_the_fields_step_is_the_adjoint(task: Task, step: str, adjoint: Adjoint) -> None:
    result = field(task, getattr(reference, step), task.augment)
    loss, images, lr = ours(task, adjoint)
    assert result.loss == pytest.approx(loss, rel=1e-10)
    assert result.lr == pytest.approx(lr, rel=1e-10)
    assert float((result.images - images).norm() / images.norm()) < 1e-10


def test_the_two_steps_differ(task: Task) -> None:
    """Otherwise the comparison above says nothing of the curvature."""
    exact, released = (field(task, step, task.augment) for step in (reference.mtt_step, reference.released_step))
    assert float((exact.images - 2 * released.images).norm() / exact.images.norm()) > 1e-3


@pytest.mark.parametrize("family", reference.FAMILIES.split("_"))
@pytest.mark.parametrize("shape", [(3, 12, 12), (1, 9, 10)])
def test_the_fields_augmentation_is_ours(family: str, shape: tuple[int, int, int]) -> None:
    images = torch.randn(5, *shape, generator=torch.Generator().manual_seed(3), dtype=torch.double)
    for seed in range(4):
        expected = DSA(family)(images, seed)
        assert not torch.equal(expected, images) or family in ("crop", "flip")
        torch.testing.assert_close(reference.reference_dsa(images, seed, family), expected, rtol=1e-6, atol=1e-6)


def test_both_augmentations_choose_the_same_families(task: Task) -> None:
    """So that neither side of a benchmark meets the costly ones more often."""
    strategy = task.augment.strategy
    images = task.train[0][:5]
    for seed in range(12):
        output = reference.reference_dsa(images, seed, strategy)
        torch.testing.assert_close(output, task.augment(images, seed), rtol=1e-4, atol=1e-5)


def test_the_fields_expert_trains_in_as_many_steps(task: Task) -> None:
    images, labels = task.train
    epochs, size, calls = 6, 32, [0, 0]

    def augment(batch: Tensor, seed: int) -> Tensor:
        calls[0] += 1
        return task.augment(batch, seed)

    def rule(loss: Loss, theta: Tensor, batch: Batch) -> Tensor:
        calls[1] += 1
        return loss.gradient(theta, batch)

    loss = CrossEntropy(task.model, task.augment)  # no kernels, which would be compiled for it
    path = list(reference.expert_epochs(task.model.build, images, labels, task.test, augment, 3, epochs, 0.1, size))
    for _ in train(loss, task.model.init(3), images, labels, Schedule(epochs, 0.1, size), 3, rule):
        pass
    assert calls[0] == calls[1] == sum(epoch.train.batches for epoch in path) == epochs * -(-len(images) // size)
    assert path[-1].test.accuracy > max(0.5, path[0].test.accuracy + 0.2)
    assert path[-1].train.loss < path[0].train.loss
    assert task.model.layout.join(path[-1].snapshot).shape == (task.model.layout.count,)
    assert not torch.equal(path[0].snapshot[0], path[1].snapshot[0])  # the snapshots do not share memory


def test_the_fields_evaluation_trains(task: Task) -> None:
    images, labels = (part[:100] for part in task.train)
    calls = 0

    def augment(batch: Tensor, seed: int) -> Tensor:
        nonlocal calls
        calls += 1
        return task.augment(batch, seed)

    build, test = task.model.build, task.test
    before, after = (
        reference.evaluate_synset(build, images, labels, 0.05, test, augment, 3, epochs, 64) for epochs in (0, 60)
    )
    assert calls == 60 * 2
    assert after > max(0.5, before + 0.3)


def test_sides_alternate_and_are_compared_pair_by_pair() -> None:
    order: list[str] = []
    result = measure.alternate({name: (lambda name=name: order.append(name)) for name in "ab"}, 3)
    assert "".join(order) == "ab" + "ab" + "ba" + "ab"  # the first two warm up
    assert result["n"] == 3
    assert result["base"] == "a"
    spread = result["times_faster"]["b"]
    assert spread["min"] <= spread["median"] <= spread["max"]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells the peak of a stretch")
def test_the_childs_peak_is_its_own() -> None:
    """Neither what the parent holds nor what the child holds before it starts is counted."""
    ballast = bytearray(80 << 20)
    result = measure.in_child("benchmarks.measure", "fill", {"megabytes": 100})
    del ballast
    assert 95 < result["peak_mb"] < 120


def test_flops_are_those_of_the_convolutions() -> None:
    task = cases.make(cases.random_data(1, 28, 20, 10), 4)
    first, others = cases.convolution_flops(task)
    assert first == 2 * 9 * 1 * 4 * 32 * 32  # 28 pixels, padded by 3
    assert others == 2 * 9 * 4 * 4 * (16 * 16 + 8 * 8)


def test_the_benchmark_for_a_gpu_runs_on_a_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One table; all sides do the same work: the same expert comes out, as near as its precision is."""
    device: Any = importlib.import_module("benchmarks.device")
    monkeypatch.setattr(sys, "argv", ["device", "--device", "cpu", "--quick", "--out", str(tmp_path)])
    device.main()
    output = json.loads((tmp_path / "device.json").read_text())["cases"]["quick"]
    table = capsys.readouterr().out
    for what in ("expert", "student, ipc 1", "evaluation, ipc 1"):
        assert list(output["jobs"][what]["median_seconds"]) == ["eager float32", "ours float32"]
        assert f"quick, {what}, n = 1" in table
    assert "left out" not in table
    assert output["check"]["ours float32"]["relative_difference"] < 1e-4
    assert all(side["same_bits_again"] for side in output["check"].values())
    ends = {name: device.expert(way, 0) for name, way in device.ways(device.QUICK, "cpu").items()}
    exact = ends.pop("eager float32")
    start = next(iter(device.ways(device.QUICK, "cpu").values())).task.model.init(0)
    for name, end in ends.items():
        assert float((end - exact).norm() / (exact - start).norm()) < 1e-4, name


def test_the_benchmark_for_a_gpu_ends_in_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What does not fit is named, and nothing is written unless it is asked for."""
    device: Any = importlib.import_module("benchmarks.device")
    monkeypatch.setattr(sys, "argv", ["device", "--device", "cpu", "--quick", "--budget", "0.01"])
    monkeypatch.setattr(device, "write", lambda path, result: pytest.fail("written"))
    device.main()
    table = capsys.readouterr().out
    assert table.count("left out: quick, ") == 3
    assert "the same bits again" in table
    sides = device.ways(device.QUICK, "cpu")
    slow = device.Job("slow", lambda way: pytest.fail("begun"), lambda way: None, 1e-9)
    assert device.compare(slow, sides, 3, 10.0, 10.0).startswith("no time left: about")
