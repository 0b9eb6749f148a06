"""Laws of the store of experts: it returns what was written, and refuses damaged or foreign files."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.core.errors import UserError
from limbeck.core.files import content_key, write_json
from limbeck.experts import (
    SCHEDULES,
    Expert,
    ExpertConfig,
    Store,
)
from limbeck.experts.handle import Experts
from limbeck.experts.make import describe_experts
from limbeck.experts.store import make_path
from limbeck.task import Task

pytestmark = pytest.mark.usefixtures("untouched_generators")


def test_a_store_of_bezier_curves_is_refused(task: Task, tmp_path: Path) -> None:
    description = describe_experts(task, ExpertConfig(epochs=3), seed=7)
    assert description["expert"]["form"] == "convex"
    two = ExpertConfig().with_waypoints(6)
    assert content_key(two.model_dump(mode="json")) == "e33973a68aa2", "stores of before are found by it"
    earlier = {**description, "expert": {**description["expert"], "form": "bezier"}}
    with pytest.raises(UserError, match="'bezier' paths"):
        Store.create(tmp_path / "store", earlier)
    assert not (tmp_path / "store" / "store.json").exists()
    store = Store.create(tmp_path / "store", description)
    write_json(store.path / "store.json", {**store.header.to_json(), **earlier})
    with pytest.raises(UserError, match="'bezier' paths"):
        Store.open(tmp_path / "store")


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_path_survives_the_store(expert: Expert, task: Task, tmp_path: Path, schedule: str) -> None:
    config = ExpertConfig(epochs=3, schedule=schedule)
    assert expert.recorded is not None
    path = make_path(expert.recorded.points, task.model.layout, config)
    store = Store.create(tmp_path / "store", describe_experts(task, config, seed=7))
    store.write(0, replace(expert, convex=path, recorded=None))
    restored = store.read(0).convex
    assert type(restored) is type(path)
    assert all(torch.equal(restored.at(t), path.at(t)) for t in (0, 0.3, 1, 2.5, 3))


def test_the_store_keeps_every_byte(store: Store, expert: Expert, tmp_path: Path) -> None:
    restored = Store.open(store.path).read(0)
    assert expert.convex is not None
    assert expert.recorded is not None
    assert restored.convex is not None
    assert restored.recorded is not None
    assert torch.equal(restored.convex.waypoints, expert.convex.waypoints)
    assert torch.equal(restored.convex.beta, expert.convex.beta)
    assert torch.equal(restored.recorded.points, expert.recorded.points)
    assert (restored.convex.epochs, restored.convex.layout) == (expert.convex.epochs, expert.convex.layout)
    assert (restored.validation, restored.test) == (expert.validation, expert.test)
    before = store.file(0).read_bytes()
    store.write(0, restored)
    assert store.file(0).read_bytes() == before
    assert store.indices() == [0]
    assert store.bytes_of([0]) == len(before)


def test_a_store_can_be_convexified_later(store: Store, expert: Expert, tmp_path: Path) -> None:
    target = store.convexify(tmp_path / "later", waypoints=3, smoothing="mct", dtype="float32")
    restored = target.read(0)
    assert restored.recorded is None
    assert restored.convex is not None
    assert expert.convex is not None
    assert torch.equal(restored.convex.waypoints, expert.convex.waypoints)
    assert torch.equal(restored.convex.beta, expert.convex.beta)
    half = store.convexify(tmp_path / "half", waypoints=2, smoothing="none", dtype="float16").read(0).convex
    assert half is not None
    assert half.waypoints.dtype == torch.float16
    with pytest.raises(UserError, match="keep recorded"):
        target.convexify(tmp_path / "again", waypoints=2, smoothing="none", dtype="float32")


def test_a_truncated_expert_is_refused(store: Store) -> None:
    whole = store.file(0).read_bytes()
    for length in (0, 1, 7, 8, 100, len(whole) // 2, len(whole) - 1):
        store.file(0).write_bytes(whole[:length])
        with pytest.raises(UserError, match="expert-0000"):
            store.read(0)


def test_a_flipped_bit_in_the_parameters_is_refused(store: Store) -> None:
    whole = store.file(0).read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    for place in (start, start + 5, (start + len(whole)) // 2, len(whole) - 1):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        store.file(0).write_bytes(damaged)
        with pytest.raises(UserError, match="damaged"):
            store.read(0)


def test_a_flipped_bit_in_the_header_is_refused(store: Store) -> None:
    """Or harmless: what is read is either refused or equal to what was written."""
    whole = store.file(0).read_bytes()
    good = store.read(0)
    for place in range(0, 8 + int.from_bytes(whole[:8], "little"), 7):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        store.file(0).write_bytes(damaged)
        try:
            restored = store.read(0)
        except UserError:
            continue
        assert (restored.validation, restored.test) == (good.validation, good.test)
        assert restored.convex is not None
        assert good.convex is not None
        assert restored.convex.epochs == good.convex.epochs


def test_an_expert_of_another_store_is_refused(
    store: Store, task: Task, expert: Expert, expert_config: ExpertConfig, tmp_path: Path
) -> None:
    other = Store.create(tmp_path / "other", describe_experts(task, expert_config, seed=8))
    other.write(1, expert)
    shutil.copy(other.file(1), store.file(1))
    with pytest.raises(UserError, match="another store"):
        store.read(1)


@pytest.mark.parametrize(
    ("change", "named"),
    [({"seed": 8}, "seed 7"), ({"expert": {"lr": 0.5}}, "lr 0.05"), ({"augment": "none"}, "augment")],
)
def test_a_store_made_from_something_else_is_refused(
    store: Store, task: Task, expert_config: ExpertConfig, change: dict[str, object], named: str
) -> None:
    description = describe_experts(task, expert_config, seed=7)
    assert Store.create(store.path, description).header == store.header
    for key, value in change.items():
        description[key] = {**description[key], **value} if isinstance(value, dict) else value
    with pytest.raises(UserError, match=named):
        Store.create(store.path, description)


def test_a_folder_that_is_no_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(UserError, match="not a store"):
        Store.create(tmp_path, {"seed": 0})
    with pytest.raises(UserError, match=r"store\.json"):
        Store.open(tmp_path)
    (tmp_path / "store.json").write_text(json.dumps({"format": "limbeck-store", "version": 2}))
    with pytest.raises(UserError, match="version 2"):
        Store.open(tmp_path)


FORMS = [
    {"waypoints": 3},
    {"keep": "convex", "waypoint_at": (0, 1, 3), "dtype": "float16"},
    {"keep": "recorded", "dtype": "float16"},
    {"schedule": "uniform", "smoothing": "mct"},
]


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_what_is_stored_of_an_expert_asks_for_no_training_of_its_own(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: dict[str, Any]
) -> None:
    def train(home: str, **options: Any) -> Path:
        monkeypatch.setenv("LIMBECK_HOME", str(tmp_path / home))
        config = ExpertConfig(**{"epochs": 3, "keep": "both", **options})
        return Experts.to_train(task, config, 2, seed=7).train(lambda event: None).path

    expected = train("alone", **form)
    train("shared")
    config = ExpertConfig(**{"epochs": 3, "keep": "both", **form})
    assert Experts.to_train(task, config, 3, seed=7).missing() == [2]
    with monkeypatch.context() as without_training:
        without_training.setattr("limbeck.experts.make.train_expert", None)
        path = train("shared", **form)
    assert path.name == expected.name
    for name in ("expert-0000.safetensors", "expert-0001.safetensors"):
        assert (path / name).read_bytes() == (expected / name).read_bytes()


def test_recorded_experts_are_found_among_stores_that_have_none_yet(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIMBECK_HOME", str(tmp_path))
    configs = [ExpertConfig(epochs=2, keep="both", waypoint_at=at) for at in ((), (0, 2), (0, 1, 2))]
    handles = sorted((Experts.to_train(task, config, 1, seed=7) for config in configs), key=lambda handle: handle.path)
    for handle in handles:
        assert handle.store.indices() == [], "each is there before its experts are"
    handles[-1].train(lambda event: None)
    with monkeypatch.context() as without_training:
        without_training.setattr("limbeck.experts.make.train_expert", None)
        assert [handle.train(lambda event: None).indices() for handle in handles] == [[0]] * 3


def test_a_damaged_recorded_expert_is_trained_again(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIMBECK_HOME", str(tmp_path))
    first = Experts.to_train(task, ExpertConfig(epochs=2, keep="both"), 1, seed=7).train(lambda event: None)
    with first.file(0).open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"oops")
    later = Experts.to_train(task, ExpertConfig(epochs=2, keep="both", dtype="float16"), 1, seed=7)
    assert later.train(lambda event: None).read(0).recorded is not None


def test_recorded_experts_of_16_bits_or_of_another_training_serve_no_other_store(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIMBECK_HOME", str(tmp_path))
    for config in (ExpertConfig(epochs=2, keep="both", dtype="float16"), ExpertConfig(epochs=2, keep="both", lr=0.02)):
        Experts.to_train(task, config, 1, seed=7).train(lambda event: None)
    assert Experts.to_train(task, ExpertConfig(epochs=2, waypoints=3), 1, seed=7).missing() == [0]
