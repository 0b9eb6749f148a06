"""Files in the formats of the authors' code, written by separate code after the description of these formats."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from limbeck.core.errors import UserError
from limbeck.networks.registry import ModelConfig, flat_model

Checkpoints = list[list[Tensor]]
"""One expert: a list of checkpoints, each a list of parameter tensors."""

NETWORK = ModelConfig(depth=2, width=3)


def walk(
    seed: int, epochs: int, network: ModelConfig = NETWORK, shape: tuple[int, int, int] = (1, 8, 8)
) -> Checkpoints:
    """A random walk in place of an expert: a list of epochs, each a list of tensors with their own storage."""
    generator = torch.Generator().manual_seed(seed)
    shapes = flat_model(network, shape, 10).layout.shapes
    path = [[0.1 * torch.randn(shape, generator=generator) for shape in shapes]]
    for _ in range(epochs):
        path.append(
            [
                t + 0.05 * torch.rand((), generator=generator) * torch.randn(t.shape, generator=generator)
                for t in path[-1]
            ]
        )
    return path


def arc(path: Checkpoints) -> list[list[Tensor]]:
    """Path fractions: rows of scalars, from zeros to ones."""
    tensors = range(len(path[0]))
    lengths = [[(b[i] - a[i]).norm() for i in tensors] for a, b in itertools.pairwise(path)]
    total = [sum(row[i] for row in lengths) for i in tensors]
    total = [t if float(t) else torch.tensor(1.0) for t in total]
    rows, walked = [[torch.tensor(0.0) for _ in tensors]], [torch.tensor(0.0) for _ in tensors]
    for row in lengths:
        walked = [g + step for g, step in zip(walked, row)]
        rows.append([g / t for g, t in zip(walked, total)])
    return rows


def waypoint_epochs(count: int, epochs: int) -> list[int]:
    """The epochs at which the authors' training script puts `count` waypoints."""
    epochs_at = [*range(0, epochs + 1, (epochs + 1) // (count - 1))]
    return epochs_at if epochs_at[-1] == epochs else [*epochs_at, epochs]


def compress(path: Checkpoints, count: int) -> tuple[Checkpoints, Any]:
    """Waypoints and steps of one expert: rows for two waypoints; for more, a list of rows a segment."""
    if count == 2:
        return [path[0], path[-1]], arc(path)
    at = waypoint_epochs(count, len(path) - 1)
    steps = [arc(path[a : b + 1]) for a, b in itertools.pairwise(at)]
    points = [path[0]]
    points += [[(a + b) / 2 for a, b in zip(path[w - 1], path[w + 1])] for w in at[1:-1]]
    points.append([(a + b) / 2 for a, b in zip(path[-2], path[-1])])
    return points, steps


def get_point(points: Checkpoints, steps: Any, n: float) -> list[Tensor]:
    """The trajectory at real epoch n; at its end the last waypoint, for which the authors' reader has no value."""
    segments = steps if isinstance(steps[0][0], list) else [steps]
    first = 0
    for index, rows in enumerate(segments):
        last = first + len(rows) - 1
        if first <= n < last:
            k, alpha = int(n) - first, n - int(n)
            pairs = zip(points[index], points[index + 1], rows[k], rows[k + 1])
            return [a + ((1 - alpha) * low + alpha * high) * (b - a) for a, b, low, high in pairs]
        first = last
    return points[-1]


def save(value: Any, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(value, path)
    return path


def save_mct(folder: Path, paths: list[Checkpoints], count: int, number: int = 0) -> None:
    compressed = [compress(path, count) for path in paths]
    name = f"{number}" if count == 2 else f"ip{count}_{number}"
    save([points for points, _ in compressed], folder / f"waypoint_buffer_{name}.pt")
    save([steps for _, steps in compressed], folder / f"step_buffer_{name}.pt")


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def refuse(message: str, call: Callable[[], Any]) -> None:
    with pytest.raises(UserError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert len(re.sub(r"/\S*/", "", str(caught.value))) <= 300  # without the folders of the test


def save_set(folder: Path, labels: Tensor, name: str = "best", prefix: str = "", lr: float | None = None) -> Tensor:
    images = torch.randn(10, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    save(images, folder / f"{prefix}images_{name}.pt")
    save(labels, folder / f"{prefix}labels_{name}.pt")
    if lr is not None:
        save(torch.tensor(lr), folder / f"{prefix}lr_{name}.pt")
    return images


def synthetic_pair(seed: int, ipc: int = 1, shape: tuple[int, int, int] = (1, 8, 8), classes: int = 10) -> list[Tensor]:
    """Images and labels in the order in which DC, DSA, DM, DataDAM and IDC hold them: class by class."""
    images = torch.randn(classes * ipc, *shape, generator=torch.Generator().manual_seed(seed), requires_grad=True)
    labels = torch.tensor(np.array([np.ones(ipc) * i for i in range(classes)]), dtype=torch.long).view(-1)
    return [images.detach(), labels]


def save_results(path: Path, experiments: int, networks: tuple[str, ...] = ("ConvNet",), **options: Any) -> Any:
    """A file of DC, DSA or DM: saved after every experiment, when 20 accuracies of each network have been added."""
    accuracies: dict[str, list[Any]] = {network: [] for network in networks}
    data = []
    for experiment in range(experiments):
        for network in networks:
            counts = np.random.default_rng(experiment).integers(2000, 3000, 20)
            accuracies[network] += [count / 10000 for count in counts]  # np.float64, as sums of matches over images
        data.append(deepcopy(synthetic_pair(experiment, **options)))
        save({"data": data, "accs_all_exps": accuracies}, path)
    return data


def save_snapshots(path: Path, evaluations: int, **options: Any) -> Any:
    """A file of DataDAM: a run adds its set at every evaluation; accuracies are added after the last file is saved."""
    data = []
    for evaluation in range(evaluations):
        data.append(deepcopy(synthetic_pair(evaluation, **options)))
        save({"data": data, "accs_all_exps": {"ConvNet": []}}, path)
    return data


def save_idc(path: Path, ipc: int = 1, shape: tuple[int, int, int] = (1, 8, 8)) -> list[Tensor]:
    """A file of IDC or DREAM: pixels in 0..1, which the steps since the last clamp leave by a little, and labels."""
    images, labels = synthetic_pair(3, ipc, shape)
    pixels = (images / 4 + 0.5).clamp(0, 1)
    pixels[0, 0, 0, :2] = torch.tensor([-0.03, 1.02])
    save([pixels, labels], path)
    return [pixels, labels]
