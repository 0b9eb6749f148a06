"""The distilled set, its file, and how it is loaded."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from io import BytesIO
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Module
from torch.utils.data import TensorDataset

from limbeck.core.disk import make_folder
from limbeck.core.errors import UserError
from limbeck.core.record_files import parse_record
from limbeck.core.set_records import SetHeader, TilesRecord
from limbeck.core.shelf import find_shelf_file, read_shelf
from limbeck.core.short_repr import short_repr
from limbeck.core.tensors import is_finite, read_tensors, write_tensors
from limbeck.core.text import printable, quote
from limbeck.data import Preprocess
from limbeck.data.augment import DSA, CanvasCrop
from limbeck.data.memory import refuse_beyond_memory
from limbeck.synthetic.grids import image_grid
from limbeck.synthetic.recipe import train_by_recipe
from limbeck.synthetic.set import SyntheticSet, hard_labels
from limbeck.synthetic.tiles import Partition

FORMAT = "limbeck-set"
TILED, HALF, WHITENED = 2, 3, 4
"""Versions of files that hold mosaics, of those with images of 16 bits, and of those with mosaics of whitened images.

Others are of version 1. A file of version 3 may hold mosaics, and one of version 4 images of 16 bits.
"""


class Mosaics(NamedTuple):
    """The stored images from which training images are cut (multi-formation), and how.

    images, labels: as in a `SyntheticSet`; labels are classes or probabilities.
    """

    images: Tensor
    labels: Tensor
    partition: Partition

    def __repr__(self) -> str:
        return short_repr(self)


def make_mosaics(synthetic: SyntheticSet) -> Mosaics | None:
    """The stored images of a synthetic set from which a `Partition` cuts training images; None where it has none."""
    partition, labels = synthetic.decode, synthetic.labels.detach().cpu()
    if not isinstance(partition, Partition) or partition.factor == 1:
        return None
    labels = labels.softmax(1) if labels.dtype.is_floating_point else labels
    if partition.whitening is not None:
        partition = replace(partition, whitening=partition.whitening.to("cpu"))
    return Mosaics(synthetic.images.detach().cpu(), labels, partition)


@dataclass(frozen=True, eq=False)
class DistilledSet:
    """A distilled training set, with everything that training on it needs.

    images:     float32 (n, channels, height, width), in network input space.
    labels:     int64 (n,) classes, or float32 (n, classes) probabilities.
    lr:         the step size that was learned with the images.
    preprocess: maps other images to network input space (`apply`) and these images to pixels (`invert`).
    classes:    class names, in the order of the labels.
    recipe:     how a network is meant to be trained on the set: network, epochs, momentum, weight decay, augmentation.
    provenance: method, resolved configuration, name and fingerprint of the data, outer step, seed.
    targets:    float32 (n, classes), targets of a regression, any real numbers, where the set was distilled for one
                (RCIG); else None. `labels` are their counterpart for cross-entropy.
    mosaics:    what `images` and `labels` were cut from, where they were (IDC, DREAM); the file holds these alone.

    >>> from limbeck.data import fit_preprocess, load_data
    >>> data = load_data("digits")
    >>> preprocess = fit_preprocess("normalise", data.train.images)
    >>> images, labels = preprocess.apply(data.train.images[:10]), data.train.labels[:10]
    >>> distilled = DistilledSet(images, labels, 0.01, preprocess, data.classes, recipe={}, provenance={})
    >>> len(distilled.dataset()), distilled.pictures().shape
    (10, torch.Size([10, 1, 8, 8]))
    """

    __repr__ = short_repr

    images: Tensor
    labels: Tensor
    lr: float
    preprocess: Preprocess
    classes: tuple[str, ...]
    recipe: dict[str, Any]
    provenance: dict[str, Any]
    targets: Tensor | None = None
    mosaics: Mosaics | None = None

    @property
    def stored_pair(self) -> tuple[Tensor, Tensor]:
        """The images and labels that have to be stored: mosaics, where `images` and `labels` are cut from some."""
        if self.mosaics is not None:
            stored, labels, partition = self.mosaics
            images, repeats = partition(stored, labels)
            if torch.equal(images, self.images) and torch.equal(repeats, self.labels):
                return stored, labels
        return self.images, self.labels

    def dataset(self) -> TensorDataset:
        """A torch `Dataset` of (image, label) pairs, ready for a network."""
        return TensorDataset(self.images, self.labels)

    def pictures(self) -> Tensor:
        """The images as pixels (n, channels, height, width), nominally in [0, 1] and not clipped."""
        return self.preprocess.invert(self.images)

    def _repr_png_(self) -> bytes:
        """A grid of the pictures, a row a class, as a notebook shows the set."""
        file = BytesIO()
        image_grid(self.pictures(), self.labels, self.classes).save(file, "PNG")
        return file.getvalue()

    def hard_labels(self) -> Tensor:
        """The class of each image, int64 (n,): the most likely one where labels are probabilities."""
        return hard_labels(self.labels)

    @property
    def augment(self) -> CanvasCrop:
        """The augmentation for which the set was made: (images (n, c, h, w), seed) -> images of a network's size.

        Canvases are cropped by it. Raises UserError where the recipe names none.
        """
        strategy = self.recipe.get("augment")
        if not isinstance(strategy, str):
            raise UserError(f"the set's recipe names no augmentation but {quote(strategy)}; make the set again.")
        canvas = self.provenance.get("config", {}).get("canvas") or 1
        height, width = self.images.shape[2:]
        return CanvasCrop((height // canvas, width // canvas), DSA(strategy))

    def train(self, module: Module, *, seed: int = 0, epochs: int | None = None, lr: float | None = None) -> Module:
        """Train any torch module on the set by the set's own recipe, in place; returns it in evaluation mode.

        module: maps images (n, channels, height, width) in network input space to logits (n, classes). It may have
            dropout and batch norm. The set goes to the device on which its parameters are.
        epochs, lr: Passes over the set, and the step size; by default the recipe's and the set's. A step size belongs
            to the network with which it was learned: for another one, try a few on validation images.
        Raises UserError where the recipe cannot be followed, and without `lr` where the set's step size is for another
        optimiser than the recipe's.

        >>> from limbeck.data import fit_preprocess, load_data
        >>> data = load_data("digits")
        >>> preprocess = fit_preprocess("normalise", data.train.images)
        >>> rows = torch.arange(100)
        >>> images, labels = preprocess.apply(data.train.images[rows]), data.train.labels[rows]
        >>> recipe = {"epochs": 30, "batch_size": 50, "augment": "crop_rotate"}
        >>> small = DistilledSet(images, labels, 0.05, preprocess, data.classes, recipe, {})
        >>> network = small.train(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)))
        >>> small.accuracy(network, data.test.images, data.test.labels) > 0.7
        True
        """
        train_by_recipe(module, self, seed, epochs, lr)
        return module

    def accuracy(self, module: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor) -> float:
        """The fraction of images that a network classifies correctly, in evaluation mode and without augmentation.

        images: pixels (n, channels, height, width), uint8 or float in [0, 1], as those of `load_data`; labels: (n,).
        Raises UserError where there are no images, and where they are of another size than those of the set.
        """
        if not len(images):
            raise UserError("there are no images to test the network on.")
        canvas = self.provenance.get("config", {}).get("canvas") or 1
        size = tuple(side // canvas for side in self.images.shape[2:])
        if tuple(images.shape[2:]) != size:
            there, here = (" x ".join(map(str, sides)) for sides in (images.shape[2:], size))
            resize = size[0] if size[0] == size[1] else size
            raise UserError(
                f"the images are {there} pixels and those of the set {here}: load them with resize={resize}."
            )
        if isinstance(module, Module) and module.training:  # batch norm would learn from the test images
            module.eval()
            try:
                return self.accuracy(module, images, labels)
            finally:
                module.train()
        parameter = next(module.parameters(), None) if isinstance(module, Module) else None
        device = images.device if parameter is None else parameter.device
        with torch.no_grad():
            chunks = zip(images.split(500), labels.split(500))
            hits = [
                (module(self.preprocess.apply(part).to(device)).argmax(1).cpu() == classes.cpu()).sum()
                for part, classes in chunks
            ]
        return float(sum(hits)) / len(images)

    def save(self, path: str | Path, *, half: bool = False) -> None:
        """Write the set to one safetensors file, atomically. `load` reads it. half: Store the images in 16 bits.

        Folders that are missing are made.
        """
        make_folder(Path(path).parent)
        self.write(Path(path), half=half)

    def write(self, path: Path, *, half: bool = False) -> None:
        """Write the set as `save` does, into a folder that exists."""
        images, labels = self.stored_pair
        tensors = {
            "images": images.half() if half else images,
            "labels": labels,
            "lr": torch.tensor(self.lr, dtype=torch.float64),
        }
        tiles = None
        if self.mosaics is not None and images is not self.images:
            partition = self.mosaics.partition
            tiles = {name: getattr(partition, name) for name in TilesRecord.model_fields}
        if self.targets is not None:
            tensors["targets"] = self.targets
        tensors |= {f"preprocess.{name}": tensor for name, tensor in self.preprocess.state().items()}
        version = HALF if half else 1 if tiles is None else TILED
        if tiles is not None and self.preprocess.kind == "zca":
            version = WHITENED
        header = {
            "format": FORMAT,
            "version": version,
            **({} if tiles is None else {"tiles": tiles}),
            "classes": list(self.classes),
            "preprocess": self.preprocess.header(),
            "recipe": self.recipe,
            "provenance": self.provenance,
        }
        write_tensors(path, tensors, json.loads(json.dumps(header)))  # tuples become lists


def load(path: str | Path) -> DistilledSet:
    """Read a distilled set from its file, or from the folder of a run: the chosen set, else the last one.

    path: Of the file or folder, or the name of a set that comes with limbeck (`limbeck sets` lists them).
    Raises UserError where there is none, and where the file is damaged or not a distilled set.

    >>> import tempfile
    >>> from limbeck.data import fit_preprocess
    >>> pixels = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    >>> preprocess = fit_preprocess("normalise", pixels)
    >>> distilled = DistilledSet(preprocess.apply(pixels), torch.tensor([0, 1]), 0.01, preprocess, ("a", "b"), {}, {})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     distilled.save(f"{folder}/set.safetensors")
    ...     load(f"{folder}/set.safetensors").classes
    ('a', 'b')
    """
    path = find_shelf_file(str(path)) or Path(path)
    if path.is_dir():
        files = [path / f"set-{name}.safetensors" for name in ("chosen", "last")]
        path = next((file for file in files if file.exists()), files[0])
        if not path.exists():
            runs = [str(file.parent) for file in sorted(path.parent.glob("*/run.json"))]
            reason = "it is not a run folder, or the run has not ended"
            reason = f"it is a folder of runs, name one: {' or '.join(runs[:2])}" if runs else reason
            raise UserError(f"{path.parent} holds no distilled set; {reason}.")
    if not path.exists():
        names = ", ".join(read_shelf())
        raise UserError(f"{path} does not exist, and it is no set that comes with limbeck, as {names} are.")
    tensors, content = read_tensors(path, FORMAT, WHITENED, oldest=1)
    header = parse_record(path, SetHeader, content)
    lr = tensors.get("lr")
    if lr is None or lr.numel() != 1 or not lr.is_floating_point() or not 0 < float(lr) < inf:
        raise UserError(f"{path} is damaged: its step size is not one number above 0; make it again.")
    if header.version >= HALF and "images" in tensors and tensors["images"].dtype == torch.float16:
        tensors["images"] = tensors["images"].float()
    _check_tensors(path, tensors, len(header.classes))
    prefix = "preprocess."
    state = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    images, labels, mosaics = tensors["images"], tensors["labels"], None
    preprocess = _read_preprocess(path, header.preprocess, state, images)
    if header.tiles is not None:
        tiles = header.tiles
        if len(tiles.pad) not in (1, images.shape[1]):
            raise UserError(f"{path} is damaged: its tiles have {len(tiles.pad)} values of padding; make it again.")
        count, (height, width) = len(images), images.shape[2:]
        if tiles.factor > min(height, width):
            raise UserError(
                f"{path} is damaged: no image of {height} x {width} pixels has {tiles.factor} tiles a side."
            )
        needed = images.nbytes * (tiles.factor**2 if tiles.mode != "multi" else tiles.factor**3)
        refuse_beyond_memory(needed, f"the training images of {path}, cut from {count}", "use another machine.")
        whitening = preprocess if preprocess.kind == "zca" else None
        partition = Partition(tiles.factor, tiles.mode, tuple(tiles.pad), tiles.max_per_class, whitening)
        mosaics = Mosaics(images, labels, partition)
        images, labels = mosaics.partition(images, labels)
        if not is_finite(images):  # whitening may multiply finite numbers to infinity
            raise UserError(f"{path} is damaged: its tiles hold NaN or infinity; make it again.")
    return DistilledSet(
        images=images,
        labels=labels,
        lr=float(lr),
        preprocess=preprocess,
        classes=tuple(header.classes),
        recipe={name: value for name, value in content["recipe"].items() if value is not None},
        provenance=content["provenance"],
        targets=tensors.get("targets"),
        mosaics=mosaics,
    )


def _read_preprocess(path: Path, header: dict[str, Any], state: dict[str, Tensor], images: Tensor) -> Preprocess:
    """The set's map between pixels and network input; UserError where it is none, or does not fit the images."""
    try:
        preprocess = Preprocess.from_state(header, state)
        preprocess.invert(images[:1])
    except UserError as error:
        raise UserError(f"{path} is damaged: {printable(str(error).rstrip('.'), 150)}; make it again.") from None
    return preprocess


def _check_tensors(path: Path, tensors: Mapping[str, Tensor], classes: int) -> None:
    """Raise UserError unless there are finite images with one label each, and targets of their shape if any."""
    for name, tensor in tensors.items():
        if not is_finite(tensor):
            raise UserError(f"{path} is damaged: its {printable(name, 40)} hold NaN or infinity; make it again.")
    images, labels = tensors.get("images"), tensors.get("labels")
    if images is None or images.ndim != 4 or images.dtype != torch.float32 or not len(images):
        raise UserError(f"{path} is damaged: it holds no float32 images (n, channels, height, width); make it again.")
    soft = len(images), classes
    hard = labels is not None and labels.dtype == torch.int64 and labels.shape == soft[:1]
    if hard and labels is not None and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        hard = False
    if labels is None or not (hard or (labels.dtype == torch.float32 and labels.shape == soft)):
        raise UserError(f"{path} is damaged: it has not one label for each of its images; make it again.")
    targets = tensors.get("targets")
    if targets is not None and (targets.shape != soft or targets.dtype != torch.float32):
        raise UserError(f"{path} is damaged: its targets are not of shape {soft}; make it again.")
