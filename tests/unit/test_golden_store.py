"""A store of experts written by the first version of the format can still be read and extended."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from limbeck.core.tensors import digest, read_tensors
from limbeck.experts import Expert, ExpertConfig, Recorded, Store, convexify
from limbeck.networks.flat import Layout

GOLDEN = Path(__file__).parents[1] / "golden"


def points() -> Tensor:
    """(4, 6) recorded parameters, exact in float32."""
    return torch.arange(24.0).reshape(4, 6) ** 2 / 8


def make_golden_store(path: Path) -> None:
    """tests/golden/store was made by this."""
    config = ExpertConfig(epochs=3, waypoints=3, keep="both")
    layout = Layout(("weight", "bias"), ((2, 2), (2,)))
    description = {
        "data": {"name": "golden", "fingerprint": "00ff", "classes": ["a", "b"], "shape": [1, 2, 2]},
        "model": {"name": "mlp"},
        "preprocess": {"kind": "normalise", "eps": 0.0, "shape": [1, 2, 2]},
        "augment": "none",
        "expert": config.model_dump(),
        "seed": 0,
        "layout": {"names": ["weight", "bias"], "shapes": [[2, 2], [2]]},
    }
    convex = convexify(points(), layout, config.waypoint_epochs())
    Store.create(path, description).write(0, Expert(convex, Recorded(points()), (0.25, 0.5, 0.75, 0.875), 0.8125))


def test_the_golden_store_still_opens() -> None:
    store = Store.open(GOLDEN / "store")
    expert = store.read(0)
    assert store.layout.names == ("weight", "bias")
    assert store.layout.shapes == ((2, 2), (2,))
    assert (expert.validation, expert.test) == ((0.25, 0.5, 0.75, 0.875), 0.8125)
    assert expert.convex is not None
    assert expert.recorded is not None
    assert torch.equal(expert.recorded.points, points())
    assert expert.convex.epochs == (0, 2, 3)
    assert torch.equal(expert.convex.waypoints, points()[[0, 2, 3]])
    assert torch.equal(expert.convex.at(2), points()[2])
    assert expert.convex.beta[[1, 2]].eq(1).all()
    assert float(expert.convex.beta[0, 1]) == pytest.approx(0.35749, abs=1e-5)  # |(84, 96)| of that and |(156, 168)|
    assert store.config.epochs == 3


def test_the_golden_store_takes_new_experts(tmp_path: Path) -> None:
    """Written again by the program of today, the expert has the same contents."""
    shutil.copytree(GOLDEN / "store", tmp_path / "store")
    store = Store.open(tmp_path / "store")
    store.write(1, store.read(0))
    old, new = (read_tensors(store.file(index), "limbeck-expert") for index in (0, 1))
    assert digest({}, old[0]) == digest({}, new[0])
    assert {**old[1], "index": 1, "sha256": new[1]["sha256"]} == new[1]
    assert json.loads((tmp_path / "store" / "store.json").read_text())["key"] == new[1]["store"]
