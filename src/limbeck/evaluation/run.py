"""Evaluations: fresh networks trained on prepared sets, and on what these are compared with on several networks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from limbeck.core.evaluation_records import EvaluationRow, LrOrigin
from limbeck.core.events import Listener
from limbeck.core.records import ResultRow
from limbeck.core.rng import derive_seed
from limbeck.data import DataSource
from limbeck.evaluation.baselines import (
    baseline_names,
    baseline_row,
    tested_baseline_row,
)
from limbeck.evaluation.counts import (
    budget,
    by_task,
    count_on_network,
    count_tested_baselines,
    has_learned_lr,
    has_lr_for,
    train_alike,
)
from limbeck.evaluation.outcome import describe_classes, describe_outcomes, warn_of_divergence
from limbeck.evaluation.protocol import EvalConfig, ProtocolName
from limbeck.evaluation.regression import RegressionConfig, random_targets, regression_rows
from limbeck.evaluation.robustness import RobustnessOptions, RobustnessTest, make_robustness
from limbeck.evaluation.sets import Evaluation, prepare_evaluation
from limbeck.evaluation.training import TrainedNetwork, make_training
from limbeck.evaluation.trials import Summary, Trial, best_lr, make_trials, result_row, run_trials, train_networks
from limbeck.networks.registry import ModelConfig
from limbeck.progress import listening
from limbeck.synthetic.distilled import DistilledSet
from limbeck.synthetic.set import hard_labels
from limbeck.task import Precision, Task, announce_network, announce_task, restore_switches, set_switches


def train_on(
    task: Task, distilled: DistilledSet, config: EvalConfig, lr: float, seed: int, advance: Callable[[], None]
) -> list[TrainedNetwork]:
    """Fresh networks that are trained on a distilled set with the step size `lr`, with their outcomes on test."""
    trials = _make_trials(task, distilled, config, lr, seed)
    return train_networks(task, trials, task.test, advance, make_training(task, config))


def _make_trials(task: Task, distilled: DistilledSet, config: EvalConfig, lr: float, seed: int) -> list[Trial]:
    pair = distilled.images.to(task.device), distilled.labels.to(task.device)
    return make_trials(lambda _seed: pair, config.schedule(lr), config.networks, derive_seed(seed, "evaluate"))


def evaluate_distilled(
    task: Task, distilled: DistilledSet, config: EvalConfig, seed: int, which: str | None, listen: Listener
) -> ResultRow:
    """The row of a distilled set: fresh networks trained with the set's own step size, on test.

    For another optimiser than that which this step size is for, one is chosen on validation.
    """
    lr = distilled.lr if has_lr_for(distilled, config) else choose_lr(task, distilled, config, seed, which, listen)
    advance = partial(listen, {"event": "advance", "text": f"distilled, {which}"})
    trials = _make_trials(task, distilled, config, lr, seed)
    outcomes = run_trials(task, trials, task.test, advance, make_training(task, config))
    warn_of_divergence(outcomes, f"the {which or 'distilled'} set", lr, listen)
    step, summary = distilled.provenance.get("step"), Summary.of(outcomes)
    options: dict[str, Any] = {"which": which, "lr": lr, "step": step, "protocol": config.label}
    row = result_row("distilled", task, summary, outcomes=outcomes, **options)
    return row.model_copy(update=describe_classes(outcomes))


def choose_lr(
    task: Task, distilled: DistilledSet, config: EvalConfig, seed: int, which: str | None, listen: Listener
) -> float:
    """The step size of `baseline_lrs` that is best on validation for networks trained on a distilled set."""
    pair = distilled.images.to(task.device), distilled.labels.to(task.device)
    advance = partial(listen, {"event": "advance", "text": f"step size for the {which} set"})
    return best_lr(task, lambda _seed: pair, config, derive_seed(seed, "step size"), advance)


@restore_switches()
def run_evaluations(
    evaluations: Sequence[Evaluation], seed: int = 0, listen: Listener = lambda event: None
) -> list[EvaluationRow]:
    """Announce the task of prepared evaluations, and call `evaluate_sets`.

    Where networks are tested on perturbed images, so are those of random and of k-means images at the same budget.
    """
    if evaluations:  # all of one data set
        announce_task(evaluations[0].task, listen)
    rows = evaluate_sets(evaluations, seed, listen)
    if evaluations and evaluations[0].robustness is not None:
        counts = count_tested_baselines(evaluations[0], evaluations[0].config.baselines, seed)
        total = sum(tuning + 2 * tested for tuning, tested in counts)
        listen({"event": "stage", "name": "real images", "total": total, "unit": "network"})
        rows += _rows_of_real_images(evaluations[0], evaluations[0].config.baselines, seed, listen)
    return rows


def evaluate_sets(evaluations: Sequence[Evaluation], seed: int, listen: Listener) -> list[EvaluationRow]:
    """The rows of prepared evaluations on one network each: fresh networks trained on each set, and tested.

    Where the last set of a run is the chosen one too, networks are trained once, and both rows are theirs.
    """
    rows: list[EvaluationRow] = []
    for place, evaluation in enumerate(evaluations):
        if place and train_alike(evaluation, evaluations[place - 1]):
            rows.append(_repeat(rows[-1], evaluation))
            continue
        task, distilled, which, config, *_ = evaluation
        set_switches(task.device, task.precision)
        make_training(task, config, listen)  # so that teachers are stored
        chooses = not has_lr_for(distilled, config)
        total = config.networks * (1 + chooses * len(config.baseline_lrs) + (evaluation.robustness is not None))
        listen({"event": "stage", "name": "evaluate", "total": total, "unit": "network"})
        lr = choose_lr(task, distilled, config, seed, which, listen) if chooses else distilled.lr
        has_own = has_learned_lr(distilled) and not chooses
        rows.append(_evaluate(evaluation, lr, "set" if has_own else "validation", seed, listen))
    return rows


@restore_switches()
def run_on_networks(
    evaluations: Sequence[Evaluation], seed: int = 0, listen: Listener = lambda event: None
) -> Iterator[list[EvaluationRow]]:
    """Yield the rows of one network after the other: of the sets, of random and k-means real images, of all images.

    A step size that was learned with a set belongs to the network that it was learned with. For other networks there
    are two rows of the set: one with its own step size, and one with that of `baseline_lrs` that is best on validation
    for this network, as for real images. Those of real images are stored for reuse, as those of a run are.
    """
    if evaluations:
        announce_task(evaluations[0].task, listen)
    for sets in by_task(evaluations):
        if sets[0].task is not evaluations[0].task:
            announce_network(sets[0].task, listen)
        yield run_on_network(sets, seed, listen)


def run_on_network(sets: Sequence[Evaluation], seed: int, listen: Listener) -> list[EvaluationRow]:
    """The rows of sets and of real images on one task, which carry the network's label (a stored row has its name)."""
    set_switches(sets[0].task.device, sets[0].task.precision)
    make_training(sets[0].task, sets[0].config, listen)  # so that teachers are stored
    name = f"evaluate {sets[0].network}"
    listen({"event": "stage", "name": name, "total": count_on_network(sets), "unit": "network"})
    rows: list[EvaluationRow] = []
    previous: list[EvaluationRow] = []
    for place, evaluation in enumerate(sets):
        if place and train_alike(evaluation, sets[place - 1]):
            previous = [_repeat(row, evaluation) for row in previous]
        else:
            previous = _rows_of_set(evaluation, seed, listen)
        rows += previous
    rows += _rows_of_real_images(sets[0], baseline_names(sets[0].config), seed, listen)
    return [row.model_copy(update={"model": sets[0].network}) for row in rows]


def _rows_of_real_images(
    evaluation: Evaluation, names: Sequence[str], seed: int, listen: Listener
) -> list[EvaluationRow]:
    """The rows of real images at the budget of a set, and of all of them ("full"), on its network."""
    ipc, fill = budget(evaluation.distilled)
    rows = []
    for name in names:
        arguments = evaluation.task, name, ipc, evaluation.config, seed, listen, fill
        tested = evaluation.robustness
        row = baseline_row(*arguments) if tested is None else tested_baseline_row(*arguments, tested)
        origin: LrOrigin = "protocol" if name == "full" else "validation"
        rows.append(EvaluationRow(**{**row.to_json(), "lr_from": origin}))
    return rows


def _rows_of_set(evaluation: Evaluation, seed: int, listen: Listener) -> list[EvaluationRow]:
    """One row where the network is the set's own, else one for its own step size and one for the best on validation."""
    task, distilled, which, config, is_own, *_ = evaluation
    rows = []
    if not has_lr_for(distilled, config):
        is_own = False
    elif has_learned_lr(distilled):
        rows.append(_evaluate(evaluation, distilled.lr, "set", seed, listen))
    elif is_own:
        rows.append(_evaluate(evaluation, distilled.lr, "validation", seed, listen))
    if not is_own:
        lr = choose_lr(task, distilled, config, seed, which, listen)
        rows.append(_evaluate(evaluation, lr, "validation", seed, listen))
    return rows


def _evaluate(evaluation: Evaluation, lr: float, lr_from: LrOrigin, seed: int, listen: Listener) -> EvaluationRow:
    task, distilled, which, config, *_ = evaluation
    advance = partial(listen, {"event": "advance", "text": f"distilled, {which}"})
    networks = train_on(task, distilled, config, lr, seed, advance)
    outcomes = [network.outcome for network in networks]
    warn_of_divergence(outcomes, f"the {which or 'distilled'} set", lr, listen)
    tests: dict[str, Any] = {}
    if evaluation.robustness is not None:
        advance = partial(listen, {"event": "advance", "text": f"distilled, {which}, perturbed"})
        tests["robustness"] = RobustnessTest(task, evaluation.robustness, seed).run(networks, advance)
    step = distilled.provenance.get("step")
    options: dict[str, Any] = {"which": which, "lr": lr, "step": step, "protocol": config.label}
    row = result_row("distilled", task, Summary.of(outcomes), outcomes=outcomes, **options)
    return EvaluationRow(
        **row.to_json(),
        lr_from=lr_from,
        **describe_outcomes(outcomes),
        image_bytes=_bytes(distilled.stored_pair[0]),
        label_bytes=label_bytes(task, distilled, config),
        **tests,
    )


def label_bytes(task: Task, distilled: DistilledSet, config: EvalConfig) -> int:
    """Bytes of the labels that networks are trained on; of the teachers' parameters too, where these give them."""
    if config.labels == "set":
        return _bytes(distilled.stored_pair[1])
    classes = _bytes(hard_labels(distilled.stored_pair[1]))
    return classes + (4 * task.model.layout.count * config.teachers if config.labels == "teacher" else 0)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


@restore_switches()
def run_regressions(
    evaluations: Sequence[Evaluation], seed: int = 0, listen: Listener = lambda event: None
) -> list[EvaluationRow]:
    """The rows of sets by the protocol of FRePo and RCIG, a regression on targets, and of random real images beside."""
    task, distilled, _, config, *_ = evaluations[0]
    options = RegressionConfig(networks=config.networks)
    total = 2 * config.networks * (len(evaluations) + 1)
    announce_task(task, listen)
    listen({"event": "stage", "name": "evaluate", "total": total, "unit": "network"})
    advance = partial(listen, {"event": "advance", "text": "regression"})
    rows = []
    for one in evaluations:
        rows += regression_rows(one.task, one.distilled, options, seed, one.which, advance)
    images, targets = random_targets(task, *budget(distilled), seed)
    random = replace(distilled, images=images, targets=targets)
    for row in regression_rows(task, random, options, seed, None, advance):
        rows.append(row.model_copy(update={"set": "random", "step": None}))
    return [EvaluationRow(**row.to_json(), lr_from="protocol") for row in rows]


def _repeat(row: EvaluationRow, evaluation: Evaluation) -> EvaluationRow:
    """The row of a set that equals the one before it."""
    return row.model_copy(update={"which": evaluation.which, "step": evaluation.distilled.provenance.get("step")})


def evaluate(
    distilled: DistilledSet | str | Path,
    *,
    seed: int = 0,
    listen: Listener | None = None,
    progress: bool | None = None,
    which: Literal["both", "last", "chosen"] = "both",
    data: DataSource | None = None,
    networks: str | Sequence[str] = (),
    num_networks: int | None = None,
    protocol: ProtocolName | Literal["regression"] | EvalConfig | None = None,
    epochs: int | None = None,
    model: ModelConfig | None = None,
    device: str = "cpu",
    precision: Precision = "float32",
    attack: str | Sequence[str] | None = None,
    corruptions: bool | Sequence[str] = False,
    robustness: RobustnessOptions | None = None,
    **reading: Any,
) -> list[ResultRow]:
    """Rows for a distilled set, its file, or the sets of a run folder, on the test part of its data.

    seed:     Of the networks.
    progress: Whether to draw progress on standard error; by default in a terminal or a notebook, where there is no
              `listen`.
    which:    Which sets of a run folder.
    data:     Where the images are; by default where the set says it came from.
    networks: Networks by name, perhaps with options: "resnet18:width=16"; the name of the set's own network stands for
              that with its options. For every one of them there are also rows of random and k-means images at the same
              budget, and of all images: see `run_on_networks`. By default there are the rows of the sets alone, on the
              network they were distilled with.
    model:    Another network than the one it was distilled with, see `evaluated_network`.
    protocol: A protocol by name, or all of it; by default that of the set.
    num_networks, epochs: How many fresh networks, and passes over the set; by default as the protocol says.
    attack, corruptions: Perturbations of test images, under which networks are tested too: see `make_robustness`. Rows
              are then `EvaluationRow`s with `robustness`, of random and k-means images too.
    robustness: How strong attacks are, and how many test images are perturbed.
    reading:  How `load_data` reads: resize, resize_mode, pixel_range, follow_links, test, validation; by default as the
              set's data was read.
    Raises UserError when there is no set, or when the data is not what the set was made from.

    >>> from tempfile import TemporaryDirectory
    >>> from limbeck import distill
    >>> quick = {"eval": EvalConfig(networks=2, epochs=5, full_networks=0), "validate_epochs": 5}
    >>> with TemporaryDirectory() as folder:
    ...     path = distill("digits", method="random", ipc=1, out=f"{folder}/run", **quick)
    ...     rows = evaluate(path, num_networks=3)
    ...     table = evaluate(path, networks=["mlp"], num_networks=1)
    >>> [(row.set, row.which, row.n) for row in rows]
    [('distilled', 'last', 3), ('distilled', 'chosen', 3)]
    >>> [(row.set, row.which, row.model) for row in table][1:]
    [('distilled', 'chosen', 'mlp'), ('random', None, 'mlp'), ('kmeans', None, 'mlp')]
    """
    evaluations = prepare_evaluation(
        distilled,
        which=which,
        data=data,
        networks=networks,
        protocol=protocol,
        changes={"networks": num_networks, "epochs": epochs},
        model=model,
        device=device,
        precision=precision,
        robustness=make_robustness(attack, corruptions, robustness),
        **reading,
    )
    with listening(listen, progress) as hear:
        if protocol == "regression":
            return [row.result for row in run_regressions(evaluations, seed, hear)]
        if not networks:
            rows = run_evaluations(evaluations, seed, hear)
            return [row if row.robustness else row.result for row in rows]
        return [row for rows in run_on_networks(evaluations, seed, hear) for row in rows]
