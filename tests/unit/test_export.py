"""Export of experts and distilled sets, which are imported again or compared with the authors' layout."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from authors_files import (
    NETWORK,
    flat,
    refuse,
    save_mct,
    save_set,
    walk,
)
from torch import Tensor

from limbeck.data import ImageData
from limbeck.data.preprocess import Preprocess
from limbeck.experts import Expert, ExpertConfig, Recorded, Store
from limbeck.experts.make import describe_experts
from limbeck.interop import export_experts, export_set, import_experts, import_set
from limbeck.synthetic.distilled import DistilledSet
from limbeck.task import Task, make_task


def make_store(path: Path, task: Task, experts: list[Expert], config: ExpertConfig) -> Store:
    store = Store.create(path, describe_experts(task, config, seed=0))
    for index, expert in enumerate(experts):
        store.write(index, expert)
    return store


@pytest.fixture
def small(digits: ImageData) -> Task:
    return make_task(digits, NETWORK)


def records(value: Any) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else [t for item in value for t in records(item)]


def test_recorded_experts_go_out_and_come_back(
    tmp_path: Path, small: Task, import_buffers: Callable[..., Store]
) -> None:
    paths = [torch.stack([flat(p) for p in walk(seed, 2)]) for seed in range(12)]
    experts = [Expert(None, Recorded(points), (0.1, 0.2, 0.3), 0.5) for points in paths]
    store = make_store(tmp_path / "ours", small, experts, ExpertConfig(epochs=2, keep="recorded"))
    files = export_experts(store, tmp_path / "out")
    assert [file.name for file in files] == ["replay_buffer_0.pt", "replay_buffer_1.pt"]
    content = torch.load(files[0], weights_only=True)
    assert [len(content), len(content[0]), len(content[0][0])] == [10, 3, 10]
    for tensor in records(content):
        assert tensor.untyped_storage().nbytes() == 4 * tensor.numel()
    back = import_buffers(tmp_path / "out")
    assert back.header.key != store.header.key
    for index, points in enumerate(paths):
        recorded = back.read(index).recorded
        assert recorded is not None
        assert torch.equal(recorded.tensor(), points)
    refuse("no convexified trajectory", lambda: export_experts(store, tmp_path / "x", "mct"))
    refuse("exported as", lambda: export_experts(store, tmp_path / "x", "pickle"))


@pytest.mark.parametrize("count", [2, 4])
def test_convexified_experts_go_out_and_come_back(
    tmp_path: Path, small: Task, import_buffers: Callable[..., Store], count: int
) -> None:
    save_mct(tmp_path / "theirs", [walk(0, 9)], count)
    first = import_buffers(tmp_path / "theirs")
    files = export_experts(first, tmp_path / "again", "mct")
    for file in files:
        old, new = records(torch.load(tmp_path / "theirs" / file.name)), records(torch.load(file))
        assert len(old) == len(new)
        for a, b in zip(old, new):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=0)
            assert b.untyped_storage().nbytes() == 4 * b.numel()
    second = import_experts(tmp_path / "again", tmp_path / "second", small.data, measure=20)
    a, b = first.read(0).convex, second.read(0).convex
    assert a is not None
    assert b is not None
    assert a.epochs == b.epochs
    assert torch.equal(a.waypoints, b.waypoints)
    assert torch.equal(a.beta, b.beta)
    refuse("no recorded trajectory", lambda: export_experts(first, tmp_path / "x", "mtt"))


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("style", ["mtt", "datm"])
def test_sets_go_out_and_come_back(tmp_path: Path, digits: ImageData, soft: bool, style: str) -> None:
    save_set(tmp_path / "a", (torch.eye(10) * 0.91 + 0.009) if soft else torch.arange(10))
    distilled = import_set(tmp_path / "a", digits, lr=0.02)
    files = export_set(distilled, tmp_path / "b", style)
    assert [file.name for file in files] == [
        "images_best.pt",
        "labels_best.pt",
        "lr_best.pt",
        "preprocess.npz",
        "README.md",
    ]
    if style == "datm":
        labels = torch.load(files[1])
        assert labels.shape == (10, 10)
        assert torch.isfinite(labels).all()
    imported = import_set(tmp_path / "b", digits)
    assert torch.equal(imported.images, distilled.images)
    assert imported.lr == pytest.approx(0.02)
    if soft:
        torch.testing.assert_close(imported.labels, distilled.labels)
    else:
        assert torch.equal(imported.hard_labels(), distilled.labels)


READ_BY_DD_RANKING = {
    *("dataset", "real_data_path", "ipc", "model_name", "data_aug_func", "aug_params", "optimizer", "lr_scheduler"),
    *("step_size", "weight_decay", "momentum", "num_eval", "im_size", "num_epochs", "real_batch_size"),
    *("syn_batch_size", "use_zca", "num_workers", "device", "dist", "save_path", "random_data_format"),
    *("random_data_path", "eval_full_data", "custom_train_trans", "custom_val_trans"),
}
"""Options that both scores of ddranking 0.2.0 (metrics/hard_label.py, metrics/soft_label.py) read of a configuration.

A missing one is None in most places, or a KeyError for the last two.
"""
READ_FOR_SOFT_LABELS = {
    *("soft_label_mode", "soft_label_criterion", "loss_fn_kwargs", "use_aug_for_hard", "stu_use_torchvision"),
    *("tea_use_torchvision", "teacher_dir", "teacher_model_names"),
}
READ_BY_DSA = {"flip", "rotate", "saturation", "brightness", "contrast", "scale", "crop", "cutout"}


def read_bundle_config(folder: Path) -> dict[str, Any]:
    """The options, from YAML whose values are JSON."""
    lines = (folder / "ddranking.yaml").read_text().splitlines()
    return {
        name: json.loads(value) for name, value in (line.split(": ", 1) for line in lines if not line.startswith("#"))
    }


@pytest.mark.parametrize("soft", [False, True])
def test_the_folder_for_dd_ranking(tmp_path: Path, digits: ImageData, soft: bool) -> None:
    classes = torch.arange(10).flip(0)
    save_set(tmp_path / "a", torch.eye(10)[classes] * 0.91 + 0.009 if soft else classes)
    distilled = import_set(tmp_path / "a", digits, lr=0.02)
    export_set(distilled, tmp_path / "b", "ddranking")
    labels = torch.load(tmp_path / "b/labels.pt")
    assert torch.equal(labels.argmax(1) if soft else labels, torch.arange(10))
    assert torch.equal(torch.load(tmp_path / "b/images.pt"), distilled.images.flip(0))
    assert float(torch.load(tmp_path / "b/lr.pt")) == pytest.approx(0.02)
    assert len(list((tmp_path / "b/images").rglob("00000.png"))) == 10
    facts = read_bundle_config(tmp_path / "b")
    assert set(facts) == READ_BY_DD_RANKING | (READ_FOR_SOFT_LABELS if soft else {"use_torchvision"})
    assert set(facts["aug_params"]) == READ_BY_DSA
    assert (facts["ipc"], facts["im_size"], facts["model_name"]) == (1, [8, 8], f"ConvNet-{NETWORK.depth}")
    assert (facts["num_epochs"], facts["step_size"]) == (1000, 500)
    assert facts["random_data_format"] == "tensor"
    refuse("exported as", lambda: export_set(distilled, tmp_path / "c", "other"))


@pytest.mark.parametrize(("name", "theirs"), [("cifar-10", "CIFAR10"), ("tiny-imagenet", "TinyImageNet")])
def test_dd_ranking_gets_images_normalised_as_its_test_images(tmp_path: Path, name: str, theirs: str) -> None:
    """Its constants, from ddranking 0.2.0, utils/data.py; our data has statistics of its own."""
    pixels = torch.rand(10, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    preprocess = Preprocess("normalise", (3, 8, 8), 0.0, torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.3, 0.2, 0.1]))
    recipe = {"model": {"name": "vgg11", "norm": "batch"}, "augment": "none", "epochs": 1, "networks": 2}
    recipe |= {"batch_size": 256, "momentum": 0.9, "weight_decay": 0.0005}
    classes = tuple(str(label) for label in range(10))
    distilled = DistilledSet(
        *(preprocess.apply(pixels), torch.arange(10), 0.01, preprocess, classes, recipe, {"data": {"name": name}})
    )
    export_set(distilled, tmp_path, "ddranking")
    mean, std = {
        "CIFAR10": ([0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010]),
        "TinyImageNet": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    }[theirs]
    expected = (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    torch.testing.assert_close(torch.load(tmp_path / "images.pt"), expected, atol=1e-5, rtol=0)
    facts = read_bundle_config(tmp_path)
    assert (facts["dataset"], facts["model_name"], facts["data_aug_func"]) == (theirs, "VGG-11-BN", None)
    assert facts["step_size"] == 1
    assert f"mean {mean[0]}, {mean[1]}, {mean[2]}, std" in (tmp_path / "README.md").read_text()
