"""The engine `ray`: the machines of a Ray cluster. This is the only file that imports Ray.

A task of Ray starts the same process that `local` starts, on the machine that Ray chooses, and passes on what it says.
So the bits are those of the engine `local`. Ray neither retries nor stores anything: `Pool` starts lost works again,
and results lie in folders that all machines share.
"""

from __future__ import annotations

import atexit
import os
import platform
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from logging import CRITICAL
from pathlib import Path
from typing import Any

from limbeck.core.errors import UserError
from limbeck.core.events import Event
from limbeck.core.folders import home_folder
from limbeck.core.text import shorten
from limbeck.engines.local import Process
from limbeck.engines.work import Engine, EngineLostError, LostError, Work

CONNECT_SECONDS = 10.0
LOOK_SECONDS = 1.0
STOP_SECONDS = 20.0
"""How long a process that is interrupted on another machine has to write what it knows."""


def follow(work: Work, folder: str, variables: dict[str, str]) -> Iterator[Event]:
    """In a worker of Ray: start the process of a work, yield its events and, last, how it ended.

    folder: The working folder of the command, used where this machine has it; variables: those of limbeck.
    """
    import ray

    yield {"event": "node", "node": ray.get_runtime_context().get_node_id()}
    process = Process(work, folder if Path(folder).is_dir() else None, variables)
    try:
        for event in process.events():
            yield {**event, "sentence": _with_host(event["sentence"])} if event["event"] == "end" else event
        yield {"event": "exit", "failure": _with_host(process.failure()), "is_killed": process.status < 0}
    finally:
        if process.process.poll() is None:
            process.interrupt()
        process.stop(STOP_SECONDS)


def _with_host(sentence: str | None) -> str | None:
    """A failure with the name of the machine where it came about: disks and folders may be that machine's alone."""
    return None if sentence is None else f"on {platform.node()}: {sentence}"


class Nodes:
    """The machines of a cluster that were alive when `look` was called last, as its head sees them."""

    def __init__(self, ray: Any):
        self.ray, self.head, self.alive = ray, ray.get_runtime_context().gcs_address, dict[str, dict[str, Any]]()
        self.look()

    def look(self) -> None:
        """Look who is alive. EngineLostError where the head does not answer: Ray would end this process for it."""
        try:
            _connect(self.head)
        except OSError as error:
            raise EngineLostError(
                f"the head of the Ray cluster at {self.head} does not answer any more "
                f"({error.strerror or error}); what was finished is kept: start the cluster again, and the same "
                "command does what is left."
            ) from None
        self.alive = {node["NodeID"]: node["Resources"] for node in self.ray.nodes() if node["Alive"]}


class Task:
    """A work on a cluster.

    places: The machines that may have it: those that are there as it begins, and then the one that says so.
    """

    def __init__(self, nodes: Nodes, work: Work):
        self.ray, self.nodes, self.places = nodes.ray, nodes, set(nodes.alive)
        self.error: Exception | None = None
        self.exit = dict[str, Any]()
        variables = {name: value for name, value in os.environ.items() if name.startswith("LIMBECK_")}
        variables["LIMBECK_HOME"] = str(home_folder().absolute())
        task = self.ray.remote(follow).options(
            num_cpus=work.threads, num_gpus=work.gpus, num_returns="streaming", max_retries=0, name=work.name
        )
        plain = Work(work.key, work.name, work.function, work.order, work.threads, work.errors.absolute())
        self.generator = task.remote(plain, os.getcwd(), variables)

    def events(self) -> Iterator[Event]:
        """The events of the process."""
        try:
            while (reference := self._next()) is not None:
                event = self.ray.get(reference)
                if event["event"] == "node":
                    self.places = {event["node"]}
                elif event["event"] == "exit":
                    self.exit = event
                else:
                    yield event
        except (self.ray.exceptions.RayError, LostError) as error:
            self.error = error

    def _next(self) -> Any:
        """The next event, and None after the last.

        Raises LostError where its machine is lost. Ray's own call waits for seven minutes where the machine vanished
        without a word, though its head knows after one and a half.
        """
        while not self.ray.wait([self.generator], timeout=LOOK_SECONDS)[0]:
            if not self.ray.is_initialized() or self.places - self.nodes.alive.keys():
                raise LostError("the machine that did it went away")
        return next(self.generator, None)

    def failure(self) -> str | None:
        """Why it failed. Raises LostError where the worker or its machine went away, or the process was killed."""
        if isinstance(self.error, self.ray.exceptions.RayTaskError):
            return f"its process could not be started: {self.error.cause}"
        if isinstance(self.error, LostError):
            raise self.error
        if self.error is not None or not self.exit:
            kind = type(self.error).__name__
            raise LostError(f"the worker or the machine that did it went away ({kind})")
        if self.exit["is_killed"]:
            raise LostError(str(self.exit["failure"]))
        failure: str | None = self.exit["failure"]
        return failure

    def interrupt(self) -> None:
        """Cancel the task, which interrupts the process."""
        with suppress(self.ray.exceptions.RayError):
            self.ray.cancel(self.generator)

    def stop(self, seconds: float) -> None:
        """Wait for the end of the task; processes end with the tasks that started them."""
        with suppress(self.ray.exceptions.RayError):
            self.ray.wait([self.generator.completed()], timeout=max(0.0, seconds))


class Cluster:
    """The machines of a Ray cluster: as many works at a time as their processors and GPUs have room for."""

    is_remote = True

    def __init__(self, ray: Any, jobs: int | None = None):
        self.nodes, self.jobs, self.has_started = Nodes(ray), jobs, False

    def look(self) -> None:
        """Look which machines are there. Raises EngineLostError where the head of the cluster is not."""
        self.nodes.look()

    def capacity(self, threads: int, gpus: int) -> int:
        """How many works fit the machines that are there now. UserError where none ever fitted."""
        room = sum(
            min(int(machine.get("CPU", 0)) // threads, int(machine.get("GPU", 0)) // gpus if gpus else sys.maxsize)
            for machine in self.nodes.alive.values()
        )
        if not room and not self.has_started:
            raise UserError(
                f"no machine of the cluster has {threads} processors{f' and {gpus} GPU' if gpus else ''} for one unit "
                "of work; name fewer --threads, or start Ray with more --num-cpus."
            )
        return max(1, min(room, self.jobs or room))

    def shares(self, indices: Sequence[int]) -> list[tuple[int, ...]]:
        """One expert a work, so that a lost machine loses one expert."""
        return [(index,) for index in indices]

    def start(self, work: Work) -> Task:
        """Start a task."""
        self.has_started = True
        return Task(self.nodes, work)


@contextmanager
def open_cluster(address: str | None = None, jobs: int | None = None) -> Iterator[Engine]:
    """Connect to a Ray cluster; without an address to that of $RAY_ADDRESS or of this machine, else one is started.

    Raises UserError where Ray is not installed, and where nothing answers at the address.
    """
    try:
        import ray
    except ImportError:
        raise UserError("--engine ray needs Ray, which is not installed: pip install 'limbeck[ray]'.") from None
    address = address or os.environ.get("RAY_ADDRESS")
    _require_answer(address)
    is_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=CRITICAL)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise _unreachable(address, shorten(error)) from None
    try:
        if is_main and handler is not None:
            signal.signal(signal.SIGTERM, handler)  # Ray has one of its own, which ends without cleaning up
        yield Cluster(ray, jobs)
    except EngineLostError:
        atexit.unregister(ray.shutdown)  # it would wait for the head, for two minutes where its machine is off
        raise
    except BaseException:
        ray.shutdown()
        raise
    else:
        ray.shutdown()


def _require_answer(address: str | None) -> None:
    """Raise UserError where nobody listens at HOST:PORT; Ray itself tries for minutes, and writes pages meanwhile."""
    try:
        _connect((address or "").removeprefix("ray://"))
    except OSError as error:
        raise _unreachable(address, error.strerror or str(error)) from None


def _connect(address: str) -> None:
    """Raise OSError where nobody listens at HOST:PORT; what is no such address is not tried."""
    host, _, port = address.rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()


def _unreachable(address: str | None, reason: str) -> UserError:
    return UserError(
        f"no Ray cluster answers at {address or 'this machine'} ({reason}); start one with 'ray start --head', "
        "and name its HOST:PORT, or leave out --address on a machine of the cluster."
    )
