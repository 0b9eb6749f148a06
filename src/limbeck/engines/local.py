"""The engine `local`: processes of this machine. It needs nothing, and is the default."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

from limbeck.core.errors import UserError
from limbeck.core.events import Event
from limbeck.engines.work import Engine, Work


class Process:
    """The process of a work on this machine.

    folder:    Its working folder; by default that of this process.
    variables: Environment variables beside those of this process.
    """

    def __init__(self, work: Work, folder: str | None = None, variables: Mapping[str, str] | None = None):
        self.errors = work.errors
        self.errors.parent.mkdir(parents=True, exist_ok=True)
        with self.errors.open("w", encoding="utf-8") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-c", "from limbeck.engines import child; child.main()"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                encoding="utf-8",
                cwd=folder,
                env={**os.environ, **(variables or {}), "OMP_NUM_THREADS": str(work.threads)},
                start_new_session=True,  # Ctrl-C reaches the parent alone, which passes it on
            )
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # it ended at once; its exit status says so
            self.process.stdin.write(json.dumps(work.message) + "\n")
            self.process.stdin.flush()  # and stays open: the process ends with whoever holds the other end

    def events(self) -> Iterator[Event]:
        """The events that it writes to standard output."""
        assert self.process.stdout is not None
        with self.process.stdout:
            for line in self.process.stdout:
                with suppress(ValueError):  # a line that a library printed
                    event = json.loads(line)
                    if isinstance(event, dict) and "event" in event:
                        yield event

    @property
    def status(self) -> int:
        """Its exit status, for which this waits; the negative number of a signal that ended it."""
        status = self.process.wait()
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        return status

    def failure(self) -> str | None:
        """Why it failed, from its exit status and the last line of its standard error."""
        status = self.status
        if status == 0:
            return None
        text = self.errors.read_text(encoding="utf-8", errors="replace") if self.errors.exists() else ""
        ends = text.strip().splitlines()[-1:]
        reason = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
        hint = " (out of memory?)" if status == -signal.SIGKILL else ""
        return f"its process {reason}{hint}" + "".join(f"; {self.errors}: {end}" for end in ends)

    def interrupt(self) -> None:
        """Ask it to stop: by SIGTERM, since Ctrl-C may be ignored, as it is in a shell's background."""
        self.process.terminate()

    def stop(self, seconds: float) -> None:
        """Wait until it has ended, and kill it after so many seconds; a file without errors goes."""
        try:
            self.process.wait(max(0.0, seconds))
        except subprocess.TimeoutExpired:
            self.process.kill()
        _ = self.status
        with suppress(OSError):
            if self.errors.stat().st_size == 0:
                self.errors.unlink()


class Local:
    """This machine: by default as many works at a time as torch has threads for, and one on a GPU.

    >>> Local(jobs=3).capacity(threads=1, gpus=0), Local().shares([0, 1, 4])
    (3, [(0, 1, 4)])
    """

    is_remote = False

    def __init__(self, jobs: int | None = None):
        import torch  # here, since options name engines before torch is loaded

        self.jobs, self.cores = jobs, torch.get_num_threads()

    def look(self) -> None:
        """This machine is there."""

    def capacity(self, threads: int, gpus: int) -> int:
        """How many works it carries out at a time."""
        return self.jobs or (1 if gpus else max(1, self.cores // threads))

    def shares(self, indices: Sequence[int]) -> list[tuple[int, ...]]:
        """All experts to one process, which trains them side by side in threads."""
        return [tuple(indices)]

    def start(self, work: Work) -> Process:
        """Start a process."""
        return Process(work)


@contextmanager
def open_local(address: str | None = None, jobs: int | None = None) -> Iterator[Engine]:
    """This machine as an engine. Raises UserError for an address, which it does not have."""
    if address is not None:
        raise UserError("--address is that of a cluster; add --engine ray, or leave it out.")
    yield Local(jobs)
