"""The analyses of the MCT paper, on any store: accuracy along paths, update directions, straightness, storage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from limbeck.core.disk import make_folder
from limbeck.core.errors import UserError
from limbeck.core.events import Listener
from limbeck.core.files import write_json
from limbeck.core.inspection_records import InspectedTraining, InspectionRecord, PathCurves, PlaneRecord, StorageRow
from limbeck.core.record_files import parse_record
from limbeck.core.sizes import Size
from limbeck.core.types import Trajectory
from limbeck.core.user_imports import require_own_code
from limbeck.data import DataSource, ImageData, Preprocess, load_data
from limbeck.experts.convexified import SCHEDULES, SMOOTHING, convexify, waypoint_epochs
from limbeck.experts.store import Expert, Store
from limbeck.networks.registry import ModelConfig
from limbeck.report.inspection import write_inspection
from limbeck.task import Task, make_task, restore_switches
from limbeck.training.plain import score

MOST_EXPERTS = 5
TINY = 1e-30
"""What lengths are divided by at least, so that experts that do not move have numbers."""


@restore_switches()
def inspect_store(
    path: str | Path,
    out: str | Path,
    *,
    data: DataSource | None = None,
    device: str = "cpu",
    listen: Listener = lambda event: None,
    **reading: Any,
) -> Path:
    """Analyse up to five experts of a store into `out`/inspect.json and inspect.html; returns the page's path.

    data: the images the experts were trained on, for accuracies on the validation part; without it, geometry only.
    reading: how `load_data` reads them; by default they are brought to the size that the store was trained on.
    Update directions, plane and straightness need recorded trajectories ('--keep recorded' or 'both').
    Raises UserError for an empty store, and for data that is not the store's.
    """
    if Path(out).is_file():
        raise UserError(f"{out} is a file; name a folder with --out.")
    store = Store.open(Path(path))
    experts = [store.read(index) for index in store.require_experts()[:MOST_EXPERTS]]
    task = None if data is None else _task(store, data, device, **reading)
    total = len(experts) * (1 if task is None else len(_paths(store, experts[0])))
    listen({"event": "stage", "name": "inspect", "total": total, "unit": "path"})
    try:
        record = InspectionRecord(
            format="limbeck-inspection",
            version=1,
            store=str(store.path),
            data=store.header.data.name,
            model=store.header.model,
            expert=InspectedTraining.model_validate(store.header.expert),
            experts=len(experts),
            accuracy=None if task is None else _accuracy(task, store, experts, listen),
            **_geometry(store, experts),
            storage=storage(store.layout.count, len(store.layout.names), store.config.epochs),
        )
    except ValidationError:
        raise UserError(
            f"{store.path} has experts whose parameters no plot can show: they diverged, or end where they start; "
            "train them with a smaller step size (--expert.lr)."
        ) from None
    make_folder(Path(out))
    write_json(Path(out) / "inspect.json", record.to_json())
    return write_inspection(Path(out))


def _task(store: Store, data: DataSource, device: str, resize: int | Size | None = None, **reading: Any) -> Task:
    header = store.header
    _, height, width = header.data.shape
    size = (height, width) if resize is None else resize
    images = data if isinstance(data, ImageData) else load_data(data, seed=header.seed, resize=size, **reading)
    preprocess = Preprocess.from_description(header.preprocess)
    network = parse_record(store.path / "store.json", ModelConfig, header.model)
    require_own_code(network.name, "network of the store", "'limbeck experts --model.name'")
    task = make_task(images, network, preprocess, header.augment, device)
    store.require(task.describe())
    return task


def _points(expert: Expert) -> Tensor | None:
    """(K + 1, P) as one tensor."""
    if expert.recorded is None:
        return None
    return torch.stack([expert.recorded.at(epoch) for epoch in range(expert.recorded.end + 1)])


def _paths(store: Store, expert: Expert) -> dict[str, Trajectory]:
    """The stored paths, and from a recorded one every schedule with two waypoints and arc length with four.

    "stored" is the convexified path as the store has it, with its own waypoints and smoothing.
    """
    paths: dict[str, Trajectory] = {}
    points, config = _points(expert), store.config
    if expert.recorded is not None and points is not None:
        paths["recorded"] = expert.recorded
        for name in SCHEDULES:
            paths[f"{name}, 2 waypoints"] = convexify(points, store.layout, (0, config.epochs), schedule=name)
        if config.epochs >= 3:
            four = waypoint_epochs(4, config.epochs)
            paths["arc, 4 waypoints"] = convexify(points, store.layout, four, SMOOTHING["none"])
    if expert.convex is not None:
        paths["stored"] = expert.convex
    return paths


def _accuracy(task: Task, store: Store, experts: list[Expert], listen: Listener) -> PathCurves:
    """Validation accuracy at whole epochs (at most 26 of them) along every path of every expert."""
    end = store.config.epochs
    times = sorted({round(i * end / min(end, 25)) for i in range(min(end, 25) + 1)})
    curves: dict[str, list[list[float]]] = {}
    for expert in experts:
        for name, path in _paths(store, expert).items():
            thetas = (path.at(t).to(task.device) for t in times)
            curve = [score(task.logits, theta, *task.validation).accuracy for theta in thetas]
            curves.setdefault(name, []).append(curve)
            listen({"event": "advance", "text": name})
    return PathCurves(t=times, curves=curves)


def _geometry(store: Store, experts: list[Expert]) -> dict[str, Any]:
    """Cosines between updates, distance to the straight line (means over experts), and the first expert's plane."""
    recorded = [points for points in map(_points, experts) if points is not None]
    if not recorded:
        return {"cosine": None, "straightness": None, "plane": None}
    cosines = torch.stack([cosine_of_updates(points) for points in recorded]).mean(0)
    distances = torch.stack([distance_to_line(points) for points in recorded]).mean(0)
    paths = {name: path for name, path in _paths(store, experts[0]).items() if name.startswith(("rec", "arc", "sto"))}
    return {"cosine": cosines.tolist(), "straightness": distances.tolist(), "plane": plane(recorded[0], paths)}


def cosine_of_updates(points: Tensor) -> Tensor:
    """points (K + 1, P) -> (K, K) cosines between the updates of epochs i and j."""
    updates = torch.nn.functional.normalize(points.double().diff(dim=0), dim=1)
    cosines: Tensor = updates @ updates.T
    return cosines


def distance_to_line(points: Tensor) -> Tensor:
    """points (K + 1, P) -> (K + 1,) distance to the line from first to last, as a fraction of that line's length.

    A path that returns to its start has no line, and huge distances; one that does not move has the distance 0.
    """
    line = (points[-1] - points[0]).double()
    displacement = (points - points[0]).double()
    share = displacement @ line / line.square().sum().clamp_min(TINY)
    distance: Tensor = (displacement - share[:, None] * line).norm(dim=1) / line.norm().clamp_min(TINY)
    return distance


def plane(points: Tensor, paths: dict[str, Trajectory]) -> PlaneRecord:
    """Paths in the plane of the first two principal components of recorded points (K + 1, P), at their epochs."""
    centre = points.double().mean(0)
    _, sizes, axes = torch.linalg.svd(points.double() - centre, full_matrices=False)
    axes = axes[:2]
    share = (sizes.square() / sizes.square().sum().clamp_min(TINY))[:2]
    coordinates = {
        name: torch.stack([(path.at(t).double() - centre) @ axes.T for t in range(len(points))]).T.tolist()
        for name, path in paths.items()
    }
    return PlaneRecord(explained=share.tolist(), paths=coordinates)


def storage(parameters: int, tensors: int, epochs: int) -> list[StorageRow]:
    """Bytes of one expert by form: models of P parameters, and beta of K x L float32 beside waypoints.

    >>> [row.bytes for row in storage(320010, 14, 50)][:3]
    [65282040, 5122960, 2562880]
    """
    beta = 4 * epochs * tensors
    rows = [
        (f"recorded, {epochs + 1} epochs", 4 * parameters * (epochs + 1)),
        ("4 waypoints", 16 * parameters + beta),
        ("2 waypoints", 8 * parameters + beta),
        ("2 waypoints in float16", 4 * parameters + beta),
    ]
    return [StorageRow(form=form, bytes=size, ratio=rows[0][1] / size) for form, size in rows]
