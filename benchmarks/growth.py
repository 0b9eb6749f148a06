"""Measure how time and memory grow with N, images per class, width and image size, and storage with epochs.

Every point of a series is one outer step in a fresh process, after one student step to warm up.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from benchmarks.cases import make_convnet_task, random_data
from benchmarks.measure import Clock, Json, describe_machine, measure_in_child, parse_arguments, write
from benchmarks.step import TUNED, Case, make_case_task
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
    """The points of one series and of its quick version: values of the field of `Case` that names the series."""

    points: tuple[int, ...]
    quick: tuple[int, ...]


SERIES = {
    "steps": Series((5, 10, 20, 40), (2, 4)),
    "ipc": Series((1, 2, 5, 10, 20, 50), (1, 2)),
    "width": Series((16, 32, 64, 128), (8, 16)),
    "side": Series((16, 32, 48, 64), (16, 32)),
}
EPOCHS = Series((5, 10, 20, 50, 100), (2, 4))
EXPERTS = Series((1, 2, 5, 10), (1, 2))


def measure_series(field: str, points: tuple[int, ...], base: Case, clock: Clock) -> list[Json]:
    """Seconds and peak MiB of one outer step for each value of `field`, for both sides."""
    series = []
    for value in points:
        point: Json = {field: value}
        for name in SIDES:
            if clock.left < 15:
                point[name] = "no time left"
                continue
            case = Case(**{**vars(base), field: value})
            _ = make_case_task(case).choice  # chosen here, so that the memory of the choice does not count in the child
            arguments = {"case": vars(case), "name": name, "steps": case.steps}
            point[name] = measure_in_child("benchmarks.step", "prepare", arguments, kernels=name in TUNED)
        series.append(point)
        print(f"  {field} {value}: " + "; ".join(f"{name}: {format_point(point[name])}" for name in SIDES), flush=True)
    return series


def format_point(point: Json | str) -> str:
    """One point in words: seconds and memory, or why there are none."""
    if isinstance(point, str):
        return point
    if "failed" in point:
        return str(point["failed"])
    return f"{point['seconds']:.3f} s, {point['peak_mb']:.0f} MiB"


def store_bytes(task: Task, keep: str, epochs: int, experts: int) -> int:
    """Bytes of a store of experts. Their parameters are a random walk, since values do not change the size."""
    config = ExpertConfig.model_validate({"epochs": epochs, "keep": keep, "waypoints": 2})
    start = task.model.init(0)
    steps = 0.01 * torch.randn(epochs + 1, len(start), generator=make_generator(0, "benchmark", "walk"))
    points = start + steps.cumsum(0)
    path = make_path(points, task.model.layout, config) if keep == "convex" else None
    expert = Expert(path, None if path else Recorded(points), (0.1,) * (epochs + 1), 0.1)
    with tempfile.TemporaryDirectory() as folder:
        store = Store.create(Path(folder) / "store", describe_experts(task, config, 0))
        for index in range(experts):
            store.write(index, expert)
        return store.bytes_of(range(experts))


def measure_storage(task: Task, quick: bool) -> Json:
    """Bytes of a store against an expert's epochs, and against the number of experts."""
    epochs, experts = (series.quick if quick else series.points for series in (EPOCHS, EXPERTS))
    kinds = {"convexified": "convex", "recorded": "recorded"}
    return {
        "parameters": task.model.layout.count,
        "of_one_expert_by_epochs": [
            {"epochs": count, **{name: store_bytes(task, keep, count, 1) for name, keep in kinds.items()}}
            for count in epochs
        ],
        "of_experts_of_10_epochs_by_number": [
            {"experts": count, **{name: store_bytes(task, keep, 10, count) for name, keep in kinds.items()}}
            for count in experts
        ],
    }


def main() -> None:
    """Measure, print, and write growth.json."""
    options = parse_arguments(__doc__, SERIES)
    clock = Clock(options.budget or LIMIT_S)
    base = replace(BASE, width=8, ipc=1, steps=2) if options.quick else BASE
    result: Json = {"machine": describe_machine(), "base": vars(base), "depth_note": DEPTH, "series": {}}
    result["store_bytes"] = measure_storage(make_convnet_task(random_data(3, 32, 20, 10), base.width), options.quick)
    for point in result["store_bytes"]["of_one_expert_by_epochs"]:
        print(f"  {point['epochs']} epochs: convexified {point['convexified']} bytes, recorded {point['recorded']}")
    for field in options.case or list(SERIES):
        points = SERIES[field].quick if options.quick else SERIES[field].points
        result["series"][field] = measure_series(field, points, base, clock)
    write(options.out / "growth.json", result)


DEPTH = "the network's depth follows the side of the images: 2 blocks at 16 pixels, 3 at 32, 4 at 48 and 64"


if __name__ == "__main__":
    main()
