"""The authors' files of distilled sets: which they are, by their content, and what their names say."""

from __future__ import annotations

import re
from collections.abc import Callable
from math import isfinite
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from limbeck.core.errors import UserError
from limbeck.interop.pt_files import FLOATS, INTEGERS
from limbeck.networks.registry import ModelConfig

IMAGES = re.compile(r"(?P<ema>ema_)?images(?P<ipc>_ipc-\d+)?_(?P<which>\d+|best)\.pt")
RESULTS = re.compile(r"res_(?P<method>[A-Za-z]+)_(?P<dataset>[A-Za-z0-9]+)_(?P<network>\w+?)_(?P<ipc>\d+)ipc_?\.pt")
SYN_DATA = re.compile(r"syn_data_(?P<dataset>[A-Za-z0-9]+)_ipc_(?P<ipc>\d+)\.pt")
PIXELS = re.compile(r"data(?:_(?P<which>best|\d+))?\.pt")
IDC_NETWORK = re.compile(r"conv(?P<depth>[1-9])in(?:_w(?P<width>\d+(?:\.\d+)?))?_")
IDC_TILES = re.compile(r"_factor(?P<factor>[1-9])(?P<mode>_multi)?(?:_|$)")

CONSTANTS = {
    "cifar10": "cifar",
    "cifar100": "cifar100",
    "svhn": "svhn",
    "mnist": "mnist",
    "fashionmnist": "fashion",
    "fashion": "fashion",
    "tinyimagenet": "imagenet",
    **dict.fromkeys(("imagenette", "imagewoof", "imagesquack", "imagefruit"), "imagenet"),
    **dict.fromkeys(("imagenet", "imagenet10", "imagenet100"), "imagenet"),
}
"""The constants by which the code of DC, DSA, DM and DataDAM normalises a data set, by its name in lower case."""

VARIANTS: dict[str, dict[str, str]] = {
    "": {},
    "AS": {"activation": "sigmoid"},
    "AR": {"activation": "relu"},
    "AL": {"activation": "leaky-relu"},
    "ASwish": {"activation": "swish"},
    "ASwishBN": {"activation": "swish", "norm": "batch"},
    "NN": {"norm": "none"},
    "BN": {"norm": "batch"},
    "LN": {"norm": "layer"},
    "IN": {"norm": "instance"},
    "GN": {"norm": "group"},
    "NP": {"pooling": "none"},
    "MP": {"pooling": "max"},
    "AP": {"pooling": "avg"},
}
"""What is behind ConvNet in the names of the authors' ablations, as options of limbeck's."""

Pair = tuple[Any, Any]
Kind = Literal["experiments", "snapshots", "set", "pixels"]


class SetFile(NamedTuple):
    """A file that holds images together with their labels.

    kind:       experiments, sets of independent runs (DC, DSA, DM); snapshots, one set as it was at several iterations
                of a run (DataDAM); set, a single one (DataDAM); pixels, a single one before it is normalised (IDC).
    pairs:      (images, labels) of each set, as they are in the file.
    accuracies: the authors' test accuracies by the name of the network, in [0, 1]; empty where the file has none.
    """

    kind: Kind
    pairs: list[Pair]
    accuracies: dict[str, list[float]]


class Origin(NamedTuple):
    """What the names of a file and of its folders say; None where they say nothing.

    method: DC, DSA, DM, DataDAM or IDC. dataset: its name in the authors' code, in lower case. network: its name there.
    model:  that network, where limbeck has it.
    factor: tiles along each side of IDC's images. multi: whether they are cut by every number up to `factor`.
    """

    method: str | None = None
    dataset: str | None = None
    network: str | None = None
    model: ModelConfig | None = None
    factor: int | None = None
    multi: bool = False

    @property
    def constants(self) -> str | None:
        """The name of the constants by which the authors' code normalises this data set."""
        if self.method == "IDC" and self.dataset == "cifar100":
            return "cifar"
        return CONSTANTS.get(self.dataset or "")


def find_sets(content: Any, path: Path) -> SetFile | None:
    """The sets in the content of a file; None where it is neither {"data": ...} nor a pair of two tensors.

    Raises UserError for {"data": ...} that is neither [images, labels] nor a list of such pairs.
    """
    if _is_pair(content):
        return SetFile("pixels", [tuple(content)], {})
    if not isinstance(content, dict) or "data" not in content:
        return None
    data, accuracies = content["data"], _read_accuracies(content.get("accs_all_exps"))
    if _is_pair(data):
        return SetFile("set", [tuple(data)], accuracies)
    if not isinstance(data, list | tuple) or not data or not all(map(_is_pair, data)):
        raise UserError(f"{path} holds 'data' that is neither [images, labels] nor a list of such pairs of tensors.")
    pairs = [tuple(pair) for pair in data]
    # DC saves once an experiment, when its accuracies are in; DataDAM at every evaluation, before those of its run are.
    is_cut = any(len(values) % len(pairs) or not values for values in accuracies.values())
    is_run = read_name(path, "experiments").method == "DataDAM" or is_cut
    return SetFile("snapshots" if is_run else "experiments", pairs, accuracies)


def _is_pair(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(isinstance(item, Tensor) for item in value)


def _read_accuracies(value: Any) -> dict[str, list[float]]:
    """{"ConvNet": [0.28, ...]} as it is in results, without what is no list of numbers."""
    if not isinstance(value, dict):
        return {}

    def is_list(values: Any) -> bool:
        return isinstance(values, list) and all(type(v) in (int, float) and isfinite(v) for v in values)

    return {str(name)[:40]: [float(v) for v in values] for name, values in value.items() if is_list(values)}


def read_name(path: Path, kind: Kind) -> Origin:
    """What the name of a file of sets says, or for IDC the names of its folder and of the folder above."""
    if kind != "pixels":
        if match := RESULTS.fullmatch(path.name):
            network = match["network"]
            return Origin(match["method"], match["dataset"].lower(), network, _read_network(network))
        if match := SYN_DATA.fullmatch(path.name):
            return Origin("DataDAM", match["dataset"].lower())
        return Origin()
    tag, above = path.absolute().parent.name, path.absolute().parent.parent.name
    tiles, network_tag = IDC_TILES.search(tag), IDC_NETWORK.search(tag)
    model = None
    if network_tag:
        model = ModelConfig(depth=int(network_tag["depth"]), width=max(1, int(128 * float(network_tag["width"] or 1))))
    return Origin(
        method="IDC",
        dataset=next((name for name in (above.lower(), tag.lower()) if name in CONSTANTS), None),
        network=network_tag and network_tag[0].strip("_"),
        model=model,
        factor=int(tiles["factor"]) if tiles else None,
        multi=bool(tiles and tiles["mode"]),
    )


def _read_network(name: str) -> ModelConfig | None:
    """A ConvNet or MLP by its name in the authors' code, where a ConvNet has 3 blocks for images of any size."""
    if name == "MLP":
        return ModelConfig(name="mlp", width=128)
    base, suffix = name[:7], name[7:]
    if base != "ConvNet":
        return None
    if match := re.fullmatch(r"D([1-9])|W([1-9]\d{0,3})", suffix):
        return ModelConfig(depth=int(match[1] or 3), width=int(match[2] or 128))
    return ModelConfig(depth=3, width=128, **VARIANTS[suffix]) if suffix in VARIANTS else None


def find_set_file(source: Path) -> Path:
    """`source` itself where it is a file, else the file of a set in that folder: of several the best, else the latest.

    Raises UserError where there is none, and where several are of different kinds or runs.
    """
    if source.is_file():
        return source
    if not source.is_dir():
        raise UserError(f"{source} does not exist.")
    files = sorted(source.iterdir())
    if images := [file for file in files if IMAGES.fullmatch(file.name)]:
        families = sorted({re.sub(r"_(\d+|best)\.pt", "", file.name) for file in images})
        if len(families) > 1:
            listed = ", ".join(f"{family}_*.pt" for family in families[:5])
            raise UserError(f"{source} holds {listed}; name one of the files.")
        return _latest(images, IMAGES)
    if (source / "images.pt").exists():
        return source / "images.pt"
    if pixels := [file for file in files if PIXELS.fullmatch(file.name)]:
        return _latest(pixels, PIXELS)
    results = [file for file in files if RESULTS.fullmatch(file.name) or SYN_DATA.fullmatch(file.name)]
    if len(results) > 1:
        listed = ", ".join(file.name for file in results[:3])
        raise UserError(f"{source} holds {len(results)} files of results ({listed}, ...); name one of them.")
    if not results:
        raise UserError(
            f"{source} holds no images_best.pt, images_N.pt, images_ipc-N_best.pt, ema_images_best.pt, res_*.pt, "
            "syn_data_*.pt or data.pt."
        )
    return results[0]


def _latest(files: list[Path], name: re.Pattern[str]) -> Path:
    """The file called best, else that of the highest number, else the one without a number."""

    def order(file: Path) -> float:
        match = name.fullmatch(file.name)
        which = match["which"] if match else None
        return float("inf") if which == "best" else -1.0 if which is None else float(which)

    return max(files, key=order)


def check_images(value: Any, shape: tuple[int, int, int], where: str, hint: str) -> Tensor:
    """`value` as float32 images (n, c, h, w) with memory of their own, where it is that.

    shape: (c, h, w) that they must have; hint: what to do where they have another.
    Raises UserError for anything else, and for NaN and infinity.
    """
    if not isinstance(value, Tensor):
        raise UserError(f"{where} holds a {type(value).__name__}, not one tensor.")
    if value.ndim != 4 or value.dtype not in FLOATS or not len(value):
        raise UserError(f"{where} holds {value.dtype} of shape {tuple(value.shape)[:6]}, not images (n, c, h, w).")
    if tuple(value.shape[1:]) != shape:
        raise UserError(f"{where} holds images of shape {tuple(value.shape[1:])}, not {shape}: {hint}")
    return check_finite(value.detach().to(torch.float32, copy=True), where)


def check_finite(values: Tensor, where: str) -> Tensor:
    """`values`; UserError for NaN and infinity."""
    if not bool(torch.isfinite(values).all()):
        raise UserError(f"{where} holds NaN or infinity: the run it came from diverged.")
    return values


def check_labels(value: Any, count: int, classes: int, where: str, note: Callable[[str], None]) -> Tensor:
    """`value` as int64 classes (count,) or float32 probabilities (count, classes), with memory of their own.

    note: receives a sentence where logits become probabilities. Raises UserError for anything else.
    """
    if not isinstance(value, Tensor) or value.dtype not in (*FLOATS, *INTEGERS):
        actual = f"of type {value.dtype}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise UserError(f"{where} holds labels that are {actual}, not numbers.")
    labels: Tensor = value.detach()
    shape = tuple(labels.shape)[:6]
    if labels.ndim < 1 or len(labels) != count:
        raise UserError(f"{where} holds labels of shape {shape}, for {count} images.")
    if labels.ndim == 1 and labels.dtype in FLOATS and bool((labels.double().frac() == 0).all()):
        labels = labels.double().clamp(-1, classes).long()  # DataDAM's initial sets have whole numbers in float32
    if labels.dtype in INTEGERS:
        low, high = int(labels.min()), int(labels.max())
        if labels.ndim != 1 or low < 0 or high >= classes:
            raise UserError(f"{where} holds classes {low} to {high}, of shape {shape}; the data has {classes}, from 0.")
        return labels.to(torch.int64, copy=True)
    if labels.ndim != 2 or labels.shape[1] != classes:
        raise UserError(f"{where} holds soft labels of shape {shape}; the data has {classes} classes.")
    labels = check_finite(labels.to(torch.float32, copy=True), where)
    if bool((labels >= 0).all()) and bool(((labels.sum(1) - 1).abs() < 1e-3).all()):
        return labels
    note("its labels are logits: their softmax was taken")
    return labels.softmax(1)
