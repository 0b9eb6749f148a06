"""Networks by name from outside the registry: a user's own MODULE:NAME, and those of timm."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_runs import MINIMAL, read_json
from torch import Tensor, nn

import limbeck
from limbeck import ModelConfig, UserError
from limbeck.cli.main import main
from limbeck.networks.registry import MLP, find_network, flat_model
from limbeck.networks.timm_models import TimmNetwork
from limbeck.task import make_task

NETWORK = '''
from torch import nn

def make(channels, size, classes, width=4, **options):
    """A user's network with batch norm."""
    body = [nn.Conv2d(channels, width, 3, 2), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten()]
    features = width * ((size[0] - 1) // 2) * ((size[1] - 1) // 2)
    return nn.Sequential(*body, nn.Linear(features, classes))

def narrow(channels, size, classes):
    return make(channels, size, classes, 2)

def broken(channels, size, classes):
    return nn.Linear(channels, clases)

def breaks_later(channels, size, classes):
    class Broken(nn.Flatten):
        def forward(self, images):
            return images.no_such_method()
    return Broken()

NUMBER = 3
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with the user's file in it; what is imported from it is forgotten after the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_nets", raising=False)  # a page of the docs has one as well
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "my_nets.py").write_text(NETWORK)
    before = set(sys.modules)
    yield tmp_path  # type: ignore[misc]
    for name in set(sys.modules) - before:
        if name.startswith(("my_", "timm")):
            del sys.modules[name]


def test_a_file_of_the_current_folder_has_networks(folder: Path) -> None:
    path = list(sys.path)
    model = flat_model(ModelConfig(name="my_nets:make", width=6), (1, 8, 8), 3)
    assert model.layout.shapes[0] == (6, 1, 3, 3)
    assert model(model.init(0), torch.zeros(2, 1, 8, 8)).shape == (2, 3)
    assert model.has_statistics
    assert sys.path == path
    assert ModelConfig(name="my_nets:make").resolved((8, 8)).width == 4
    assert ModelConfig(name="my_nets:make", norm="none").options() == {"norm": "none"}, "it takes **options"


def test_a_package_has_networks(folder: Path) -> None:
    (folder / "my_package").mkdir()
    (folder / "my_package" / "__init__.py").write_text("")
    (folder / "my_package" / "nets.py").write_text(NETWORK)
    assert flat_model(ModelConfig(name="my_package.nets:narrow"), (1, 8, 8), 3).layout.shapes[0] == (2, 1, 3, 3)


BAD = {
    "my_nts:make": "is of a module 'my_nts', which is neither in this folder nor installed",
    "my_nets.deeper:make": "cannot be imported|neither in this folder",
    "my_nets:mke": "my_nets has no 'mke'; did you mean make",
    "my_nets:NUMBER": "is a int; it has to be a function",
    "my_nets.py:make": "names a file; write its module, as in my_nets:make",
    "folder/my_nets:make": "names a file; write its module",
    ":make": "not of the form MODULE:NAME",
    "my_nets:": "not of the form MODULE:NAME",
    "my_nets:broken": r"cannot be built for images of shape \(1, 8, 8\): NameError: name 'clases'",
    "my_nets:breaks_later": "Broken cannot be called on images of shape .*no_such_method",
    "my_syntax:make": "SyntaxError in its module",
    "my_needs:make": "its module needs 'no_such_package'",
    "my_exit:make": "SystemExit in its module: 2",
    "nonesuch": "no network called 'nonesuch'; choose one of convnet",
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_imported_is_refused_in_a_sentence(name: str, folder: Path) -> None:
    (folder / "my_syntax.py").write_text("def make(:\n")
    (folder / "my_needs.py").write_text("import no_such_package\n")
    (folder / "my_exit.py").write_text("raise SystemExit(2)\n")
    with pytest.raises(UserError, match=BAD[name]) as refusal:
        flat_model(ModelConfig(name=name), (1, 8, 8), 3)
    assert len(str(refusal.value)) <= 300
    assert "\n" not in str(refusal.value)


def test_an_unknown_option_of_a_users_network_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="'my_nets:narrow' has no option 'width'; it has none"):
        flat_model(ModelConfig(name="my_nets:narrow", width=3), (1, 8, 8), 3)


@pytest.mark.usefixtures("home")
def test_a_users_network_is_distilled_and_evaluated_and_its_code_is_part_of_the_key(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options: dict[str, Any] = {**MINIMAL, "model": ModelConfig(name="my_nets:narrow")}
    run = limbeck.distill("digits", out=folder / "run", **options)
    config = read_json(run / "run.json")["config"]
    assert config["model"]["name"] == "my_nets:narrow"
    assert config["code"]
    store = limbeck.train_experts("digits", num_experts=1, model=options["model"], expert=options["expert"])
    assert ":" not in store.path.name
    words = ["evaluate", str(run), "--num-networks", "1", "--epochs", "1", "--model.name"]
    with pytest.raises(SystemExit, match="0"):
        main([*words, "my_nets:make"])
    assert "my_nets:make" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        main([*words, "my_nets:mke"])
    assert "did you mean make" in capsys.readouterr().err
    (folder / "my_nets.py").write_text(NETWORK.replace("width=4", "width=5").replace("classes, 2)", "classes, 3)"))
    del sys.modules["my_nets"]
    other = limbeck.train_experts("digits", num_experts=1, model=options["model"], expert=options["expert"])
    assert other.path != store.path


# --- timm


class Body(nn.Module):
    """A network as timm builds one: its last layer has a name of its own."""

    def __init__(self, channels: int, classes: int):
        super().__init__()
        self.conv1, self.fc = nn.Conv2d(channels, 2, 3), nn.Linear(2, classes)
        self.dropout = nn.Dropout(0.3)

    def get_classifier(self) -> nn.Module:
        return self.fc

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.dropout(self.conv1(images).mean((2, 3))))
        return logits


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The options with which a stand-in for timm builds networks: `small` takes images of every size, `vit` of one."""
    calls: list[dict[str, Any]] = []

    def create_model(name: str, *, in_chans: int, num_classes: int, **options: Any) -> nn.Module:
        if name == "small" and "img_size" in options:
            raise TypeError("unexpected keyword argument 'img_size'")
        if name == "fails":
            raise AssertionError("too small")
        calls.append({"name": name, **options})
        return Body(in_chans, num_classes)

    names = ["small", "vit", "fails"]
    module = SimpleNamespace(
        __version__="1.0.31",
        create_model=create_model,
        is_model=names.__contains__,
        list_models=lambda pattern: [name for name in names if pattern.strip("*") in name],
    )
    monkeypatch.setitem(sys.modules, "timm", module)  # type: ignore[arg-type]
    return calls


def test_a_network_of_timm_has_its_classifier_and_no_trained_weights(timm: list[dict[str, Any]]) -> None:
    model = flat_model(ModelConfig(name="timm:small"), (3, 8, 8), 4)
    assert {tuple(call.items()) for call in timm} == {(("name", "small"), ("pretrained", False), ("drop_rate", 0.0))}
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert model.features(model.init(0), images).shape == (2, 2)
    assert model.layout.names[-2:] == ("body.fc.weight", "body.fc.bias")
    flat_model(ModelConfig(name="timm:vit"), (3, 8, 8), 4)
    assert timm[-1]["img_size"] == (8, 8)


def test_the_version_of_timm_is_part_of_the_conditions(timm: list[dict[str, Any]], digits: limbeck.ImageData) -> None:
    assert make_task(digits, ModelConfig(name="timm:small")).conditions()["timm"] == "1.0.31"
    assert "timm" not in make_task(digits, ModelConfig(name="mlp", width=2)).conditions()


def test_what_timm_does_not_have_or_cannot_build_is_refused(timm: list[dict[str, Any]]) -> None:
    with pytest.raises(UserError, match="timm has no network called 'smal'; it has small"):
        flat_model(ModelConfig(name="timm:smal"), (3, 8, 8), 4)
    with pytest.raises(UserError, match="timm cannot build fails for images of 8 x 8 pixels: too small"):
        flat_model(ModelConfig(name="timm:fails"), (3, 8, 8), 4)
    with pytest.raises(UserError, match="'timm:small' has no option 'width'"):
        ModelConfig(name="timm:small", width=3).options()


def test_a_timm_that_cannot_be_imported_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside a CPU build of torch, PyPI's torchvision raises RuntimeError."""
    for name in [name for name in sys.modules if name.split(".")[0] == "timm"]:
        monkeypatch.delitem(sys.modules, name)
    (folder / "timm").mkdir()
    (folder / "timm" / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    monkeypatch.syspath_prepend(str(folder))
    with pytest.raises(UserError, match=r"timm cannot be imported \(RuntimeError: operator torchvision::nms.*\[timm\]"):
        flat_model(ModelConfig(name="timm:resnet10t"), (3, 32, 32), 10)


def test_names_are_found() -> None:
    assert find_network("mlp") is MLP
    assert find_network("timm:resnet10t").func is TimmNetwork  # type: ignore[attr-defined]
