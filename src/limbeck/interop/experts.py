"""Experts of the authors' code into a store, one at a time."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from limbeck.core.errors import UserError
from limbeck.core.types import Listener
from limbeck.data import ImageData, Preprocess, load_data
from limbeck.experts.convexified import Convexified, start_at_zero, waypoint_epochs
from limbeck.experts.make import describe_experts
from limbeck.experts.recorded import Recorded
from limbeck.experts.store import Expert, ExpertConfig, Store
from limbeck.interop.read import (
    Buffer,
    are_identical,
    as_list,
    as_tensors,
    find_buffers,
    flat_parameters,
    guess_network,
    open_pt,
)
from limbeck.networks.flat import Layout
from limbeck.networks.registry import ModelConfig
from limbeck.task import Task, kept_switches, make_task
from limbeck.training.plain import score

SCHEDULE = {
    "waypoint_buffer_uni": "uniform",
    "waypoint_buffer_dec": "decreasing",
    "waypoint_buffer_proj": "projected",
}
TOLERANCE = 1e-4  # path fractions are float32 sums of some fifty terms


@kept_switches()
def import_experts(
    source: str | Path | list[Path],
    out: str | Path,
    data: str | Path | ImageData,
    *,
    model: ModelConfig | None = None,
    preprocess: str | Preprocess = "normalise",
    augment: str | None = None,
    kind: str | None = None,
    num_experts: int | None = None,
    epochs: int | None = None,
    trained: ExpertConfig | None = None,
    measure: int = 1000,
    seed: int = 0,
    device: str = "cpu",
    resize: int | None = None,
    listen: Listener = lambda event: None,
) -> Store:
    """Read the .pt files of MTT, TESLA, FTD, DATM (replay buffers) or MCT (waypoints and steps) into a new store.

    source:     a folder, or files of it; of waypoint files the step files are found beside them.
    out:        the store's folder, which must be new. It appears when all experts are in it.
    data:       what they were trained on: the store states its fingerprint, classes and shape.
    model:      their network; by default what their parameters fit.
    preprocess: how their images were prepared: the files do not say. A ZCA matrix is fitted anew.
    kind:       which files, where a folder holds several kinds, as waypoint_buffer_ip4. num_experts: at most so many.
    epochs:     how long they were trained; experts of another length (cut waypoint files) are refused.
    trained:    step size and batch size they were trained with; by default the authors' 0.01 and 256.
    measure:    images of our validation part for the accuracy after each epoch (all epochs, at most this many images:
                full measurements of 100 experts take hours on a CPU); the test accuracy is of the last epoch and whole.
                The authors trained on all of train, ours included, so that this validation accuracy flatters.

    Raises UserError for files that are refused or damaged, gaps in numbering, waypoints without steps, parameters that
    do not fit the network, snapshots that are all alike, NaN, and path fractions that are none.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists; name a new folder for the imported experts.")
    buffers = find_buffers(source if isinstance(source, list) else Path(source), kind)
    images = load_data(data, seed=seed, resize=resize)
    if not len(images.validation):
        raise UserError(f"{images.name} has no validation images to measure on; give it more images per class.")
    task = make_task(images, model or _network(buffers[0], images), preprocess, augment, device)
    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    listen({"event": "stage", "name": "import", "total": len(buffers), "unit": "file"})
    facts = {"kind": buffers[0].kind, "files": [[b.path.name, b.path.stat().st_size] for b in buffers]}
    try:
        store: Store | None = None
        for index, expert in enumerate(_experts(buffers, task, measure, listen)):
            if index == num_experts:
                break
            config = _config(trained or ExpertConfig(), expert, buffers[0].kind)
            _same_length(config, epochs, store, f"{buffers[0].path.parent}, expert {index}")
            elsewhere = {"computed": None, "imported": facts}  # nobody knows under which conditions
            store = store or Store.create(part, {**describe_experts(task, config, seed), **elsewhere})
            store.write(index, expert)
        if out.exists():
            out.rmdir()
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return Store.open(out)


def _same_length(config: ExpertConfig, epochs: int | None, store: Store | None, where: str) -> None:
    if epochs is not None and config.epochs != epochs:
        raise UserError(
            f"{where} ends at epoch {config.epochs}, not {epochs}: its file was cut, or --epochs is not what it was "
            "trained for."
        )
    if store is not None and store.config != config:
        raise UserError(
            f"{where} has {config.epochs} epochs and {config.waypoints} waypoints, those before it "
            f"{store.config.epochs} and {store.config.waypoints}; import them into stores of their own."
        )


def _network(buffer: Buffer, images: ImageData) -> ModelConfig:
    """The network that the first checkpoint of the first expert fits."""
    where = f"{buffer.path.name}, expert 0, checkpoint 0"
    first = as_list(as_list(open_pt(buffer.path), str(buffer.path), "experts")[0], where, "checkpoints")[0]
    guess = guess_network([tuple(tensor.shape) for tensor in as_tensors(first, where)], images.size)
    if guess is None:
        raise UserError(f"{where} fits no ConvNet and no MLP; name its network with --model.name and its options.")
    return guess.model


def _experts(buffers: list[Buffer], task: Task, measure: int, listen: Listener) -> Iterator[Expert]:
    pair = task.validation
    rows = torch.linspace(0, len(pair[1]) - 1, min(measure, len(pair[1])), device=pair[1].device).round().long()
    pair = pair[0][rows], pair[1][rows]
    for buffer in buffers:
        held = as_list(open_pt(buffer.path), str(buffer.path), "experts")
        steps = None
        if buffer.steps is not None:
            steps = as_list(open_pt(buffer.steps), str(buffer.steps), "experts")
            if len(steps) != len(held):
                raise UserError(f"{buffer.path} holds {len(held)} experts, {buffer.steps.name} {len(steps)}.")
        for number in range(len(held)):
            where = f"{buffer.path.name}, expert {number}"
            points, held[number] = held[number], None  # let go of each once it is written
            theta = _points(points, task.model.layout, where)
            path: Convexified | Recorded = Recorded(theta)
            if steps is not None and buffer.steps is not None:
                path = convexified_from(theta, steps[number], task.model.layout, buffer.kind, where)
            thetas = (path.at(epoch).to(task.device) for epoch in range(path.end + 1))
            validation = tuple(score(task.logits, each, *pair).accuracy for each in thetas)
            test = score(task.logits, path.at(path.end).to(task.device), *task.test).accuracy
            convex, recorded = (None, path) if isinstance(path, Recorded) else (path, None)
            yield Expert(convex, recorded, validation, test)
        listen({"event": "advance", "text": buffer.path.name})


def _points(value: Any, layout: Layout, where: str) -> Tensor:
    """(checkpoints, P) of one expert."""
    checkpoints = as_list(value, where, "checkpoints")
    if len(checkpoints) < 2:
        raise UserError(f"{where} has one checkpoint; a trajectory has at least its start and its end.")
    points = torch.stack(
        [flat_parameters(each, layout, f"{where}, checkpoint {k}") for k, each in enumerate(checkpoints)]
    )
    if are_identical(points):
        raise UserError(
            f"{where}: its {len(points)} checkpoints are all alike. The authors' buffer scripts do not copy parameters "
            "on a CPU, so every snapshot became the last one: train these experts again."
        )
    return points


def _config(trained: ExpertConfig, expert: Expert, kind: str) -> ExpertConfig:
    """What the store states: lengths, waypoints and their schedule as found, the rest as told."""
    path = expert.convex or expert.recorded
    assert path is not None
    found: dict[str, Any] = {"epochs": path.end, "keep": "recorded", "dtype": "float32"}
    if expert.convex is not None:
        epochs = expert.convex.epochs
        at = () if epochs == waypoint_epochs(len(epochs), path.end) else epochs
        found |= {"keep": "convex", "waypoints": len(epochs), "waypoint_at": at}
        found |= {"smoothing": "mct" if len(epochs) > 2 else "none", "schedule": SCHEDULE.get(kind, "arc")}
    return trained.model_copy(update=found)


def convexified_from(waypoints: Tensor, steps: Any, layout: Layout, kind: str, where: str) -> Convexified:
    """MCT's waypoints (W, P) and its path fractions, one list of rows a segment, as one trajectory.

    steps: of two waypoints a list of rows, of more a list of such lists; told by their nesting.
    Raises UserError where they do not fit each other or the network, or are no fractions of a path.
    """
    rows = as_list(steps, f"{where}, steps", "rows of path fractions")
    nested = isinstance(rows[0], list | tuple) and bool(rows[0]) and isinstance(rows[0][0], list | tuple)
    segments = rows if nested else [rows]
    if len(segments) != len(waypoints) - 1:
        raise UserError(
            f"{where} has {len(waypoints)} waypoints and path fractions for {len(segments)} segment(s) instead of "
            f"{len(waypoints) - 1}: one of the two files was cut or belongs to another."
        )
    parts = [_fractions(s, len(layout.names), kind, f"{where}, segment {i}") for i, s in enumerate(segments)]
    beta0 = 0.0 if nested else float(parts[0][0, 0])
    for index, part in enumerate(parts):
        if bool((part[0] != beta0).any()):
            raise UserError(f"{where}, segment {index}: path fractions begin at {float(part[0].max()):.4g}, not at 0.")
        _still(part, waypoints[index], waypoints[index + 1], layout)
    epochs = [0]
    for part in parts:
        epochs.append(epochs[-1] + len(part) - 1)
    beta = torch.cat([part[1:] for part in parts])
    if beta0:
        waypoints, beta = start_at_zero(waypoints, beta, beta0)
    return Convexified(layout, tuple(epochs), waypoints, beta)


def _fractions(rows: Any, tensors: int, kind: str, where: str) -> Tensor:
    """(segment length + 1, L) of one segment, from lists of scalars."""
    packed = []
    for k, row in enumerate(as_list(rows, where, "rows of path fractions")):
        scalars = as_tensors(row, f"{where}, row {k}")
        if len(scalars) != tensors or any(scalar.numel() != 1 for scalar in scalars):
            raise UserError(
                f"{where}, row {k} has {len(scalars)} path fractions for {tensors} parameter tensors, or not one each."
            )
        packed.append(torch.stack([scalar.reshape(()).float() for scalar in scalars]))
    beta = torch.stack(packed)
    if len(beta) < 2:
        raise UserError(f"{where} has one row of path fractions; a segment has at least its start and its end.")
    if not bool(torch.isfinite(beta).all()):
        raise UserError(f"{where}: path fractions hold NaN or infinity.")
    low, high = float(beta.min()), float(beta.max())
    free = kind.endswith("_proj")  # a projection may fall back, and leave [0, 1]
    if not free and (low < -TOLERANCE or high > 1 + TOLERANCE):
        raise UserError(f"{where}: path fractions run from {low:.4g} to {high:.4g}, and belong in [0, 1].")
    for k, (before, after) in enumerate(pairwise(beta)):
        if not free and bool((after < before - TOLERANCE).any()):
            raise UserError(f"{where}: path fractions decrease from row {k} to row {k + 1}; a path has no way back.")
    near, never = (beta[-1] - 1).abs() <= TOLERANCE, (beta == 0).all(0)
    if not bool((near | never).all()):
        worst = float(beta[-1][~(near | never)][0])
        raise UserError(f"{where}: path fractions end at {worst:.4g}, not at 1: the rows after it are missing.")
    beta[-1] = torch.where(near, 1.0, beta[-1])  # so that the end is the stored waypoint, not a rounding from it
    return beta


def _still(beta: Tensor, start: Tensor, stop: Tensor, layout: Layout) -> None:
    """A tensor that never moves has fractions 0 in the authors' files; ours go uniformly, to the same effect."""
    for index, (a, b) in enumerate(zip(layout.split(start), layout.split(stop))):
        if not float(beta[-1, index]) and torch.equal(a, b):
            beta[:, index] = torch.linspace(0, 1, len(beta))
