"""Training experts, one epoch: the field's loop against `limbeck.training.plain.train`, one and two experts at a time.

Both sides end the epoch with the parameters kept and all test images classified.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from benchmarks.cases import EVERYWHERE, make, random_data
from benchmarks.measure import Clock, Json, Side, alternate, arguments, machine, with_default_allocator, write
from benchmarks.reference import expert_epochs, reference_dsa
from limbeck.core.parallel import parallel_map
from limbeck.task import Task
from limbeck.training.plain import Schedule, final_parameters, score, train

LIMIT_S = 300
LR, BATCH = 0.01, 256
AT_ONCE = 2


@dataclass(frozen=True)
class Case:
    """channels, side: of the images; train, test: how many, in CIFAR-10's proportion."""

    channels: int
    side: int
    width: int
    train: int = 2560
    test: int = 512
    repeats: int = 3


CASES = {"grey28-width32": Case(1, 28, 32, repeats=5), "rgb32-width128": Case(3, 32, 128, train=1280, test=256)}

Pair = tuple[Tensor, Tensor]


def ours(task: Task, train_on: Pair, test_on: Pair, seed: int) -> Tensor:
    """One epoch of one expert of ours: its parameters (P,)."""
    theta = final_parameters(train(task.loss, task.model.init(seed), *train_on, Schedule(1, LR, BATCH), seed))
    score(task.logits, theta, *test_on)
    return theta


def field(task: Task, train_on: Pair, test_on: Pair, seed: int) -> list[Tensor]:
    """One epoch of one expert of the field's: its parameters."""
    augment = partial(reference_dsa, strategy=EVERYWHERE)
    epochs = expert_epochs(task.model.build, *train_on, test_on, augment, seed, 1, LR, BATCH)
    return [epoch.snapshot for epoch in epochs][-1]


One = Callable[[Task, Pair, Pair, int], object]


def together(one: One, task: Task, train_on: Pair, test_on: Pair, max_workers: int) -> None:
    """Two experts, `max_workers` of them at the same time, each with its share of the threads."""
    jobs = [lambda _check, seed=seed: one(task, train_on, test_on, seed) for seed in range(AT_ONCE)]
    for _ in parallel_map(jobs, max_workers):
        pass


def measure_case(case: Case, clock: Clock, share_s: float, quick: bool) -> Json:
    """One expert, then two: the field's one after the other and at the same time, ours at the same time."""
    train_count, test_count = (2 * BATCH, 128) if quick else (case.train, case.test)
    repeats = 2 if quick else case.repeats
    task = make(random_data(case.channels, case.side, train_count, test_count), case.width)
    few, few_tests = ((images[:BATCH], labels[:BATCH]) for images, labels in (task.train, task.test))

    def plain(one: One) -> tuple[Side, Side]:
        return partial(one, task, task.train, task.test, 0), partial(one, task, few, few_tests, 0)

    def pair(one: One, max_workers: int) -> tuple[Side, Side]:
        whole = partial(together, one, task, task.train, task.test, max_workers)
        return whole, partial(together, one, task, few, few_tests, max_workers)

    def compared(sides: dict[str, tuple[Side, Side]], budget_s: float) -> Json:
        def fair(name: str, call: Side) -> Side:
            return call if name.startswith("ours") or name.endswith("allocator") else with_default_allocator(call)

        run, warm = ({name: fair(name, both[i]) for name, both in sides.items()} for i in range(2))
        return alternate(run, repeats, warm, budget_s=budget_s)

    return {
        "case": {**vars(case), "train": train_count, "test": test_count},
        "one": compared(
            {"field": plain(field), "ours": plain(ours), "field, tuned allocator": plain(field)},
            min(0.4 * share_s, clock.left),
        ),
        "two": compared(
            {
                "field, one after the other": pair(field, 1),
                "ours, one after the other": pair(ours, 1),
                "field, two at a time": pair(field, AT_ONCE),
                "ours, two at a time": pair(ours, AT_ONCE),
            },
            min(0.6 * share_s, clock.left),
        ),
    }


def show(title: str, result: Json) -> None:
    """One comparison as a small table."""
    print(f"\n{title}, n = {result['n']}")
    for name, seconds in result["median_seconds"].items():
        faster = result["times_faster"][name]
        spread = f"({faster['min']:.2f} .. {faster['max']:.2f})"
        print(f"  {name:28} {seconds:8.3f} s  {faster['of_medians']:6.2f} times as fast {spread}")


def main() -> None:
    """Measure, print, and write experts.json."""
    asked = arguments(__doc__, CASES)
    clock = Clock(asked.budget or LIMIT_S)
    names = asked.case or list(CASES)
    result: Json = {"machine": machine(), "batch_size": BATCH, "epochs": 1, "cases": {}}
    for place, name in enumerate(names):
        if place and clock.left < 20:
            result["cases"][name] = "no time left"
            continue
        made = measure_case(CASES[name], clock, clock.left / (len(names) - place), asked.quick)
        result["cases"][name] = made
        show(f"{name}, one expert", made["one"])
        show(f"{name}, two experts", made["two"])
    write(asked.out / "experts.json", result)


if __name__ == "__main__":
    main()
