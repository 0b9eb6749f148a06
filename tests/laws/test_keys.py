"""What names a store by its content: input spaces that differ never share a key, and equal ones always do."""

from __future__ import annotations

import hashlib
import json
from itertools import combinations
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from limbeck import EvalConfig, ExpertConfig, ModelConfig, UserError, load_data
from limbeck.core.rng import make_generator
from limbeck.data import Preprocess
from limbeck.data.preprocess import CONSTANTS, PreprocessName
from limbeck.evaluation.baselines import baseline_path
from limbeck.experts import Expert, Store
from limbeck.experts.make import default_store, describe_experts
from limbeck.jobs.inspection import inspect_store
from limbeck.task import Task, make_task


def colours(seed: int) -> TensorDataset:
    images = torch.rand(120, 3, 8, 8, generator=make_generator(seed, "colours")) * torch.tensor([1.0, 0.8, 0.5]).view(
        3, 1, 1
    )
    return TensorDataset(images, torch.arange(120) % 2)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """Two data sets that are split by the seed, one in grey, and one that brings its splits."""
    file = tmp_path_factory.mktemp("data") / "whole.npz"
    images, labels = colours(2).tensors
    pixels = (images * 255).byte().permute(0, 2, 3, 1).numpy()
    parts = {"train": slice(0, 80), "val": slice(80, 100), "test": slice(100, 120)}
    arrays = {f"{name}_images": pixels[part] for name, part in parts.items()}
    np.savez(file, **arrays, **{f"{name}_labels": labels.numpy()[part] for name, part in parts.items()})
    return [colours(0), colours(1), "digits", file]


def fitted(kind: str, task: Task) -> Preprocess | None:
    """The same preprocessing as a value: constants written out, and what was fitted, through its description."""
    if kind in CONSTANTS:
        mean, std = (torch.tensor(values) for values in CONSTANTS[kind])
        return Preprocess("normalise", task.data.shape, 0.0, mean, std)
    restored = Preprocess.from_description(json.loads(json.dumps(task.preprocess.describe())))
    return restored if isinstance(restored, Preprocess) else None


def test_tasks_share_a_key_exactly_where_they_share_their_training_images(sources: list[Any]) -> None:
    """Over data, seeds of the split, sizes and every preprocessing, named or fitted."""
    tasks = []
    for source in sources:
        for seed, resize in ((0, None), (1, None), (0, 8), (0, 10)):
            data = load_data(source, seed=seed, resize=resize)
            for kind in get_args(PreprocessName):
                if kind in CONSTANTS and data.channels != len(CONSTANTS[kind][0]):
                    continue
                tasks.append(make_task(data, ModelConfig(name="mlp", width=2), kind))
                value = fitted(kind, tasks[-1])
                if value is not None:
                    tasks.append(make_task(data, ModelConfig(name="mlp", width=2), value))

    def train(task: Task) -> str:
        parts = (np.ascontiguousarray(tensor.numpy()).tobytes() for tensor in task.train)
        return hashlib.sha256(repr(task.data.shape).encode() + b"".join(parts)).hexdigest()

    def keys(task: Task) -> tuple[Path, Path]:
        baseline = baseline_path(task, "random", 1, EvalConfig(), 0)[0]
        return default_store(describe_experts(task, ExpertConfig(), 0)), baseline

    keyed_tasks = [(train(task), keys(task)) for task in tasks]
    assert len({images for images, _ in keyed_tasks}) > 25
    assert len(keyed_tasks) > len({images for images, _ in keyed_tasks}) + 25
    for (images, (store, baseline)), (other_images, (other_store, other_baseline)) in combinations(keyed_tasks, 2):
        assert (images == other_images) == (store == other_store) == (baseline == other_baseline)


def test_a_store_says_which_numbers_its_images_were_normalised_by(tmp_path: Path, expert: Expert) -> None:
    """So that what looks at it later sees the same images, and experts of other images are not taken for its own."""
    data = load_data(colours(0))
    tasks = {kind: make_task(data, ModelConfig(name="mlp", width=2), kind) for kind in ("normalise", "imagenet")}
    store = Store.create(tmp_path / "store", describe_experts(tasks["imagenet"], ExpertConfig(), 0))
    assert json.loads((store.path / "store.json").read_text())["preprocess"]["mean"][0] == pytest.approx(0.485)
    store.require(tasks["imagenet"].describe())
    with pytest.raises(UserError, match="made with preprocess mean"):
        store.require(tasks["normalise"].describe())
    with pytest.raises(UserError, match="made with preprocess mean"):
        Store.create(store.path, describe_experts(tasks["normalise"], ExpertConfig(), 0))
    old = Store(store.path, store.header.model_copy(update={"preprocess": tasks["normalise"].preprocess.header()}))
    old.require(tasks["normalise"].describe())  # from before, when only the kind was said


def test_a_store_of_constants_is_inspected_with_its_own_images(tmp_path: Path) -> None:
    """Its preprocessing was looked up by kind, so that 'imagenet' came back as the images' own mean."""
    from limbeck.jobs.stages import train_experts

    data = load_data(colours(0))
    options = {
        "num_experts": 1,
        "model": ModelConfig(name="mlp", width=4),
        "expert": ExpertConfig(epochs=2, batch_size=32),
    }
    store = train_experts(data, out=tmp_path / "store", preprocess="imagenet", **options)
    inspect_store(store.path, tmp_path / "inspection", data=data)
    curve = json.loads((tmp_path / "inspection" / "inspect.json").read_text())["accuracy"]["curves"]["stored"][0]
    validation = store.read(0).validation
    assert [curve[0], curve[-1]] == pytest.approx([validation[0], validation[-1]])
