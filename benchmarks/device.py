"""On a GPU: student steps, experts and evaluation, ours against eager float32 of the same network on the same device.

python -m benchmarks.device prints one table in under 8 minutes; `--out FOLDER` writes device.json there as well. It is
not part of `make bench`. `--device cpu --quick` shows that it works.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.cases import convolution_flops, make, random_data, synthetic
from benchmarks.measure import Clock, Json, Side, alternate, machine, matmul_rate, parser, timed, write
from benchmarks.reference import Step
from benchmarks.step import eager_loss, our_step
from limbeck.core.rng import derive_seed
from limbeck.core.types import PureLoss
from limbeck.evaluation.protocol import EvalConfig
from limbeck.task import Precision, Task, allow_tf32
from limbeck.training.plain import Network, Schedule, final_parameters, score, train

LIMIT_S = 440
BATCH, LR = 256, 0.01
EAGER = "eager float32"


@dataclass(frozen=True)
class Case:
    """channels, side: of the images; steps: of a student; train: images of an expert's epoch; epochs: of evaluation."""

    channels: int = 3
    side: int = 32
    width: int = 128
    ipcs: tuple[int, ...] = (10, 1, 50)
    steps: int = 30
    train: int = 51_200
    epochs: int = 100
    networks: int = 2
    repeats: int = 3


CASES = {"rgb32-width128": Case(), "grey28-width128": Case(channels=1, side=28)}
QUICK = Case(channels=1, side=12, width=4, ipcs=(1,), steps=2, train=2 * BATCH, epochs=2, networks=2, repeats=1)


@dataclass(frozen=True)
class Way:
    """How one side computes: the task in its precision, and what it asks for gradients and for logits."""

    task: Task
    loss: PureLoss
    logits: Network

    def waiting(self, work: Callable[[Way], object]) -> Side:
        """The work, in this precision, until the device has done it."""

        def call() -> object:
            allow_tf32(self.task.precision == "tf32")
            result = work(self)
            if self.task.device.type == "cuda":
                torch.cuda.synchronize(self.task.device)
            return result

        return call


class Job(NamedTuple):
    """What is compared: `short` has the shapes of `whole` and takes `part` of its time."""

    title: str
    whole: Callable[[Way], object]
    short: Callable[[Way], object]
    part: float


def ways(case: Case, device: str) -> dict[str, Way]:
    """Eager float32, and ours in every precision that the device has."""
    data = random_data(case.channels, case.side, max(case.train, 10 * max(case.ipcs)), 2 * BATCH)
    precisions: list[Precision] = ["float32", "tf32", "bfloat16"] if device == "cuda" else ["float32"]
    plain = make(data, case.width, device=device)
    sides = {EAGER: Way(plain, eager_loss(plain), plain.model)}
    for precision in precisions:
        task = replace(plain, precision=precision)
        sides[f"ours {precision}"] = Way(task, task.loss, task.logits)
    return sides


def student(way: Way, ipc: int, steps: int) -> Step:
    """One outer step, from the segment to the gradients."""
    return our_step(way.task, way.loss, ipc, steps)


def expert(way: Way, seed: int, images: int | None = None) -> Tensor:
    """One epoch on all training images, or on the first `images`, and all test images classified."""
    theta = way.task.model.init(seed).to(way.task.device)
    pair = way.task.train[0][:images], way.task.train[1][:images]
    theta = final_parameters(train(way.loss, theta, *pair, Schedule(1, LR, BATCH), seed))
    score(way.logits, theta, *way.task.test)
    return theta


def evaluation(way: Way, ipc: int, epochs: int, networks: int) -> None:
    """Networks trained on a small set, one after the other."""
    pair, schedule = synthetic(way.task, ipc), EvalConfig(epochs=epochs, batch_size=BATCH).schedule(LR)
    for network in range(networks):
        seed = derive_seed(0, "network", network)
        theta = way.task.model.init(seed).to(way.task.device)
        score(way.logits, final_parameters(train(way.loss, theta, *pair, schedule, seed)), *way.task.test)


def jobs(case: Case) -> list[Job]:
    """What matters most comes first."""
    work = [Job("expert", partial(expert, seed=0), partial(expert, seed=0, images=BATCH), BATCH / case.train)]
    for ipc in case.ipcs:
        whole, short = (partial(student, ipc=ipc, steps=steps) for steps in (case.steps, 1))
        work.append(Job(f"student, ipc {ipc}", whole, short, 1 / case.steps))
        whole_evaluation = partial(evaluation, ipc=ipc, epochs=case.epochs, networks=case.networks)
        few = partial(evaluation, ipc=ipc, epochs=1, networks=1)
        work.append(Job(f"evaluation, ipc {ipc}", whole_evaluation, few, 1 / (case.epochs * case.networks)))
    return work


def compare(job: Job, sides: Mapping[str, Way], repeats: int, budget_s: float, left_s: float) -> Json | str:
    """Seconds of all sides in turn; or why there are none."""
    short = {name: way.waiting(job.short) for name, way in sides.items()}
    remaining = Clock(left_s)
    for side in short.values():  # libraries choose their algorithms, and what is captured is captured here
        if remaining.left < 0:
            return "no time left"
        side()
    needed = sum(timed(side) for side in short.values()) / job.part
    if needed > remaining.left:
        return f"no time left: about {needed:.0f} s"
    whole = {name: way.waiting(job.whole) for name, way in sides.items()}
    return alternate(whole, repeats, warm=short, budget_s=min(budget_s, remaining.left))


def checked(sides: Mapping[str, Way], ipc: int, steps: int) -> Json:
    """The image gradient of every side against the eager one's, and whether a second run has the same bits."""
    exact = student(sides[EAGER], ipc, steps).images
    check: Json = {}
    for name, way in sides.items():
        one, two = (way.waiting(partial(student, ipc=ipc, steps=steps))() for _ in range(2))
        assert isinstance(one, Step)
        assert isinstance(two, Step)
        error = float((one.images - exact).norm() / exact.norm())
        check[name] = {"relative_difference": error, "same_bits_again": torch.equal(one.images, two.images)}
    return check


def measure_case(case: Case, device: str, clock: Clock, share_s: float) -> Json:
    """Every job of a case as long as there is time, the check, and what experts reach of the device's own rate."""
    sides, work = ways(case, device), jobs(case)
    end = Clock(share_s)
    result: Json = {"case": vars(case), "jobs": {}, "check": checked(sides, case.ipcs[0], min(3, case.steps))}
    for place, job in enumerate(work):
        budget = end.left / (len(work) - place)
        result["jobs"][job.title] = compare(job, sides, case.repeats, budget, min(end.left, clock.left))
    if isinstance(result["jobs"]["expert"], dict):
        first, others = convolution_flops(sides[EAGER].task)
        gflop = (2 * first + 3 * others) * len(sides[EAGER].task.train[0]) / 1e9
        seconds = result["jobs"]["expert"]["median_seconds"]
        result["expert_gflop_per_s"] = {name: gflop / needed for name, needed in seconds.items()}
    return result


def rates(device: str) -> Json:
    """GFLOP/s of the device's own products and convolutions."""
    rates_by_side = {}
    for name, dtype in (("float32", torch.float32), ("tf32", torch.float32), ("bfloat16", torch.bfloat16)):
        if device == "cuda" or name == "float32":
            allow_tf32(name == "tf32")
            rates_by_side[f"ours {name}"] = matmul_rate(dtype, device=device)["rate"]
    return {EAGER: rates_by_side["ours float32"], **rates_by_side}


def table(result: Json) -> str:
    """All of it: seconds, and times as fast as eager; then rates, the check, and what was left out."""
    names = list(result["device_gflop_per_s"])
    lines = [["seconds (times as fast), medians", *names]]
    missing = []
    for title, case in result["cases"].items():
        for job, comparison in case["jobs"].items():
            if isinstance(comparison, str):
                missing.append(f"left out: {title}, {job} ({comparison})")
                continue
            seconds, faster = comparison["median_seconds"], comparison["times_faster"]
            cells = [f"{seconds[name]:.3f} ({faster[name]['of_medians']:.2f})" for name in names]
            lines.append([f"{title}, {job}, n = {comparison['n']}", *cells])
        if "expert_gflop_per_s" in case:
            rates_of_case = case["expert_gflop_per_s"]
            lines.append([f"{title}, expert, GFLOP/s", *(f"{rates_of_case[name]:.0f}" for name in names)])
        check = case["check"]
        errors = [f"{check[name]['relative_difference']:.1e}" for name in names]
        lines.append([f"{title}, image gradient, difference from eager", *errors])
        again = ["yes" if check[name]["same_bits_again"] else "NO" for name in names]
        lines.append([f"{title}, the same bits again", *again])
    own = result["device_gflop_per_s"]
    lines.append(["the device's own GFLOP/s", *(f"{own[name]:.0f}" for name in names)])
    widths = [max(len(line[column]) for line in lines) for column in range(len(names) + 1)]
    rows = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines]
    return "\n".join([f"{result['device']}, torch {result['machine']['torch']}", *rows, *missing])


def main() -> None:
    """Measure and print one table; write device.json where a folder is named."""
    read = parser(__doc__, CASES)
    read.add_argument("--device", default="cuda", help="where; cpu only shows that it works")
    read.set_defaults(out=None)
    options = read.parse_args()
    clock = Clock(options.budget or LIMIT_S)
    name = torch.cuda.get_device_name() if options.device == "cuda" else "processor"
    result: Json = {"machine": machine(), "device": name, "device_gflop_per_s": rates(options.device), "cases": {}}
    cases = {"quick": QUICK} if options.quick else {title: CASES[title] for title in options.case or CASES}
    for place, (title, case) in enumerate(cases.items()):
        result["cases"][title] = measure_case(case, options.device, clock, clock.left / (len(cases) - place))
    print(table(result))
    if options.out is not None:
        write(options.out / "device.json", result)


if __name__ == "__main__":
    main()
