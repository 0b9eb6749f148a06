"""`limbeck experts`, `convexify` and `inspect`: the commands about stores."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import EXPERTS, TINY, flip_a_bit, picture

from limbeck.core.tensors import read_tensors


def test_experts_without_out_are_found_again(limbeck: Any) -> None:
    first = limbeck("experts", "digits", *EXPERTS, "--json")
    again = limbeck("experts", "digits", *EXPERTS, "--json")
    assert first.json == again.json
    assert again.json["experts"] == 1
    assert "epoch" not in again.err  # nothing to train
    larger = limbeck("experts", "digits", *EXPERTS, "--num-experts", "2", "--json")
    assert (larger.json["experts"], larger.json["store"]) == (2, first.json["store"])


def test_experts_are_refused_before_the_store_is_made(refused: Any, tmp_path: Path) -> None:
    out = tmp_path / "store"
    for words in (["--waypoints", "4"], ["--smoothing", "nope"], ["--augment", "nope"], ["--model.depth", "9"]):
        refused("experts", "digits", *EXPERTS, *words, "--out", out)
    assert not out.exists()


def test_experts_of_another_kind_do_not_join_a_store(refused: Any, artifacts: dict[str, Path]) -> None:
    before = sorted(artifacts["convex"].iterdir())
    sentence = refused("experts", "digits", *EXPERTS, "--lr", "0.5", "--num-experts", "3", "--out", artifacts["convex"])
    assert "lr 0.01" in sentence
    assert sorted(artifacts["convex"].iterdir()) == before


@pytest.mark.parametrize("name", ["expert-0001-copy.safetensors", "expert-0old.safetensors"])
def test_a_store_with_a_file_of_another_name(spoiled: Any, limbeck: Any, name: str) -> None:
    store = spoiled(lambda file: shutil.copy(file, file.with_name(name)))
    assert limbeck("info", store, "--json").json["experts"] == 1


def test_convexify(limbeck: Any, artifacts: dict[str, Path], tmp_path: Path) -> None:
    result = limbeck("convexify", artifacts["recorded"], "--out", tmp_path / "store", "--waypoints", "3", "--json")
    assert result.json["expert"]["waypoints"] == 3
    options = ["--experts", tmp_path / "store", "--out", tmp_path / "run"]
    assert limbeck("distill", "digits", *TINY, *options).status == 0


def test_convexified_afterwards_equals_convexified_while_training(
    limbeck: Any, artifacts: dict[str, Path], tmp_path: Path
) -> None:
    limbeck("convexify", artifacts["recorded"], "--out", tmp_path / "store")
    one, other = (next(store.glob("expert-*")).read_bytes() for store in (tmp_path / "store", artifacts["convex"]))
    assert one == other


@pytest.mark.parametrize("words", [("--waypoints", "3"), ("--waypoint-at", "0", "1", "2")], ids=["count", "epochs"])
def test_waypoints_that_are_asked_for_afterwards_are_those_of_training(
    limbeck: Any, artifacts: dict[str, Path], tmp_path: Path, words: tuple[str, ...]
) -> None:
    limbeck("convexify", artifacts["recorded"], "--out", tmp_path / "after", *words)
    limbeck("experts", "digits", *EXPERTS, *words, "--out", tmp_path / "at once")
    files = (tmp_path / name / "expert-0000.safetensors" for name in ("after", "at once"))
    after, at_once = (read_tensors(file, "limbeck-expert")[0] for file in files)
    assert all(torch.equal(after[name], at_once[name]) for name in ("waypoints", "beta"))


def test_convexify_is_refused_before_the_store_is_made(
    refused: Any, artifacts: dict[str, Path], tmp_path: Path
) -> None:
    for words in (["--waypoints", "4"], ["--smoothing", "nope"]):
        refused("convexify", artifacts["recorded"], "--out", tmp_path / "store", *words)
    refused("convexify", artifacts["run"], "--out", tmp_path / "store")
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("spoil", [lambda file: None, Path.unlink, flip_a_bit], ids=["convex", "empty", "flipped"])
def test_convexify_of_what_was_not_recorded(refused: Any, spoiled: Any, spoil: Any, tmp_path: Path) -> None:
    refused("convexify", spoiled(spoil), "--out", tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_images_of_different_sizes_in_inspect(limbeck: Any, refused: Any, folder: Path, tmp_path: Path) -> None:
    """The store knows which size they had; another one is refused."""
    picture(folder / "dog" / "wide.png", width=9)
    store = tmp_path / "store"
    assert limbeck("experts", folder, *EXPERTS, "--resize", "10", "--out", store).status == 0
    pages = []
    for words in ((), ("--resize", "10")):
        assert limbeck("inspect", store, "--data", folder, "--out", tmp_path / "out", *words).status == 0
        pages.append((tmp_path / "out" / "inspect.json").read_text())
    assert pages[0] == pages[1]
    assert json.loads(pages[0])["accuracy"]["curves"]
    sentence = refused("inspect", store, "--data", folder, "--out", tmp_path / "other", "--resize", "12")
    assert "fingerprint" in sentence
