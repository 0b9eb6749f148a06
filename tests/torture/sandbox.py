"""A folder in which a command runs in a forked child, and what it leaves there: its bits, and its unfinished files."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from command_line import picture

from limbeck.cli.commands import COMMANDS
from limbeck.cli.main import main
from limbeck.core.tensors import read_tensors
from limbeck.core.unfinished import LOCK, is_unfinished

SMALL = ["--model.width", "4", "--num-experts", "2", "--threads", "1", "--quiet", "--no-estimate"]
RUN = [
    *("distill", "digits", "--out", "run", *SMALL, "--expert.epochs", "2", "--expert.lr", "0.05"),
    *("--iterations", "4", "--syn-steps", "2", "--max-start-epoch", "1", "--expert-epochs", "1", "--lr-img", "5"),
    *("--lr-teacher", "0.05", "--validate-every", "2", "--validate-networks", "1", "--validate-epochs", "2"),
    *("--eval.epochs", "2", "--eval.networks", "1", "--eval.full-epochs", "1", "--eval.full-networks", "1"),
    *("--eval.baseline-lrs", "0.01"),
]
EXPERTS = ["experts", "digits", *SMALL, "--epochs", "2", "--lr", "0.05"]
PLAIN = ["--threads", "1", "--quiet"]


class Case(NamedTuple):
    """A command, the materials that it reads, and the folder or file that it writes."""

    words: list[str]
    needs: tuple[str, ...]
    out: str


CASES = {
    "distill": Case(RUN, (), "run"),
    "experts": Case([*EXPERTS, "--keep", "both", "--out", "store"], (), "store"),
    "convexify": Case(["convexify", "recorded", "--out", "convex", *PLAIN], ("recorded",), "convex"),
    "evaluate": Case(
        ["evaluate", "run", "--networks", "convnet,mlp", "--num-networks", "1", *PLAIN, "--no-estimate"],
        ("run",),
        "run",
    ),
    "import-experts": Case(
        [
            *("import-experts", "buffers", "digits", "--out", "imported", "--model.width", "4", *PLAIN),
            *("--validation-images", "20"),
        ],
        ("buffers",),
        "imported",
    ),
    "import-set": Case(
        ["import-set", "exported", "digits", "--out", "imported/set.safetensors", "--model.width", "4", *PLAIN],
        ("exported",),
        "imported",
    ),
    "export": Case(["export", "run", "--to", "mtt", "--out", "files", *PLAIN, "--no-measure"], ("run",), "files"),
    "report": Case(["report", "run", "--out", "page.html", "--quiet"], ("run",), "page.html"),
}
VOLATILE = {"threads", "seconds", "created", "command", "packages", "versions", "memory"}
"""Keys of JSON files whose values differ from one run to the next."""


class Ending(NamedTuple):
    """How a child ended: its exit status, minus the signal where one ended it, and what it printed."""

    status: int
    text: str
    seconds: float


class Child(NamedTuple):
    """A forked child at work."""

    pid: int
    output: Path
    start: float

    def wait(self) -> Ending:
        """Wait for its end."""
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        seconds = time.perf_counter() - self.start
        text = self.output.read_text(errors="replace")
        self.output.unlink()
        return Ending(status, text, seconds)


class Sandbox:
    """A folder with a home, a folder of temporary files, and copies of the materials that a command needs.

    outputs: where the files are in which children write what they print; the default is beside the folder.
    """

    def __init__(self, root: Path, materials: Path, needs: tuple[str, ...] = (), outputs: Path | None = None):
        self.root, self.materials, self.needs = root, materials, needs
        self.outputs = outputs or root.parent
        self.reset()

    def reset(self) -> None:
        """Empty it, and put the materials there."""
        self.root.mkdir(exist_ok=True)
        for path in self.root.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        (self.root / "tmp").mkdir()
        for name in self.needs:
            shutil.copytree(self.materials / name, self.root / name)

    def start(self, words: list[str], prepare: Callable[[], object] = lambda: None) -> Child:
        """Fork a child that runs a command here. prepare: called in the child, before the command."""
        handle, name = tempfile.mkstemp(prefix="output-", dir=self.outputs)
        start = time.perf_counter()
        pid = os.fork()
        if pid:
            os.close(handle)
            return Child(pid, Path(name), start)
        status: Any = 70
        try:
            os.dup2(handle, 1)
            os.dup2(handle, 2)
            sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))  # not pytest's
            for number in (signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            self._enter()
            prepare()
            status = run_command(words)
        except BaseException:
            traceback.print_exc()
        finally:
            with suppress(OSError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status)

    def run(self, words: list[str], prepare: Callable[[], object] = lambda: None) -> Ending:
        """Run a command in a child, and wait for its end."""
        return self.start(words, prepare).wait()

    def _enter(self) -> None:
        os.chdir(self.root)
        tempfile.tempdir = str(self.root / "tmp")
        os.environ["LIMBECK_HOME"] = str(self.root / "home")

    def bits(self) -> dict[str, str]:
        """A digest of every file, by its path, that is the same for the same results."""
        files = sorted(path for path in self.root.rglob("*") if path.is_file())
        digests = {str(path.relative_to(self.root)): _digest(path) for path in files}
        return {name: digest for name, digest in digests.items() if digest}

    def leftovers(self) -> list[str]:
        """Unfinished files, and whatever is left in the folder of temporary files."""
        temporary = [path for path in self.root.rglob("*") if is_unfinished(path.name) or path.parent.name == "tmp"]
        return [str(path.relative_to(self.root)) for path in temporary]


def run_command(words: list[str]) -> int:
    """Call the entry point as a process of its own does, and return its exit status."""
    sys.argv = ["limbeck", *words]
    try:
        main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    return 0


def _digest(path: Path) -> str:
    """A digest of what a file says, without times; empty for locks, logs and progress, which say nothing else."""
    if (
        path.name in (LOCK, "log.jsonl", "progress.json")
        or path.name.endswith(".lock")
        or path.parent.name in (".locks", "locks")
    ):
        return ""
    content = path.read_bytes()
    if path.suffix == ".html":
        return "whole" if content.rstrip().endswith(b"</html>") else "cut short"
    with suppress(ValueError):  # a damaged file; UserError is one
        if path.suffix == ".json":
            content = json.dumps(_without_times(json.loads(content)), sort_keys=True).encode()
        if path.name == "state.safetensors":  # its header has seconds
            tensors, _ = read_tensors(path, "limbeck-state")
            content = b"".join(name.encode() + tensors[name].numpy().tobytes() for name in sorted(tensors))
    return hashlib.sha256(content).hexdigest()


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_times(part) for name, part in value.items() if name not in VOLATILE}
    return [_without_times(part) for part in value] if isinstance(value, list) else value


def make_materials(folder: Path) -> Path:
    """Make what the commands read: a finished run, recorded experts, and the files of other code. Imports everything.

    It runs in this process, so that what is forked from it begins at once; with one thread, so that forks are safe.
    """
    sandbox = Sandbox(folder, folder)
    before = os.getcwd(), tempfile.tempdir, os.environ.get("LIMBECK_HOME")
    sandbox._enter()
    try:
        for words in (
            RUN,
            [*EXPERTS, "--keep", "recorded", "--out", "recorded"],
            ["export", "recorded", "--to", "mtt", "--out", "buffers", *PLAIN],
            ["export", "run", "--to", "mtt", "--out", "exported", *PLAIN, "--no-measure"],
            ["report", "run", "--out", "page.html", "--quiet"],
        ):
            with suppress(SystemExit):
                main(words)  # with words, it leaves the handlers of signals alone
        for number in range(20):
            picture(folder / "pictures" / ("cat", "dog")[number % 2] / f"{number}.png", seed=number)
        for entry in COMMANDS.values():
            import_module(f"limbeck.cli.{entry.module}")
    finally:
        os.chdir(before[0])
        tempfile.tempdir = before[1]
        if before[2] is not None:
            os.environ["LIMBECK_HOME"] = before[2]
    return folder
