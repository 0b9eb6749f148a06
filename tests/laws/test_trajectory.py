"""Laws of the trajectories: waypoints are reproduced, and the path between them is the authors' and continuous."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from math import floor, nan
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from limbeck.core.errors import UserError
from limbeck.core.tensors import CHECKSUM, read_tensors, write_tensors
from limbeck.experts import (
    SMOOTHING,
    Convexified,
    Convexifier,
    Expert,
    ExpertConfig,
    Recorded,
    Store,
    convexify,
    waypoint_epochs,
)
from limbeck.experts.convexified import FIRST_WAYPOINT, start_at_zero
from limbeck.experts.make import describe_experts
from limbeck.experts.store import make_path
from limbeck.networks.flat import Layout
from limbeck.task import Task

pytestmark = pytest.mark.usefixtures("untouched_generators")

LAYOUT = Layout(("weight", "bias", "gain", "still"), ((2, 3), (4,), (), (3,)))
DTYPES = [torch.float32, torch.float16]
CASES = sorted(
    {(count, epochs) for epochs in (1, 2, 10, 50) for count in (*range(2, 12), epochs + 1) if count <= epochs + 1}
)


def walk(epochs: int) -> Tensor:
    """A random walk (K + 1, P) whose steps differ in length, and whose last tensor never moves."""
    generator = torch.Generator().manual_seed(epochs)
    pace = torch.rand(epochs, 1, generator=generator) + 0.1
    steps = torch.randn(epochs, LAYOUT.count, generator=generator) * pace
    steps[:, -3:] = 0
    start = torch.randn(1, LAYOUT.count, generator=generator)
    return torch.cat([start, start + steps.cumsum(0)])


def make_convexified(
    count: int, epochs: int, smoothing: str = "none", dtype: torch.dtype = torch.float32
) -> Convexified:
    return convexify(walk(epochs), LAYOUT, waypoint_epochs(count, epochs), SMOOTHING[smoothing], dtype)


def tensors(theta: Tensor) -> list[npt.NDArray[np.float64]]:
    return [part.reshape(-1).double().numpy() for part in LAYOUT.split(theta)]


@pytest.mark.parametrize("epochs", [1, 2, 3, 7, 10, 50])
def test_waypoints_begin_and_end_and_increase(epochs: int) -> None:
    for count in range(2, epochs + 2):
        epochs_of_waypoints = waypoint_epochs(count, epochs)
        assert len(epochs_of_waypoints) == count
        assert (epochs_of_waypoints[0], epochs_of_waypoints[-1]) == (0, epochs)
        assert all(
            b - a in (epochs // (count - 1), -(-epochs // (count - 1))) for a, b in pairwise(epochs_of_waypoints)
        )
    for count in (0, 1, epochs + 2):
        with pytest.raises(UserError, match=f"not {count}"):
            waypoint_epochs(count, epochs)


@given(epochs=st.integers(1, 10**6), steps=st.integers(1, 10**4))
def test_by_default_each_waypoint_is_about_three_times_as_late_as_the_one_before(epochs: int, steps: int) -> None:
    config = ExpertConfig(epochs=epochs).with_waypoints(steps)
    first, *others = config.waypoint_epochs()
    assert (first, others[-1], len(others) + 1) == (0, epochs, config.waypoints)
    assert all(a < b and abs(b - 3 * a) <= 2 for a, b in pairwise(others))
    assert others[0] == epochs or others[0] * steps * config.lr >= FIRST_WAYPOINT / 2, "none in the first steps"
    assert others[0] / 3 < 0.5 or others[0] / 3 * steps * config.lr < 2 * FIRST_WAYPOINT, "one after them"


def test_waypoints_that_were_asked_for_stay() -> None:
    for options in ({"waypoints": 5}, {"waypoint_at": (0, 7, 30)}, {"waypoints": 2}):
        config = ExpertConfig(**options)  # type: ignore[arg-type]
        assert config.with_waypoints(211) == config


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("smoothing", SMOOTHING)
@pytest.mark.parametrize(("count", "epochs"), CASES)
def test_what_is_stored_comes_back(count: int, epochs: int, smoothing: str, dtype: torch.dtype) -> None:
    convex, points = make_convexified(count, epochs, smoothing, dtype), walk(epochs)
    assert convex.end == epochs
    assert convex.waypoints.dtype == dtype
    for epoch, waypoint in zip(convex.epochs, convex.waypoints, strict=True):
        assert torch.equal(convex.at(epoch), waypoint.float())
        assert torch.equal(convex.at(float(epoch)), waypoint.float())
        if epoch == 0 or smoothing == "none" or count == 2:
            assert torch.equal(waypoint, points[epoch].to(dtype))
    assert convex.at(epochs / 3).dtype == torch.float32


@pytest.mark.parametrize(("count", "epochs"), CASES)
def test_mct_smoothing(count: int, epochs: int) -> None:
    """Interior points become the mean of their neighbours, the last one that of itself and the epoch before."""
    convex, points = make_convexified(count, epochs, "mct"), walk(epochs)
    for index, epoch in enumerate(convex.epochs[1:], start=1):
        neighbour = points[epoch] if epoch == epochs else points[epoch + 1]
        expected = points[epoch] if count == 2 else (points[epoch - 1] + neighbour) / 2
        torch.testing.assert_close(convex.waypoints[index], expected)
    assert torch.equal(convex.beta, make_convexified(count, epochs, "none").beta)  # of the raw path


def older(points: Tensor, epochs: tuple[int, ...]) -> Tensor:
    """Waypoints of the authors' parallel script: half the point and a quarter of each neighbour, of the two before."""
    if len(epochs) == 2:
        return points[list(epochs)]
    inner = [points[k] / 2 + (points[k - 1] + points[k + 1]) / 4 for k in epochs[1:-1]]
    end = epochs[-1]
    return torch.stack([points[0], *inner, points[end] / 2 + (points[end - 2] + points[end - 1]) / 4])


@pytest.mark.parametrize(("count", "epochs"), CASES)
def test_older_mct_smoothing(count: int, epochs: int) -> None:
    convex = make_convexified(count, epochs, "mct-older")
    torch.testing.assert_close(convex.waypoints, older(walk(epochs), convex.epochs))


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("epochs", [10, 50])
def test_ablated_schedules(count: int, epochs: int) -> None:
    """Against the formulas of MCT's ablations, within each segment."""
    for schedule in ("uniform", "decreasing"):
        convex = convexify(walk(epochs), LAYOUT, waypoint_epochs(count, epochs), schedule=schedule)
        for first, last in pairwise(convex.epochs):
            length = last - first
            for k in range(1, length + 1):
                expected = {
                    "uniform": k / length,
                    "decreasing": sum(length - j for j in range(k)) / sum(range(length + 1)),
                }[schedule]
                assert convex.beta[first + k - 1].tolist() == pytest.approx([expected] * 4, abs=1e-6)
        for epoch, waypoint in zip(convex.epochs, convex.waypoints, strict=True):
            assert torch.equal(convex.at(epoch), waypoint)


def test_a_path_with_an_offset_is_read_as_one_that_starts_at_zero(task: Task, expert: Expert, tmp_path: Path) -> None:
    """The ablation of the authors' code, which earlier versions wrote: beta at epoch 0 is 51/1326."""
    betas = torch.arange(51, 0, -1, dtype=torch.double).cumsum(0) / 1326
    assert betas[[0, 1, 25, 50]].tolist() == pytest.approx([0.0385, 0.0762, 0.7549, 1.0], abs=5e-5)
    start, stop = walk(50)[0], walk(50)[50]
    waypoints, beta = start_at_zero(torch.stack([start, stop]), betas[1:, None].float().expand(50, 4), float(betas[0]))
    convex = Convexified(LAYOUT, (0, 50), waypoints, beta)
    torch.testing.assert_close(convex.at(0), start + 51 / 1326 * (stop - start))
    torch.testing.assert_close(convex.at(0.5), start + float(betas[0] + betas[1]) / 2 * (stop - start))
    torch.testing.assert_close(convex.at(25), start + float(betas[25]) * (stop - start))
    assert torch.equal(convex.at(50), stop)
    store = Store.create(tmp_path / "store", describe_experts(task, ExpertConfig(epochs=3, waypoints=2), seed=7))
    assert expert.recorded is not None
    before = make_path(expert.recorded.tensor(), task.model.layout, ExpertConfig(epochs=3, waypoints=2))
    store.write(0, replace(expert, convex=before, recorded=None))
    tensors, header = read_tensors(store.file(0), "limbeck-expert")
    plain = {name: value for name, value in header.items() if name != CHECKSUM}
    write_tensors(store.file(0), tensors, {**plain, "beta0": 0.25})
    after = store.read(0).convex
    assert after is not None
    torch.testing.assert_close(after.at(0), torch.lerp(before.waypoints[0], before.waypoints[1], 0.25))
    torch.testing.assert_close(after.at(2), before.at(2))


@pytest.mark.parametrize("smoothing", SMOOTHING)
@pytest.mark.parametrize(("count", "epochs"), CASES)
def test_beta_is_a_fraction_of_a_segment(count: int, epochs: int, smoothing: str) -> None:
    convex = make_convexified(count, epochs, smoothing)
    assert convex.beta.shape == (epochs, len(LAYOUT.names))
    for first, last in pairwise(convex.epochs):
        part = convex.beta[first:last]
        assert (part[0] >= 0).all()
        assert (part.diff(dim=0) >= 0).all()
        assert (part[-1] == 1).all()


@pytest.mark.parametrize("epochs", [1, 2, 10, 50])
def test_two_waypoints_go_by_path_length(epochs: int) -> None:
    """beta_l(k) = sum over j <= k of |theta_j^l - theta_{j-1}^l|, over the same sum to K (Zhong et al. 2025)."""
    points = [tensors(theta) for theta in walk(epochs)]
    convex = make_convexified(2, epochs)
    for tensor in range(len(LAYOUT.names) - 1):
        steps = [np.linalg.norm(b[tensor] - a[tensor]) for a, b in pairwise(points)]
        for k in range(1, epochs + 1):
            expected = sum(steps[:k]) / sum(steps)
            assert float(convex.beta[k - 1, tensor]) == pytest.approx(expected, rel=1e-6)


def point(theta: list[list[npt.NDArray[np.float64]]], waypoints: Convexified, n: float) -> npt.NDArray[np.float64]:
    """The authors' reconstruction at real epoch n, one tensor at a time in float64, from the recorded points."""
    segment = next(i for i, last in enumerate(waypoints.epochs[1:]) if n < last or last == waypoints.end)
    first, last = waypoints.epochs[segment], waypoints.epochs[segment + 1]
    ends = [tensors(waypoints.waypoints[i].float()) for i in (segment, segment + 1)]
    out = []
    for tensor, (start, stop) in enumerate(zip(*ends)):
        lengths = [np.linalg.norm(theta[j][tensor] - theta[j - 1][tensor]) for j in range(first + 1, last + 1)]
        betas = [sum(lengths[:k]) / (sum(lengths) or 1.0) for k in range(last - first + 1)]
        k, alpha = floor(n) - first, n - floor(n)
        beta = betas[k] if alpha == 0 else (1 - alpha) * betas[k] + alpha * betas[k + 1]
        out.append(start + beta * (stop - start))
    return np.concatenate(out)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("smoothing", SMOOTHING)
@pytest.mark.parametrize(("count", "epochs"), [(2, 1), (2, 10), (3, 10), (4, 10), (11, 10), (2, 50), (4, 50), (7, 50)])
def test_any_real_epoch_is_what_the_authors_reconstruct(
    count: int, epochs: int, smoothing: str, dtype: torch.dtype
) -> None:
    convex = make_convexified(count, epochs, smoothing, dtype)
    path = walk(epochs)
    if smoothing == "mct-older":  # its lengths are those of the path with the smoothed points in it
        path[list(convex.epochs)] = older(path, convex.epochs)
    points = [tensors(theta) for theta in path]
    times = (torch.rand(40, generator=torch.Generator().manual_seed(1)).double() * epochs).tolist()
    for t in [*times, *range(epochs + 1)]:
        np.testing.assert_allclose(convex.at(t).numpy(), point(points, convex, t), rtol=0, atol=2e-5)


@pytest.mark.parametrize("smoothing", SMOOTHING)
@pytest.mark.parametrize(("count", "epochs"), CASES)
def test_it_is_continuous(count: int, epochs: int, smoothing: str) -> None:
    """Never faster than from one waypoint to the next within an epoch, across whole epochs and waypoints too."""
    convex = make_convexified(count, epochs, smoothing)
    fastest = float(convex.waypoints.diff(dim=0).abs().max())
    eps = 1e-4
    times = torch.rand(50, generator=torch.Generator().manual_seed(1)).double() * (epochs - eps)
    for t in [*times.tolist(), *range(epochs), *(k - eps / 2 for k in range(1, epochs)), epochs - eps]:
        assert float((convex.at(t + eps) - convex.at(t)).abs().max()) <= eps * fastest + 1e-5


def test_a_tensor_that_never_moves_stays() -> None:
    convex = make_convexified(4, 10)
    assert all(torch.equal(convex.at(t)[-3:], walk(10)[0, -3:]) for t in (0, 0.3, 3, 4.7, 9.9, 10))
    still = convexify([torch.ones(LAYOUT.count)] * 4, LAYOUT, (0, 2, 3))
    assert all(torch.equal(still.at(t), torch.ones(LAYOUT.count)) for t in (0, 1.5, 2, 2.2, 3))


def test_waypoints_may_be_given() -> None:
    assert ExpertConfig(epochs=50, waypoint_at=(0, 6, 25, 50)).waypoint_epochs() == (0, 6, 25, 50)
    for wrong in ((0, 25), (1, 50), (0, 30, 20, 50), (0, 20, 20, 50), (50,)):
        with pytest.raises(UserError, match="go up from 0"):
            ExpertConfig(epochs=50, waypoint_at=wrong).waypoint_epochs()
    with pytest.raises(UserError, match="no schedule is called 'nope'"):
        ExpertConfig(schedule="nope").waypoint_epochs()


OUTSIDE = [make_convexified(4, 10), Recorded(walk(10))]


@pytest.mark.parametrize("trajectory", OUTSIDE, ids=lambda value: type(value).__name__)
def test_outside_is_refused(trajectory: Convexified | Recorded) -> None:
    for t in (-1, -1e-9, 10 + 1e-9, 11, nan, float("inf")):
        with pytest.raises(ValueError, match="epoch"):
            trajectory.at(t)


def test_recorded_answers_at_whole_epochs_only() -> None:
    points = walk(10)
    recorded = Recorded(points)
    assert recorded.end == 10
    assert all(torch.equal(recorded.at(epoch), points[epoch]) for epoch in range(11))
    assert Recorded(points.half()).at(3.0).dtype == torch.float32
    for t in (0.5, 9.999):
        with pytest.raises(ValueError, match="whole epochs 0 to 10"):
            recorded.at(t)


def test_asking_changes_nothing() -> None:
    convex, again = make_convexified(4, 10), make_convexified(4, 10)
    first = convex.at(4.2)
    first += 1
    convex.at(0).zero_()
    assert torch.equal(convex.waypoints, again.waypoints)
    assert torch.equal(convex.at(4.2), again.at(4.2))


@pytest.mark.parametrize("smoothing", SMOOTHING)
def test_a_vector_that_goes_on_changing_may_be_added(smoothing: str) -> None:
    convexifier = Convexifier(LAYOUT, (0, 2, 4), SMOOTHING[smoothing], torch.float32)
    theta = torch.zeros(LAYOUT.count)
    for now in walk(4):
        convexifier.add(theta.copy_(now))
    streamed, expected = convexifier.finish(), convexify(walk(4), LAYOUT, (0, 2, 4), SMOOTHING[smoothing])
    assert torch.equal(streamed.waypoints, expected.waypoints)
    assert torch.equal(streamed.beta, expected.beta)


def test_the_number_of_epochs_must_fit() -> None:
    convexifier = Convexifier(LAYOUT, (0, 5), SMOOTHING["none"], torch.float32)
    for theta in walk(4):
        convexifier.add(theta)
    with pytest.raises(ValueError, match="5 epochs were added"):
        convexifier.finish()


# --- a real expert


@pytest.mark.parametrize("smoothing", SMOOTHING)
@pytest.mark.parametrize("count", [2, 3, 4])
def test_convexifying_while_training_equals_convexifying_afterwards(
    expert: Expert, task: Task, count: int, smoothing: str
) -> None:
    assert expert.recorded is not None
    assert expert.convex is not None
    layout = task.model.layout
    assert not torch.equal(expert.recorded.at(0), expert.recorded.at(3))
    after = convexify(expert.recorded.points, layout, waypoint_epochs(count, 3), SMOOTHING[smoothing])
    if (count, smoothing) == (3, "mct"):  # what the expert was trained with
        assert expert.convex.epochs == after.epochs
        assert torch.equal(expert.convex.waypoints, after.waypoints)
        assert torch.equal(expert.convex.beta, after.beta)
    else:
        assert not torch.equal(expert.convex.at(1.5), after.at(1.5))
