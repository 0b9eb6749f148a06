"""How time, memory and storage grow: with N, images per class, width and image size; with an expert's epochs.

Every point of a step is one fresh process, which warms up with one student step and then takes one outer step.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from benchmarks.cases import make, random_data
from benchmarks.measure import Clock, Json, arguments, in_child, machine, write
from benchmarks.step import TUNED, Case, task_of
from limbeck.core.rng import make_generator
from limbeck.experts import Expert, ExpertConfig, Recorded, Store
from limbeck.experts.make import describe_experts
from limbeck.experts.store import make_path
from limbeck.task import Task

LIMIT_S = 240
BASE = Case(3, 32, 32, 5, 10)
SIDES = ("ours float32", "released")


@dataclass(frozen=True)
class Series:
    """The points of one series, and of its small version: values of the field of `Case` that it is called by."""

    points: tuple[int, ...]
    quick: tuple[int, ...]


STEPS = {
    "steps": Series((5, 10, 20, 40), (2, 4)),
    "ipc": Series((1, 2, 5, 10, 20, 50), (1, 2)),
    "width": Series((16, 32, 64, 128), (8, 16)),
    "side": Series((16, 32, 48, 64), (16, 32)),
}
EPOCHS = Series((5, 10, 20, 50, 100), (2, 4))
EXPERTS = Series((1, 2, 5, 10), (1, 2))


def of_steps(field: str, points: tuple[int, ...], base: Case, clock: Clock) -> list[Json]:
    """Seconds and peak MiB of one outer step, per value of `field`, for both sides."""
    found = []
    for value in points:
        point: Json = {field: value}
        for name in SIDES:
            if clock.left < 15:
                point[name] = "no time left"
                continue
            case = Case(**{**vars(base), field: value})
            _ = task_of(case).choice  # measured in this process: autograd's memory is not to count in the child
            call = {"case": vars(case), "name": name, "steps": case.steps}
            point[name] = in_child("benchmarks.step", "prepare", call, kernels=name in TUNED)
        found.append(point)
        print(f"  {field} {value}: " + "; ".join(f"{name}: {shown(point[name])}" for name in SIDES), flush=True)
    return found


def shown(point: Json | str) -> str:
    """A measured point in words."""
    if isinstance(point, str) or "failed" in point:
        return point if isinstance(point, str) else point["failed"]
    return f"{point['seconds']:.3f} s, {point['peak_mb']:.0f} MiB"


def stored(task: Task, keep: str, epochs: int, experts: int) -> int:
    """Bytes of a store of experts whose parameters went at random: what they are does not change their size."""
    config = ExpertConfig.model_validate({"epochs": epochs, "keep": keep})
    start = task.model.init(0)
    moves = 0.01 * torch.randn(epochs + 1, len(start), generator=make_generator(0, "benchmark", "walk"))
    points = start + moves.cumsum(0)
    path = make_path(points, task.model.layout, config) if keep == "convex" else None
    expert = Expert(path, None if path else Recorded(points), (0.1,) * (epochs + 1), 0.1)
    with tempfile.TemporaryDirectory() as folder:
        store = Store.create(Path(folder) / "store", describe_experts(task, config, 0))
        for index in range(experts):
            store.write(index, expert)
        return store.bytes_of(range(experts))


def of_storage(task: Task, quick: bool) -> Json:
    """Bytes against an expert's epochs, and against how many experts there are."""
    epochs, experts = (each.quick if quick else each.points for each in (EPOCHS, EXPERTS))
    kinds = {"convexified": "convex", "recorded": "recorded"}
    return {
        "parameters": task.model.layout.count,
        "of_one_expert_by_epochs": [
            {"epochs": count, **{name: stored(task, keep, count, 1) for name, keep in kinds.items()}}
            for count in epochs
        ],
        "of_experts_of_10_epochs_by_number": [
            {"experts": count, **{name: stored(task, keep, 10, count) for name, keep in kinds.items()}}
            for count in experts
        ],
    }


def main() -> None:
    """Measure, print, and write growth.json."""
    asked = arguments(__doc__, STEPS)
    clock = Clock(asked.budget or LIMIT_S)
    base = replace(BASE, width=8, ipc=1, steps=2) if asked.quick else BASE
    result: Json = {"machine": machine(), "base": vars(base), "depth_note": DEPTH, "series": {}}
    result["store_bytes"] = of_storage(make(random_data(3, 32, 20, 10), base.width), asked.quick)
    for one in result["store_bytes"]["of_one_expert_by_epochs"]:
        print(f"  {one['epochs']} epochs: convexified {one['convexified']} bytes, recorded {one['recorded']}")
    for field in asked.case or list(STEPS):
        points = STEPS[field].quick if asked.quick else STEPS[field].points
        result["series"][field] = of_steps(field, points, base, clock)
    write(asked.out / "growth.json", result)


DEPTH = "the network's depth follows the side of the images: 2 blocks at 16 pixels, 3 at 32, 4 at 48 and 64"


if __name__ == "__main__":
    main()
