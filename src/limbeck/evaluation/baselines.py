"""The baselines of a distilled set: real images at the same budget, and all training images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from torch import Tensor

from limbeck.core.disk import make_folder
from limbeck.core.errors import NewerError, UserError
from limbeck.core.evaluation_records import EvaluationRow, TestedBaselineRecord
from limbeck.core.events import Listener
from limbeck.core.files import content_key, write_json
from limbeck.core.folders import home_folder
from limbeck.core.locks import lock_work
from limbeck.core.record_files import read_record
from limbeck.core.records import BaselineRecord, Record, ResultRow
from limbeck.core.rng import derive_seed
from limbeck.core.unfinished import remove_unfinished
from limbeck.evaluation.outcome import Outcome, describe_classes, warn_of_divergence
from limbeck.evaluation.protocol import ADDED, EvalConfig
from limbeck.evaluation.robustness import RobustnessConfig, RobustnessTest
from limbeck.evaluation.training import TrainedNetwork, Training, make_training
from limbeck.evaluation.trials import (
    SetForSeed,
    Summary,
    Trial,
    best_lr,
    make_trials,
    result_row,
    run_trials,
    train_networks,
)
from limbeck.select import FillName, select_per_class, take_images
from limbeck.task import Task

R = TypeVar("R", bound=Record)
FORMAT = "limbeck-baseline"
FULL_LR, FULL_ADAMW_LR = 0.01, 0.001  # step sizes of the network that is trained on all images
FULL = {"full_epochs", "full_batch_size", "full_networks"}
"""Fields of `EvalConfig` that concern the full-data accuracy alone."""
OTHERS = {*FULL, "baselines"}
"""Those that do not change the row of a selector's images."""


def without_teachers(config: EvalConfig) -> EvalConfig:
    """The protocol for all training images: the teachers themselves were trained on these, with their classes.

    Nothing is chosen there by validation.
    """
    return config.model_copy(update={name: ADDED[name] for name in ("labels", "teachers", "temperature", "choose_by")})


def real_images(task: Task, selector: str, ipc: int, fill: FillName = "none") -> SetForSeed:
    """`ipc` real images a class, chosen anew for every network's seed.

    fill: what to do about a class with fewer images; see `limbeck.select.fill`.
    """
    images, labels = task.train

    def draw_set(seed: int) -> tuple[Tensor, Tensor]:
        repeat = fill != "none"
        rows = select_per_class(selector, images, labels, task.data.num_classes, ipc, seed, repeat=repeat)
        rows = rows.to(images.device)
        return take_images(images, rows, fill, task.augment, seed), labels[rows]

    return draw_set


class RealTrials(NamedTuple):
    """Trials on real images, their step size, and how their networks are trained; `advance` is called after each."""

    lr: float
    trials: list[Trial]
    training: Training
    advance: Callable[[], None]

    def outcomes(self) -> list[Outcome]:
        """What their networks reach on test; ranks share the training."""
        return run_trials(self.training.task, self.trials, self.training.task.test, self.advance, self.training)

    def networks(self) -> list[TrainedNetwork]:
        """The networks themselves."""
        return train_networks(self.training.task, self.trials, self.training.task.test, self.advance, self.training)


def make_real_trials(
    task: Task,
    name: str,
    ipc: int,
    config: EvalConfig,
    seed: int,
    listen: Listener,
    fill: FillName = "none",
    lr: float | None = None,
) -> RealTrials:
    """The trials of networks on real images: on a selector's, or on all ("full").

    lr: Where it is known; by default a selector's images have one chosen on validation.
    """
    child = derive_seed(seed, "baseline", name)
    advance = partial(listen, {"event": "advance", "text": f"{'all training' if name == 'full' else name} images"})
    if name == "full":
        config = without_teachers(config)
        lr = FULL_LR if config.optimiser == "sgd" else FULL_ADAMW_LR
        trials = make_trials(lambda _seed: task.train, config.full_schedule(lr), config.full_networks, child)
    else:
        draw_set = real_images(task, name, ipc, fill)
        lr = best_lr(task, draw_set, config, derive_seed(child, "tune"), advance) if lr is None else lr
        trials = make_trials(draw_set, config.schedule(lr), config.networks, child)
    return RealTrials(lr, trials, make_training(task, config), advance)


def baseline_images(task: Task, name: str, ipc: int, seed: int, fill: FillName = "none") -> tuple[Tensor, Tensor]:
    """The images and labels that the first network of a selector's row is trained on."""
    child = derive_seed(derive_seed(seed, "baseline", name), "network", 0)
    return real_images(task, name, ipc, fill)(child)


def baseline_names(config: EvalConfig) -> tuple[str, ...]:
    """The names of all rows of real images."""
    return (*config.baselines, *(("full",) if config.full_networks else ()))


def evaluate_baselines(
    task: Task, ipc: int, config: EvalConfig, seed: int, listen: Listener, fill: FillName = "none"
) -> list[ResultRow]:
    """Rows for the real images that the protocol names, stored for reuse: they do not depend on the method."""
    return [baseline_row(task, name, ipc, config, seed, listen, fill) for name in baseline_names(config)]


def baseline_row(
    task: Task, name: str, ipc: int, config: EvalConfig, seed: int, listen: Listener, fill: FillName = "none"
) -> ResultRow:
    """The row of real images: of a selector's, or of all ("full"); stored for reuse."""
    path, description = baseline_path(task, name, ipc, config, seed, fill)

    def read_row() -> dict[str, Any] | None:
        stored = _read_stored(path, BaselineRecord)
        return None if stored is None else stored.row.to_json()

    with _lock_row(task, path):
        if stored := task.ranks.decide(read_row):  # all ranks see what rank 0 sees
            return ResultRow.model_validate(stored)
        real = make_real_trials(task, name, ipc, config, seed, listen, fill)
        outcomes = real.outcomes()
        warn_of_divergence(outcomes, "all images" if name == "full" else f"{name} images", real.lr, listen)
        row = _summarise(task, name, config, real.lr, outcomes)
        if task.ranks.is_first:
            make_folder(path.parent)
            write_json(path, BaselineRecord(format=FORMAT, version=1, description=description, row=row).to_json())
        return row


def _lock_row(task: Task, path: Path) -> AbstractContextManager[None]:
    """Lock the row of a path, so that of several commands that need it one trains its networks.

    Ranks lock nothing: those that wait for each other are not to wait for another command.
    """
    return lock_work(path.stem, "evaluates the same real images") if task.ranks.size == 1 else nullcontext()


def _read_stored(path: Path, model: type[R]) -> R | None:
    """The record that is stored at a path; None where there is none, or a damaged one, which is computed again."""
    remove_unfinished(path.parent)
    if not path.exists():
        return None
    try:
        return read_record(path, model, FORMAT)
    except NewerError:
        raise
    except UserError:
        return None


def tested_baseline_row(
    task: Task,
    name: str,
    ipc: int,
    config: EvalConfig,
    seed: int,
    listen: Listener,
    fill: FillName,
    robustness: RobustnessConfig,
) -> EvaluationRow:
    """The row of real images, with the accuracies of the same networks on perturbed test images; stored for reuse.

    Where the row is stored without these, networks are trained again with its step size.
    """
    path, description = baseline_path(task, name, ipc, config, seed, fill, robustness)
    plain_path, plain_description = baseline_path(task, name, ipc, config, seed, fill)
    with _lock_row(task, plain_path):
        if (tested := _read_stored(path, TestedBaselineRecord)) is not None:
            return tested.row
        stored = _read_stored(plain_path, BaselineRecord)
        real = make_real_trials(task, name, ipc, config, seed, listen, fill, None if stored is None else stored.row.lr)
        networks = real.networks()
        plain = _summarise(task, name, config, real.lr, [network.outcome for network in networks])
        make_folder(path.parent)
        if stored is None:
            record = BaselineRecord(format=FORMAT, version=1, description=plain_description, row=plain)
            write_json(plain_path, record.to_json())
        advance = partial(listen, {"event": "advance", "text": f"{name} images, perturbed"})
        tests = RobustnessTest(task, robustness, seed).run(networks, advance)
        row = EvaluationRow(**plain.to_json(), robustness=tests)
        write_json(path, TestedBaselineRecord(format=FORMAT, version=1, description=description, row=row).to_json())
        return row


def _summarise(task: Task, name: str, config: EvalConfig, lr: float, outcomes: Sequence[Outcome]) -> ResultRow:
    label = (without_teachers(config) if name == "full" else config).label
    row = result_row(name, task, Summary.of(outcomes), lr=lr, protocol=label, outcomes=outcomes)
    return row.model_copy(update=describe_classes(outcomes))


def baseline_path(
    task: Task,
    name: str,
    ipc: int,
    config: EvalConfig,
    seed: int,
    fill: FillName = "none",
    robustness: RobustnessConfig | None = None,
) -> tuple[Path, dict[str, Any]]:
    """The file in which the row of this name is stored, and the description in its key."""
    if name == "full":  # shared by runs that differ in anything else
        options = without_teachers(config).model_dump(mode="json", include={"momentum", "weight_decay", *FULL, *ADDED})
    else:
        options = {"ipc": ipc, **config.model_dump(mode="json", exclude=OTHERS)}
        if min(task.data.train.counts(task.data.num_classes)) < ipc:  # else it has no effect
            options["fill"] = fill
    if task.data.num_classes == 2:
        options["two_classes"] = True  # rows of earlier versions have neither sensitivity nor specificity
    description = {
        **task.describe(),
        "computed": task.evaluation_conditions(),
        "baseline": name,
        **options,
        "seed": seed,
        **({} if robustness is None else {"robustness": robustness.describe()}),
    }
    return home_folder() / "baselines" / f"{task.data.name}-{name}-{content_key(description)}.json", description


def count_missing(
    name: str, task: Task, ipc: int, config: EvalConfig, seed: int, fill: FillName, robustness: RobustnessConfig
) -> tuple[int, int]:
    """How many networks `tested_baseline_row` trains for a step size, and how many it trains and tests."""
    if baseline_path(task, name, ipc, config, seed, fill, robustness)[0].exists():
        return 0, 0
    networks = config.full_networks if name == "full" else config.networks
    is_known = name == "full" or baseline_path(task, name, ipc, config, seed, fill)[0].exists()
    return (0 if is_known else networks * len(config.baseline_lrs)), networks


def count_missing_baselines(task: Task, ipc: int, config: EvalConfig, seed: int, fill: FillName) -> int:
    """How many networks `evaluate_baselines` trains, for progress: those of rows that are not stored."""
    missing = [n for n in baseline_names(config) if not baseline_path(task, n, ipc, config, seed, fill)[0].exists()]
    per_coreset = config.networks * (len(config.baseline_lrs) + 1)
    return sum(config.full_networks if name == "full" else per_coreset for name in missing)


def count_networks(config: EvalConfig) -> int:
    """How many networks `evaluate_baselines` trains at most, for progress."""
    return len(config.baselines) * config.networks * (len(config.baseline_lrs) + 1) + config.full_networks
