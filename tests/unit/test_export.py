"""Export of experts and distilled sets, which are imported again or compared with the authors' layout."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from authors_files import (
    NETWORK,
    flat,
    refuse,
    save_mct,
    save_set,
    walk,
)
from torch import Tensor

from limbeck.data import ImageData
from limbeck.experts import Expert, ExpertConfig, Recorded, Store
from limbeck.experts.make import describe_experts
from limbeck.interop import export_experts, export_set, import_experts, import_set
from limbeck.task import Task, make_task


def make_store(path: Path, task: Task, experts: list[Expert], config: ExpertConfig) -> Store:
    store = Store.create(path, describe_experts(task, config, seed=0))
    for index, expert in enumerate(experts):
        store.write(index, expert)
    return store


@pytest.fixture
def small(digits: ImageData) -> Task:
    return make_task(digits, NETWORK)


def records(value: Any) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else [t for item in value for t in records(item)]


def test_recorded_experts_go_out_and_come_back(
    tmp_path: Path, small: Task, import_buffers: Callable[..., Store]
) -> None:
    paths = [torch.stack([flat(p) for p in walk(seed, 2)]) for seed in range(12)]
    experts = [Expert(None, Recorded(points), (0.1, 0.2, 0.3), 0.5) for points in paths]
    store = make_store(tmp_path / "ours", small, experts, ExpertConfig(epochs=2, keep="recorded"))
    files = export_experts(store, tmp_path / "out")
    assert [file.name for file in files] == ["replay_buffer_0.pt", "replay_buffer_1.pt"]
    content = torch.load(files[0], weights_only=True)
    assert [len(content), len(content[0]), len(content[0][0])] == [10, 3, 10]
    for tensor in records(content):
        assert tensor.untyped_storage().nbytes() == 4 * tensor.numel()
    back = import_buffers(tmp_path / "out")
    assert back.header.key != store.header.key
    for index, points in enumerate(paths):
        recorded = back.read(index).recorded
        assert recorded is not None
        assert torch.equal(recorded.tensor(), points)
    refuse("no convexified trajectory", lambda: export_experts(store, tmp_path / "x", "mct"))
    refuse("style", lambda: export_experts(store, tmp_path / "x", "pickle"))


@pytest.mark.parametrize("count", [2, 4])
def test_convexified_experts_go_out_and_come_back(
    tmp_path: Path, small: Task, import_buffers: Callable[..., Store], count: int
) -> None:
    save_mct(tmp_path / "theirs", [walk(0, 9)], count)
    first = import_buffers(tmp_path / "theirs")
    files = export_experts(first, tmp_path / "again", "mct")
    for file in files:
        old, new = records(torch.load(tmp_path / "theirs" / file.name)), records(torch.load(file))
        assert len(old) == len(new)
        for a, b in zip(old, new):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=0)
            assert b.untyped_storage().nbytes() == 4 * b.numel()
    second = import_experts(tmp_path / "again", tmp_path / "second", small.data, measure=20)
    a, b = first.read(0).convex, second.read(0).convex
    assert a is not None
    assert b is not None
    assert a.epochs == b.epochs
    assert torch.equal(a.waypoints, b.waypoints)
    assert torch.equal(a.beta, b.beta)
    refuse("no recorded trajectory", lambda: export_experts(first, tmp_path / "x", "mtt"))


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("style", ["mtt", "datm"])
def test_sets_go_out_and_come_back(tmp_path: Path, digits: ImageData, soft: bool, style: str) -> None:
    save_set(tmp_path / "a", (torch.eye(10) * 0.91 + 0.009) if soft else torch.arange(10))
    distilled = import_set(tmp_path / "a", digits, lr=0.02)
    files = export_set(distilled, tmp_path / "b", style)
    assert [file.name for file in files] == ["images_best.pt", "labels_best.pt", "lr_best.pt"]
    if style == "datm":
        labels = torch.load(files[1])
        assert labels.shape == (10, 10)
        assert torch.isfinite(labels).all()
    imported = import_set(tmp_path / "b", digits)
    assert torch.equal(imported.images, distilled.images)
    assert imported.lr == pytest.approx(0.02)
    if soft:
        torch.testing.assert_close(imported.labels, distilled.labels)
    else:
        assert torch.equal(imported.hard_labels(), distilled.labels)


def test_the_folder_for_dd_ranking(tmp_path: Path, digits: ImageData) -> None:
    save_set(tmp_path / "a", torch.arange(10).flip(0))
    distilled = import_set(tmp_path / "a", digits, lr=0.02)
    export_set(distilled, tmp_path / "b", "ddranking")
    assert torch.equal(torch.load(tmp_path / "b/labels.pt"), torch.arange(10))
    assert torch.equal(torch.load(tmp_path / "b/images.pt"), distilled.images.flip(0))
    assert float(torch.load(tmp_path / "b/lr.pt")) == pytest.approx(0.02)
    assert len(list((tmp_path / "b/images").rglob("00000.png"))) == 10
    lines = (tmp_path / "b/ddranking.yaml").read_text().splitlines()[1:]  # YAML whose values are JSON
    facts = {name: json.loads(value) for name, value in (line.split(": ", 1) for line in lines)}
    assert facts["ipc"] == 1
    assert facts["im_size"] == [8, 8]
    refuse("style", lambda: export_set(distilled, tmp_path / "c", "other"))
