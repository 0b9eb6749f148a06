"""Judging a small synthetic set by fresh networks: the field's loop against `evaluation.protocol.evaluate_set`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from torch import Tensor

from benchmarks.cases import EVERYWHERE, make, random_data, synthetic
from benchmarks.experts import show
from benchmarks.measure import Clock, Json, Side, alternate, arguments, machine, with_default_allocator, write
from benchmarks.reference import evaluate_synset, reference_dsa
from limbeck.evaluation.protocol import EvalConfig, evaluate_set
from limbeck.task import Task

LIMIT_S = 240
LR, BATCH = 0.01, 256


@dataclass(frozen=True)
class Case:
    """channels, side: of the images; ipc: images per class, of ten; epochs: passes over the set (the field's 1000)."""

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


def ours(task: Task, images: Tensor, labels: Tensor, epochs: int, networks: int) -> None:
    """`networks` networks of ours, judged on the test part."""
    schedule = EvalConfig(epochs=epochs, batch_size=BATCH).schedule(LR)
    evaluate_set(task, lambda _seed: (images, labels), schedule, networks, task.test, 0)


def field(task: Task, images: Tensor, labels: Tensor, epochs: int, networks: int) -> None:
    """`networks` networks of the field's, one after the other."""
    augment = partial(reference_dsa, strategy=EVERYWHERE)
    for seed in range(networks):
        evaluate_synset(task.model.build, images, labels, LR, task.test, augment, seed, epochs, BATCH)


def measure_case(case: Case, clock: Clock, share_s: float, quick: bool) -> Json:
    """Both sides of one case."""
    epochs, networks, test, repeats = case.epochs, case.networks, case.test, case.repeats
    if quick:
        epochs, networks, test, repeats = 3, 2, 100, 2
    task = make(random_data(case.channels, case.side, 10 * case.ipc, test), case.width)
    images, labels = synthetic(task, case.ipc)

    def sides(epochs: int, networks: int) -> dict[str, Side]:
        call = partial(field, task, images, labels, epochs, networks)
        return {
            "field": with_default_allocator(call),
            "ours": partial(ours, task, images, labels, epochs, networks),
            "field, tuned allocator": call,
        }

    made = alternate(sides(epochs, networks), repeats, sides(1, 1), budget_s=min(share_s, clock.left))
    return {"case": {**vars(case), "epochs": epochs, "networks": networks, "test": test}, **made}


def main() -> None:
    """Measure, print, and write evaluate.json."""
    asked = arguments(__doc__, CASES)
    clock = Clock(asked.budget or LIMIT_S)
    names = asked.case or list(CASES)
    result: Json = {"machine": machine(), "batch_size": BATCH, "cases": {}}
    for place, name in enumerate(names):
        if place and clock.left < 20:
            result["cases"][name] = "no time left"
            continue
        made = measure_case(CASES[name], clock, clock.left / (len(names) - place), asked.quick)
        result["cases"][name] = made
        show(f"{name}, {made['case']['networks']} networks of {made['case']['epochs']} epochs", made)
    write(asked.out / "evaluate.json", result)


if __name__ == "__main__":
    main()
