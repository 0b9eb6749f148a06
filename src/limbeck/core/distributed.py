"""The processes of one job, as a value: `Ranks`. This is the only file that imports torch.distributed.

All ranks run the same job in lockstep and reach every collective call in the same order. What they may see differently,
such as a file that another rank has just written, is decided by rank 0 (`decide`).
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from limbeck.core.errors import UserError
from limbeck.core.launch import Launch

T = TypeVar("T")

JOIN_MINUTES = 5.0
"""How long processes that started together may take to find each other; only imports and the network can delay them."""
MAX_WAIT_HOURS = 6.0
"""How long one rank waits for the others, who may still train an expert each. $LIMBECK_MAX_WAIT_HOURS is another."""


class RankLostError(ConnectionError):
    """Another process of the job ended, or did not answer for too long."""


@dataclass(frozen=True)
class Ranks:
    """The processes of a job and the place of this one among them; one process by default.

    rank:  from 0 to size - 1. Only rank 0 writes results and prints.
    local: the rank among the processes of this machine.

    >>> ranks = Ranks()
    >>> ranks.share(["a", "b", "c"]), ranks.gather_json({"x": 1}), ranks.decide(lambda: 2)
    (['a', 'b', 'c'], [{'x': 1}], 2)
    """

    rank: int = 0
    size: int = 1
    local: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes results."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> list[T]:
        """The items that are this rank's: those at the places rank, rank + size, and so on."""
        return list(items[self.rank :: self.size])

    def device(self, name: str) -> str:
        """The device of this rank; of several, cuda stands for the GPU with the rank's number on its machine.

        Raises UserError where all ranks would take the same GPU.
        """
        if self.size == 1 or not name.startswith("cuda"):
            return name
        if name != "cuda":
            raise UserError(f"under torchrun every process takes a GPU of its own; write --device cuda, not {name}.")
        return f"cuda:{self.local}"

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """The tensors of all ranks, in their order; they have the same shape and type."""
        if self.size == 1:
            return [tensor]
        tensors = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(self.size)]
        with _lost_ranks():
            dist.all_gather(tensors, tensor.contiguous())
        return tensors

    def exchange(self, tensor: Tensor) -> list[Tensor]:
        """This rank's slice of the tensor of every rank, flat; `join` makes one tensor of the slices of all ranks.

        Sums over ranks are taken slice by slice, in the order of the ranks, so that they have the bits of one process.
        Together, a rank sends and receives 2 (size - 1) / size times the tensor, as in a ring.
        """
        if self.size == 1:
            return [tensor]
        slices = self._padded(tensor).chunk(self.size)
        parts = [torch.empty_like(part) for part in slices]
        with _lost_ranks():
            dist.all_to_all(parts, list(slices))
        return parts

    def join(self, part: Tensor, like: Tensor) -> Tensor:
        """The tensor whose slices all ranks hold, in the shape of `like`."""
        if self.size == 1:
            return part
        return torch.cat(self.gather(part))[: like.numel()].view(like.shape)

    def _padded(self, tensor: Tensor) -> Tensor:
        flat = tensor.reshape(-1)
        return torch.nn.functional.pad(flat, (0, -len(flat) % self.size))

    def gather_json(self, value: Any) -> list[Any]:
        """The values of all ranks, in their order: what JSON holds, numbers to the last bit."""
        if self.size == 1:
            return [value]
        content = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        lengths = [int(length) for length in self.gather(torch.tensor(len(content)))]
        padded = torch.nn.functional.pad(content, (0, max(lengths) - len(content)))
        return [json.loads(bytes(text[:n].tolist())) for text, n in zip(self.gather(padded), lengths)]

    def decide(self, choose: Callable[[], Any]) -> Any:
        """Call a function on rank 0 and return its result, what JSON holds, on every rank.

        Where it raises on rank 0, the other processes end without a word.
        """
        if self.size == 1:
            return choose()
        if not self.is_first:
            return self._decision()
        try:
            decision = choose()
        except BaseException:
            self.gather_json(None)
            raise
        self.gather_json([decision])
        return decision

    def _decision(self) -> Any:
        decision = self.gather_json(None)[0]
        if decision is None:
            sys.exit(1)
        return decision[0]

    def in_turn(self, call: Callable[[], T]) -> T:
        """Call a function on rank 0, and when it has returned on the others: they find what it stored."""
        if self.is_first:
            results: list[T] = []
            self.decide(lambda: results.append(call()))
            return results[0]
        self.decide(lambda: None)
        return call()

    def barrier(self) -> None:
        """Wait until all ranks are here."""
        self.gather_json(None)


SINGLE = Ranks()


@contextmanager
def join_ranks(device: str = "cpu") -> Iterator[Ranks]:
    """Join the processes that torchrun started, inside a `with` block: over gloo, and tensors on GPUs over nccl.

    Without torchrun it is one process, and nothing is set up. Raises RankLostError where they do not find each other.
    """
    launch = Launch.of_environment()
    if launch.size == 1:
        yield SINGLE
        return
    longest = timedelta(hours=float(os.environ.get("LIMBECK_MAX_WAIT_HOURS", MAX_WAIT_HOURS)))
    backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
    if device.startswith("cuda"):
        torch.cuda.set_device(launch.local)
    with _lost_ranks(NOT_JOINED):
        joining = min(longest, timedelta(minutes=JOIN_MINUTES))
        dist.init_process_group(
            backend, rank=launch.rank, world_size=launch.size, timeout=joining, init_method="env://"
        )
    _set_longest_wait(longest)
    try:
        yield Ranks(*launch)
    finally:
        dist.destroy_process_group()


def _set_longest_wait(longest: timedelta) -> None:
    """Set how long collective calls wait from now on, and the store by which nccl finds the others at its first one."""
    from torch.distributed import distributed_c10d  # here, since some builds of torch have none

    distributed_c10d._set_pg_timeout(longest)
    distributed_c10d._get_default_store().set_timeout(longest)


LOST = (
    "another process of this job ended or does not answer, so this one ends too; the same command goes on "
    "where it stopped."
)
NOT_JOINED = (
    "the processes of this job do not reach each other, or one of them ended; on several machines give torchrun "
    "the --local-addr of each, and set GLOO_SOCKET_IFNAME to the name of the network interface that joins them, such "
    "as eth0."
)


@contextmanager
def _lost_ranks(sentence: str = LOST) -> Iterator[None]:
    """Raise RankLostError where a collective call fails, which it does when the connection to another rank breaks."""
    try:
        yield
    except RuntimeError as error:
        raise RankLostError(sentence) from error
