"""`limbeck evaluate`, on the own and on other networks."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from limbeck import load
from limbeck.synthetic.distilled import Mosaics
from limbeck.synthetic.tiles import Partition


def test_evaluate(limbeck: Any, artifacts: dict[str, Path]) -> None:
    rows = json.loads((artifacts["run"] / "results.json").read_text())["results"][:2]
    assert limbeck("evaluate", artifacts["run"], "--num-networks", "1", "--json").json["results"] == rows
    one = limbeck(
        "evaluate", artifacts["run"] / "set-last.safetensors", "--num-networks", "2", "--epochs", "1", "--json"
    )
    assert [(row["which"], row["n"]) for row in one.json["results"]] == [("last", 2)]
    assert "distilled (last)" in limbeck("evaluate", artifacts["run"], "--epochs", "1", "--data", "digits").out


def test_evaluate_on_another_network(limbeck: Any, refused: Any, artifacts: dict[str, Path]) -> None:
    words = ("evaluate", artifacts["run"], "--num-networks", "1", "--epochs", "2", "--json")
    assert {row["model"] for row in limbeck(*words, "--model.name", "mlp").json["results"]} == {"mlp"}
    assert {row["model"] for row in limbeck(*words).json["results"]} == {"convnet"}


def test_evaluate_on_the_sets_own_network_with_other_options(
    limbeck: Any, refused: Any, artifacts: dict[str, Path]
) -> None:
    """Also with the estimate, which makes the network a first time."""
    words = ("evaluate", artifacts["run"], "--num-networks", "2", "--epochs", "2", "--json")
    own, wide, named = (
        limbeck(*words, *options).json["results"]
        for options in ((), ("--model.width", "3"), ("--model.name", "convnet", "--model.width", "3"))
    )
    assert {row["model"] for row in (*own, *wide)} == {"convnet"}
    assert wide == named  # depth and all else are the defaults for these images in both
    assert wide != own
    assert "'convnet' has no option" not in refused(*words, "--model.norm", "nope")


def test_evaluate_refuses_what_it_cannot_judge(refused: Any, artifacts: dict[str, Path], folder: Path) -> None:
    run = artifacts["run"]
    assert "limbeck-set" in refused("evaluate", run / "state.safetensors")
    assert "no distilled set" in refused("evaluate", artifacts["convex"])
    assert "classes" in refused("evaluate", run, "--data", folder)
    assert "shape" in refused("evaluate", run, "--resize", "16")
    assert "no/such" in refused("evaluate", run, "--data", "no/such")


def test_evaluate_on_several_networks(limbeck: Any, artifacts: dict[str, Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(artifacts["run"], run)
    words = ("evaluate", run, "--networks", "convnet,mlp", "--num-networks", "1", "--epochs", "2")
    result = limbeck(*words, "--json")
    rows = result.json["results"]
    assert [row["model"] for row in rows if row["set"] == "random"] == ["convnet", "mlp"]
    assert result.json["recorded"] == str(run / "evaluations.json")
    assert json.loads((run / "evaluations.json").read_text())["evaluations"][-1]["rows"] == rows
    assert "Other networks" in (run / "report.html").read_text()
    out = limbeck(*words).out
    assert "k-means real images" in out
    assert f"lr {rows[-1]['lr']:.2g}" in out


def test_evaluate_records_nothing_for_a_file_alone(limbeck: Any, artifacts: dict[str, Path], tmp_path: Path) -> None:
    shutil.copy(artifacts["run"] / "set-last.safetensors", tmp_path)
    words = ("evaluate", tmp_path / "set-last.safetensors", "--networks", "mlp", "--num-networks", "1", "--epochs", "1")
    assert set(limbeck(*words, "--json").json) == {"results"}
    assert [path.name for path in tmp_path.iterdir()] == ["set-last.safetensors"]


def test_evaluate_refuses_a_number_for_the_names_of_networks(refused: Any, artifacts: dict[str, Path]) -> None:
    assert "--num-networks" in refused("evaluate", artifacts["run"], "--networks", "2")


def test_a_table_of_sets_alone_has_no_column_for_random_images(limbeck: Any, artifacts: dict[str, Path]) -> None:
    assert "over random" not in limbeck("evaluate", artifacts["run"], "--num-networks", "1", "--epochs", "1").out


def first_column(out: str) -> str:
    """The words outside of tables, and in their first columns, where lines may be broken."""
    lines = [line.split("│")[1] if "│" in line else line for line in out.splitlines()]
    return " ".join(" ".join(lines).split())


def test_evaluate_by_another_protocol(limbeck: Any, refused: Any, artifacts: dict[str, Path]) -> None:
    words = ("evaluate", artifacts["run"], "--num-networks", "1", "--epochs", "2")
    result = limbeck(*words, "--protocol", "ddranking", "--json").json["results"]
    assert {row["protocol"] for row in result} == {"ddranking, best test accuracy over time"}
    for options in (["--networks", "convnet,mlp"], ["--scores"], []):
        out = limbeck(*words, "--protocol", "field-max", *options).out
        assert "best test accuracy over time" in first_column(out)
    out = first_column(limbeck(*words, "--eval.labels", "hard", "--eval.mix", "cutmix", "--eval.dsa", "none").out)
    assert "labels hard" in out
    assert "mix cutmix" in out
    recorded = json.loads((artifacts["run"] / "evaluations.json").read_text())["evaluations"][-1]
    assert "augmentation none, images mixed by cutmix, labels: the classes alone" in recorded["protocol"]
    assert "real-valued targets" in refused(*words, "--protocol", "regression")
    assert limbeck(*words, "--protocol", "best").status == 2


def test_a_named_protocol_decides_the_defaults_of_distill(limbeck: Any) -> None:
    text = limbeck("distill", "--eval.protocol", "quick", "--help-all").out
    assert "(default: 200)" in text
    assert "(default: 1000)" not in text


def test_compare(limbeck: Any, refused: Any, artifacts: dict[str, Path]) -> None:
    words = ("compare", artifacts["run"], artifacts["run"], "--num-networks", "2", "--epochs", "2")
    (row,) = limbeck(*words, "--json").json["comparisons"]
    assert (row["difference"], row["n"], row["run"]) == (0, 2, str(artifacts["run"]))
    assert "on convnet: +0.0 points" in limbeck(*words, "--protocol", "field-max").out
    assert "not of the same size" not in limbeck(*words).out
    assert "needs two sets" in refused("compare", artifacts["run"])


def test_compare_says_where_sets_are_of_another_size(limbeck: Any, artifacts: dict[str, Path], tmp_path: Path) -> None:
    small = load(artifacts["run"])
    images, labels = (torch.cat([values, values]) for values in (small.images, small.labels))
    replace(small, images=images, labels=labels).write(tmp_path / "large.safetensors")
    partition = Partition(2)
    tiles, of_tiles = partition(small.images, small.labels)
    mosaics = Mosaics(small.images, small.labels, partition)
    replace(small, images=tiles, labels=of_tiles, mosaics=mosaics).write(tmp_path / "tiles.safetensors")
    names = [artifacts["run"], tmp_path / "large.safetensors", tmp_path / "tiles.safetensors"]
    out = limbeck("compare", *names, "--num-networks", "1", "--epochs", "1").out
    sizes = f"{names[0]} 10 stored images; {names[1]} 20 stored images; {names[2]} 10 stored images, cut into 40"
    assert f"not of the same size: {sizes}" in out


def test_evaluate_with_scores(limbeck: Any, refused: Any, artifacts: dict[str, Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(artifacts["run"], run)
    words = ("evaluate", run, "--scores", "--num-networks", "1", "--epochs", "2", "--eval.full-epochs", "1")
    result = limbeck(*words, "--json").json
    assert {score["set"] for score in result["scores"]} == {"distilled", "kmeans"}
    assert json.loads((run / "evaluations.json").read_text())["evaluations"][-1]["scores"] == result["scores"]
    assert f"{result['scores'][0]['lrs']:.3f}" in (run / "report.html").read_text()
    out = limbeck(*words).out
    assert "LRS" in out
    assert f"{result['scores'][-1]['ars']:.3f}" in out
    limbeck("evaluate", run, "--num-networks", "1", "--epochs", "2", "--eval.full-epochs", "1")
    assert json.loads((run / "evaluations.json").read_text())["evaluations"][-1]["scores"] == result["scores"]
    assert "of one network" in refused(*words, "--networks", "mlp")


def test_one_set_of_a_run_is_evaluated_alone(limbeck: Any, artifacts: dict[str, Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(artifacts["run"], run)
    rows = {which: limbeck("evaluate", run, "--json", "--which", which).json["results"] for which in ("last", "chosen")}
    both = limbeck("evaluate", run, "--json").json["results"]
    assert [row["which"] for row in both] == ["last", "chosen"]
    assert [rows["last"], rows["chosen"]] == [[row] for row in both]
