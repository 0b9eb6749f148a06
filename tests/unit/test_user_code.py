"""The code of a user's method or network is part of the key of runs and stores."""

from __future__ import annotations

import importlib
import linecache
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from small_runs import EVAL, MINIMAL, read_json

import limbeck
from limbeck import ModelConfig, UserError
from limbeck.core.user_code import source_key

pytestmark = pytest.mark.usefixtures("home")


METHOD = '''
from limbeck import METHODS
from limbeck.methods import Method, MethodConfig, Plan
from limbeck.methods.trajectory_matching import init_synthetic_set
import torch
from torch import nn

class Config(MethodConfig):
    iterations: int = 2
    """outer steps"""

FACTOR = 1.0

def loss(synthetic, step, seed):  # how far it is from grey
    return FACTOR * synthetic.images.square().mean() + 0 * synthetic.log_lr

def plan(config, inputs):
    synthetic = init_synthetic_set("random", inputs, 0.01)
    steps = [torch.optim.SGD([synthetic.images], 0.1), torch.optim.SGD([synthetic.log_lr], 0.1)]
    return Plan(loss, synthetic, steps, config.iterations)

MINE = Method("mine", "ours", "nobody", Config, None, plan)

class Net(nn.Module):
    def __init__(self, channels, size, classes):
        super().__init__()
        self.body = nn.Flatten()
        self.classifier = nn.Linear(channels * size[0] * size[1], classes)

    def forward(self, x):
        return self.classifier(self.body(x).relu())
'''


@pytest.fixture
def write_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Writes and imports a user's module, and registers its method and its network as `mine`."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(text: str) -> ModuleType:
        (tmp_path / "users_method.py").write_text(text)
        sys.modules.pop("users_method", None)
        importlib.invalidate_caches()
        module = importlib.import_module("users_method")
        monkeypatch.setitem(limbeck.METHODS, "mine", module.MINE)
        monkeypatch.setitem(limbeck.MODELS, "mine", module.Net)
        return module

    return write


CHANGES = [("FACTOR = 1.0", "FACTOR = 1e9"), (".square()", ".abs()"), ("0.1)]", "0.2)]")]


@pytest.mark.parametrize(("before", "after"), CHANGES)
def test_changed_code_of_a_user_method_makes_another_run(
    write_method: Any, tmp_path: Path, before: str, after: str
) -> None:
    options = {"model": ModelConfig(width=4), "eval": EVAL, "validate_networks": 1, "validate_epochs": 2}

    def distill() -> Path:
        return limbeck.distill("digits", method="mine", out=tmp_path / "run", **options)

    write_method(METHOD)
    stamp = (distill() / "results.json").stat().st_mtime_ns
    write_method(METHOD.replace("# how far it is from grey", "# the mean square").replace("\n\n", "\n\n\n"))
    assert (distill() / "results.json").stat().st_mtime_ns == stamp  # a comment is no change
    assert before in METHOD
    write_method(METHOD.replace(before, after))
    with pytest.raises(UserError, match=r"a method whose source code has the hash \w{12}, not \w{12}"):
        distill()


def test_changed_code_of_a_user_network_makes_other_experts(write_method: Any, tmp_path: Path) -> None:
    def store(out: Path | None = None) -> limbeck.Store:
        return limbeck.train_experts(
            "digits", out=out, num_experts=1, model=ModelConfig(name="mine"), expert=MINIMAL["expert"]
        )

    write_method(METHOD)
    first, named = store(), store(tmp_path / "store")
    assert store().path == first.path
    write_method(METHOD.replace("relu", "tanh"))
    assert store().path != first.path
    with pytest.raises(UserError, match="made with code"):
        store(named.path)


def test_limbecks_own_methods_have_no_code_key(finished: Path) -> None:
    assert "code" not in read_json(finished / "run.json")["config"]
    for method in limbeck.METHODS.values():
        assert source_key(method.plan, method.resolve, method.config) == ""


class Scaled:
    """A user's builder of networks, with an option."""

    def __init__(self, width: int):
        self.width = width
        self.cycle = self

    def build(self) -> int:
        return self.width


def test_attributes_of_a_user_object_are_part_of_the_key() -> None:
    """A finished run of Network(width=4) was once returned for Network(width=64)."""
    assert source_key(Scaled(4)) == source_key(Scaled(4)) != source_key(Scaled(64))
    assert source_key(Scaled(4).build) != source_key(Scaled(64).build)


KEY_OF_A_SET = """
KINDS = {"a", "b", "c", "d"}
from limbeck.core.user_code import source_key
print(source_key(lambda name: name in {"a", "b", "c", "d"} or name in KINDS))
"""


def test_packages_installed_in_another_folder_are_not_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by pip install --target: pydantic counted as the user's code there, and a class without a module crashed."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    package = tmp_path / "helper_package"
    package.mkdir()
    (package / "__init__.py").write_text("from helper_package.part import double\n")

    def key(factor: int) -> str:
        (package / "part.py").write_text(f"def double(x):\n    return {factor} * x\n")
        for name in ("helper_package", "helper_package.part"):
            sys.modules.pop(name, None)
        importlib.invalidate_caches()
        linecache.clearcache()
        double = importlib.import_module("helper_package").double

        def user_function(x: float) -> float:
            return float(double(x))

        return source_key(user_function)

    assert key(2) != key(3)  # a package of the user's own
    (tmp_path / "helper_package-1.0.dist-info").mkdir()
    assert key(2) == key(3)

    without_module = type("WithoutModule", (), {"__module__": None})
    assert source_key(lambda: without_module) == source_key(lambda: without_module)


def test_the_key_does_not_depend_on_the_order_of_a_set() -> None:
    """The order differs between processes, so that an interrupted run was once refused as another one."""
    keys = set()
    for seed in "12":
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        words = [sys.executable, "-c", KEY_OF_A_SET]
        keys.add(subprocess.run(words, env=environment, capture_output=True, text=True, check=True).stdout)
    assert len(keys) == 1
    assert keys != {"\n"}
