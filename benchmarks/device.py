"""On a GPU: student steps, experts and evaluation of ours against eager float32 of the same network on the same device.

python -m benchmarks.device [--device cuda]; not part of `make bench`. `--device cpu --quick` shows that it works.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from benchmarks.cases import convolution_flops, make, random_data, synthetic
from benchmarks.experts import show
from benchmarks.measure import Json, Side, alternate, machine, matmul_rate, parser, write
from benchmarks.step import eager_loss, our_step
from limbeck.evaluation import EvalConfig
from limbeck.random import derive
from limbeck.task import Precision, Task, allow_tf32
from limbeck.training import Network, Schedule, last, score, train
from limbeck.types import PureLoss

BATCH, LR = 256, 0.01
EAGER = "eager float32"


@dataclass(frozen=True)
class Case:
    """channels, side: of the images; steps: of a student; train: images of an expert's epoch; epochs: of evaluation."""

    channels: int = 3
    side: int = 32
    width: int = 128
    ipcs: tuple[int, ...] = (1, 10, 50)
    steps: int = 30
    train: int = 51_200
    epochs: int = 100
    networks: int = 5
    repeats: int = 3


CASES = {"rgb32-width128": Case(), "grey28-width128": Case(channels=1, side=28)}
QUICK = Case(channels=1, side=12, width=4, ipcs=(1,), steps=2, train=BATCH + 40, epochs=2, networks=2, repeats=1)


@dataclass(frozen=True)
class Way:
    """How one side computes: the task in its precision, and what it asks for gradients and for logits."""

    task: Task
    loss: PureLoss
    logits: Network

    def waiting(self, work: Callable[[], object]) -> Side:
        """The work, in this precision, until the device has done it."""

        def call() -> None:
            allow_tf32(self.task.precision == "tf32")
            work()
            if self.task.device.type == "cuda":
                torch.cuda.synchronize(self.task.device)

        return call


def ways(case: Case, device: str) -> dict[str, Way]:
    """Eager float32, and ours in every precision that the device has."""
    data = random_data(case.channels, case.side, max(case.train, 10 * max(case.ipcs)), 2 * BATCH)
    precisions: list[Precision] = ["float32", "tf32", "bfloat16"] if device == "cuda" else ["float32", "bfloat16"]
    plain = make(data, case.width, device=device)
    found = {EAGER: Way(plain, eager_loss(plain), plain.model)}
    for precision in precisions:
        task = replace(plain, precision=precision)
        found[f"ours {precision}"] = Way(task, task.loss, task.logits)
    return found


def student(way: Way, ipc: int, steps: int) -> None:
    """One outer step, from the segment to the gradients."""
    our_step(way.task, way.loss, ipc, steps)


def expert(way: Way, seed: int) -> Tensor:
    """One epoch, and all test images classified."""
    theta = way.task.model.fresh(seed).to(way.task.device)
    theta = last(train(way.loss, theta, *way.task.train, Schedule(1, LR, BATCH), seed))
    score(way.logits, theta, *way.task.test)
    return theta


def evaluation(way: Way, ipc: int, epochs: int, networks: int) -> None:
    """Networks trained on a small set, one after the other."""
    pair, schedule = synthetic(way.task, ipc), EvalConfig(epochs=epochs, batch_size=BATCH).schedule(LR)
    for network in range(networks):
        seed = derive(0, "network", network)
        theta = way.task.model.fresh(seed).to(way.task.device)
        score(way.logits, last(train(way.loss, theta, *pair, schedule, seed)), *way.task.test)


def measure_case(case: Case, device: str) -> Json:
    """Seconds of every side, in turn, and what experts reach of the device's own rate."""
    sides = ways(case, device)

    def compared(work: Callable[[Way], object]) -> Json:
        return alternate({name: way.waiting(partial(work, way)) for name, way in sides.items()}, case.repeats)

    result: Json = {"case": vars(case)}
    for ipc in case.ipcs:
        result[f"student, ipc {ipc}"] = compared(partial(student, ipc=ipc, steps=case.steps))
        result[f"evaluation, ipc {ipc}"] = compared(
            partial(evaluation, ipc=ipc, epochs=case.epochs, networks=case.networks)
        )
    result["expert"] = compared(lambda way: expert(way, 0))
    task = sides[EAGER].task
    first, others = convolution_flops(task)
    gflop = (2 * first + 3 * others) * len(task.train[0]) / 1e9
    result["expert_gflop_per_s"] = {
        name: gflop / seconds for name, seconds in result["expert"]["median_seconds"].items()
    }
    return result


def rates(device: str) -> Json:
    """GFLOP/s of the device's own products and convolutions."""
    found = {}
    for name, dtype in (("float32", torch.float32), ("tf32", torch.float32), ("bfloat16", torch.bfloat16)):
        allow_tf32(name == "tf32")
        found[name] = matmul_rate(dtype, device=device)
    return found


def main() -> None:
    """Measure, print, and write device.json."""
    read = parser(__doc__, CASES)
    read.add_argument("--device", default="cuda", help="where; cpu only shows that it works")
    asked = read.parse_args()
    name = torch.cuda.get_device_name() if asked.device == "cuda" else "processor"
    result: Json = {"machine": machine(), "device": name, "device_gflop_per_s": rates(asked.device), "cases": {}}
    for title, case in ({"quick": QUICK} if asked.quick else CASES).items():
        made = measure_case(case, asked.device)
        result["cases"][title] = made
        for what, part in made.items():
            if "median_seconds" in part:
                show(f"{title}, {what}", part)
        print({side: f"{rate:.0f} GFLOP/s" for side, rate in made["expert_gflop_per_s"].items()})
    write(asked.out / "device.json", result)


if __name__ == "__main__":
    main()
