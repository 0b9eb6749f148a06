"""Files that are JSON, or tensors with a valid checksum, and hold something else than they should: one sentence."""

from __future__ import annotations

import json
import math
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import TINY
from safetensors.torch import load_file

from limbeck.core.record_files import salvage
from limbeck.core.records import RunRecord
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


@pytest.mark.parametrize(("name", "value"), [("n", None), ("n", 0), ("accuracy_mean", 1e308), ("accuracies", [-1])])
def test_results_with_a_number_that_is_none(refused: Any, run: Path, name: str, value: object, tmp_path: Path) -> None:
    rows = json.loads((run / "results.json").read_text())["results"]
    change_json(run / "results.json", "results", [{**rows[0], name: value}])
    assert f"results.0.{name}" in refused("info", run)
    assert f"results.0.{name}" in refused("table", run, "--out", tmp_path / "table.md")


@pytest.mark.parametrize("place", ["data", "data.name", "method", "ipc"])
def test_results_that_lack_what_a_title_says(limbeck: Any, run: Path, place: str) -> None:
    *folders, name = place.split(".")
    content = json.loads((run / "results.json").read_text())
    (content[folders[0]] if folders else content).pop(name)
    (run / "results.json").write_text(json.dumps(content))
    result = limbeck("distill", "digits", *TINY, "--no-estimate", "--out", run)
    assert (result.status, "accuracy" in result.out) == (0, True), result


def test_a_report_leaves_out_what_is_damaged_inside_of_options() -> None:
    """pydantic's places in a JSON value have parts that are in no file, which once made `salvage` loop for ever."""
    content = {"format": "limbeck-run", "version": 1, "config": {"a": [math.inf, 1], "b": {"c": math.nan}, "d": 2}}
    record, faults = salvage(RunRecord, content)
    assert (record.config, faults) == ({"a": [1], "b": {}, "d": 2}, ["config.a.0", "config.b.c"])


@pytest.mark.parametrize(("name", "value"), [("dtype", "x" * 100_000), ("dtype", "0"), ("shape", "x" * 100_000)])
def test_a_header_of_safetensors_is_not_quoted_in_full(refused: Any, run: Path, name: str, value: str) -> None:
    path = run / "set-chosen.safetensors"
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    header["images"][name] = value
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
    assert len(refused("info", path).replace(str(path), "")) < 300


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
    lambda header, tensors: tensors.update(points=tensors["points"] * torch.inf),
    lambda header, tensors: tensors.update(points=tensors["points"].double()),
    lambda header, tensors: header["validation"].append(0.5),
    lambda header, tensors: header.update(beta0=0.25),
    lambda header, tensors: tensors.update(points=torch.tensor(0.5)),
]


@pytest.mark.parametrize("change", EXPERTS)
def test_experts(refused: Any, store: Path, tmp_path: Path, change: Any) -> None:
    change_tensors(store / "expert-0000.safetensors", change)
    assert "expert-0000.safetensors is damaged" in refused("convexify", store, "--out", tmp_path / "new")


def test_experts_beyond_all_axes(refused: Any, store: Path, tmp_path: Path) -> None:
    change_tensors(
        store / "expert-0000.safetensors", lambda header, tensors: tensors.update(points=1e36 * tensors["points"])
    )
    assert "whose parameters no plot can show" in refused("inspect", store, "--out", tmp_path / "new", "--quiet")


def test_a_layout_with_a_shape_of_many_numbers(refused: Any, store: Path, tmp_path: Path) -> None:
    """The number of parameters that followed from it filled the sentence."""
    shapes = json.loads((store / "store.json").read_text())["layout"]["shapes"]
    change_json(store / "store.json", "layout.shapes", [[*shapes[0], *(200 * [2**31])], *shapes[1:]])
    assert "layout.shapes.0" in refused("convexify", store, "--out", tmp_path / "new")


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
    lambda header, tensors: header["recipe"].update(model=None),
    lambda header, tensors: header["recipe"].update(epochs="x"),
    lambda header, tensors: header["recipe"].update(epochs=10**9),
    lambda header, tensors: header["recipe"].update(weight_decay=1e308),
    lambda header, tensors: header["recipe"].update(batch_size=-1),
    lambda header, tensors: header["recipe"].update(networks=10**12),
    lambda header, tensors: header["recipe"]["model"].update(width=10**9),
    lambda header, tensors: header["recipe"]["model"].update(norm="x" * 100_000),
    lambda header, tensors: header["recipe"]["model"].update(name="x" * 100_000),
    lambda header, tensors: header["recipe"].update(augment="x" * 100_000),
    lambda header, tensors: header["provenance"].update(step=-1),
    lambda header, tensors: header["provenance"]["data"].update(fingerprint="x" * 100_000),
    lambda header, tensors: header["provenance"]["config"].update(canvas=10**6),
    lambda header, tensors: header["preprocess"].update(shape=[10**6, 10**6, 10**6]),
    lambda header, tensors: tensors.update(images=torch.full_like(tensors["images"], float("nan"))),
    lambda header, tensors: tensors.update(lr=torch.tensor(float("inf"))),
]


@pytest.mark.parametrize("change", SETS)
def test_sets(refused: Any, run: Path, change: Any) -> None:
    change_tensors(run / "set-chosen.safetensors", change)
    sentence = refused("evaluate", run / "set-chosen.safetensors", "--no-estimate")
    assert len(sentence.replace(str(run), "run")) < 300


STATES: list[Callable[[dict[str, Any], dict[str, Any]], object]] = [
    lambda header, tensors: header.update(step="x"),
    lambda header, tensors: header.update(step=-(2**63)),
    lambda header, tensors: header.update(more={}),
    lambda header, tensors: tensors.pop("set.images"),
    lambda header, tensors: tensors.update({"set.images": torch.zeros(())}),
    lambda header, tensors: tensors.update({"set.images": tensors["set.images"].half()}),
    lambda header, tensors: tensors.update({"set.labels": torch.full_like(tensors["set.labels"], -5)}),
    lambda header, tensors: tensors.update({"optimiser.0.0.momentum_buffer": torch.zeros(7)}),
    lambda header, tensors: tensors.update({name: torch.zeros(0) for name in tensors if name.startswith("extra.")}),
    lambda header, tensors: tensors.update(
        {name: torch.full_like(tensors[name], torch.inf) for name in tensors if name.endswith(".losses")}
    ),
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
