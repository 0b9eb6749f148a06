"""Trials: fresh networks trained on a small set, n seeds, mean, standard deviation and n together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from statistics import fmean, stdev
from typing import NamedTuple

from torch import Tensor

from limbeck.core.parallel import parallel_map
from limbeck.core.records import ResultRow
from limbeck.core.rng import derive_seed
from limbeck.evaluation.outcome import Outcome, describe_two_classes
from limbeck.evaluation.protocol import EvalConfig
from limbeck.evaluation.training import TrainedNetwork, Training, make_training
from limbeck.task import Task
from limbeck.training.plain import Schedule, Score


class Summary(NamedTuple):
    """Accuracies of n networks, plain and balanced over classes; std is of the sample, and None where n is 1.

    accuracies: of the single networks.
    """

    accuracy_mean: float
    accuracy_std: float | None
    balanced_accuracy_mean: float
    balanced_accuracy_std: float | None
    n: int
    accuracies: list[float]

    @classmethod
    def of(cls, scores: Iterable[Score | Outcome]) -> Summary:
        """Summarise one score per network."""
        plain, balanced = zip(*((score.accuracy, score.balanced) for score in scores))
        spread = [stdev(values) if len(values) > 1 else None for values in (plain, balanced)]
        return cls(fmean(plain), spread[0], fmean(balanced), spread[1], len(plain), list(plain))


SetForSeed = Callable[[int], tuple[Tensor, Tensor]]
"""seed -> (images, labels) to train one network on."""


class Trial(NamedTuple):
    """One fresh network to train on `images` and `labels`, from `seed`."""

    images: Tensor
    labels: Tensor
    schedule: Schedule
    seed: int


def make_trials(draw_set: SetForSeed, schedule: Schedule, networks: int, seed: int) -> list[Trial]:
    """One trial a network, each on the set of its own seed."""
    children = [derive_seed(seed, "network", network) for network in range(networks)]
    return [Trial(*draw_set(child), schedule, child) for child in children]


def run_trials(
    task: Task,
    trials: Sequence[Trial],
    split: tuple[Tensor, Tensor],
    advance: Callable[[], None] = lambda: None,
    training: Training | None = None,
) -> list[Outcome]:
    """Train the network of every trial and score it once on `split`, un-augmented; several at the same time.

    The ranks of the task share the trials, and all of them get all outcomes.
    advance:  called after every network.
    training: how they are trained and scored; the default is the field's protocol.
    """
    places = task.ranks.share(range(len(trials)))
    own = _train(task, [trials[place] for place in places], split, advance, training)
    shares = task.ranks.gather_json([[places[i], network.outcome.to_json()] for i, network in own])
    outcomes = {place: Outcome.from_json(fields) for share in shares for place, fields in share}
    for _ in range(len(trials) - len(places)):
        advance()
    return [outcomes[place] for place in range(len(trials))]


def train_networks(
    task: Task,
    trials: Sequence[Trial],
    split: tuple[Tensor, Tensor],
    advance: Callable[[], None] = lambda: None,
    training: Training | None = None,
) -> list[TrainedNetwork]:
    """The same, and returns the networks with what they reach; every rank trains all of them."""
    networks = dict(_train(task, trials, split, advance, training))
    return [networks[place] for place in range(len(trials))]


def _train(
    task: Task,
    trials: Sequence[Trial],
    split: tuple[Tensor, Tensor],
    advance: Callable[[], None],
    training: Training | None,
) -> Iterator[tuple[int, TrainedNetwork]]:
    """Yield the place of a trial and its network, in the order in which they end."""
    training = Training(task, EvalConfig()) if training is None else training
    starts = [task.model.init(trial.seed).to(task.device) for trial in trials]
    functions = [
        partial(training.run, start, (trial.images, trial.labels), trial.schedule, trial.seed, split)
        for trial, start in zip(trials, starts)
    ]
    for place, network in parallel_map(functions, *training.workers):
        yield place, network
        advance()


def evaluate_set(
    task: Task,
    draw_set: SetForSeed,
    schedule: Schedule,
    networks: int,
    split: tuple[Tensor, Tensor],
    seed: int,
    advance: Callable[[], None] = lambda: None,
    training: Training | None = None,
) -> Summary:
    """Train `networks` fresh networks, each on `draw_set(its seed)`, and score them once on `split`, un-augmented.

    advance, training: as in `run_trials`.
    """
    return Summary.of(run_trials(task, make_trials(draw_set, schedule, networks, seed), split, advance, training))


def best_lr(
    task: Task,
    draw_set: SetForSeed,
    config: EvalConfig,
    seed: int,
    advance: Callable[[], None] = lambda: None,
) -> float:
    """The step size of `config.baseline_lrs` whose networks do best on validation: for sets that bring none."""
    first_trials = make_trials(draw_set, config.schedule(config.baseline_lrs[0]), config.networks, seed)
    trials = [trial._replace(schedule=config.schedule(lr)) for lr in config.baseline_lrs for trial in first_trials]
    scores = run_trials(task, trials, task.validation, advance, make_training(task, config))
    means = [config.choice(Summary.of(scores[i : i + config.networks])) for i in range(0, len(scores), config.networks)]
    return config.baseline_lrs[max(range(len(means)), key=means.__getitem__)]


def result_row(
    name: str,
    task: Task,
    summary: Summary,
    *,
    which: str | None = None,
    lr: float | None,
    step: int | None = None,
    protocol: str | None = None,
    outcomes: Sequence[Outcome] = (),
) -> ResultRow:
    """The row of results.json for the set `name`, whose networks were scored on the task's test part.

    outcomes: those of the networks, of which two classes have more to say than the summary does.
    """
    model = task.model_config.name
    scores = summary._asdict() | ({} if protocol is None else {"protocol": protocol})
    scores |= describe_two_classes(outcomes, task.data.classes)
    if step is None and name != "distilled":
        return ResultRow(set=name, which=which, model=model, split="test", **scores, lr=lr)
    return ResultRow(set=name, which=which, model=model, split="test", **scores, lr=lr, step=step)
