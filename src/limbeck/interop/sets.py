"""Import of the authors' distilled sets: MTT, TESLA, FTD, DATM and MCT; DC, DSA, DM, DataDAM, IDC and DREAM."""

from __future__ import annotations

from math import inf
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor

from limbeck.core.errors import UserError
from limbeck.data import DataSource, ImageData, fit_preprocess, load_data
from limbeck.data.augment import DSA, default_strategy
from limbeck.evaluation.protocol import EvalConfig
from limbeck.interop.pt_files import FLOATS, INTEGERS, open_pt
from limbeck.interop.set_files import (
    IMAGES,
    Origin,
    SetFile,
    check_finite,
    check_images,
    check_labels,
    find_set_file,
    find_sets,
    read_name,
)
from limbeck.networks.registry import ModelConfig
from limbeck.synthetic.distilled import DistilledSet, Mosaics
from limbeck.synthetic.tiles import make_partition, tile_sides

LR = 0.01
"""Step size of the evaluation of DC, DSA, DM, DataDAM and IDC, whose sets have none of their own."""

PROTOCOLS: dict[str, dict[str, Any]] = {
    "DC": {"epochs": 300, "augment": "none"},
    "DataDAM": {"epochs": 1800, "batch_size": 64},
    "IDC": {"batch_size": 64},
}
"""How the released code trains on the sets of a method, where this is not the default of `EvalConfig`."""

FITTED = {
    "zca": "its ZCA matrix was not in the files: fitted anew on our train part with eps 0.1",
    "normalise": "its normalising constants were not in the files: fitted anew on our train part",
}
"""Notes on a preprocessing that the files do not hold, by its kind."""

FASHION = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
ORDERS = {
    "cifar10": ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    **dict.fromkeys(("fashionmnist", "fashion"), FASHION),
    **dict.fromkeys(("mnist", "svhn"), tuple("0123456789")),
}
"""How the authors' code numbers the classes of a data set, by its name in lower case."""

MAX_NAMES = 5  # class names in one note


def import_set(
    source: str | Path,
    data: DataSource,
    *,
    preprocess: str | None = None,
    lr: float | None = None,
    model: ModelConfig | None = None,
    augment: str | None = None,
    experiment: int | None = None,
    factor: int | None = None,
    seed: int = 0,
    resize: int | None = None,
) -> DistilledSet:
    """Read a distilled set of MTT, TESLA, FTD, DATM, MCT, DC, DSA, DM, DataDAM, IDC or DREAM.

    source:     a file images_*.pt (or ema_images_*.pt, images_ipc-N_*.pt) with its labels_*.pt and lr_*.pt beside it; a
                file of results, res_*.pt or syn_data_*.pt; IDC's data.pt or data_best.pt; or the folder of one of them,
                of which the best set is taken, else the latest. What a file holds is recognised by its content.
    data:       the data set that it was distilled from, for class names and later evaluation.
    preprocess: the input space of its images, which the files do not hold: normalise or zca (fitted anew on our train
                split), or the name of constants of the authors' code, as cifar. By default the constants of the data
                set that the name of a file of results says; normalise where there is none.
    lr:         the step size, where there is no lr_*.pt; only DATM's code saves one. Sets without a learned step size
                (DC, DSA, DM, DataDAM, IDC) are trained with 0.01 by default, as by the released code.
    model:      the network to train on the set later; by default that in the name of the file, else the ConvNet.
    augment:    likewise; by default all of DSA, and none for DC.
    experiment: which set of a file of several to read, from 0; by default the first of independent experiments, and
                the last of the snapshots of one run (DataDAM).
    factor:     tiles along each side of IDC's images; by default as the folder's name says.
    seed:       of the split of the data. resize: of its images, as in `load_data`.

    `provenance["imported"]["notes"]` of the result says what had to be assumed, the order of classes among it.
    Raises UserError for files that are missing, refused or damaged, and for a set that does not fit the data.
    """
    path = find_set_file(Path(source))
    loaded = load_data(data, seed=seed, resize=resize)
    if lr is not None and not 0 < lr < inf:
        raise UserError(f"--lr must be above 0, not {lr:g}.")
    content = open_pt(path)
    sets, origin, notes = find_sets(content, path), Origin(), list[str]()
    which: str | None
    if sets is None:
        _refuse_options(path, experiment=experiment, factor=factor)
        images, labels = _read_separate(content, path, loaded, notes)
        match = IMAGES.fullmatch(path.name)
        which = match["which"] if match else "best"
        step_size = _read_step_size(_sibling(path, "lr"), lr, notes)
    elif sets.kind == "pixels":
        _refuse_options(path, experiment=experiment)
        origin = read_name(path, sets.kind)
        factor = origin.factor if factor is None else factor
        images, labels, factor = _read_mosaics(sets, path, loaded, factor, origin.multi, notes)
        which = "best" if path.stem.endswith("best") else None
        step_size = _fixed_step_size(lr, notes)
    else:
        _refuse_options(path, factor=factor)
        origin = read_name(path, sets.kind)
        index = _choose_experiment(sets, path, experiment, notes)
        images, labels = _read_result(sets, index, path, loaded, notes)
        which = str(index) if len(sets.pairs) > 1 else None
        step_size = _fixed_step_size(lr, notes)
    is_pixels = sets is not None and sets.kind == "pixels"
    input_space = fit_preprocess(_choose_preprocess(preprocess, origin, is_pixels, notes), loaded.train.images)
    protocol = _find_protocol(origin)
    strategy = protocol.pop("augment", default_strategy(origin.dataset or loaded.name))
    recipe = EvalConfig(**protocol).model_dump(include={"networks", "epochs", "batch_size", "momentum", "weight_decay"})
    network = _choose_network(model, origin, loaded, notes)
    labels = _order_labels(labels, origin, loaded, notes)
    notes += _describe_missing(labels, loaded)
    images = input_space.apply(images) if is_pixels else images
    mosaics = None
    if is_pixels and factor is not None and factor > 1:
        mosaics = Mosaics(images, labels, make_partition(input_space, factor, "multi" if origin.multi else "single"))
        images, labels = mosaics.partition(images, labels)
    return DistilledSet(
        images,
        labels,
        step_size,
        input_space,
        loaded.classes,
        {**recipe, "augment": DSA(strategy if augment is None else augment).strategy, "model": network.model_dump()},
        {
            "method": "imported",
            "config": {"seed": seed},
            "data": {
                "name": loaded.name,
                "fingerprint": loaded.fingerprint,
                **loaded.origin.describe(),
            },
            "which": which,
            "step": int(which) if sets is None and which and which.isdecimal() else None,
            "imported": {"file": path.name, "notes": notes},
        },
        mosaics=mosaics,
    )


def _refuse_options(path: Path, **options: int | None) -> None:
    """Raise UserError for an option that says nothing about this file."""
    reasons = {"experiment": "holds one set", "factor": "holds no images of IDC, which are cut into tiles"}
    for name, value in options.items():
        if value is not None:
            raise UserError(f"{path} {reasons[name]}; leave out --{name}.")


def _read_separate(content: Any, path: Path, data: ImageData, notes: list[str]) -> tuple[Tensor, Tensor]:
    """A set of MTT, TESLA, FTD, DATM or MCT, whose labels are in a file beside the images."""
    hint = "another data set, another size (see --resize), or a texture canvas, which cannot be imported."
    images = check_images(content, data.shape, str(path), hint)
    labels_path = _sibling(path, "labels")
    if not labels_path.exists():
        raise UserError(f"there is no {labels_path}: without labels the images are of no use; add it.")
    return images, check_labels(open_pt(labels_path), len(images), data.num_classes, str(labels_path), notes.append)


def _sibling(images: Path, kind: str) -> Path:
    """The file of labels or of the step size that belongs to a file of images."""
    return images.with_name(images.name.replace("images", kind, 1))


def _read_step_size(path: Path, lr: float | None, notes: list[str]) -> float:
    """`lr`, or the step size in the file where it is None."""
    if lr is not None:
        notes.append(f"its step size {lr:g} was given by hand")
        return lr
    if not path.exists():
        raise UserError(
            f"there is no {path.name} beside the images: MTT, TESLA, FTD and MCT do not save the learned step size, "
            "and the set does not train well with another; give it with --lr (the logs have it as Synthetic_LR)."
        )
    value = open_pt(path)
    if not isinstance(value, Tensor) or value.dtype not in (*FLOATS, *INTEGERS):
        raise UserError(f"{path} holds no tensor of one number; give the step size with --lr.")
    check_finite(value, str(path))
    if value.numel() != 1 or not float(value) > 0:
        raise UserError(f"{path} holds {value.flatten()[:3].tolist()}, not one step size above 0; give it with --lr.")
    return float(value)


def _fixed_step_size(lr: float | None, notes: list[str]) -> float:
    """`lr`, or 0.01 where it is None."""
    if lr is not None:
        notes.append(f"its step size {lr:g} was given by hand")
        return lr
    notes.append(f"it has no step size of its own: {LR} is that of its authors' evaluation (see --lr)")
    return LR


def _choose_experiment(sets: SetFile, path: Path, experiment: int | None, notes: list[str]) -> int:
    """The number of the set to read: `experiment`, else the first of experiments, and the last of a run."""
    count, is_run = len(sets.pairs), sets.kind == "snapshots"
    index = experiment if experiment is not None else count - 1 if is_run else 0
    if not 0 <= index < count:
        raise UserError(f"{path} holds {count} set(s), which are counted from 0; --experiment {index} is none of them.")
    if count > 1 and is_run:
        notes.append(
            f"its file holds {count} snapshots of one run, the first of them its start: number {index} was taken, "
            f"the last is {count - 1} (see --experiment)"
        )
    elif count > 1:
        notes.append(f"its file holds {count} experiments: number {index} was taken, from 0 (see --experiment)")
    return index


def _read_result(sets: SetFile, index: int, path: Path, data: ImageData, notes: list[str]) -> tuple[Tensor, Tensor]:
    """One set of a file of DC, DSA, DM, DataDAM or IDC: images and labels as they are in the file."""
    where = str(path) if len(sets.pairs) == 1 else f"{path}, set {index}"
    images, labels = sets.pairs[index]
    images = check_images(images, data.shape, where, "another data set, or another size (see --resize).")
    notes += _describe_accuracies(sets, index)
    return images, check_labels(labels, len(images), data.num_classes, where, notes.append)


def _describe_accuracies(sets: SetFile, index: int) -> list[str]:
    """A note on what the authors measured for an experiment, on their first network."""
    for network, values in sets.accuracies.items():
        n = len(values) // len(sets.pairs)
        if sets.kind == "experiments" and n > 1:
            own = values[index * n : (index + 1) * n]
            mean, std = 100 * fmean(own), 100 * stdev(own)
            return [f"its authors measured {mean:.1f} +- {std:.1f} % (n {n}) for it on {network}"]
    return []


def _read_mosaics(
    sets: SetFile, path: Path, data: ImageData, factor: int | None, multi: bool, notes: list[str]
) -> tuple[Tensor, Tensor, int]:
    """A set of IDC or DREAM as in the file, and its factor: every image is a mosaic of factor x factor tiles."""
    images, labels = _read_result(sets, 0, path, data, notes)
    low, high = float(images.min()), float(images.max())
    if low < -1 or high > 2:  # the steps after the last clamp leave 0..1 by a little
        raise UserError(
            f"{path} is laid out as IDC's, [images, labels], and holds {low:.3g} to {high:.3g} where IDC has pixels "
            'in 0..1; for images that are normalised, save {"data": [images, labels]}.'
        )
    notes.append(
        "its authors' evaluation mixes images by CutMix and lowers the step size at 2/3 and 5/6 of the epochs, which "
        "this protocol does not"
    )
    if factor is None:
        raise UserError(
            f"{path} does not say how many tiles each of its images holds, and no folder name with _factorN does: give "
            "--factor 1 for IDC-I, 2 for IDC, or 3 for IDC on ImageNet."
        )
    tile_sides(data.size, factor)
    if factor > 1:
        also = ", and by every smaller number" if multi else ""
        count = len(images) * sum(k * k for k in range(1 if multi else factor, factor + 1))
        notes.append(
            f"each of its images was cut into {factor} x {factor} tiles{also}, enlarged: {count} training images"
        )
    return images, labels, factor


def _choose_preprocess(preprocess: str | None, origin: Origin, is_pixels: bool, notes: list[str]) -> str:
    """`preprocess`, else the constants of the data set that the file's name says, else those of our train part."""
    kind = preprocess or origin.constants or "normalise"
    if preprocess is None and origin.constants is not None:
        action = "were" if is_pixels else "are"
        notes.append(f"its images {action} normalised by the constants '{kind}', since its name says {origin.dataset}")
    elif is_pixels:
        notes.append(f"its pixels were mapped to network input by '{kind}', fitted on our train part")
    elif kind in FITTED:
        notes.append(FITTED[kind])
    return kind


def _find_protocol(origin: Origin) -> dict[str, Any]:
    """How the released code of a method trains on its sets, as fields of `EvalConfig` and augment."""
    if (origin.method, origin.dataset) == ("DC", "mnist"):
        return {"augment": "crop_scale_rotate"}  # theirs rotates by up to 45 degrees, DSA by 15
    return dict(PROTOCOLS.get(origin.method or "", {}))


def _choose_network(model: ModelConfig | None, origin: Origin, data: ImageData, notes: list[str]) -> ModelConfig:
    """`model`, else the network that the file's name says, else the ConvNet, with its options filled in."""
    network = (model or origin.model or ModelConfig()).resolved(data.size)
    if model is None and origin.model is None:
        reason = f"limbeck has no {origin.network}" if origin.network else "its network is not in the files"
        notes.append(
            f"{reason}: a ConvNet of depth {network.depth} and width {network.width} was assumed "
            "(see --model.depth, --model.width)"
        )
    return network


def _order_labels(labels: Tensor, origin: Origin, data: ImageData, notes: list[str]) -> Tensor:
    """Labels (n,) or (n, classes) in the order of the data's classes.

    They are renumbered where the data has the classes of the data set in the file's name, in another order, as folders
    of Fashion-MNIST have by the alphabet. Otherwise they are taken as they are, and the notes say as which classes.
    """

    def plain(name: str) -> str:
        return "".join(filter(str.isalnum, name.casefold()))

    names = ORDERS.get(origin.dataset or "", ())
    places = {plain(name): place for place, name in enumerate(data.classes)}
    order = [places[plain(name)] for name in names if plain(name) in places]
    if sorted(order) != list(range(data.num_classes)) or order == sorted(order):
        notes += _describe_order(data)
        return labels
    notes.append(
        f"labels 0 to {len(names) - 1} are {_join_names(names)} in {origin.dataset}, as its name says; they were "
        "renumbered to the order of the data's classes"
    )
    indices = torch.tensor(order)
    return labels[:, indices.argsort()] if labels.dtype.is_floating_point else indices[labels]


def _describe_order(data: ImageData) -> list[str]:
    """Notes on which label of a set was taken as which class, and on what may make this order another."""
    names, last = data.classes, data.num_classes - 1
    listed = _join_names(names)
    if not all(name.isdecimal() for name in names):
        notes = [f"labels 0 to {last} were taken as {listed}, in the order of the data's classes"]
    elif [int(name) for name in names] == list(range(last + 1)):
        notes = [f"labels 0 to {last} were taken as the classes of these names, which are numbers"]
    else:
        label = next(label for label, name in enumerate(names) if int(name) != label)
        notes = [
            f"labels 0 to {last} were taken as {listed}, in the order of the data's classes: their names are numbers, "
            f"and label {label} is the class named {names[label][:24]}"
        ]
    changes = [note for note in data.notes if "renumbered" in note or "classes without images" in note]
    return notes + [f"of the data: {note}"[:300] for note in changes]


def _describe_missing(labels: Tensor, data: ImageData) -> list[str]:
    """A note on the classes of the data that have no image in the set."""
    hard = labels.argmax(1) if labels.dtype.is_floating_point else labels
    counts = hard.bincount(minlength=data.num_classes).tolist()
    missing = [name for name, count in zip(data.classes, counts) if not count]
    return [f"it has no image of {_join_names(missing)}"] if missing else []


def _join_names(names: list[str] | tuple[str, ...]) -> str:
    """The first names, shortened, and how many follow."""
    listed = ", ".join(name[:24] for name in names[:MAX_NAMES])
    return listed + (f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else "")
