"""Other people's data, end to end by the command line: an .npz as MedMNIST has it, and a folder of pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import limbeck
from limbeck.cli.main import main

TINY = [
    *(
        "--model.width",
        "4",
        "--num-experts",
        "1",
        "--expert.epochs",
        "2",
        "--expert.batch-size",
        "16",
        "--iterations",
        "4",
    ),
    *("--syn-steps", "2", "--max-start-epoch", "1", "--expert-epochs", "1", "--lr-img", "5", "--validate-every", "2"),
    *("--validate-networks", "1", "--validate-epochs", "2", "--eval.epochs", "3", "--eval.networks", "2"),
    *("--eval.full-epochs", "1", "--eval.full-networks", "1", "--json"),
]


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMBECK_HOME", str(tmp_path / "home"))


def blobs(labels: Any, size: int, channels: int, seed: int) -> Any:
    """Noise with a bright quarter, whose place is the class."""
    images = np.random.default_rng(seed).integers(0, 100, (len(labels), size, size, channels), dtype=np.uint8)
    half = size // 2
    for image, label in zip(images, labels):
        image[:half, half * label : half * (label + 1)] += 120
    return images


def medmnist(path: Path) -> Path:
    """28 x 28 grey images of two classes, a quarter of them of the first, in the three splits that MedMNIST has."""
    arrays = {}
    for seed, (split, count) in enumerate([("train", 40), ("val", 8), ("test", 12)]):
        labels = (np.arange(count) % 4 > 0).astype(np.uint8)
        arrays[f"{split}_images"] = blobs(labels, 28, 1, seed)[..., 0]
        arrays[f"{split}_labels"] = labels[:, None]
    np.savez(path, **arrays)
    return path


def pictures(folder: Path) -> Path:
    """16 x 16 RGB PNG files, 20 of each of two classes, without a test split."""
    labels = np.arange(40) % 2
    for index, (image, label) in enumerate(zip(blobs(labels, 16, 3, 3), labels)):
        (folder / ("left", "right")[label]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / ("left", "right")[label] / f"{index}.png")
    return folder


def call(capsys: pytest.CaptureFixture[str], *words: object) -> Any:
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    assert end.value.code == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("make", "name", "shape", "classes"),
    [(medmnist, "xray.npz", (1, 28, 28), ("0", "1")), (pictures, "photos", (3, 16, 16), ("left", "right"))],
    ids=["medmnist", "folder"],
)
def test_from_files_to_a_set_and_back(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    make: Any,
    name: str,
    shape: tuple[int, int, int],
    classes: tuple[str, ...],
) -> None:
    data, run = make(tmp_path / name), tmp_path / "run"
    assert call(capsys, "info", data, "--json")["shape"] == list(shape)
    result = call(capsys, "distill", data, *TINY, "--ipc", "2", "--out", run)
    assert result["data"]["name"] == Path(name).stem
    assert [row["set"] for row in result["results"]] == ["distilled", "distilled", "random", "kmeans", "full"]

    distilled = limbeck.load(run)
    assert distilled.classes == classes
    assert tuple(distilled.images.shape) == (4, *shape)
    assert distilled.provenance["data"]["source"] == str(data)
    with Image.open(run / "previews" / "chosen.png") as preview:
        assert preview.width > 2 * shape[2]

    output = call(capsys, "evaluate", run, "--num-networks", "2", "--json")
    assert output["results"] == result["results"][:2]


@pytest.mark.parametrize("options", [("--pixel-range", "0", "200"), ("--resize", "14"), ("--follow-links",)])
def test_a_set_is_evaluated_on_data_that_is_read_in_the_same_way(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    (tmp_path / "data").mkdir()
    for name in ("left", "right"):
        (tmp_path / "data" / name).symlink_to(pictures(tmp_path / "elsewhere") / name)
    monkeypatch.chdir(tmp_path)
    reading = dict.fromkeys([*options, "--follow-links"])
    result = call(capsys, "distill", "data", *reading, *TINY, "--out", "run")
    monkeypatch.chdir(tmp_path / "elsewhere")
    output = call(capsys, "evaluate", tmp_path / "run", "--json")
    assert output["results"] == result["results"][:2]


def test_other_images_under_the_same_name_are_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    data = medmnist(tmp_path / "xray.npz")
    call(capsys, "distill", data, *TINY, "--out", tmp_path / "run")
    arrays = dict(np.load(data))
    arrays["test_labels"] = 1 - arrays["test_labels"]
    np.savez(data, **arrays)
    with pytest.raises(limbeck.UserError, match="fingerprint"):
        limbeck.evaluate(tmp_path / "run")
    with pytest.raises(limbeck.UserError, match="a run on other images"):
        limbeck.distill(data, out=tmp_path / "run", **_options(tmp_path / "run"))


def _options(run: Path) -> dict[str, Any]:
    """The options that a run was made with."""
    config = json.loads((run / "run.json").read_text())["config"]
    return {name: value for name, value in config.items() if name not in ("method", "data", "experts")}
