"""Time an epoch of expert training: the field's loop against `limbeck.training.plain.train`, one and two at a time.

On both sides an epoch includes a copy of the parameters and the classification of all test images.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from benchmarks.cases import make_convnet_task, random_data
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
from benchmarks.reference import expert_epochs, reference_dsa
from limbeck.core.parallel import parallel_map
from limbeck.task import Task
from limbeck.training.plain import Schedule, final_parameters, score, train

LIMIT_S = 300
LR, BATCH = 0.01, 256
NUM_EXPERTS = 2


@dataclass(frozen=True)
class Case:
    """channels, side: shape of the images; train, test: numbers of images, in CIFAR-10's proportion."""

    channels: int
    side: int
    width: int
    train: int = 2560
    test: int = 512
    repeats: int = 3


CASES = {"grey28-width32": Case(1, 28, 32, repeats=5), "rgb32-width128": Case(3, 32, 128, train=1280, test=256)}

Pair = tuple[Tensor, Tensor]


def train_ours(task: Task, train_pair: Pair, test_pair: Pair, seed: int) -> Tensor:
    """One epoch of an expert by limbeck's code; returns its parameters (P,)."""
    theta = final_parameters(train(task.loss, task.model.init(seed), *train_pair, Schedule(1, LR, BATCH), seed))
    score(task.logits, theta, *test_pair)
    return theta


def train_field(task: Task, train_pair: Pair, test_pair: Pair, seed: int) -> list[Tensor]:
    """One epoch of an expert by the field's loop; returns its parameters, one tensor each."""
    epochs = expert_epochs(task.model.build, *train_pair, test_pair, reference_dsa, seed, 1, LR, BATCH)
    return [epoch.snapshot for epoch in epochs][-1]


TrainExpert = Callable[[Task, Pair, Pair, int], object]


def train_experts(train_expert: TrainExpert, task: Task, train_pair: Pair, test_pair: Pair, max_workers: int) -> None:
    """Train two experts, `max_workers` of them at the same time, each with its share of the threads."""
    jobs = [lambda _check, seed=seed: train_expert(task, train_pair, test_pair, seed) for seed in range(NUM_EXPERTS)]
    for _ in parallel_map(jobs, max_workers):
        pass


def measure_case(case: Case, clock: Clock, share_s: float, quick: bool) -> Json:
    """Time one expert, then two: one after the other and at the same time, on both sides."""
    train_count, test_count = (2 * BATCH, 128) if quick else (case.train, case.test)
    repeats = 2 if quick else case.repeats
    task = make_convnet_task(random_data(case.channels, case.side, train_count, test_count), case.width)
    short_train, short_test = ((images[:BATCH], labels[:BATCH]) for images, labels in (task.train, task.test))

    def one(train_expert: TrainExpert) -> tuple[Side, Side]:
        """One expert, and a short version of it for the warm-up."""
        whole = partial(train_expert, task, task.train, task.test, 0)
        return whole, partial(train_expert, task, short_train, short_test, 0)

    def two(train_expert: TrainExpert, max_workers: int) -> tuple[Side, Side]:
        """Two experts, and a short version of them for the warm-up."""
        whole = partial(train_experts, train_expert, task, task.train, task.test, max_workers)
        return whole, partial(train_experts, train_expert, task, short_train, short_test, max_workers)

    def compare(sides: dict[str, tuple[Side, Side]], budget_s: float) -> Json:
        def with_allocator(name: str, call: Side) -> Side:
            is_tuned = name.startswith("ours") or name.endswith("allocator")
            return call if is_tuned else with_default_allocator(call)

        whole, short = ({name: with_allocator(name, calls[i]) for name, calls in sides.items()} for i in range(2))
        return alternate(whole, repeats, short, budget_s=budget_s)

    return {
        "case": {**vars(case), "train": train_count, "test": test_count},
        "one": compare(
            {"field": one(train_field), "ours": one(train_ours), "field, tuned allocator": one(train_field)},
            min(0.4 * share_s, clock.left),
        ),
        "two": compare(
            {
                "field, one after the other": two(train_field, 1),
                "ours, one after the other": two(train_ours, 1),
                "field, two at a time": two(train_field, NUM_EXPERTS),
                "ours, two at a time": two(train_ours, NUM_EXPERTS),
            },
            min(0.6 * share_s, clock.left),
        ),
    }


def show(title: str, result: Json) -> None:
    """Print one comparison as a small table."""
    print(f"\n{title}, n = {result['n']}")
    for name, seconds in result["median_seconds"].items():
        faster = result["times_faster"][name]
        spread = f"({faster['min']:.2f} .. {faster['max']:.2f})"
        print(f"  {name:28} {seconds:8.3f} s  {faster['of_medians']:6.2f} times as fast {spread}")


def main() -> None:
    """Measure, print, and write experts.json."""
    options = parse_arguments(__doc__, CASES)
    clock = Clock(options.budget or LIMIT_S)
    names = options.case or list(CASES)
    result: Json = {"machine": describe_machine(), "batch_size": BATCH, "epochs": 1, "cases": {}}
    for index, name in enumerate(names):
        if index and clock.left < 20:
            result["cases"][name] = "no time left"
            continue
        result["cases"][name] = case = measure_case(
            CASES[name], clock, clock.left / (len(names) - index), options.quick
        )
        show(f"{name}, one expert", case["one"])
        show(f"{name}, two experts", case["two"])
    write(options.out / "experts.json", result)


if __name__ == "__main__":
    main()
