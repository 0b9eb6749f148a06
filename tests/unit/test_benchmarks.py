"""The benchmarks: the references compute what limbeck's adjoints compute, and the measurements are right."""

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


def make_segment(task: Task) -> tuple[Tensor, Tensor]:
    """A start and a target in float64; the step size above is large, so that curvature matters."""
    start = task.model.init(1).double()
    return start, start + 0.05 * torch.randn(len(start), generator=torch.Generator().manual_seed(2)).double()


def run_ours(task: Task, adjoint: Adjoint) -> tuple[float, Tensor, float]:
    """Loss and gradients in images and step size by limbeck's adjoint, for the same inputs as `run_field`."""
    images = task.train[0][:7].double().requires_grad_()
    labels, lr = task.train[1][:7], torch.tensor(LR, dtype=torch.double, requires_grad=True)
    start, target = make_segment(task)
    loss = CrossEntropy(task.model, CanvasCrop(task.data.size, task.augment))
    batches = [Batch(images, labels, seed, rows) for seed, rows in zip(SEEDS, ROWS)]
    distance = displacement(unroll(loss, start, batches, lr, adjoint), start, target)
    distance.backward()
    assert images.grad is not None
    assert lr.grad is not None
    return distance.item(), images.grad, float(lr.grad)


def run_field(task: Task, step: Any, augment: Any) -> Any:
    images, labels = task.train[0][:7].double(), task.train[1][:7]
    return step(task.model, images, labels, LR, make_segment(task), ROWS, SEEDS, augment)


@pytest.mark.parametrize(
    ("step", "adjoint"),
    [("mtt_step", Backprop()), ("mtt_step", Replay()), ("released_step", Replay(curvature=False, image_gain=0.5))],
)
def test_reference_steps_equal_the_adjoints(task: Task, step: str, adjoint: Adjoint) -> None:
    result = run_field(task, getattr(reference, step), task.augment)
    loss, images, lr = run_ours(task, adjoint)
    assert result.loss == pytest.approx(loss, rel=1e-10)
    assert result.lr == pytest.approx(lr, rel=1e-10)
    assert float((result.images - images).norm() / images.norm()) < 1e-10


def test_the_reference_steps_differ_by_the_curvature(task: Task) -> None:
    """Otherwise the test above would not test the curvature."""
    exact, released = (run_field(task, step, task.augment) for step in (reference.mtt_step, reference.released_step))
    assert float((exact.images - 2 * released.images).norm() / exact.images.norm()) > 1e-3


@pytest.mark.parametrize("family", reference.FAMILIES.split("_"))
@pytest.mark.parametrize("shape", [(3, 12, 12), (1, 9, 10)])
def test_reference_augmentation_equals_dsa(family: str, shape: tuple[int, int, int]) -> None:
    images = torch.randn(5, *shape, generator=torch.Generator().manual_seed(3), dtype=torch.double)
    for seed in range(4):
        expected = DSA(family)(images, seed)
        assert not torch.equal(expected, images) or family in ("crop", "flip")
        torch.testing.assert_close(reference.reference_dsa(images, seed, family), expected, rtol=1e-6, atol=1e-6)


def test_reference_augmentation_draws_the_same_families(task: Task) -> None:
    """So that neither side of a benchmark draws the costly families more often."""
    strategy = task.augment.strategy
    images = task.train[0][:5]
    for seed in range(12):
        output = reference.reference_dsa(images, seed, strategy)
        torch.testing.assert_close(output, task.augment(images, seed), rtol=1e-4, atol=1e-5)


def test_reference_expert_trains_with_as_many_steps(task: Task) -> None:
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


def test_reference_evaluation_trains(task: Task) -> None:
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


def test_alternate_reverses_the_order_and_compares_round_by_round() -> None:
    order: list[str] = []
    result = measure.alternate({name: (lambda name=name: order.append(name)) for name in "ab"}, 3)
    assert "".join(order) == "ab" + "ab" + "ba" + "ab"  # the first two warm up
    assert result["n"] == 3
    assert result["base"] == "a"
    spread = result["times_faster"]["b"]
    assert spread["min"] <= spread["median"] <= spread["max"]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux can reset the peak")
def test_peak_memory_excludes_the_parent_and_the_imports() -> None:
    """Neither the parent's memory nor the child's memory before `warm` is counted."""
    ballast = bytearray(80 << 20)
    result = measure.measure_in_child("benchmarks.measure", "allocate", {"megabytes": 100})
    del ballast
    assert 95 < result["peak_mb"] < 120


def test_convolution_flops() -> None:
    task = cases.make_convnet_task(cases.random_data(1, 28, 20, 10), 4)
    first, others = cases.convolution_flops(task)
    assert first == 2 * 9 * 1 * 4 * 32 * 32  # 28 pixels, padded by 3
    assert others == 2 * 9 * 4 * 4 * (16 * 16 + 8 * 8)


def test_the_device_benchmark_runs_on_a_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It prints one table, and all sides train the same expert up to rounding."""
    device: Any = importlib.import_module("benchmarks.device")
    monkeypatch.setattr(sys, "argv", ["device", "--device", "cpu", "--quick", "--out", str(tmp_path)])
    device.main()
    output = json.loads((tmp_path / "device.json").read_text())["cases"]["quick"]
    table = capsys.readouterr().out
    for job in ("expert", "student, ipc 1", "evaluation, ipc 1"):
        assert list(output["jobs"][job]["median_seconds"]) == ["eager float32", "ours float32"]
        assert f"quick, {job}, n = 1" in table
    assert "left out" not in table
    assert output["check"]["ours float32"]["relative_difference"] < 1e-4
    assert all(side["same_bits_again"] for side in output["check"].values())
    sides = device.make_implementations(device.QUICK, "cpu")
    ends = {name: device.train_expert(side, 0) for name, side in sides.items()}
    exact = ends.pop("eager float32")
    start = next(iter(sides.values())).task.model.init(0)
    for name, end in ends.items():
        assert float((end - exact).norm() / (exact - start).norm()) < 1e-4, name


def test_the_device_benchmark_ends_in_time(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Jobs that do not fit into the budget are listed, and nothing is written without `--out`."""
    device: Any = importlib.import_module("benchmarks.device")
    monkeypatch.setattr(sys, "argv", ["device", "--device", "cpu", "--quick", "--budget", "0.01"])
    monkeypatch.setattr(device, "write", lambda path, result: pytest.fail("written"))
    device.main()
    table = capsys.readouterr().out
    assert table.count("left out: quick, ") == 3
    assert "the same bits again" in table
    sides = device.make_implementations(device.QUICK, "cpu")
    slow = device.Job("slow", lambda side: pytest.fail("started"), lambda side: None, 1e-9)
    assert device.compare(slow, sides, 3, 10.0, 10.0).startswith("no time left: about")
