"""Time the evaluation of a small synthetic set: the field's loop against `evaluation.trials.evaluate_set`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from torch import Tensor

from benchmarks.cases import first_images, make_convnet_task, random_data
from benchmarks.experts import show
from benchmarks.measure import (
    Clock,
    Json,
    Side,
    alternate,
    describe_machine,
    parse_arguments,
    with_default_allocator,
    write,
)
from benchmarks.reference import evaluate_synset, reference_dsa
from limbeck.evaluation.protocol import EvalConfig
from limbeck.evaluation.trials import evaluate_set
from limbeck.task import Task

LIMIT_S = 240
LR, BATCH = 0.01, 256


@dataclass(frozen=True)
class Case:
    """channels, side: shape of the images; ipc: images per class, of ten classes; epochs: passes over the set.

    The field trains for 1000 epochs. test: number of test images.
    """

    channels: int
    side: int
    width: int
    ipc: int
    epochs: int
    networks: int = 5
    test: int = 600
    repeats: int = 3


CASES = {
    "grey28-width32-ipc1": Case(1, 28, 32, 1, 60),
    "grey28-width32-ipc10": Case(1, 28, 32, 10, 60),
    "rgb32-width128-ipc1": Case(3, 32, 128, 1, 30, test=300),
    "rgb32-width128-ipc10": Case(3, 32, 128, 10, 10, test=100),
}


def evaluate_ours(task: Task, images: Tensor, labels: Tensor, epochs: int, networks: int) -> None:
    """Train and test `networks` networks by limbeck's code."""
    schedule = EvalConfig(epochs=epochs, batch_size=BATCH).schedule(LR)
    evaluate_set(task, lambda _seed: (images, labels), schedule, networks, task.test, 0)


def evaluate_field(task: Task, images: Tensor, labels: Tensor, epochs: int, networks: int) -> None:
    """Train and test `networks` networks by the field's loop, one after the other."""
    for seed in range(networks):
        evaluate_synset(task.model.build, images, labels, LR, task.test, reference_dsa, seed, epochs, BATCH)


def measure_case(case: Case, clock: Clock, share_s: float, quick: bool) -> Json:
    """Time all sides of one case within `share_s` seconds."""
    epochs, networks, test, repeats = case.epochs, case.networks, case.test, case.repeats
    if quick:
        epochs, networks, test, repeats = 3, 2, 100, 2
    task = make_convnet_task(random_data(case.channels, case.side, 10 * case.ipc, test), case.width)
    images, labels = first_images(task, case.ipc)

    def make_sides(epochs: int, networks: int) -> dict[str, Side]:
        call = partial(evaluate_field, task, images, labels, epochs, networks)
        return {
            "field": with_default_allocator(call),
            "ours": partial(evaluate_ours, task, images, labels, epochs, networks),
            "field, tuned allocator": call,
        }

    comparison = alternate(make_sides(epochs, networks), repeats, make_sides(1, 1), budget_s=min(share_s, clock.left))
    return {"case": {**vars(case), "epochs": epochs, "networks": networks, "test": test}, **comparison}


def main() -> None:
    """Measure, print, and write evaluate.json."""
    options = parse_arguments(__doc__, CASES)
    clock = Clock(options.budget or LIMIT_S)
    names = options.case or list(CASES)
    result: Json = {"machine": describe_machine(), "batch_size": BATCH, "cases": {}}
    for index, name in enumerate(names):
        if index and clock.left < 20:
            result["cases"][name] = "no time left"
            continue
        result["cases"][name] = case = measure_case(
            CASES[name], clock, clock.left / (len(names) - index), options.quick
        )
        show(f"{name}, {case['case']['networks']} networks of {case['case']['epochs']} epochs", case)
    write(options.out / "evaluate.json", result)


if __name__ == "__main__":
    main()
