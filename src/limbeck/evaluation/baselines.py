"""The baselines of a distilled set: real images at the same budget, and all training images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from limbeck.core.events import Listener
from limbeck.core.files import content_key, write_json
from limbeck.core.folders import home_folder
from limbeck.core.record_files import read_record
from limbeck.core.records import BaselineRecord, ResultRow
from limbeck.core.rng import derive_seed
from limbeck.evaluation.protocol import ADDED, EvalConfig
from limbeck.evaluation.training import Training, make_training
from limbeck.evaluation.trials import SetForSeed, best_lr, evaluate_set, result_row
from limbeck.select import FillName, select_per_class, take_images
from limbeck.task import Task

FORMAT = "limbeck-baseline"
FULL_LR, FULL_ADAMW_LR = 0.01, 0.001  # step sizes of the network that is trained on all images
FULL = {"full_epochs", "full_batch_size", "full_networks"}
"""Fields of `EvalConfig` that concern the full-data accuracy alone."""


def without_teachers(config: EvalConfig) -> EvalConfig:
    """The protocol for all training images: the teachers themselves were trained on these, with their classes."""
    return config.model_copy(update={name: ADDED[name] for name in ("labels", "teachers", "temperature")})


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


def evaluate_coreset(
    task: Task, selector: str, ipc: int, config: EvalConfig, seed: int, listen: Listener, fill: FillName = "none"
) -> ResultRow:
    """The row of a coreset: its step size is chosen on validation, its accuracy is measured on test."""
    draw_set = real_images(task, selector, ipc, fill)

    def advance() -> None:
        listen({"event": "advance", "text": f"{selector} images"})

    child = derive_seed(seed, "baseline", selector)
    lr = best_lr(task, draw_set, config, derive_seed(child, "tune"), advance)
    training = make_training(task, config)
    summary = evaluate_set(task, draw_set, config.schedule(lr), config.networks, task.test, child, advance, training)
    return result_row(selector, task, summary, lr=lr, protocol=config.label)


def evaluate_full(task: Task, config: EvalConfig, seed: int, listen: Listener) -> ResultRow:
    """The row of the same network trained on all training images with the same recipe."""
    config = without_teachers(config)
    lr = FULL_LR if config.learns_as_the_set else FULL_ADAMW_LR
    summary = evaluate_set(
        task,
        lambda _seed: task.train,
        config.full_schedule(lr),
        config.full_networks,
        task.test,
        derive_seed(seed, "baseline", "full"),
        lambda: listen({"event": "advance", "text": "all training images"}),
        Training(task, config),
    )
    return result_row("full", task, summary, lr=lr, protocol=config.label)


def evaluate_baselines(
    task: Task, ipc: int, config: EvalConfig, seed: int, listen: Listener, fill: FillName = "none"
) -> list[ResultRow]:
    """Rows for random, k-means and full data. They are stored for reuse, since they do not depend on the method."""
    names = ("random", "kmeans", *(("full",) if config.full_networks else ()))
    return [baseline_row(task, name, ipc, config, seed, listen, fill) for name in names]


def baseline_row(
    task: Task, name: str, ipc: int, config: EvalConfig, seed: int, listen: Listener, fill: FillName = "none"
) -> ResultRow:
    """The row of real images: of a selector's, or of all ("full"); stored for reuse."""
    path, description = baseline_path(task, name, ipc, config, seed, fill)
    if path.exists():
        return read_record(path, BaselineRecord, FORMAT).row
    if name == "full":
        row = evaluate_full(task, config, seed, listen)
    else:
        row = evaluate_coreset(task, name, ipc, config, seed, listen, fill)
    record = BaselineRecord(format=FORMAT, version=1, description=description, row=row)
    write_json(path, record.to_json())
    return row


def baseline_path(
    task: Task, name: str, ipc: int, config: EvalConfig, seed: int, fill: FillName = "none"
) -> tuple[Path, dict[str, Any]]:
    """The file in which `baseline_row` stores the row of this name, and the description in its key."""
    if name == "full":  # shared by runs that differ in anything else
        options = without_teachers(config).model_dump(mode="json", include={"momentum", "weight_decay", *FULL, *ADDED})
    else:
        options = {"ipc": ipc, **config.model_dump(mode="json", exclude=FULL)}
        if min(task.data.train.counts(task.data.num_classes)) < ipc:  # else it has no effect
            options["fill"] = fill
    description = {
        **task.describe(),
        "computed": task.conditions(),
        "baseline": name,
        **options,
        "seed": seed,
    }
    return home_folder() / "baselines" / f"{task.data.name}-{name}-{content_key(description)}.json", description


def count_networks(config: EvalConfig) -> int:
    """How many networks `evaluate_baselines` trains at most, for progress."""
    return 2 * config.networks * (len(config.baseline_lrs) + 1) + config.full_networks
