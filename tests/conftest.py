"""What the tests share: one small task, one expert of it, and a guard on the global generators."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import rich.style  # noqa: F401 - its import draws from the global generator
import torch
import tyro._docstrings  # noqa: F401 - its import hashes all of builtins, among them what the last doctest printed

from limbeck.data import ImageData, Split, load_data
from limbeck.experts import Expert, ExpertConfig, Store
from limbeck.experts.make import describe_experts
from limbeck.experts.train import train_expert
from limbeck.interop import import_experts
from limbeck.laws import law
from limbeck.networks.registry import ModelConfig
from limbeck.task import Task, make_task


def pytest_configure(config: pytest.Config) -> None:
    """Kernels are compiled into pytest's cache, before a test module asks for them: never into the user's own.

    Where the plugin is switched off (-p no:cacheprovider), the same folder is used.
    """
    cache = getattr(config, "cache", None)
    folder = config.rootpath / ".pytest_cache" / "d" / "kernels" if cache is None else cache.mkdir("kernels")
    os.environ["XDG_CACHE_HOME"] = str(folder)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads that wait for each other on a busy machine make tiny networks a hundred times slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def _no_sync() -> Iterator[None]:
    """No test waits for the disk: 5 ms a file are half a minute for all of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("limbeck.core.disk.sync", lambda handle: None)
        yield


@pytest.fixture(autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or fills the user's store of experts."""
    monkeypatch.setenv("LIMBECK_HOME", str(tmp_path_factory.getbasetemp() / "home"))


@pytest.fixture
def untouched_generators() -> Iterator[None]:
    """Fails a test that draws from, or reseeds, a global generator."""
    with law.untouched_generators():
        yield


@pytest.fixture(scope="session")
def digits() -> ImageData:
    """300 training images of the digits, with their whole validation and test parts."""
    data = load_data("digits")
    train = Split(data.train.images[:300], data.train.labels[:300])
    return ImageData("digits", train, data.validation, data.test, data.classes, data.notes, data.fingerprint)


@pytest.fixture(scope="session")
def task(digits: ImageData) -> Task:
    """Digits for a ConvNet of width 8."""
    return make_task(digits, ModelConfig(width=8))


@pytest.fixture(scope="session")
def expert_config() -> ExpertConfig:
    return ExpertConfig(epochs=3, lr=0.05, batch_size=32, waypoints=3, smoothing="mct", keep="both")


@pytest.fixture(scope="session")
def expert(task: Task, expert_config: ExpertConfig) -> Expert:
    """A real expert of three epochs, recorded and convexified."""
    theta0 = task.model.init(7)
    watch, test = (lambda epoch, theta: epoch / 10), (lambda theta: 0.5)
    return train_expert(task.loss, theta0, *task.train, expert_config, task.model.layout, 7, watch, test)


@pytest.fixture
def store(tmp_path: Path, task: Task, expert: Expert, expert_config: ExpertConfig) -> Store:
    """A store that holds the expert as number 0."""
    store = Store.create(tmp_path / "store", describe_experts(task, expert_config, seed=7))
    store.write(0, expert)
    return store


@pytest.fixture
def import_buffers(tmp_path: Path, digits: ImageData) -> Callable[..., Store]:
    """Imports files of experts into a new store, measured on few images."""

    def call(source: Path | list[Path], **options: Any) -> Store:
        return import_experts(source, tmp_path / "store", digits, **{"measure": 20, **options})

    return call
