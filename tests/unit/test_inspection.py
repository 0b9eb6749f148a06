"""The analyses of experts: against plain numpy, and as a page."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from limbeck.core.errors import UserError
from limbeck.experts import Expert, ExpertConfig, Recorded, Store
from limbeck.experts.make import describe_experts
from limbeck.jobs.inspection import cosine_of_updates, distance_to_line, inspect_store, plane, storage
from limbeck.report.inspection import write_inspection
from limbeck.task import Task
from limbeck.training.plain import score


def points() -> torch.Tensor:
    return torch.randn(6, 9, generator=torch.Generator().manual_seed(0)).cumsum(0)


def test_cosines_and_distances_equal_numpy() -> None:
    array = points().double().numpy()
    updates = np.diff(array, axis=0)
    cosines = cosine_of_updates(points()).numpy()
    for i, a in enumerate(updates):
        for j, b in enumerate(updates):
            assert cosines[i, j] == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    line, away = array[-1] - array[0], distance_to_line(points()).numpy()
    for k, point in enumerate(array):
        nearest = min(np.linalg.norm(point - array[0] - s * line) for s in np.linspace(-2, 3, 20001))
        assert away[k] * np.linalg.norm(line) == pytest.approx(nearest, abs=1e-3)
    assert (away[0], away[-1]) == pytest.approx((0, 0), abs=1e-12)


def test_the_plane_keeps_most_of_the_spread() -> None:
    """No other plane explains more: the shares are the two greatest eigenvalues of the covariance."""
    projection = plane(points(), {"recorded": Recorded(points())})
    values = np.linalg.eigvalsh(np.cov(points().double().numpy().T))[::-1]
    assert projection.explained == pytest.approx(values[:2] / values.sum())
    across = np.array(projection.paths["recorded"]).var(axis=1, ddof=1)
    assert across == pytest.approx(values[:2])


def test_experts_that_do_not_move_have_numbers() -> None:
    still = torch.ones(3, 4)
    assert distance_to_line(still).tolist() == [0, 0, 0]
    assert plane(still, {"recorded": Recorded(still)}).explained == [0, 0]


@pytest.mark.parametrize(
    ("place", "value"),
    [
        *(("cosine", value) for value in ([], [[1.0], [1.0]], [[1.0, 0.0]], [[1e300]])),
        *(("plane", {"explained": [0.5, 0.1, 0.1], "paths": {}}), ("straightness", [1e300]), ("expert", {"lr": 0.1})),
        *(("plane", {"explained": [0.5, 0.1], "paths": {"recorded": path}}) for path in ([[], []], [[0.0], [1e300]])),
    ],
)
def test_a_damaged_record_is_refused(store: Store, tmp_path: Path, place: str, value: object) -> None:
    path = tmp_path / "inspect.json"
    inspect_store(store.path, tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text()), place: value}))
    with pytest.raises(UserError, match=place if place != "cosine" or value == [[1e300]] else "do not fit"):
        write_inspection(tmp_path)


def test_storage_is_the_arithmetic_of_the_papers() -> None:
    """CIFAR-10's ConvNet: 65,282,040 bytes recorded, 25.5 and 12.7 times as much as two and four waypoints."""
    rows = {row.form: row for row in storage(320010, 14, 50)}
    assert rows["recorded, 51 epochs"].bytes == 65_282_040
    assert rows["2 waypoints"].ratio == pytest.approx(25.47, abs=0.01)
    assert rows["4 waypoints"].ratio == pytest.approx(12.74, abs=0.01)


def test_a_recorded_store_gives_every_analysis(store: Store, task: Task, tmp_path: Path) -> None:
    page = inspect_store(store.path, tmp_path / "out", data=task.data)
    value = json.loads((tmp_path / "out" / "inspect.json").read_text())
    curves = value["accuracy"]["curves"]
    assert set(curves) >= {"recorded", "arc, 2 waypoints", "uniform, 2 waypoints", "decreasing, 2 waypoints"}
    recorded = store.read(0).recorded
    assert recorded is not None
    measured = [score(task.model, recorded.at(k), *task.validation).accuracy for k in range(4)]
    assert curves["recorded"][0] == measured
    stored = store.read(0).convex
    assert stored is not None
    assert curves.pop("stored")[0] == [score(task.model, stored.at(k), *task.validation).accuracy for k in range(4)]
    for rows in curves.values():  # every other path ends where the expert ended: it is not smoothed
        assert rows[0][-1] == measured[-1]
    text = page.read_text()
    assert text.count("<svg") == 4
    assert "http://" not in text.replace("http://www.w3.org", "")


def test_a_convex_store_gives_what_it_can(store: Store, expert: Expert, task: Task, tmp_path: Path) -> None:
    config = ExpertConfig(epochs=3, waypoints=3, smoothing="mct", keep="convex")
    other = Store.create(tmp_path / "convex", describe_experts(task, config, seed=0))
    other.write(0, replace(expert, recorded=None))
    inspect_store(other.path, tmp_path / "out", data=task.data)
    value = json.loads((tmp_path / "out" / "inspect.json").read_text())
    assert (value["cosine"], value["plane"], value["straightness"]) == (None, None, None)
    assert list(value["accuracy"]["curves"]) == ["stored"]
    inspect_store(other.path, tmp_path / "bare")
    assert json.loads((tmp_path / "bare" / "inspect.json").read_text())["accuracy"] is None


def test_what_cannot_be_inspected_is_refused(task: Task, tmp_path: Path) -> None:
    empty = Store.create(tmp_path / "empty", describe_experts(task, ExpertConfig(epochs=3), seed=0))
    with pytest.raises(UserError, match="no finished experts"):
        inspect_store(empty.path, tmp_path / "out")
    with pytest.raises(UserError, match="not a store"):
        inspect_store(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_page_needs_no_torch() -> None:
    code = "import sys, limbeck.report.inspection; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
