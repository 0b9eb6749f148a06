"""Import of the authors' distilled sets: images_*.pt, labels_*.pt, and lr_*.pt where there is one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from limbeck.core.errors import UserError
from limbeck.data import ImageData, fit_preprocess, load_data
from limbeck.data.augment import DSA, default_strategy
from limbeck.evaluation.protocol import EvalConfig
from limbeck.interop.read import open_pt
from limbeck.networks.registry import ModelConfig
from limbeck.synthetic.distilled import DistilledSet

NAME = re.compile(r"(?P<ema>ema_)?images(?P<ipc>_ipc-\d+)?_(?P<which>\d+|best)\.pt")

FITTED = {
    "zca": ("its ZCA matrix was not in the files: fitted anew on our train part with eps 0.1",),
    "normalise": ("its normalising constants were not in the files: fitted anew on our train part",),
}
"""Notes on a preprocessing that the files do not hold, by its kind."""


def import_set(
    source: str | Path,
    data: str | Path | ImageData,
    *,
    preprocess: str = "normalise",
    lr: float | None = None,
    model: ModelConfig | None = None,
    augment: str | None = None,
    seed: int = 0,
    resize: int | None = None,
) -> DistilledSet:
    """Read a distilled set of MTT, TESLA, FTD, DATM or MCT.

    source:     a file images_*.pt (or ema_images_*.pt, images_ipc-N_*.pt), or its folder, of which the best set is
                taken, else the latest. Labels and step size are read from the files beside it with the same ending.
    data:       the data set that it was distilled from, for class names and later evaluation.
    preprocess: the input space of its images, which the files do not say: normalise or zca (fitted anew on our train
                split), or cifar or imagenet (the constants of the authors' code).
    lr:         the learned step size, where there is no lr_*.pt; only DATM's code saves one.
    model:      the network to train on the set later; by default the ConvNet. augment: likewise; by default all of DSA.
    seed:       of the split of the data. resize: of its images, as in `load_data`.

    `provenance["imported"]["notes"]` of the result says what had to be assumed.
    Raises UserError for files that are missing, refused or damaged, and for a set that does not fit the data.
    """
    path = _images_file(Path(source))
    loaded = load_data(data, seed=seed, resize=resize)
    images = _images(path, loaded)
    notes: list[str] = []
    labels = _labels(_sibling(path, "labels"), len(images), loaded.num_classes, notes)
    step_size = _step_size(_sibling(path, "lr"), lr, notes)
    notes += FITTED.get(preprocess, ())
    input_space = fit_preprocess(preprocess, loaded.train.images)
    match = NAME.fullmatch(path.name)
    step_name = match["which"] if match else "best"
    network = (model or ModelConfig()).resolved(loaded.size)
    strategy = DSA(default_strategy(loaded.name) if augment is None else augment).strategy
    recipe = EvalConfig().model_dump(include={"networks", "epochs", "batch_size", "momentum", "weight_decay"})
    return DistilledSet(
        images,
        labels,
        step_size,
        input_space,
        loaded.classes,
        {**recipe, "augment": strategy, "model": network.model_dump()},
        {
            "method": "imported",
            "config": {"seed": seed},
            "data": {
                "name": loaded.name,
                "fingerprint": loaded.fingerprint,
                "source": str(data) if isinstance(data, str | Path) else None,
                "resize": resize,
            },
            "which": step_name,
            "step": int(step_name) if step_name.isdigit() else None,
            "imported": {"file": path.name, "notes": notes},
        },
    )


def _images_file(source: Path) -> Path:
    """`source` itself where it is a file, else the best or latest file of images in that folder."""
    if source.is_file():
        return source
    if not source.is_dir():
        raise UserError(f"{source} does not exist.")
    matches = {file: match for file in sorted(source.iterdir()) if (match := NAME.fullmatch(file.name))}
    if not matches and (source / "images.pt").exists():
        return source / "images.pt"
    if not matches:
        raise UserError(f"{source} holds no images_best.pt, images_N.pt, images_ipc-N_best.pt or ema_images_best.pt.")
    families = sorted({(match["ema"] or "") + "images" + (match["ipc"] or "") for match in matches.values()})
    if len(families) > 1:
        raise UserError(f"{source} holds {', '.join(f'{family}_*.pt' for family in families)}; name one of the files.")
    steps = {
        file: float("inf") if match["which"] == "best" else float(match["which"]) for file, match in matches.items()
    }
    return max(steps, key=steps.__getitem__)


def _sibling(images: Path, kind: str) -> Path:
    """The file of labels or of the step size that belongs to a file of images."""
    return images.with_name(images.name.replace("images", kind, 1))


def _tensor(value: Any, path: Path) -> Tensor:
    if not isinstance(value, Tensor):
        raise UserError(f"{path} holds a {type(value).__name__}, not one tensor.")
    if value.dtype.is_floating_point and not bool(torch.isfinite(value).all()):
        raise UserError(f"{path} holds NaN or infinity: the run it came from diverged.")
    return value.detach().clone()  # out of the mapped file, and without requires_grad


def _images(path: Path, data: ImageData) -> Tensor:
    images = _tensor(open_pt(path), path)
    if images.ndim != 4 or not images.dtype.is_floating_point or not len(images):
        raise UserError(f"{path} holds {images.dtype} of shape {tuple(images.shape)}, not images (n, c, h, w).")
    if tuple(images.shape[1:]) != data.shape:
        raise UserError(
            f"{path} holds images of shape {tuple(images.shape[1:])}, {data.name} of {data.shape}: another data set, "
            "another size (see --resize), or a texture canvas, which cannot be imported."
        )
    return images.float()


def _labels(path: Path, count: int, classes: int, notes: list[str]) -> Tensor:
    """Labels as int64 classes (n,) or probabilities (n, classes)."""
    if not path.exists():
        raise UserError(f"there is no {path}: without labels the images are of no use; add it.")
    labels = _tensor(open_pt(path), path)
    if len(labels.shape) < 1 or len(labels) != count:
        raise UserError(f"{path} holds labels of shape {tuple(labels.shape)}, for {count} images.")
    if not labels.dtype.is_floating_point:
        low, high = int(labels.min()), int(labels.max())
        if labels.ndim != 1 or low < 0 or high >= classes:
            raise UserError(f"{path} holds classes {low} to {high}; the data has {classes}, from 0.")
        return labels.long()
    if labels.ndim != 2 or labels.shape[1] != classes:
        raise UserError(f"{path} holds soft labels of shape {tuple(labels.shape)}; the data has {classes} classes.")
    labels = labels.float()
    if bool((labels >= 0).all()) and bool(((labels.sum(1) - 1).abs() < 1e-3).all()):
        return labels
    notes.append("its labels are logits: their softmax was taken")
    return labels.softmax(1)


def _step_size(path: Path, lr: float | None, notes: list[str]) -> float:
    """`lr`, or the step size in the file where it is None."""
    if lr is not None:
        if not lr > 0:
            raise UserError(f"--lr must be above 0, not {lr:g}.")
        notes.append(f"its step size {lr:g} was given by hand")
        return lr
    if not path.exists():
        raise UserError(
            f"there is no {path.name} beside the images: MTT, TESLA, FTD and MCT do not save the learned step size, "
            "and the set does not train well with another; give it with --lr (the logs have it as Synthetic_LR)."
        )
    value = _tensor(open_pt(path), path)
    if value.numel() != 1 or not float(value) > 0:
        raise UserError(f"{path} holds {value.flatten()[:3].tolist()}, not one step size above 0; give it with --lr.")
    return float(value)
