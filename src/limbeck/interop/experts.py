"""Import of the authors' experts into a store, one at a time."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from limbeck.core.errors import UserError
from limbeck.core.events import Listener
from limbeck.core.files import require_new_folder, write_folder
from limbeck.data import DataSource, ImageData, Preprocess, load_data
from limbeck.experts.config import ExpertConfig
from limbeck.experts.convexified import Convexified, start_at_zero, waypoint_epochs
from limbeck.experts.make import describe_experts
from limbeck.experts.recorded import Recorded
from limbeck.experts.store import Expert, Store
from limbeck.interop.expert_files import (
    Buffer,
    are_identical,
    as_list,
    as_tensors,
    find_buffers,
    flat_parameters,
    guess_network,
)
from limbeck.interop.pt_files import open_pt
from limbeck.networks.flat import Layout
from limbeck.networks.registry import ModelConfig
from limbeck.task import Task, make_task, restore_switches
from limbeck.training.plain import score

SCHEDULE = {
    "waypoint_buffer_uni": "uniform",
    "waypoint_buffer_dec": "decreasing",
    "waypoint_buffer_proj": "projected",
}
TOLERANCE = 1e-4  # of path fractions, which are float32 sums of about fifty terms


@restore_switches()
def import_experts(
    source: str | Path | list[Path],
    out: str | Path,
    data: DataSource,
    *,
    model: ModelConfig | None = None,
    preprocess: str | Preprocess = "normalise",
    augment: str | None = None,
    kind: str | None = None,
    num_experts: int | None = None,
    epochs: int | None = None,
    training: ExpertConfig | None = None,
    measure: int = 1000,
    seed: int = 0,
    device: str = "cpu",
    resize: int | None = None,
    listen: Listener = lambda event: None,
) -> Store:
    """Read the .pt files of MTT, TESLA, FTD, DATM (replay buffers) or MCT (waypoints and steps) into a new store.

    source:      a folder, or files of one; the files of steps are found beside the files of waypoints.
    out:         the folder of the store, which must not exist or be empty. It appears once all experts are in it.
    data:        the data set that they were trained on; the store records its fingerprint, classes and shape.
    model:       their network; None takes the one that their parameters fit.
    preprocess:  the input space of their images, which the files do not say. A ZCA matrix is fitted anew.
    augment:     the augmentation that they were trained with; None is the default of the data set.
    kind:        of the files to take, where a folder has several kinds, as waypoint_buffer_ip4.
    num_experts: the largest number of experts to import; None imports all.
    epochs:      how long they were trained; experts of another length (files of waypoints may be cut) are refused.
    training:    the step size and batch size that they were trained with; by default the authors' 0.01 and 256.
    measure:     validation images for the accuracy after every epoch, since measuring 100 experts on all images takes
                 hours on a CPU. The test accuracy is of the last epoch, on all test images. The authors trained on all
                 of train, our validation images included, so that the validation accuracy is too high.
    seed:        of the split of the data. resize: of its images, as in `load_data`. device: to measure on.
    listen:      receives the progress.

    Raises UserError for files that are refused or damaged, gaps in numbering, waypoints without steps, parameters that
    do not fit the network, checkpoints that are all the same, NaN, and values that are no path fractions.
    """
    out = Path(out)
    require_new_folder(out, "an empty folder")
    buffers = find_buffers(source if isinstance(source, list) else Path(source), kind)
    images = load_data(data, seed=seed, resize=resize)
    if not len(images.validation):
        raise UserError(f"{images.name} has no validation images to measure on; give it more images per class.")
    task = make_task(images, model or _network(buffers[0], images), preprocess, augment, device)
    listen({"event": "stage", "name": "import", "total": len(buffers), "unit": "file"})
    facts = {"kind": buffers[0].kind, "files": [[b.path.name, b.path.stat().st_size] for b in buffers]}

    def write(folder: Path) -> None:
        store: Store | None = None
        for index, expert in enumerate(islice(_experts(buffers, task, measure, listen), num_experts)):
            config = _config(training or ExpertConfig(), expert, buffers[0].kind)
            _check_length(config, epochs, store, f"{buffers[0].path.parent}, expert {index}")
            origin = {"computed": None, "imported": facts}  # the conditions of their training are unknown
            store = store or Store.create(folder, {**describe_experts(task, config, seed), **origin})
            store.write(index, expert)

    write_folder(out, write)
    return Store.open(out)


def _check_length(config: ExpertConfig, epochs: int | None, store: Store | None, where: str) -> None:
    """Raise UserError for an expert that is not of `epochs`, or not of the length of those in the store."""
    if epochs is not None and config.epochs != epochs:
        raise UserError(
            f"{where} ends at epoch {config.epochs}, not {epochs}: its file was cut, or --epochs is not what it was "
            "trained for."
        )
    if store is not None and store.config != config:
        raise UserError(
            f"{where} has {config.epochs} epochs and {len(config.waypoint_epochs())} waypoints, those before it "
            f"{store.config.epochs} and {len(store.config.waypoint_epochs())}; import them into stores of their own."
        )


def _network(buffer: Buffer, images: ImageData) -> ModelConfig:
    """The network that the parameters in the first checkpoint of the first expert fit."""
    where = f"{buffer.path.name}, expert 0, checkpoint 0"
    experts = as_list(open_pt(buffer.path), str(buffer.path), "experts")
    parameters = as_tensors(as_list(experts[0], where, "checkpoints")[0], where)
    guess = guess_network([tuple(tensor.shape) for tensor in parameters], images.size)
    if guess is None:
        raise UserError(f"{where} fits no ConvNet and no MLP; name its network with --model.name and its options.")
    return guess.model


def _experts(buffers: list[Buffer], task: Task, measure: int, listen: Listener) -> Iterator[Expert]:
    """The experts of all files, one in memory at a time, with their accuracies."""
    pair = task.validation
    rows = torch.linspace(0, len(pair[1]) - 1, min(measure, len(pair[1])), device=pair[1].device).round().long()
    pair = pair[0][rows], pair[1][rows]
    for buffer in buffers:
        experts = as_list(open_pt(buffer.path), str(buffer.path), "experts")
        steps = None
        if buffer.steps is not None:
            steps = as_list(open_pt(buffer.steps), str(buffer.steps), "experts")
            if len(steps) != len(experts):
                raise UserError(
                    f"{buffer.path} holds {len(experts)} experts, {buffer.steps.name} {len(steps)}; "
                    "one of the two files was cut."
                )
        for number in range(len(experts)):
            where = f"{buffer.path.name}, expert {number}"
            checkpoints, experts[number] = experts[number], None  # frees each expert once it is written
            points = _points(checkpoints, task.model.layout, where)
            path: Convexified | Recorded = Recorded(points)
            if steps is not None and buffer.steps is not None:
                path = convexified_from(points, steps[number], task.model.layout, buffer.kind, where)
            thetas = (path.at(epoch).to(task.device) for epoch in range(path.end + 1))
            validation = tuple(score(task.logits, theta, *pair).accuracy for theta in thetas)
            test = score(task.logits, path.at(path.end).to(task.device), *task.test).accuracy
            convex, recorded = (None, path) if isinstance(path, Recorded) else (path, None)
            yield Expert(convex, recorded, validation, test)
        listen({"event": "advance", "text": buffer.path.name})


def _points(value: Any, layout: Layout, where: str) -> Tensor:
    """The checkpoints of one expert as rows (checkpoints, P)."""
    checkpoints = as_list(value, where, "checkpoints")
    if len(checkpoints) < 2:
        raise UserError(f"{where} has one checkpoint; a trajectory has at least its start and its end.")
    points = torch.stack(
        [flat_parameters(tensors, layout, f"{where}, checkpoint {k}") for k, tensors in enumerate(checkpoints)]
    )
    if are_identical(points):
        raise UserError(
            f"{where}: its {len(points)} checkpoints are all alike. The authors' buffer scripts do not copy parameters "
            "on a CPU, so every snapshot became the last one: train these experts again."
        )
    return points


def _config(training: ExpertConfig, expert: Expert, kind: str) -> ExpertConfig:
    """The configuration that the store records: `training` with length, waypoints and schedule of the expert."""
    end = len(expert.validation) - 1
    options: dict[str, Any] = {"epochs": end, "keep": "recorded", "dtype": "float32"}
    if expert.convex is not None:
        epochs = expert.convex.epochs
        at = () if epochs == waypoint_epochs(len(epochs), end) else epochs
        options |= {"keep": "convex", "waypoints": len(epochs), "waypoint_at": at}
        options |= {"smoothing": "mct" if len(epochs) > 2 else "none", "schedule": SCHEDULE.get(kind, "arc")}
    return training.model_copy(update=options)


def convexified_from(waypoints: Tensor, steps: Any, layout: Layout, kind: str, where: str) -> Convexified:
    """MCT's waypoints (W, P) and path fractions as one trajectory.

    steps: for two waypoints a list of rows, for more a list of such lists, one a segment. A row has one scalar for
        every parameter tensor.
    Raises UserError where waypoints, path fractions and network do not fit each other, and for values that are no
    path fractions.
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
        _fill_constant(part, waypoints[index], waypoints[index + 1], layout)
    epochs = [0]
    for part in parts:
        epochs.append(epochs[-1] + len(part) - 1)
    beta = torch.cat([part[1:] for part in parts])
    if beta0:
        waypoints, beta = start_at_zero(waypoints, beta, beta0)
    return Convexified(layout, tuple(epochs), waypoints, beta)


def _fractions(rows: Any, tensors: int, kind: str, where: str) -> Tensor:
    """The path fractions of one segment, (segment length + 1, L), from lists of scalars."""
    vectors = []
    for k, row in enumerate(as_list(rows, where, "rows of path fractions")):
        scalars = as_tensors(row, f"{where}, row {k}")
        if len(scalars) != tensors or any(scalar.numel() != 1 for scalar in scalars):
            raise UserError(
                f"{where}, row {k} has {len(scalars)} path fractions for {tensors} parameter tensors, or not one each."
            )
        vectors.append(torch.stack([scalar.reshape(()).float() for scalar in scalars]))
    beta = torch.stack(vectors)
    if len(beta) < 2:
        raise UserError(f"{where} has one row of path fractions; a segment has at least its start and its end.")
    if not bool(torch.isfinite(beta).all()):
        raise UserError(f"{where}: path fractions hold NaN or infinity.")
    low, high = float(beta.min()), float(beta.max())
    is_projection = kind.endswith("_proj")  # whose fractions may decrease, and leave [0, 1]
    if not is_projection and (low < -TOLERANCE or high > 1 + TOLERANCE):
        raise UserError(f"{where}: path fractions run from {low:.4g} to {high:.4g}, and belong in [0, 1].")
    for k, (before, after) in enumerate(pairwise(beta)):
        if not is_projection and bool((after < before - TOLERANCE).any()):
            raise UserError(f"{where}: path fractions decrease from row {k} to row {k + 1}; a path has no way back.")
    is_one, is_constant = (beta[-1] - 1).abs() <= TOLERANCE, (beta == 0).all(0)
    if not bool((is_one | is_constant).all()):
        worst = float(beta[-1][~(is_one | is_constant)][0])
        raise UserError(f"{where}: path fractions end at {worst:.4g}, not at 1: the rows after it are missing.")
    beta[-1] = torch.where(is_one, 1.0, beta[-1])  # so that the end is the stored waypoint exactly
    return beta


def _fill_constant(beta: Tensor, start: Tensor, stop: Tensor, layout: Layout) -> None:
    """Replace the fractions of parameter tensors that never change, 0 in the authors' files, by uniform ones."""
    for index, (a, b) in enumerate(zip(layout.split(start), layout.split(stop))):
        if not float(beta[-1, index]) and torch.equal(a, b):
            beta[:, index] = torch.linspace(0, 1, len(beta))
