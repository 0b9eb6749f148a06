"""A command as a process: Ctrl-C, a reader that goes away, a full disk, exit status."""

from __future__ import annotations

import errno
import json
import os
import pty
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import EXPERTS, TINY
from PIL import Image

import limbeck as limbeck_package
from limbeck import __version__


def process(*words: object, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "limbeck", *map(str, words)]
    # Tests that a shell runs in the background inherit an ignored Ctrl-C, and so would this child.
    options.setdefault("preexec_fn", lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def test_the_package_is_a_command() -> None:
    real = subprocess.run([sys.executable, "-m", "limbeck", "--version"], capture_output=True, text=True, check=True)
    assert real.stdout == f"limbeck {__version__}\n"


def test_a_terminal_says_at_once_that_a_command_loads(tmp_path: Path) -> None:
    """Torch takes seconds to import. The word is gone when the command speaks, and no file or pipe holds it."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "limbeck", "info", str(tmp_path / "missing")]
    assert subprocess.run(command, stderr=theirs, stdout=subprocess.PIPE).returncode == 2
    os.close(theirs)
    assert os.read(ours, 10_000).decode().startswith("loading ...\r\x1b[K")
    assert "loading" not in subprocess.run(command, capture_output=True, text=True).stderr


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["methods", "--json"], ["info", "--help"]])
def test_a_reader_that_goes_away_is_no_error(words: list[str]) -> None:
    """`limbeck --help | head -1` printed a traceback."""
    read, write = os.pipe()
    os.close(read)
    real = subprocess.run([sys.executable, "-m", "limbeck", *words], stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (real.returncode, real.stderr) == (0, "")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_stream_that_lacks_characters_shows_their_codes(tmp_path: Path, encoding: str) -> None:
    for name in ("日本", "😀 smile"):
        for i in range(3):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.fromarray(np.full((4, 4), 50 * i, np.uint8)).save(tmp_path / name / f"{i}.png")
    real = subprocess.run(
        [sys.executable, "-m", "limbeck", "info", str(tmp_path)],
        env={**os.environ, "PYTHONIOENCODING": encoding, "LIMBECK_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
    )
    assert real.returncode == 0, real.stderr
    assert "\\u65e5\\u672c" in real.stdout


INTERRUPTED = """
import os, signal, sys
from importlib.abc import MetaPathFinder
from limbeck.cli.main import main

module = sys.argv[1]

class Interrupt(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == module:
            sys.meta_path.remove(self)  # once
            os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Interrupt())
del sys.argv[0]
main()
"""


@pytest.mark.parametrize(
    "module",
    [
        *("limbeck.cli.interrupt", "limbeck.cli.commands", "json", "limbeck.core.errors", "tyro", "limbeck.cli.common"),
        *("datetime", "torch", "torch.nn", "limbeck.jobs.job"),
    ],
)
def test_ctrl_c_while_it_starts(module: str) -> None:
    """Tracebacks otherwise: forty lines of torch's, and a panic of pydantic's core, which imports datetime."""
    words = [sys.executable, "-c", INTERRUPTED, module, "distill", "digits"]
    real = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert (real.returncode, real.stdout) == (130, "")
    assert real.stderr == "limbeck: interrupted; the same command goes on where it stopped.\n"


def test_ctrl_c_finds_no_import_outside_main() -> None:
    """In the first 60 ms it found `importlib.metadata` and `safetensors`, and printed a traceback."""
    code = "import limbeck.cli.main; print(*sorted(set(sys.modules) - before))"
    code = f"import os, sys; before = set(sys.modules); {code}"
    bare = [sys.executable, "-S", "-c", code]  # without site, which imports os, and sometimes more
    source = {**os.environ, "PYTHONPATH": str(Path(limbeck_package.__file__).parents[1])}
    real = subprocess.run(bare, capture_output=True, text=True, timeout=60, check=True, env=source)
    assert real.stdout.split() == ["__future__", "limbeck", "limbeck.cli", "limbeck.cli.main"]


def test_ctrl_c_and_the_same_command_again(limbeck: Any, artifacts: dict[str, Path], tmp_path: Path) -> None:
    words = ["distill", "digits", *TINY, "--iterations", "200", "--validate-every", "100", "--threads", "1"]
    whole = limbeck(*words, "--out", tmp_path / "whole")
    run = tmp_path / "run"
    log = run / "log.jsonl"
    with process(*words, "--out", run) as real:
        while real.poll() is None and (not log.exists() or log.read_text().count('"step"') < 10):
            time.sleep(0.01)
        real.send_signal(signal.SIGINT)
        _, errors = real.communicate(timeout=60)
    assert real.returncode == 130, errors
    assert errors.splitlines()[-1] == "limbeck: interrupted; the same command goes on where it stopped."
    assert "Traceback" not in errors
    again = limbeck(*words, "--out", run, "--json")
    assert again.status == whole.status == 0
    assert again.json["results"] == json.loads((tmp_path / "whole" / "results.json").read_text())["results"]


def test_debug_shows_the_traceback(limbeck: Any) -> None:
    result = limbeck("distill", "nothing", "--debug")
    assert "Traceback" in result.err
    assert "UserError" in result.err
    assert result.status == 2


def test_a_real_process_refuses_and_leaves_nothing(tmp_path: Path) -> None:
    with process("distill", "digits", "--ipc", "0", "--out", "run", cwd=tmp_path) as real:
        out, errors = real.communicate(timeout=60)
    sentence = "limbeck: --ipc: input should be greater than or equal to 1, not 0.\n"
    assert (real.returncode, out, errors) == (2, "", sentence)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def _small_files() -> Iterator[None]:
    """Files end at 3000 bytes, which is what a full disk is like, for real."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("_small_files")
def test_a_disk_that_fills_up_while_an_expert_is_written(limbeck: Any, tmp_path: Path) -> None:
    result = limbeck("experts", "digits", *EXPERTS, "--no-estimate", "--out", tmp_path / "store")
    assert result.status == 1, result.err
    assert result.err.splitlines()[-1].startswith("limbeck: ")
    assert "Traceback" not in result.err
    assert "expert-0000.safetensors cannot be written (file too large)" in result.err
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == [".lock", ".locks", "store.json"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_report_on_a_disk_that_cannot_be_written(
    refused: Any, artifacts: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(self: Path, target: Path) -> None:
        raise OSError(number, os.strerror(number), str(target))

    monkeypatch.setattr(Path, "replace", fail)
    errors = refused("report", artifacts["run"], "--out", tmp_path / "page.html", status=1)
    assert f"page.html cannot be written ({os.strerror(number).lower()}); " in errors
    assert "repeat the command" in errors


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_place_that_can_be_written_no_more(
    refused: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """The place could be written to as the command began, so that this is the machine's fault."""

    def fail(self: Path, target: Path) -> None:
        raise OSError(number, os.strerror(number), str(target))

    monkeypatch.setattr(Path, "replace", fail)
    errors = refused("distill", "digits", *TINY, "--no-estimate", "--out", tmp_path / "run", status=1)
    assert f"run.json cannot be written ({os.strerror(number).lower()}); " in errors
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [".lock"]
