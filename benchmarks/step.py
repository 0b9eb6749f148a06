"""One distillation step, N student steps with their gradient: the field's released code against ours.

Whole objective: the segment, the student's unroll, the loss, and the gradients in images and step size. DSA is on, and
both sides draw the same families; the images are random, all of them in every student step.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from benchmarks.cases import convolution_flops, make, random_data, segment, synthetic
from benchmarks.measure import (
    Clock,
    Json,
    alternate,
    arguments,
    build_seconds,
    in_child,
    machine,
    matmul_rate,
    with_default_allocator,
    write,
)
from benchmarks.reference import Step, mtt_step, reference_dsa, released_step
from limbeck.cli.allocator import keep_freed_memory
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
    """channels, side: of the images; ipc: images per class, of ten; steps: N; timed: as many of them as are timed.

    norm: None for instance norm, which has explicit derivatives.
    """

    channels: int
    side: int
    width: int
    ipc: int
    steps: int
    timed: int = 0
    full_graph: bool = False
    repeats: int = 9
    share: float = 0.2  # of the time
    norm: str | None = None


CASES = {
    "rgb32-width128-ipc1": Case(3, 32, 128, 1, 50, timed=6, full_graph=True),
    "rgb32-width128-ipc10": Case(3, 32, 128, 10, 30, timed=3, repeats=7, share=0.6),
    "grey28-width32-ipc10": Case(1, 28, 32, 10, 30, timed=6),
    "grey28-width32-ipc10-autograd": Case(1, 28, 32, 10, 10, timed=4, norm="none"),  # as a user's own network is
}

UNITS = {
    "released": (7, 10),
    "mtt": (6, 9),
    "ours eager": (8, 12),
    "ours float32": (7, 11),
}
"""Convolutions as large as one forward pass, per student step: in the first layer, and in each of the others.

A gradient has 3 (2 in the first layer, whose input needs none). Then, per layer beyond the first: released, another
gradient and 4 of its derivative in the images; eager exact, the same with 2 more in the weights; MTT's graph serves for
both, so that one gradient falls away; ours, 2 to be where the derivative starts, and 6 of the derivative itself.
"""


def task_of(case: Case) -> Task:
    """The network of a case, and as many random images as it learns."""
    return make(random_data(case.channels, case.side, 10 * case.ipc, 10), case.width, norm=case.norm)


def eager_loss(task: Task) -> PureLoss:
    """The loss without written-out derivatives: what runs where kernels cannot be built."""
    return CrossEntropy(task.model, CanvasCrop(task.data.size, task.augment))


def our_step(task: Task, loss: PureLoss, ipc: int, steps: int) -> Step:
    """One outer step as methods take it, from the segment to the gradients."""
    held = SyntheticSet.from_images(*synthetic(task, ipc), lr=LR)
    objective = MatchTrajectory([Recorded(torch.stack(segment(task)))], WholeEpochs(1, 1), loss, steps)
    value = objective(held, 0, 0)
    value.backward()
    assert held.images.grad is not None
    assert held.log_lr.grad is not None
    return Step(value.item(), held.images.grad, held.log_lr.grad.item() / LR)


def field_step(step: Callable[..., Step], task: Task, ipc: int, steps: int) -> Step:
    """One outer step of the field's code, with the rows and augmentation seeds that ours draws."""
    images, labels = synthetic(task, ipc)
    seeds = torch.randint(2**62, (steps,), generator=make_generator(0, "batches", 0)).tolist()
    rows = [torch.arange(len(images))] * steps
    augment = partial(reference_dsa, strategy=task.augment.strategy)
    return step(task.model, images, labels, LR, segment(task), rows, seeds, augment)


def side(case: Case, name: str, keep: dict[str, Step] | None = None) -> Callable[[int], Step]:
    """N -> one outer step of this side; the last result is put in `keep`."""
    task = task_of(case)
    if name in ("released", "mtt"):
        run = partial(field_step, {"released": released_step, "mtt": mtt_step}[name], task, case.ipc)
    else:
        run = partial(our_step, task, eager_loss(task) if name == "ours eager" else task.loss, case.ipc)

    def call(steps: int) -> Step:
        made = run(steps)
        if keep is not None:
            keep[name] = made
        return made

    return call


def prepare(case: Json, name: str, steps: int) -> tuple[Callable[[], object], Callable[[], object]]:
    """For `in_child`: one student step to warm up, and the outer step."""
    if name in TUNED:
        keep_freed_memory()
    run = side(Case(**case), name)
    return partial(run, 1), partial(run, steps)


def memory(case: Case, name: str, steps: int) -> Json:
    """Peak memory of a side in MiB; the field's sides, and ours without kernels, with glibc's allocator."""
    return in_child("benchmarks.step", "prepare", {"case": vars(case), "name": name, "steps": steps}, name in TUNED)


TUNED = ("ours float32",)
TUNED_REFERENCE = "released, tuned allocator"


def difference(found: Tensor, expected: Tensor) -> Json:
    """Relative error and cosine of an image gradient (n, c, h, w)."""
    cosine = torch.dot(found.flatten(), expected.flatten()) / (found.norm() * expected.norm())
    return {"relative_error": float((found - expected).norm() / expected.norm()), "cosine": float(cosine)}


def against_float64(case: Case) -> Json:
    """The image gradient of one student step in float32 against that of autograd in float64.

    ReLU has a kink: where rounding puts an activation on its other side, an image's gradient jumps, whichever way it
    is computed. Not augmented: the rounding of that is the same on all sides, and would hide theirs.
    images_off: how many differ by more than 1e-4.
    """
    task = task_of(case)
    images, labels = synthetic(task, case.ipc)
    start, target = segment(task)

    def gradient(loss: PureLoss, dtype: torch.dtype) -> Tensor:
        x, theta0 = images.to(dtype, copy=True).requires_grad_(), start.to(dtype)
        displacement(unroll(loss, theta0, [Batch(x, labels)], LR), theta0, target.to(dtype)).backward()
        assert x.grad is not None
        return x.grad.double()

    exact = gradient(eager_loss(task), torch.float64)
    losses = {"ours eager": eager_loss(task), "ours float32": task.loss}
    found = {}
    for name, loss in losses.items():
        made = gradient(loss, torch.float32)
        each = (made - exact).flatten(1).norm(dim=1) / exact.flatten(1).norm(dim=1)
        per_image = {"median_of_images": float(each.median()), "images_off": int((each > 1e-4).sum())}
        found[name] = {**difference(made, exact), **per_image}
    return found


def measure_case(case: Case, rates: dict[str, Json], clock: Clock, share_s: float, quick: bool) -> Json:
    """All sides of one case; sides that take long are measured once, beside a run of the base."""
    steps, repeats = (3, 2) if quick else (case.timed, case.repeats)
    whole = 3 if quick else case.steps
    kept: dict[str, Step] = {}
    main = ["released", "ours float32"]
    runs = {name: side(case, name, kept) for name in [*main, "ours eager"]}

    def bound(names: list[str], count: int) -> dict[str, Callable[[], object]]:
        made: dict[str, Callable[[], object]] = {}
        for name in names:
            call = partial(runs[name.removesuffix(TUNED_REFERENCE.removeprefix("released"))], count)
            made[name] = call if name in (*TUNED, TUNED_REFERENCE) else with_default_allocator(call)
        return made

    result: Json = {"case": {**vars(case), "steps": whole, "timed": steps}}
    result["main"] = alternate(bound(main, steps), repeats, bound(main, 1), budget_s=min(0.5 * share_s, clock.left))
    more = [TUNED_REFERENCE, "ours eager"]
    result["more"] = alternate(bound(more, steps), 2 if quick else 3, bound(more, 1))
    seconds = result["main"]["median_seconds"] | result["more"]["median_seconds"]
    result["times_faster_of_medians"] = {
        base: {name: seconds[base] / each for name, each in seconds.items()} for base in ("released", TUNED_REFERENCE)
    }
    if case.full_graph:
        runs["mtt"] = side(case, "mtt", kept)
        few, names = min(steps, MTT_STEPS), ["mtt", "ours float32"]
        result["full_graph"] = {
            "steps": few,
            **alternate(bound(names, few), repeats, bound(names, 1), budget_s=clock.left),
        }
        for name in names:  # the results above are of another N
            kept.pop(name)
        bound(["ours float32"], steps)["ours float32"]()
    measure_rates(rates)
    result["rate"] = achieved(case, steps, result, rates)
    exact = kept["ours float32"].images
    result["image_gradient_against_ours_float32"] = {
        name: difference(made.images * (2 if name == "released" else 1), exact)
        for name, made in kept.items()
        if name != "ours float32"
    }
    result["one_step_against_float64"] = against_float64(case)
    result["memory"] = {}
    for name in [*main, "ours eager"] + ["mtt"] * case.full_graph:
        count = min(whole, MTT_STEPS) if name == "mtt" else whole
        enough = name in main or clock.left > 60
        result["memory"][name] = {"steps": count, **memory(case, name, count)} if enough else "no time left"
    return result


def measure_rates(rates: dict[str, Json]) -> None:
    """The best rates of the machine so far: measured again and again, since other work on it lowers them."""
    rate, best = matmul_rate(), rates.get("float32", {})
    rates["float32"] = {key: max(value, best.get(key, 0.0)) for key, value in rate.items()}


def achieved(case: Case, steps: int, result: Json, rates: dict[str, Json]) -> Json:
    """GFLOP/s of each side's own work, and per cent of what the machine was measured to do in that type."""
    first, others = convolution_flops(task_of(case))
    medians = {name: (seconds, steps) for name, seconds in result["main"]["median_seconds"].items()}
    medians["ours eager"] = (result["more"]["median_seconds"]["ours eager"], steps)
    if "full_graph" in result:
        medians["mtt"] = (result["full_graph"]["median_seconds"]["mtt"], result["full_graph"]["steps"])
    found = {}
    for name, (seconds, count) in medians.items():
        units = UNITS[name]
        gflop = (units[0] * first + units[1] * others) * 10 * case.ipc * count / 1e9
        rate = rates["float32"]["rate"]
        found[name] = {
            "units": units,
            "gflop": gflop,
            "gflop_per_s": gflop / seconds,
            "percent_of_machine": 100 * gflop / seconds / rate,
            "seconds_per_student_step": seconds / count,
        }
    return found


def show(name: str, result: Json) -> None:
    """The case as a small table."""
    n, against = result["main"]["n"], ", mtt's own N against mtt" if "full_graph" in result else ""
    print(f"\n{name}, N = {result['case']['timed']}, n = {n}; times as fast as released{against}")
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
        held = result["memory"].get(key)
        peak = f"{held['peak_mb']:.0f}" if isinstance(held, dict) and "peak_mb" in held and rate else ""
        speed = f"{rate['gflop_per_s']:8.1f} {rate['percent_of_machine']:5.0f}" if rate else " " * 14
        spread = "" if part is result["more"] else f"({faster['min']:.2f} .. {faster['max']:.2f})"
        times = f"{part['median_seconds'][key]:9.3f} {ratio:7.2f}"
        print(f"  {title:26} {times} {spread:>16} {speed} {peak:>9}")
    for key, each in result["image_gradient_against_ours_float32"].items():
        print(f"  image gradient, {key}: relative error {each['relative_error']:.2e}, cosine {each['cosine']:.5f}")
    for key, each in result["one_step_against_float64"].items():
        print(
            f"  one step against float64, {key}: relative error {each['relative_error']:.2e}, median of images "
            f"{each['median_of_images']:.1e}, {each['images_off']} of {10 * result['case']['ipc']} images off"
        )


def main() -> None:
    """Measure, print, and write step.json."""
    asked = arguments(__doc__, CASES)
    clock = Clock(asked.budget or LIMIT_S)
    names = asked.case or list(CASES)
    rates: dict[str, Json] = {}
    measure_rates(rates)
    result: Json = {"machine": machine(), "machine_gflop_per_s": rates, "units": UNITS, "units_are": UNITS_ARE}
    result["kernels_build_seconds"] = build_seconds()
    earlier = asked.out / "step.json"
    result["cases"] = (
        json.loads(earlier.read_text())["cases"] if asked.case and earlier.exists() else {}
    )  # the others stay
    for place, name in enumerate(names):
        if place and clock.left < 30:
            result["cases"][name] = "no time left"
            continue
        share = CASES[name].share / sum(CASES[each].share for each in names[place:])
        result["cases"][name] = measure_case(CASES[name], rates, clock, share * clock.left, asked.quick)
        show(name, result["cases"][name])
    write(asked.out / "step.json", result)


UNITS_ARE = (
    "convolutions as large as one forward pass per student step: (in the first layer, in each of the others). GFLOP "
    "are those of direct convolution; one that needs fewer, as Winograd's does, can pass the machine's rate"
)


if __name__ == "__main__":
    main()
