"""Train the experts that a store lacks."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from limbeck.core.errors import UserError
from limbeck.core.events import Listener
from limbeck.core.folders import home_folder
from limbeck.core.parallel import CheckCancelled, synchronized
from limbeck.core.rng import derive_seed
from limbeck.core.types import Trajectory
from limbeck.core.unfinished import remove_unfinished
from limbeck.experts.bucket import VARIABLE, place_of, store_name
from limbeck.experts.config import STORED_FORM, ExpertConfig
from limbeck.experts.share import ExpertPlace, compute_missing
from limbeck.experts.store import Expert, Store
from limbeck.experts.train import train_expert
from limbeck.task import Task
from limbeck.training.plain import score


def describe_experts(task: Task, config: ExpertConfig, seed: int) -> dict[str, Any]:
    """Return everything that an expert depends on, JSON-able; its hash is part of the default store's name."""
    layout = task.model.layout
    return {
        **task.describe(),
        "computed": task.conditions(),
        "expert": config.model_dump(mode="json"),
        "seed": seed,
        "layout": {"names": list(layout.names), "shapes": [list(shape) for shape in layout.shapes]},
    }


def default_store(description: dict[str, Any]) -> Path:
    """Return the default folder of experts of this description; two descriptions never share one."""
    return home_folder() / "experts" / store_name(description)


def find_recorded(description: dict[str, Any]) -> dict[int, Store]:
    """Find the default stores whose experts were trained as those of a description, and are recorded in float32.

    Returns the index of every such expert with a store that has it.
    """
    stores: dict[int, Store] = {}
    training = json.loads(json.dumps(_describe_training(description)))  # as it will be read: lists, not tuples
    for path in sorted((home_folder() / "experts").glob("*/store.json")):
        with suppress(UserError, OSError):  # a damaged store is no reason not to train
            other = Store.open(path.parent)
            is_recorded = other.config.keep != "convex" and other.config.dtype == "float32"
            if is_recorded and _describe_training(other.header.description()) == training:
                stores |= dict.fromkeys(other.indices(), other)
    return stores


def _describe_training(description: dict[str, Any]) -> dict[str, Any]:
    """The part of a description on which training depends, and not only what is stored of it."""
    expert = {name: value for name, value in description["expert"].items() if name not in STORED_FORM}
    return {**description, "expert": expert}


def make_experts(
    task: Task,
    config: ExpertConfig,
    count: int,
    seed: int,
    store: Store,
    listen: Listener = lambda event: None,
    indices: Collection[int] | None = None,
) -> None:
    """Train those of the experts 0 ... count - 1 that the store lacks; an expert is written when it is trained.

    indices: these alone.

    One whose training is recorded in another of the default stores is taken from there, with the same bits. Ranks share
    the training, and each writes its own experts.

    Raises UserError if the store's experts were computed under other conditions, and where training diverges.
    """
    requested = range(count) if indices is None else sorted(indices)
    place = place_of(store)
    missing: list[int] = task.ranks.decide(lambda: _take_recorded(task, config, requested, store, place))
    own = task.ranks.share(missing)
    if place.missing(set(requested) - set(missing)):
        raise _unseen(task, store)
    if not missing:
        return
    if len(missing) < len(requested):
        text = f"{len(requested) - len(missing)} of {len(requested)} experts are in {store.path}"
        listen({"event": "note", "text": text})
    listen({"event": "stage", "name": "experts", "total": len(own) * config.epochs, "unit": "epoch"})
    listen = synchronized(listen)
    seeds, pair = {index: derive_seed(seed, "expert", index) for index in own}, task.train
    starts = {index: task.model.init(seeds[index]).to(task.device) for index in own}

    def compute(index: int, check: CheckCancelled) -> Expert:
        return _train(task, pair, config, index, seeds[index], starts[index], listen, check)

    compute_missing(place, own, compute, task.max_workers, listen)
    task.ranks.barrier()
    if place.missing(missing):
        raise _unseen(task, store)


def _unseen(task: Task, store: Store) -> UserError:
    return UserError(
        f"rank {task.ranks.rank} does not see all experts in {store.path}, which other processes trained; on several "
        f"machines set LIMBECK_HOME to a folder that all of them share, or {VARIABLE} to a URL."
    )


def _take_recorded(
    task: Task, config: ExpertConfig, requested: Collection[int], store: Store, place: ExpertPlace
) -> list[int]:
    """The indices of the experts to train, after those that another store has recorded were taken from there."""
    remove_unfinished(store.path)
    missing = place.missing(requested)
    if not missing:
        return []
    store.require_conditions(task.conditions())
    recorded = find_recorded(store.header.description())
    for index in set(missing) & set(recorded):
        with suppress(UserError):  # a damaged expert is no reason not to train
            place.write(index, recorded[index].read_as(index, config))
            missing.remove(index)
    return missing


def _train(
    task: Task,
    pair: tuple[Tensor, Tensor],
    config: ExpertConfig,
    index: int,
    seed: int,
    start: Tensor,
    listen: Listener,
    check: CheckCancelled,
) -> Expert:
    """Train one expert from `start` on images and labels; `check` is called at every step."""
    loss, network = task.loss_and_network()

    def validate(epoch: int, theta: Tensor) -> float:
        accuracy = score(network, theta, *task.validation).accuracy
        if epoch:
            text = f"expert {index + 1}, validation {accuracy:.3f}"
            listen({"event": "advance", "text": text, "expert": index, "epoch": epoch, "validation": accuracy})
        return accuracy

    def test(theta: Tensor) -> float:
        return score(network, theta, *task.test).accuracy

    return train_expert(loss, start, *pair, config, task.model.layout, seed, validate, test, check)


def measure_paths(task: Task, experts: list[Expert], points: int = 11) -> dict[str, Any]:
    """Return the validation accuracy along the recorded and the convexified path of every expert, for experts.json.

    points: equally spaced epochs at which the convexified path is measured.
    """
    end = len(experts[0].validation) - 1
    times = torch.linspace(0, end, points, dtype=torch.double).tolist()
    curves = [
        [score(task.logits, expert.convex.at(t).to(task.device), *task.validation).accuracy for t in times]
        for expert in experts
        if expert.convex is not None
    ]
    return {
        "validation_per_epoch": [list(expert.validation) for expert in experts],
        "recorded_path": {"t": list(range(end + 1)), "accuracy": [list(expert.validation) for expert in experts]},
        "convexified_path": {"t": times, "accuracy": curves} if curves else None,
        **measure_distances(experts, times),
    }


def measure_distances(experts: list[Expert], times: list[float]) -> dict[str, Any]:
    """Return how far the paths of every expert are from their starts, as shares of the ends' distances.

    times: epochs of the convexified paths; of recorded ones it is the whole epochs nearest to them.
    """
    epochs = sorted({round(t) for t in times})
    forms: dict[str, tuple[Sequence[float], list[Trajectory]]] = {
        "convexified": (times, [expert.convex for expert in experts if expert.convex is not None]),
        "recorded": (epochs, [expert.recorded for expert in experts if expert.recorded is not None]),
    }
    return {
        f"{name}_distance": {"t": list(ts), "share": [_shares(path, ts) for path in paths]} if paths else None
        for name, (ts, paths) in forms.items()
    }


def _shares(path: Trajectory, times: Sequence[float]) -> list[float]:
    """The distances of a path at these epochs from its start, divided by that of the last."""
    start = path.at(times[0]).double()
    distances = torch.stack([(path.at(t).double() - start).norm() for t in times])
    return [float(f"{share:.5g}") for share in (distances / distances[-1].clamp_min(1e-30)).tolist()]
