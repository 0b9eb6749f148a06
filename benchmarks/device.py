"""Time student steps, experts and evaluation on a GPU, against eager float32 of the same network on the same GPU.

python -m benchmarks.device prints one table in under 8 minutes, and `--out FOLDER` writes device.json as well. It is
not part of `make bench`. `--device cpu --quick` runs a small version on the processor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.cases import convolution_flops, first_images, make_convnet_task, random_data
from benchmarks.measure import (
    Clock,
    Json,
    Side,
    alternate,
    describe_machine,
    make_parser,
    matmul_rate,
    seconds_of,
    write,
)
from benchmarks.reference import Step
from benchmarks.step import eager_loss, run_our_step
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
    """channels, side: shape of the images; steps: student steps; train: images of an expert's epoch.

    epochs, networks: of an evaluation.
    """

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
class Implementation:
    """One side: a task in its precision, with the loss and the logits that the side uses."""

    task: Task
    loss: PureLoss
    logits: Network

    def bind(self, work: Callable[[Implementation], object]) -> Side:
        """A call of `work` in this precision that returns once the device is done."""

        def call() -> object:
            allow_tf32(self.task.precision == "tf32")
            result = work(self)
            if self.task.device.type == "cuda":
                torch.cuda.synchronize(self.task.device)
            return result

        return call


class Job(NamedTuple):
    """One comparison: `short` has the shapes of `whole` and takes the fraction `part` of its time."""

    title: str
    whole: Callable[[Implementation], object]
    short: Callable[[Implementation], object]
    part: float


def make_implementations(case: Case, device: str) -> dict[str, Implementation]:
    """Eager float32, and limbeck in every precision of the device, by name."""
    data = random_data(case.channels, case.side, max(case.train, 10 * max(case.ipcs)), 2 * BATCH)
    precisions: list[Precision] = ["float32", "tf32", "bfloat16"] if device == "cuda" else ["float32"]
    float32_task = make_convnet_task(data, case.width, device)
    sides = {EAGER: Implementation(float32_task, eager_loss(float32_task), float32_task.model)}
    for precision in precisions:
        task = replace(float32_task, precision=precision)
        sides[f"ours {precision}"] = Implementation(task, task.loss, task.logits)
    return sides


def run_student(side: Implementation, ipc: int, steps: int) -> Step:
    """One outer step, from the segment to the gradients."""
    return run_our_step(side.task, side.loss, ipc, steps)


def train_expert(side: Implementation, seed: int, images: int | None = None) -> Tensor:
    """Train for one epoch on the first `images` training images, by default all, and classify all test images."""
    theta = side.task.model.init(seed).to(side.task.device)
    pair = side.task.train[0][:images], side.task.train[1][:images]
    theta = final_parameters(train(side.loss, theta, *pair, Schedule(1, LR, BATCH), seed))
    score(side.logits, theta, *side.task.test)
    return theta


def run_evaluation(side: Implementation, ipc: int, epochs: int, networks: int) -> None:
    """Train and test networks on a small set, one after the other."""
    pair, schedule = first_images(side.task, ipc), EvalConfig(epochs=epochs, batch_size=BATCH).schedule(LR)
    for network in range(networks):
        seed = derive_seed(0, "network", network)
        theta = side.task.model.init(seed).to(side.task.device)
        score(side.logits, final_parameters(train(side.loss, theta, *pair, schedule, seed)), *side.task.test)


def make_jobs(case: Case) -> list[Job]:
    """The jobs of a case, the most important first."""
    jobs = [
        Job("expert", partial(train_expert, seed=0), partial(train_expert, seed=0, images=BATCH), BATCH / case.train)
    ]
    for ipc in case.ipcs:
        whole, short = (partial(run_student, ipc=ipc, steps=steps) for steps in (case.steps, 1))
        jobs.append(Job(f"student, ipc {ipc}", whole, short, 1 / case.steps))
        whole = partial(run_evaluation, ipc=ipc, epochs=case.epochs, networks=case.networks)
        short = partial(run_evaluation, ipc=ipc, epochs=1, networks=1)
        jobs.append(Job(f"evaluation, ipc {ipc}", whole, short, 1 / (case.epochs * case.networks)))
    return jobs


def compare(job: Job, sides: Mapping[str, Implementation], repeats: int, budget_s: float, left_s: float) -> Json | str:
    """Time all sides in turn; returns a sentence instead if the time is too short."""
    short = {name: side.bind(job.short) for name, side in sides.items()}
    remaining = Clock(left_s)
    for call in short.values():  # libraries choose their algorithms, and CUDA graphs are captured
        if remaining.left < 0:
            return "no time left"
        call()
    needed = sum(seconds_of(call) for call in short.values()) / job.part
    if needed > remaining.left:
        return f"no time left: about {needed:.0f} s"
    whole = {name: side.bind(job.whole) for name, side in sides.items()}
    return alternate(whole, repeats, warm=short, budget_s=min(budget_s, remaining.left))


def check_gradients(sides: Mapping[str, Implementation], ipc: int, steps: int) -> Json:
    """Compare the image gradient of every side with the eager one, and two runs of it bit by bit."""
    exact = run_student(sides[EAGER], ipc, steps).images
    check: Json = {}
    for name, side in sides.items():
        one, two = (side.bind(partial(run_student, ipc=ipc, steps=steps))() for _ in range(2))
        assert isinstance(one, Step)
        assert isinstance(two, Step)
        error = float((one.images - exact).norm() / exact.norm())
        check[name] = {"relative_difference": error, "same_bits_again": torch.equal(one.images, two.images)}
    return check


def measure_case(case: Case, device: str, clock: Clock, share_s: float) -> Json:
    """Measure the jobs of a case while there is time, check its gradients, and compute the rate of expert training."""
    sides, jobs = make_implementations(case, device), make_jobs(case)
    end = Clock(share_s)
    result: Json = {"case": vars(case), "jobs": {}, "check": check_gradients(sides, case.ipcs[0], min(3, case.steps))}
    for index, job in enumerate(jobs):
        budget = end.left / (len(jobs) - index)
        result["jobs"][job.title] = compare(job, sides, case.repeats, budget, min(end.left, clock.left))
    if isinstance(result["jobs"]["expert"], dict):
        first, others = convolution_flops(sides[EAGER].task)
        gflop = (2 * first + 3 * others) * len(sides[EAGER].task.train[0]) / 1e9
        seconds = result["jobs"]["expert"]["median_seconds"]
        result["expert_gflop_per_s"] = {name: gflop / median for name, median in seconds.items()}
    return result


def measure_rates(device: str) -> Json:
    """GFLOP/s of torch's matrix products and convolutions on the device, for each side."""
    rates_by_side = {}
    for name, dtype in (("float32", torch.float32), ("tf32", torch.float32), ("bfloat16", torch.bfloat16)):
        if device == "cuda" or name == "float32":
            allow_tf32(name == "tf32")
            rates_by_side[f"ours {name}"] = matmul_rate(dtype, device=device)["rate"]
    return {EAGER: rates_by_side["ours float32"], **rates_by_side}


def format_table(result: Json) -> str:
    """Seconds and ratios to eager float32; then rates, the check of gradients, and the jobs that were left out."""
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
        same_bits = ["yes" if check[name]["same_bits_again"] else "NO" for name in names]
        lines.append([f"{title}, the same bits again", *same_bits])
    device_rates = result["device_gflop_per_s"]
    lines.append(["the device's own GFLOP/s", *(f"{device_rates[name]:.0f}" for name in names)])
    widths = [max(len(line[column]) for line in lines) for column in range(len(names) + 1)]
    rows = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines]
    return "\n".join([f"{result['device']}, torch {result['machine']['torch']}", *rows, *missing])


def main() -> None:
    """Measure and print one table, and write device.json if there is `--out`."""
    parser = make_parser(__doc__, CASES)
    parser.add_argument("--device", default="cuda", help="the device; cpu only shows that it works")
    parser.set_defaults(out=None)
    options = parser.parse_args()
    clock = Clock(options.budget or LIMIT_S)
    name = torch.cuda.get_device_name() if options.device == "cuda" else "processor"
    result: Json = {
        "machine": describe_machine(),
        "device": name,
        "device_gflop_per_s": measure_rates(options.device),
        "cases": {},
    }
    cases = {"quick": QUICK} if options.quick else {title: CASES[title] for title in options.case or CASES}
    for index, (title, case) in enumerate(cases.items()):
        result["cases"][title] = measure_case(case, options.device, clock, clock.left / (len(cases) - index))
    print(format_table(result))
    if options.out is not None:
        write(options.out / "device.json", result)


if __name__ == "__main__":
    main()
