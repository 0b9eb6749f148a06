"""Calls functions in several processes as torchrun starts them: forked from one server, which has imported torch."""

from __future__ import annotations

import multiprocessing
import os
import socket
import tempfile
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import torch

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["limbeck.cli.commands", "limbeck.cli.distill", "sklearn.datasets"])
SECONDS = 300


class Outcome(NamedTuple):
    """What a process left: its exit status (a negative number is the signal that ended it), its words and result."""

    status: int | None
    out: str
    err: str
    folder: Path

    @property
    def result(self) -> Any:
        return torch.load(self.folder / "result", weights_only=True)


def environment(rank: int, size: int, port: int) -> dict[str, str]:
    """The variables by which torchrun tells a process who it is."""
    return {
        **{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "TORCHELASTIC_RUN_ID": "test"},
        **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"},
    }


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port: int = server.getsockname()[1]
        return port


def call_on_ranks(size: int, folder: Path, function: Callable[..., Any], *arguments: Any) -> list[Outcome]:
    """Call a function of a module in `size` processes, and return what each left, in the order of the ranks."""
    port = free_port()
    folders = [folder / f"rank{rank}" for rank in range(size)]
    processes = []
    for rank, place in enumerate(folders):
        (place / "tmp").mkdir(parents=True)
        variables = {name: os.environ[name] for name in ("LIMBECK_HOME", "XDG_CACHE_HOME")}
        variables |= {**environment(rank, size, port), "TMPDIR": str(place / "tmp")}
        processes.append(CONTEXT.Process(target=_run, args=(variables, place, function, arguments)))
        processes[-1].start()
    for process in processes:
        process.join(SECONDS)
        process.kill()  # nothing, where it has ended
        process.join()
    return [
        Outcome(process.exitcode, (place / "out").read_text(), (place / "err").read_text(), place)
        for process, place in zip(processes, folders)
    ]


def _run(variables: dict[str, str], place: Path, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    os.environ.update(variables)
    tempfile.tempdir = None  # which may have been read before TMPDIR was set
    torch.set_num_threads(1)
    with (place / "out").open("w") as out, (place / "err").open("w") as err:
        os.dup2(err.fileno(), 2)
        with redirect_stdout(out), redirect_stderr(err):
            torch.save(function(*arguments), place / "result")
