"""Time one outer step, N student steps with their gradient: the field's released code against limbeck.

A step comprises the segment, the unrolled student, the loss, and the gradients in images and step size, with DSA. Both
sides draw the same families. The images are random, and every student step uses all of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from benchmarks.cases import convolution_flops, first_images, make_convnet_task, make_segment, random_data
from benchmarks.measure import (
    Clock,
    Json,
    alternate,
    build_seconds,
    describe_machine,
    matmul_rate,
    measure_in_child,
    parse_arguments,
    with_default_allocator,
    write,
)
from benchmarks.reference import Step, mtt_step, reference_dsa, released_step
from limbeck.core.allocator import keep_freed_memory
from limbeck.core.rng import make_generator
from limbeck.core.types import Batch, PureLoss
from limbeck.data.augment import CanvasCrop
from limbeck.experts import Recorded, WholeEpochs
from limbeck.objectives import MatchTrajectory
from limbeck.objectives.distance import displacement
from limbeck.synthetic.set import SyntheticSet
from limbeck.task import Task
from limbeck.training import CrossEntropy, unroll

LIMIT_S = 420
LR = 0.01
MTT_STEPS = 8  # the full graph of 50 steps does not fit everywhere; time is compared per student step


@dataclass(frozen=True)
class Case:
    """channels, side: shape of the images; ipc: images per class, of ten classes; steps: N; timed: N of the timings.

    full_graph: also compare with MTT. share: of the script's time. norm: None for instance norm, which has explicit
    derivatives.
    """

    channels: int
    side: int
    width: int
    ipc: int
    steps: int
    timed: int = 0
    full_graph: bool = False
    repeats: int = 9
    share: float = 0.2
    norm: str | None = None


CASES = {
    "rgb32-width128-ipc1": Case(3, 32, 128, 1, 50, timed=6, full_graph=True),
    "rgb32-width128-ipc10": Case(3, 32, 128, 10, 30, timed=3, repeats=7, share=0.6),
    "grey28-width32-ipc10": Case(1, 28, 32, 10, 30, timed=6),
    "grey28-width32-ipc10-autograd": Case(
        1, 28, 32, 10, 10, timed=4, norm="none"
    ),  # no kernels, as for a user's own network
}

UNITS = {
    "released": (7, 10),
    "mtt": (6, 9),
    "ours eager": (8, 12),
    "ours float32": (7, 11),
}
"""Work of a student step in convolutions of the size of a forward pass: (in the first layer, in each other layer).

A gradient takes 3 (2 in the first layer, whose input has no gradient). In each other layer, "released" adds a second
gradient and 4 for its derivative in the images; "ours eager" is exact and adds 2 more for the derivative in the
weights; "mtt" needs no second gradient, since one graph serves for both sweeps; "ours float32" adds 2 for the pass
before the derivative and 6 for the derivative itself.
"""


def make_case_task(case: Case) -> Task:
    """The task of a case, with as many random training images as the set has."""
    return make_convnet_task(random_data(case.channels, case.side, 10 * case.ipc, 10), case.width, norm=case.norm)


def eager_loss(task: Task) -> PureLoss:
    """The loss with derivatives by autograd, as on machines without kernels."""
    return CrossEntropy(task.model, CanvasCrop(task.data.size, task.augment))


def run_our_step(task: Task, loss: PureLoss, ipc: int, steps: int) -> Step:
    """One outer step of limbeck's trajectory matching, from the segment to the gradients."""
    synthetic = SyntheticSet.from_images(*first_images(task, ipc), lr=LR)
    objective = MatchTrajectory([Recorded(torch.stack(make_segment(task)))], WholeEpochs(1, 1), loss, steps)
    value = objective(synthetic, 0, 0)
    value.backward()
    assert synthetic.images.grad is not None
    assert synthetic.log_lr.grad is not None
    return Step(value.item(), synthetic.images.grad, synthetic.log_lr.grad.item() / LR)


def run_field_step(step: Callable[..., Step], task: Task, ipc: int, steps: int) -> Step:
    """One outer step of the field's code, with the same rows and augmentation seeds as in `run_our_step`."""
    images, labels = first_images(task, ipc)
    seeds = torch.randint(2**62, (steps,), generator=make_generator(0, "batches", 0)).tolist()
    rows = [torch.arange(len(images))] * steps
    augment = partial(reference_dsa, strategy=task.augment.strategy)
    return step(task.model, images, labels, LR, make_segment(task), rows, seeds, augment)


def make_side(case: Case, name: str, results: dict[str, Step] | None = None) -> Callable[[int], Step]:
    """The outer step of a side as a function of N, which also stores its result in `results`."""
    task = make_case_task(case)
    if name in ("released", "mtt"):
        run = partial(run_field_step, {"released": released_step, "mtt": mtt_step}[name], task, case.ipc)
    else:
        run = partial(run_our_step, task, eager_loss(task) if name == "ours eager" else task.loss, case.ipc)

    def call(steps: int) -> Step:
        step = run(steps)
        if results is not None:
            results[name] = step
        return step

    return call


def prepare(case: Json, name: str, steps: int) -> tuple[Callable[[], object], Callable[[], object]]:
    """The warm-up, one student step, and the outer step of a side, for `measure_in_child`."""
    if name in TUNED:
        keep_freed_memory()
    run = make_side(Case(**case), name)
    return partial(run, 1), partial(run, steps)


def measure_memory(case: Case, name: str, steps: int) -> Json:
    """Peak memory of a side in MiB; sides that are not TUNED run without kernels and with glibc's settings."""
    arguments = {"case": vars(case), "name": name, "steps": steps}
    return measure_in_child("benchmarks.step", "prepare", arguments, kernels=name in TUNED)


TUNED = ("ours float32",)
TUNED_REFERENCE = "released, tuned allocator"


def compare_gradients(actual: Tensor, expected: Tensor) -> Json:
    """Relative error and cosine of an image gradient (n, c, h, w)."""
    cosine = torch.dot(actual.flatten(), expected.flatten()) / (actual.norm() * expected.norm())
    return {"relative_error": float((actual - expected).norm() / expected.norm()), "cosine": float(cosine)}


def compare_with_float64(case: Case) -> Json:
    """Compare the image gradient of one student step in float32 with that of autograd in float64.

    ReLU has a kink: if rounding moves an activation to its other side, the gradient of that image jumps, however it is
    computed. images_off counts the images whose gradient differs by more than 1e-4. There is no augmentation, whose
    rounding is the same on all sides and would hide their own.
    """
    task = make_case_task(case)
    images, labels = first_images(task, case.ipc)
    start, target = make_segment(task)

    def gradient(loss: PureLoss, dtype: torch.dtype) -> Tensor:
        x, theta0 = images.to(dtype, copy=True).requires_grad_(), start.to(dtype)
        displacement(unroll(loss, theta0, [Batch(x, labels)], LR), theta0, target.to(dtype)).backward()
        assert x.grad is not None
        return x.grad.double()

    exact = gradient(eager_loss(task), torch.float64)
    losses = {"ours eager": eager_loss(task), "ours float32": task.loss}
    comparisons = {}
    for name, loss in losses.items():
        actual = gradient(loss, torch.float32)
        errors = (actual - exact).flatten(1).norm(dim=1) / exact.flatten(1).norm(dim=1)
        per_image = {"median_of_images": float(errors.median()), "images_off": int((errors > 1e-4).sum())}
        comparisons[name] = {**compare_gradients(actual, exact), **per_image}
    return comparisons


def measure_case(case: Case, rates: dict[str, Json], clock: Clock, share_s: float, quick: bool) -> Json:
    """Measure all sides of one case: times, rates, errors and memory, within about `share_s` seconds."""
    steps, repeats = (3, 2) if quick else (case.timed, case.repeats)
    full_steps = 3 if quick else case.steps
    last_steps: dict[str, Step] = {}
    main = ["released", "ours float32"]
    runs = {name: make_side(case, name, last_steps) for name in [*main, "ours eager"]}

    def make_calls(names: list[str], count: int) -> dict[str, Callable[[], object]]:
        calls: dict[str, Callable[[], object]] = {}
        for name in names:
            call = partial(runs[name.removesuffix(TUNED_REFERENCE.removeprefix("released"))], count)
            calls[name] = call if name in (*TUNED, TUNED_REFERENCE) else with_default_allocator(call)
        return calls

    result: Json = {"case": {**vars(case), "steps": full_steps, "timed": steps}}
    result["main"] = alternate(
        make_calls(main, steps), repeats, make_calls(main, 1), budget_s=min(0.5 * share_s, clock.left)
    )
    others = [TUNED_REFERENCE, "ours eager"]
    result["more"] = alternate(make_calls(others, steps), 2 if quick else 3, make_calls(others, 1))
    seconds = result["main"]["median_seconds"] | result["more"]["median_seconds"]
    result["times_faster_of_medians"] = {
        base: {name: seconds[base] / median for name, median in seconds.items()}
        for base in ("released", TUNED_REFERENCE)
    }
    if case.full_graph:
        runs["mtt"] = make_side(case, "mtt", last_steps)
        mtt_steps, names = min(steps, MTT_STEPS), ["mtt", "ours float32"]
        result["full_graph"] = {
            "steps": mtt_steps,
            **alternate(make_calls(names, mtt_steps), repeats, make_calls(names, 1), budget_s=clock.left),
        }
        for name in names:  # these results have another N
            last_steps.pop(name)
        make_calls(["ours float32"], steps)["ours float32"]()
    update_rates(rates)
    result["rate"] = compute_rates(case, steps, result, rates)
    exact = last_steps["ours float32"].images
    result["image_gradient_against_ours_float32"] = {
        name: compare_gradients(step.images * (2 if name == "released" else 1), exact)
        for name, step in last_steps.items()
        if name != "ours float32"
    }
    result["one_step_against_float64"] = compare_with_float64(case)
    result["memory"] = {}
    for name in [*main, "ours eager"] + ["mtt"] * case.full_graph:
        count = min(full_steps, MTT_STEPS) if name == "mtt" else full_steps
        has_time = name in main or clock.left > 60
        result["memory"][name] = {"steps": count, **measure_memory(case, name, count)} if has_time else "no time left"
    return result


def update_rates(rates: dict[str, Json]) -> None:
    """Measure the rates of the machine again and keep the best, since other processes lower them."""
    rate, best = matmul_rate(), rates.get("float32", {})
    rates["float32"] = {key: max(value, best.get(key, 0.0)) for key, value in rate.items()}


def compute_rates(case: Case, steps: int, result: Json, rates: dict[str, Json]) -> Json:
    """GFLOP/s of each side, and percentage of the machine's measured rate."""
    first, others = convolution_flops(make_case_task(case))
    medians = {name: (seconds, steps) for name, seconds in result["main"]["median_seconds"].items()}
    medians["ours eager"] = (result["more"]["median_seconds"]["ours eager"], steps)
    if "full_graph" in result:
        medians["mtt"] = (result["full_graph"]["median_seconds"]["mtt"], result["full_graph"]["steps"])
    rate_by_side = {}
    for name, (seconds, count) in medians.items():
        units = UNITS[name]
        gflop = (units[0] * first + units[1] * others) * 10 * case.ipc * count / 1e9
        rate = rates["float32"]["rate"]
        rate_by_side[name] = {
            "units": units,
            "gflop": gflop,
            "gflop_per_s": gflop / seconds,
            "percent_of_machine": 100 * gflop / seconds / rate,
            "seconds_per_student_step": seconds / count,
        }
    return rate_by_side


def show(name: str, result: Json) -> None:
    """Print a case as a small table."""
    n, note = result["main"]["n"], ", mtt's own N against mtt" if "full_graph" in result else ""
    print(f"\n{name}, N = {result['case']['timed']}, n = {n}; times as fast as released{note}")
    print(f"  {'side':26} {'seconds':>9} {'faster':>7} {'(min .. max)':>16} {'GFLOP/s':>8} {'%':>5} {'peak MiB':>9}")
    rows = [(key, result["main"]) for key in result["main"]["median_seconds"]]
    rows += [(key, result["more"]) for key in result["more"]["median_seconds"]]
    if "full_graph" in result:
        rows += [(key, result["full_graph"]) for key in result["full_graph"]["median_seconds"]]
    for key, part in rows:
        faster, rate = part["times_faster"][key], result["rate"].get(key)
        ratio = faster["of_medians"] if "steps" in part else result["times_faster_of_medians"]["released"][key]
        title = key
        if "steps" in part:
            title = f"{key}, N = {part['steps']}"
            rate = rate if key == "mtt" else None
        memory = result["memory"].get(key)
        peak = f"{memory['peak_mb']:.0f}" if isinstance(memory, dict) and "peak_mb" in memory and rate else ""
        speed = f"{rate['gflop_per_s']:8.1f} {rate['percent_of_machine']:5.0f}" if rate else " " * 14
        spread = "" if part is result["more"] else f"({faster['min']:.2f} .. {faster['max']:.2f})"
        times = f"{part['median_seconds'][key]:9.3f} {ratio:7.2f}"
        print(f"  {title:26} {times} {spread:>16} {speed} {peak:>9}")
    for key, errors in result["image_gradient_against_ours_float32"].items():
        print(f"  image gradient, {key}: relative error {errors['relative_error']:.2e}, cosine {errors['cosine']:.5f}")
    for key, errors in result["one_step_against_float64"].items():
        print(
            f"  one step against float64, {key}: relative error {errors['relative_error']:.2e}, median of images "
            f"{errors['median_of_images']:.1e}, {errors['images_off']} of {10 * result['case']['ipc']} images off"
        )


def main() -> None:
    """Measure, print, and write step.json."""
    options = parse_arguments(__doc__, CASES)
    clock = Clock(options.budget or LIMIT_S)
    names = options.case or list(CASES)
    rates: dict[str, Json] = {}
    update_rates(rates)
    result: Json = {"machine": describe_machine(), "machine_gflop_per_s": rates, "units": UNITS, "units_are": UNITS_ARE}
    result["kernels_build_seconds"] = build_seconds()
    path = options.out / "step.json"
    # with --case, the results of the other cases stay
    result["cases"] = json.loads(path.read_text())["cases"] if options.case and path.exists() else {}
    for index, name in enumerate(names):
        if index and clock.left < 30:
            result["cases"][name] = "no time left"
            continue
        share = CASES[name].share / sum(CASES[other].share for other in names[index:])
        result["cases"][name] = measure_case(CASES[name], rates, clock, share * clock.left, options.quick)
        show(name, result["cases"][name])
    write(path, result)


UNITS_ARE = (
    "convolutions as large as one forward pass per student step: (in the first layer, in each of the others). GFLOP "
    "are those of direct convolution; one that needs fewer, as Winograd's does, can pass the machine's rate"
)


if __name__ == "__main__":
    main()
