"""Files that are JSON, or tensors with a valid checksum, and hold something else than they should: one sentence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import TINY
from safetensors.torch import load_file

from limbeck.core.tensors import CHECKSUM, read_header, write_tensors

DEEP = "[" * 100_000
NO_JSON = ['{"format": NaN}', '{"format": 1e999}', '{"a": "\\u0000"}', '{"format": ' + 5000 * "1" + "}"]


def change_json(path: Path, place: str, value: object) -> None:
    content = json.loads(path.read_text())
    *folders, name = place.split(".")
    part = content
    for folder in folders:
        part = part[folder]
    part[name] = value
    path.write_text(json.dumps(content))


def change_tensors(path: Path, change: Callable[[dict[str, Any], dict[str, Any]], object]) -> None:
    """Write the file again after change(header, tensors), with a checksum that is right."""
    header, tensors = read_header(path), load_file(str(path))
    header.pop(CHECKSUM)
    change(header, tensors)
    write_tensors(path, tensors, header)


@pytest.fixture
def run(artifacts: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(artifacts["run"], tmp_path / "run"))


@pytest.fixture
def store(artifacts: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(artifacts["recorded"], tmp_path / "store"))


RUN = [("config.iterations", "many"), ("config.iterations", [1]), ("config.validate_every", {}), ("command", 3)]


@pytest.mark.parametrize(("place", "value"), RUN)
def test_the_record_of_a_run(refused: Any, run: Path, place: str, value: object) -> None:
    change_json(run / "run.json", place, value)
    if place.startswith("config"):
        assert "run.json" in refused("distill", "digits", *TINY, "--out", run)
    else:
        assert "run.json" in refused("info", run)


@pytest.mark.parametrize(
    "text", [DEEP, '{"format": NaN}', '{"format": 1e999}', '{"a": "\\u0000"}', '{"format": ' + 5000 * "1" + "}", "{}"]
)
def test_json_that_python_cannot_hold(refused: Any, run: Path, store: Path, text: str) -> None:
    for path in (run / "run.json", store / "store.json"):
        path.write_text(text)
        assert path.name in refused("info", path.parent)


def test_results_without_a_number_of_networks(refused: Any, run: Path) -> None:
    rows = json.loads((run / "results.json").read_text())["results"]
    change_json(run / "results.json", "results", [{**rows[0], "n": None}])
    assert "results.0.n" in refused("info", run)


@pytest.mark.parametrize(("place", "value"), [("expert.lr", "x"), ("expert.waypoint_at", None), ("expert.odd", 1)])
def test_the_options_of_a_stores_experts(refused: Any, store: Path, tmp_path: Path, place: str, value: object) -> None:
    change_json(store / "store.json", place, value)
    assert place.split(".")[1] in refused("convexify", store, "--out", tmp_path / "new")


@pytest.mark.parametrize(
    ("place", "value"),
    [("model.width", [1]), ("preprocess.eps", None), ("preprocess.mean", ""), ("preprocess.kind", {"a": 1})],
)
def test_the_network_and_preprocessing_of_a_store(
    refused: Any, store: Path, tmp_path: Path, place: str, value: object
) -> None:
    change_json(store / "store.json", place, value)
    refused("inspect", store, "--data", "digits", "--out", tmp_path / "page")


@pytest.mark.parametrize(("place", "name"), [("network", "os:system"), ("reader", "shutil:rmtree=x")])
def test_a_set_names_no_code_that_is_not_the_users(refused: Any, run: Path, place: str, name: str) -> None:
    def change(header: dict[str, Any], tensors: object) -> None:
        if place == "network":
            header["recipe"]["model"] = {"name": name}
        else:
            header["provenance"]["data"]["source"] = name

    path = run / "set-chosen.safetensors"
    change_tensors(path, change)
    assert "no code of yours" in refused("evaluate", path, "--no-estimate")


EXPERTS: list[Callable[[dict[str, Any], dict[str, Any]], object]] = [
    lambda header, tensors: header.update(validation=[]),
    lambda header, tensors: header.update(test="x"),
    lambda header, tensors: tensors.pop("points"),
    lambda header, tensors: tensors.update(points=torch.zeros(3)),
    lambda header, tensors: tensors.update(points=torch.zeros(2, 2)),
    lambda header, tensors: tensors.update(points=tensors["points"].double()),
    lambda header, tensors: header["validation"].append(0.5),
]


@pytest.mark.parametrize("change", EXPERTS)
def test_experts(refused: Any, store: Path, tmp_path: Path, change: Any) -> None:
    change_tensors(store / "expert-0000.safetensors", change)
    assert "expert-0000.safetensors is damaged" in refused("convexify", store, "--out", tmp_path / "new")


SETS: list[Callable[[dict[str, Any], dict[str, Any]], object]] = [
    lambda header, tensors: tensors.pop("images"),
    lambda header, tensors: tensors.pop("labels"),
    lambda header, tensors: tensors.update(labels=tensors["labels"][:2]),
    lambda header, tensors: tensors.update(labels=torch.full_like(tensors["labels"], 99)),
    lambda header, tensors: header.update(provenance={"config": 1}),
    lambda header, tensors: header.update(provenance={"data": []}),
    lambda header, tensors: header.update(provenance={"step": "x"}),
    lambda header, tensors: header["recipe"].pop("model"),
    lambda header, tensors: header["recipe"].update(model=1),
    lambda header, tensors: header["recipe"].update(model={"name": "convnet", "odd": 1}),
    lambda header, tensors: header["recipe"].update(augment=None),
    lambda header, tensors: header["recipe"].update(epochs="x"),
    lambda header, tensors: header["recipe"].update(batch_size=-1),
    lambda header, tensors: header["recipe"].update(networks=10**12),
    lambda header, tensors: header["recipe"]["model"].update(width=10**9),
    lambda header, tensors: header["provenance"].update(step=-1),
    lambda header, tensors: header["provenance"]["config"].update(canvas=10**6),
    lambda header, tensors: header["preprocess"].update(shape=[10**6, 10**6, 10**6]),
    lambda header, tensors: tensors.update(images=torch.full_like(tensors["images"], float("nan"))),
    lambda header, tensors: tensors.update(lr=torch.tensor(float("inf"))),
]


@pytest.mark.parametrize("change", SETS)
def test_sets(refused: Any, run: Path, change: Any) -> None:
    change_tensors(run / "set-chosen.safetensors", change)
    refused("evaluate", run / "set-chosen.safetensors", "--no-estimate")


STATES: list[Callable[[dict[str, Any], dict[str, Any]], object]] = [
    lambda header, tensors: header.update(step="x"),
    lambda header, tensors: header.update(more={}),
    lambda header, tensors: tensors.pop("set.images"),
    lambda header, tensors: tensors.update({"set.images": torch.zeros(())}),
    lambda header, tensors: tensors.update({"set.images": tensors["set.images"].half()}),
    lambda header, tensors: tensors.update({"optimiser.0.0.momentum_buffer": torch.zeros(7)}),
    lambda header, tensors: tensors.update({name: torch.zeros(0) for name in tensors if name.startswith("extra.")}),
]


@pytest.mark.parametrize("change", STATES)
def test_states(limbeck: Any, run: Path, change: Any) -> None:
    change_tensors(run / "state.safetensors", change)
    result = limbeck("distill", "digits", *TINY, "--no-estimate", "--iterations", 9, "--out", run)
    assert (result.status, result.out) == (2, "")
    assert "state.safetensors is damaged" in result.err.splitlines()[-1]  # after a note on derivatives


def test_the_step_of_the_last_set(refused: Any, run: Path) -> None:
    change_tensors(run / "set-last.safetensors", lambda header, tensors: header.update(provenance=[]))
    assert "set-last.safetensors is damaged" in refused("distill", "digits", *TINY, "--out", run)


def test_a_log_that_is_no_text_is_passed_over(limbeck: Any, run: Path) -> None:
    rows = (run / "results.json").read_text()
    (run / "log.jsonl").write_bytes(b"\xff\xfe\x00\n" + DEEP.encode() + b"\n" + (run / "log.jsonl").read_bytes())
    (run / "results.json").unlink()
    assert limbeck("distill", "digits", *TINY, "--out", run).status == 0
    assert json.loads((run / "results.json").read_text())["results"] == json.loads(rows)["results"]
