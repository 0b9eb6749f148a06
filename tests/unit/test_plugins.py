"""Methods, networks and selectors of a user, by MODULE:NAME and by entry points of installed packages."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from own_plugins import PLUGINS
from small_runs import EVAL, read_json

import limbeck
from limbeck import METHODS, ModelConfig, UserError
from limbeck.cli.main import main
from limbeck.core.user_imports import entry_points
from limbeck.methods import MethodInputs, find_method
from limbeck.methods.coreset import select_real
from limbeck.networks.registry import find_network

pytestmark = pytest.mark.usefixtures("home")
SMALL: dict[str, Any] = {"model": ModelConfig(width=4), "eval": EVAL, "validate_networks": 1, "validate_epochs": 2}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder with the user's file; what is imported from it is forgotten after the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    Path("plug.py").write_text(PLUGINS)
    yield tmp_path
    for name in [name for name in sys.modules if name.split(".")[0] in ("plug", "limbeck_means")]:
        del sys.modules[name]


@pytest.fixture
def package(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package `limbeck_means` that offers a method and a network by entry points."""
    place = folder / "site"
    (place / "limbeck_means").mkdir(parents=True)
    (place / "limbeck_means" / "__init__.py").write_text(PLUGINS)
    info = place / "limbeck_means-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: limbeck-means\nVersion: 1.0\n")
    groups = "[limbeck.methods]\nmeans = limbeck_means:METHOD\nbroken = limbeck_means:NO\nmct = limbeck_means:METHOD\n"
    groups += "[limbeck.networks]\nmeans-net = limbeck_means:Net\n"
    groups += "[limbeck.selectors]\nmeans-select = limbeck_means:select\n"
    groups += "[limbeck.readers]\nraw-pixels = limbeck_means:READER\n"
    (info / "entry_points.txt").write_text(groups)
    monkeypatch.syspath_prepend(str(place))
    return place


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[Any, str, str]:
    """The exit status, output and errors of a command."""
    with pytest.raises(SystemExit) as end:
        main(list(words))
    output = capsys.readouterr()
    return end.value.code, output.out, output.err


def test_a_method_of_a_file_is_distilled_and_its_code_is_part_of_the_run(folder: Path) -> None:
    path = limbeck.distill("digits", method="plug:METHOD", iterations=1, **SMALL)
    config = read_json(path / "run.json")["config"]
    assert path.name == "digits-means-ipc1-seed0"
    assert (config["method"], config["iterations"], config["lr_img"]) == ("means", 1, 0.1)
    stamp = (path / "results.json").stat().st_mtime_ns
    again = limbeck.distill("digits", method=find_method("plug:METHOD"), iterations=1, **SMALL)
    assert (again / "results.json").stat().st_mtime_ns == stamp, "the Method itself is the same job"
    Path("plug.py").write_text(PLUGINS.replace("torch.rand(", "1 + torch.rand("))
    del sys.modules["plug"]
    with pytest.raises(UserError, match=r"a method whose source code has the hash \w{12}, not \w{12}"):
        limbeck.distill("digits", method="plug:METHOD", iterations=1, **SMALL)


def test_the_command_takes_a_method_of_a_file_with_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "distill", "--method", "plug:METHOD", "--help-all")
    assert status == 0
    assert "means options" in out
    assert "Step size of the images." in out
    words = ["distill", "digits", "--method", "plug:METHOD", "--lr-img", "0.5", "--model.width", "4", "--out", "run"]
    words += ["--validate-networks", "1", "--validate-epochs", "2", "--eval.networks", "1", "--eval.epochs", "2"]
    words += ["--eval.full-networks", "0"]
    assert run(capsys, *words)[0] == 0
    assert read_json(Path("run") / "run.json")["config"]["lr_img"] == 0.5
    status, _, err = run(capsys, "distill", "digits", "--method", "plug:METHD")
    assert status == 2
    assert "did you mean METHOD" in err


def test_entry_points_are_found_by_their_names(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert find_method("means").summary == "matches the mean image"
    assert find_network("means-net").__name__ == "Net"
    assert find_method("mct") is METHODS["mct"], "a package does not replace a method of limbeck"
    path = limbeck.distill("digits", method="means", **{**SMALL, "model": ModelConfig(name="means-net")})
    assert read_json(path / "run.json")["config"]["code"], "the source of an installed method counts"
    with pytest.raises(UserError, match="limbeck_means has no 'NO'"):
        find_method("broken")
    with pytest.raises(UserError, match="no method called 'mean'; did you mean means"):
        find_method("mean")
    status, out, err = run(capsys, "methods", "--json")
    assert status == 0
    names = [entry["name"] for entry in json.loads(out)["methods"]]
    assert names == [*METHODS, "means"]
    assert "'broken' cannot be used: the method 'limbeck_means:NO': limbeck_means has no 'NO'" in err
    assert "the method 'mct' of an installed package is not used: limbeck has one of this name" in err


def test_a_selector_of_a_file_chooses_the_start_and_its_code_is_part_of_the_run(folder: Path) -> None:
    def distill(**options: Any) -> Path:
        return limbeck.distill("digits", method="dm", init="plug:select", iterations=1, **{**SMALL, **options})

    path = distill()
    config = read_json(path / "run.json")["config"]
    assert config["init"] == "plug:select"
    assert config["code"]
    inputs = MethodInputs(limbeck.prepare("digits", method="random").task, [], 2, 0)
    rows = select_real("plug:select", inputs, 2)
    assert inputs.task.train[1][rows].tolist() == sorted(2 * list(range(10)))
    assert torch.equal(rows, select_real("plug:select", inputs, 2))
    assert not torch.equal(rows, select_real("random", inputs, 2))
    Path("plug.py").write_text(PLUGINS.replace("return order[:count]", "return order[-count:]"))
    del sys.modules["plug"]
    assert not torch.equal(rows, select_real("plug:select", inputs, 2))
    with pytest.raises(UserError, match="whose source code has the hash"):
        distill()


def test_a_selector_of_a_package_chooses_the_start(package: Path) -> None:
    job = limbeck.prepare("digits", method="dm", init="means-select")
    assert job.resolved["init"] == "means-select"
    assert job.resolved["code"]
    assert "code" not in limbeck.prepare("digits", method="dm", init="kmeans").resolved


BAD_SELECTORS = {
    "plug:NUMBER": "the selector 'plug:NUMBER' is a int; it has to be a function",
    "plug:selct": "plug has no 'selct'; did you mean select",
    "plug:short": r"returned rows of shape \(0,\) where 1 were asked for; 'limbeck check'",
    "selct": "Input should be one of random, .*, dream or my_file:select",
}


@pytest.mark.parametrize("name", BAD_SELECTORS)
def test_what_is_no_selector_is_refused_in_a_sentence(name: str) -> None:
    Path("plug.py").write_text(PLUGINS + "\ndef short(features, count, seed):\n    return torch.arange(0)\n")
    with pytest.raises(UserError, match=BAD_SELECTORS[name]) as refusal:
        limbeck.prepare("digits", method="dm", init=name)
    assert len(str(refusal.value)) <= 300


def test_the_command_takes_a_selector_of_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "distill", "--method", "dm", "--help-all")
    assert status == 0
    assert "MODULE:NAME}" in out
    assert run(capsys, "estimate", "digits", "--method", "dm", "--init", "plug:select", "--model.width", "4")[0] == 0
    status, _, err = run(capsys, "estimate", "digits", "--method", "dm", "--init", "selct")
    assert status == 2
    assert "--init: input should be one of random, kmeans" in err


@pytest.fixture
def pixels(folder: Path) -> npt.NDArray[np.uint8]:
    """The pixels of the file photos.raw, which limbeck's own readers do not know."""
    images = np.random.default_rng(0).integers(0, 256, (90, 8, 8), dtype=np.uint8)
    Path("photos.raw").write_bytes(images.tobytes())
    return images


def test_a_reader_of_a_file_reads_what_limbeck_does_not(folder: Path, pixels: npt.NDArray[np.uint8]) -> None:
    with pytest.raises(UserError, match="unknown file type"):
        limbeck.load_data("photos.raw")
    data = limbeck.load_data("plug:READER=photos.raw")
    assert (data.name, data.layout, data.num_classes, data.shape) == ("photos", "a file of raw pixels", 3, (1, 8, 8))
    splits = (data.train, data.validation, data.test)
    assert sum(len(split) for split in splits) == 90
    read = {
        split.images[row].numpy().tobytes(): int(split.labels[row]) for split in splits for row in range(len(split))
    }
    assert read == {image.tobytes(): row % 3 for row, image in enumerate(pixels)}
    assert data.origin.source == f"plug:READER={folder / 'photos.raw'}"
    assert limbeck.load_data("plug:READER=photos.raw", resize=4).size == (4, 4)


def test_a_run_on_images_of_ones_own_reader_is_evaluated_again(
    pixels: npt.NDArray[np.uint8], capsys: pytest.CaptureFixture[str]
) -> None:
    path = limbeck.distill("plug:READER=photos.raw", method="random", out="run", **SMALL)
    rows = limbeck.evaluate(path, num_networks=1, epochs=1)
    assert rows[0].n == 1
    status, out, _ = run(capsys, "info", "plug:READER=photos.raw")
    assert status == 0
    assert "a file of raw pixels" in out


BAD_READERS = {
    "plug:NUMBER=photos.raw": "the reader 'plug:NUMBER' is a int; it has to be a limbeck.data.readers.reader.Reader",
    "plug:READR=photos.raw": "plug has no 'READR'; did you mean READER",
    "plug:READER=nothing.raw": "nothing.raw: neither a file nor a folder",
    "plug:READER=plug.py": "the reader 'plug:READER' does not recognise it as a file of raw pixels",
    "plug:BROKEN=photos.raw": "the reader 'plug:BROKEN' failed: ZeroDivisionError: division by zero",
    "plug:ARRAY=photos.raw": "returned a list; it has to return a RawData",
}


@pytest.mark.parametrize("source", BAD_READERS)
def test_what_cannot_be_read_is_refused_in_a_sentence(source: str, pixels: npt.NDArray[np.uint8]) -> None:
    lines = ["BROKEN = Reader('x', recognise, lambda folder, options: 1 / 0)"]
    lines += ["ARRAY = Reader('x', recognise, lambda folder, options: [])"]
    Path("plug.py").write_text(PLUGINS + "\n".join(lines))
    with pytest.raises(UserError, match=BAD_READERS[source]) as refusal:
        limbeck.load_data(source)
    assert "\n" not in str(refusal.value)


def test_a_reader_of_a_package_has_a_name(package: Path, pixels: npt.NDArray[np.uint8]) -> None:
    assert limbeck.load_data("raw-pixels=photos.raw").num_classes == 3


def test_without_packages_there_are_no_entry_points() -> None:
    assert entry_points("method") == entry_points("network") == {}


BAD = {
    "NUMBER": "the method 'plug:NUMBER' is a int; it has to be a limbeck.methods.Method",
    "Net": "the method 'plug:Net' is a type; it has to be",
    "TAKEN": "limbeck has a method called 'mct' already; give yours another name",
    "SLASH": "a method cannot be called 'a/b'",
    "CONFIG": "the config of the method 'means' has to be a class derived from MethodConfig",
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_method_is_refused_in_a_sentence(name: str) -> None:
    lines = ["from dataclasses import replace", "TAKEN = replace(METHOD, name='mct')"]
    lines += ["SLASH = replace(METHOD, name='a/b')", "CONFIG = replace(METHOD, config=dict)"]
    Path("plug.py").write_text(PLUGINS + "\n".join(lines))
    with pytest.raises(UserError, match=BAD[name]) as refusal:
        limbeck.prepare("digits", method=f"plug:{name}")
    assert len(str(refusal.value)) <= 300
    assert "\n" not in str(refusal.value)


def test_limbecks_own_method_by_its_module_is_itself() -> None:
    assert find_method("limbeck.methods.mct:MCT") is METHODS["mct"]
    with pytest.raises(UserError, match="limbeck has a method called 'mct' already"):
        find_method(replace(METHODS["mct"], summary="mine"))
