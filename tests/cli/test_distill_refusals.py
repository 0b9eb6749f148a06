"""`limbeck distill` refuses bad input with status 2 and one sentence, and leaves nothing behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import EXPERTS, TINY, flip_a_bit


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--ipc", "129"], "class '0' of digits has 128 training images"),
        (["--augment", "nope"], "color, crop"),
        (["--expert.smoothing", "nope"], "none, mct"),
        (["--expert.waypoints", "4"], "2 to 3 waypoints"),
        (["--expert.keep", "recorded"], "convex"),
        (["--model.depth", "9"], "depth 3 or less"),
        (["--model.norm", "nope"], "instance"),
        (["--resize", "1"], "too small"),
        (["--device", "nope"], "'nope'"),
    ],
    ids=lambda value: "" if isinstance(value, str) else "".join(value),
)
def test_bad_options_of_distill(distill: Any, words: list[str], part: str) -> None:
    assert part in distill("digits", *words)


# to be mended in the options of the method, of the experts and of the network
@pytest.mark.parametrize(
    "words",
    [
        ["--init", "nope"],
        ["--model.name", "nope"],
        ["--max-start-epoch", "inf"],
        ["--lr-img", "inf"],
        ["--expert.lr", "inf"],
    ],
    ids="".join,
)
def test_bad_options_found_too_late(limbeck: Any, tmp_path: Path, words: list[str]) -> None:
    result = limbeck("distill", "digits", *TINY, "--out", tmp_path / "run", *words)
    assert result.status == 2
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["--max-start-epoch", "-1"],
        ["--max-start-epoch", "nan"],
        ["--expert-epochs", "0"],
        ["--expert.waypoints", "1"],
        ["--expert.epochs", "0"],
        ["--num-experts", "0"],
        ["--iterations", "0"],
        ["--lr-img", "-1"],
        ["--eval.weight-decay", "inf"],
        ["--eval.networks", "0"],
        ["--eval.baseline-lrs"],
        ["--eval.baseline-lrs", "0"],
        ["--gradient", "nope"],
        ["--preprocess", "nope"],
        ["--threads", "0"],
        ["--resize", "0"],
        ["--ipc", "one"],
        ["--ipc", "0"],
        ["--ipc", "-2"],
        ["--iterations", "1000000000000"],
        ["--lr-img", "1e30"],
        ["--model.width", "100000"],
        ["--expert.epochs", "10000000000"],
        ["--eval.epochs", "nan"],
        ["--seed", "99999999999999999999"],
        ["--momentum", "1"],
    ],
    ids="".join,
)
def test_values_out_of_range_are_told_by_the_parser(limbeck: Any, tmp_path: Path, words: list[str]) -> None:
    result = limbeck("distill", "digits", *TINY, "--out", tmp_path / "run", *words)
    assert result.status == 2
    assert result.out == ""
    assert words[0].split(".")[-1].strip("-").replace("-", "_") in result.err.replace("-", "_")
    assert "Traceback" not in result.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_no_such_device(distill: Any, refused: Any, artifacts: dict[str, Path], tmp_path: Path) -> None:
    assert "'cuda'" in distill("digits", "--device", "cuda")
    refused("experts", "digits", *EXPERTS, "--device", "cuda", "--out", tmp_path / "store")
    refused("evaluate", artifacts["run"], "--device", "cuda")
    assert list(tmp_path.iterdir()) == []


def test_too_few_images_of_a_class(distill: Any, folder: Path) -> None:
    for file in sorted((folder / "dog").iterdir())[4:]:
        file.unlink()
    assert "'dog'" in distill(folder, "--ipc", "4")


def test_an_image_that_does_not_open(distill: Any, folder: Path) -> None:
    (folder / "dog" / "broken.png").write_bytes(b"no picture")
    assert "broken.png" in distill(folder)


def test_an_npz_without_labels(distill: Any, tmp_path: Path) -> None:
    np.savez(tmp_path / "bare.npz", x_train=np.zeros((9, 8, 8), np.uint8))
    assert "y_train" in distill(tmp_path / "bare.npz")


def test_a_store_made_from_something_else(distill: Any, artifacts: dict[str, Path], folder: Path) -> None:
    store = ["--experts", artifacts["convex"]]
    assert "cat" in distill(folder, *store)
    assert "fingerprint" in distill("digits", *store, "--seed", "1")  # another split
    assert "width 4" in distill("digits", *store, "--model.width", "8")
    assert "augment" in distill("digits", *store, "--augment", "crop")
    assert "preprocess" in distill("digits", *store, "--preprocess", "zca")


@pytest.mark.parametrize(
    ("spoil", "part"),
    [
        (Path.unlink, "holds no finished experts"),
        (flip_a_bit, "is damaged"),
        (lambda file: file.write_bytes(file.read_bytes()[:-100]), "expert-0000.safetensors"),
        (lambda file: file.write_bytes(b""), "expert-0000.safetensors"),
    ],
    ids=["empty", "flipped", "cut", "nothing"],
)
def test_a_store_that_is_empty_or_damaged(distill: Any, spoiled: Any, spoil: Any, part: str) -> None:
    assert part in distill("digits", "--experts", spoiled(spoil))


def test_a_store_of_the_other_kind(distill: Any, artifacts: dict[str, Path]) -> None:
    assert "convexify" in distill("digits", "--experts", artifacts["recorded"])


def test_no_store_at_all(distill: Any, artifacts: dict[str, Path], tmp_path: Path) -> None:
    assert "store.json" in distill("digits", "--experts", artifacts["run"])
    (tmp_path / "store.json").write_text("{")
    assert "store.json" in distill("digits", "--experts", tmp_path)


def test_an_output_folder_that_holds_something_else(refused: Any, artifacts: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    for out in (tmp_path, tmp_path / "notes"):
        assert "not a run" in refused("distill", "digits", *TINY, "--out", out)
        assert "not a store" in refused("experts", "digits", *EXPERTS, "--out", out)
        assert "not a store" in refused("convexify", artifacts["recorded"], "--out", out)
    assert "not a run" in refused("distill", "digits", *TINY, "--out", artifacts["convex"])
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]
    assert (tmp_path / "notes").read_text() == "mine"


def test_an_output_folder_with_another_run(refused: Any, artifacts: dict[str, Path]) -> None:
    before = {path: path.stat().st_mtime_ns for path in artifacts["run"].iterdir()}
    sentence = refused("distill", "digits", *TINY, "--lr-img", "6", "--out", artifacts["run"])
    assert "lr_img 5.0, not 6.0" in sentence
    assert "ipc 1, not 2" in refused("distill", "digits", *TINY, "--ipc", "2", "--out", artifacts["run"])
    assert {path: path.stat().st_mtime_ns for path in artifacts["run"].iterdir()} == before


def test_a_place_below_a_file_is_refused(refused: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    refused("distill", "digits", *TINY, "--out", tmp_path / "file" / "run", status=2)
