"""Building the kernels, the folder of the library, and the choice between kernels and autograd."""

from __future__ import annotations

import logging
import os
import pwd
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

from limbeck.core.errors import UserError
from limbeck.core.folders import home_folder
from limbeck.data import ImageData
from limbeck.derivatives import choice
from limbeck.derivatives.autograd import Hvp
from limbeck.derivatives.choice import Measurement, choose
from limbeck.derivatives.compiled import CompiledDerivatives
from limbeck.derivatives.convnet import convnet_derivatives
from limbeck.derivatives.kernels import build
from limbeck.derivatives.kernels import library as kernels
from limbeck.networks.flat import FlatModel
from limbeck.networks.registry import ModelConfig, flat_model
from limbeck.task import make_task

pytestmark = pytest.mark.skipif(kernels.load() is None, reason=f"no kernels: {kernels.unavailable_reason()}")

SHAPE = (1, 8, 8)


@pytest.fixture
def model() -> FlatModel:
    return flat_model(ModelConfig(width=4, depth=2), SHAPE, 3)


PRINT_VERSION = 'if [ "$1" = --version ]; then echo "g++ (fake) 1.2.3"; exit 0; fi\n'


def write_script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache, and a compiler that copies the library of the session instead of compiling for 8 seconds."""
    library = kernels.load()
    assert library is not None
    copy = PRINT_VERSION + f'while [ "$1" != -o ]; do shift; done; cp "{library.path}" "$2"'
    monkeypatch.setenv("CXX", write_script(tmp_path / "copy", copy))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    kernels._loaded.cache_clear()
    yield tmp_path / "cache" / "limbeck" / "kernels"
    kernels._loaded.cache_clear()


@pytest.mark.parametrize(
    ("compiler", "reason"),
    [
        (None, "there is no C++ compiler"),
        (
            PRINT_VERSION + "echo 'x.cpp:1: error: it does not like this' >&2; exit 1",
            "could not build them: x.cpp:1: error",
        ),
        (PRINT_VERSION + "echo \"clang: error: unsupported option '-fopenmp'\" >&2; exit 1", "has no OpenMP"),
        ("exit 1", "could not build them"),
        ("exit 0", "does not say its version"),
        ("exec sleep 100", "did not end within"),
    ],
)
def test_autograd_is_chosen_with_a_reason_if_the_kernels_cannot_be_built(
    compiler: str | None,
    reason: str,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    model: FlatModel,
) -> None:
    if compiler is None:
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.delenv("CXX", raising=False)
    else:
        monkeypatch.setenv("CXX", write_script(tmp_path / "compiler", compiler))
        monkeypatch.setattr(build, "COMPILER_SECONDS", 1.0)
    selected = choose(model, SHAPE, torch.float32, "cpu")
    assert selected.derivatives is None
    assert selected.implementation == "autograd"
    assert selected.could_be_faster
    assert reason in selected.reason
    assert not list(cache.glob("*.so")) if cache.exists() else True


def test_an_invalid_compiler_variable_is_no_error(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "'g++")
    assert kernels.load() is None
    assert "quotation" in kernels.unavailable_reason()


def test_kernels_are_disabled_by_an_environment_variable(
    cache: Path, monkeypatch: pytest.MonkeyPatch, model: FlatModel
) -> None:
    monkeypatch.setenv("LIMBECK_KERNELS", "0")
    assert "switched off" in choose(model, SHAPE, torch.float32, "cpu").reason
    mlp = flat_model(ModelConfig(name="mlp"), SHAPE, 3)
    assert choose(mlp, SHAPE, torch.float32, "cpu").reason == ""  # there are no kernels for an MLP
    monkeypatch.setenv("LIMBECK_KERNELS", "off")  # which once did not disable them
    with pytest.raises(UserError, match="give 0 for autograd"):
        choose(model, SHAPE, torch.float32, "cpu")


@pytest.mark.parametrize("system", ["Windows", "Plan9"])
def test_autograd_is_chosen_on_unsupported_systems(
    system: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: FlatModel
) -> None:
    """The reason names the system, although the compiler is missing as well."""
    monkeypatch.setattr(build.platform, "system", lambda: system)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert f"not built on {system}" in choose(model, SHAPE, torch.float32, "cpu").reason


def test_the_library_is_in_a_private_folder_and_rebuilt_if_damaged(
    cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not in $LIMBECK_HOME, which a group may share: a library planted there with a valid checksum was once loaded."""
    monkeypatch.setenv("LIMBECK_HOME", str(tmp_path / "shared"))
    with caplog.at_level(logging.INFO, "limbeck"):
        library = kernels.load()
    assert library is not None
    assert "compiling the kernels" in caplog.text
    assert library.path.parent == cache
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    assert not (tmp_path / "shared").exists()
    content = library.path.read_bytes()
    library.path.unlink()  # as a new file, since the loaded one must not change
    library.path.write_bytes(content[: len(content) // 2])  # as on a full disk
    kernels._loaded.cache_clear()
    reloaded = kernels.load()
    assert reloaded is not None
    assert len(reloaded.path.read_bytes()) == len(content)
    caplog.clear()
    kernels._loaded.cache_clear()
    assert kernels.load() is not None
    assert "compiling" not in caplog.text
    assert build._is_intact(reloaded.path)
    monkeypatch.setattr(build.os, "getuid", lambda: 12345)  # a file of another user
    assert not build._is_intact(reloaded.path)


def test_a_folder_that_others_own_or_can_write_to_is_refused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.mkdir(parents=True)
    cache.chmod(0o770)
    assert kernels.load() is None
    assert "you alone can write to" in kernels.unavailable_reason()
    cache.chmod(0o755)
    assert build.private_folder() == cache  # others can only read, and lose this right
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    monkeypatch.setattr(build.os, "getuid", lambda: 12345)
    with pytest.raises(build.Unavailable, match="you alone"):
        build.private_folder()
    monkeypatch.undo()
    elsewhere = cache.with_name("elsewhere")
    cache.rename(elsewhere)
    cache.symlink_to(elsewhere)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache.parents[1]))
    with pytest.raises(build.Unavailable, match="you alone"):
        build.private_folder()


def test_the_temporary_folder_is_used_if_the_cache_is_not_writable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(build.tempfile, "gettempdir", lambda: str(tmp_path))
    assert build.private_folder() == tmp_path / f"limbeck-kernels-{os.getuid()}"
    monkeypatch.setattr(build.tempfile, "gettempdir", lambda: str(tmp_path / "file"))
    with pytest.raises(build.Unavailable, match="can be written to"):
        build.private_folder()


def test_the_temporary_folder_is_used_without_a_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container whose user number has no name."""

    def unknown_user(number: int) -> None:
        raise KeyError(number)

    for name in ("XDG_CACHE_HOME", "LIMBECK_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown_user)
    monkeypatch.setattr(build.tempfile, "gettempdir", lambda: str(tmp_path))
    assert build.private_folder() == tmp_path / f"limbeck-kernels-{os.getuid()}"
    with pytest.raises(UserError, match="set HOME"):
        home_folder()


def test_waiting_for_another_process_is_logged(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache.mkdir(parents=True)
    locked = threading.Event()

    def compile_elsewhere() -> None:
        with FileLock(cache / "lock"):
            locked.set()
            time.sleep(1.2)

    thread = threading.Thread(target=compile_elsewhere)
    thread.start()
    locked.wait()
    with caplog.at_level(logging.INFO, "limbeck"), build.lock_folder(cache):
        assert "waiting for another process" in caplog.text
    thread.join()


@pytest.mark.parametrize("error", [NotImplementedError, OSError])
def test_kernels_are_built_on_file_systems_without_locks(
    error: type[Exception], cache: Path, monkeypatch: pytest.MonkeyPatch, model: FlatModel
) -> None:
    """filelock raises if flock is missing, which once ended the command."""

    def refuse(*_arguments: object, **_options: object) -> None:
        raise error("no locks")

    monkeypatch.setattr(FileLock, "acquire", refuse)
    assert isinstance(choose(model, SHAPE, torch.float32, "cpu").derivatives, CompiledDerivatives)


LOAD = "from limbeck.derivatives.kernels.build import find_compiler, library; library(find_compiler(), 'avx2')"


def test_concurrent_processes_compile_once(cache: Path, tmp_path: Path) -> None:
    slow_compiler = (
        PRINT_VERSION
        + f'echo once >> "{tmp_path}/log"; sleep 2; while [ "$1" != -o ]; do shift; done; echo library > "$2"'
    )
    environment = {**os.environ, "CXX": write_script(tmp_path / "compiler", slow_compiler)}
    processes = [subprocess.Popen([sys.executable, "-c", LOAD], env=environment) for _ in range(2)]
    assert [process.wait(120) for process in processes] == [0, 0]
    assert (tmp_path / "log").read_text() == "once\n"


def test_inaccurate_kernels_are_refused(model: FlatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a defect of a compiler, here by another eps."""

    def make_wrong(*arguments: object) -> object:
        accurate = convnet_derivatives(*arguments)  # type: ignore[arg-type]
        assert isinstance(accurate, CompiledDerivatives)
        return replace(accurate, eps=0.3)

    monkeypatch.setattr(choice, "convnet_derivatives", make_wrong)
    monkeypatch.setattr(choice, "_load_or_measure", choice.measure)
    monkeypatch.setenv("LIMBECK_KERNELS", "1")  # even if they are required
    selected = choose(model, SHAPE, torch.float32, "cpu")
    assert selected.derivatives is None
    assert selected.could_be_faster
    assert "wrong on this machine" in selected.reason


@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_nan_in_any_result_is_inaccurate(index: int, digits: ImageData) -> None:
    """The maximum of the errors once ignored a NaN after a number."""
    task = make_task(digits, ModelConfig(width=32))
    accurate = task.choice.derivatives
    assert accurate is not None

    class WithNan:
        """Accurate derivatives but for one that is NaN: the gradient, H v, or the derivative in the images."""

        dtype = torch.float32

        def gradient(self, *inputs: torch.Tensor) -> torch.Tensor:
            gradient = accurate.gradient(*inputs)
            return gradient * torch.nan if index == 0 else gradient

        def hvp(self, *inputs: Any) -> Hvp:
            second = accurate.hvp(*inputs)
            name = ("", "theta", "images")[index]
            return second._replace(**{name: getattr(second, name) * torch.nan}) if name else second

    assert not choice.measure(WithNan(), task.model, digits.shape).is_accurate  # type: ignore[arg-type]


def test_measurements_belong_to_a_processor_and_a_torch_version(
    model: FlatModel, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    """Machines may share a home folder, and on each another implementation may be the faster one."""
    ratios = iter((5.0, 0.5, 3.0))
    monkeypatch.setattr(choice, "measure", lambda *_: Measurement(1e-6, next(ratios)))
    initial = choose(model, SHAPE, torch.float32, "cpu")
    monkeypatch.setattr(choice, "processor", lambda: "another")
    assert choose(model, SHAPE, torch.float32, "cpu").derivatives is None
    monkeypatch.setattr(torch, "__version__", "9.9")
    assert "3.0 times" in choose(model, SHAPE, torch.float32, "cpu").reason
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache.parents[1]))
    assert choose(model, SHAPE, torch.float32, "cpu").reason == initial.reason


def test_the_faster_implementation_is_chosen_and_the_measurement_stored(
    model: FlatModel, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    """Kernels were once four times as slow as autograd on processors without the vector instructions they used."""
    measured = [Measurement(1e-6, 0.25), Measurement(1e-6, 5.2)]
    monkeypatch.setattr(choice, "measure", lambda *_: measured.pop(0))
    slow_choice = choose(model, SHAPE, torch.float32, "cpu")
    assert slow_choice.derivatives is None
    assert not slow_choice.could_be_faster
    assert slow_choice.reason == "autograd is 4.0 times as fast as compiled kernels for this network"
    assert choose(model, SHAPE, torch.float32, "cpu") == slow_choice  # from the stored measurement
    monkeypatch.setenv("LIMBECK_KERNELS", "1")
    assert isinstance(choose(model, SHAPE, torch.float32, "cpu").derivatives, CompiledDerivatives)
    monkeypatch.delenv("LIMBECK_KERNELS")
    second_model = flat_model(ModelConfig(width=5, depth=2), SHAPE, 3)
    selected = choose(second_model, SHAPE, torch.float32, "cpu")
    assert isinstance(selected.derivatives, CompiledDerivatives)
    assert selected.reason == "compiled kernels, 5.2 times as fast as autograd"
    assert selected.implementation == f"compiled ({selected.derivatives.library.name})"
    files = sorted(cache.glob("measured-*.json"))
    assert len(files) == 2
    files[0].write_text("{")  # damaged, so that it is measured again
    files[1].write_text('{"other": 1}')
    measured += [Measurement(1e-6, 2.0)] * 2
    for network in (model, second_model):
        assert "2.0 times" in choose(network, SHAPE, torch.float32, "cpu").reason


def test_the_kernels_are_chosen_by_a_real_measurement(digits: ImageData) -> None:
    """At width 32, without any environment variable or stored measurement of a test."""
    task = make_task(digits, ModelConfig(width=32))
    derivatives = task.choice.derivatives
    assert isinstance(derivatives, CompiledDerivatives)
    measured = choice.measure(derivatives, task.model, digits.shape)
    assert measured.error < 1e-4
    assert measured.ratio > 1
    assert task.choice.implementation.startswith("compiled (")
