"""The code in the card of an exported set: it trains a small network on the files without limbeck."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from limbeck.interop.hub import PARQUET
from limbeck.interop.portable import LABELS, NPZ, PREPROCESS
from limbeck.synthetic.distilled import DistilledSet
from limbeck.synthetic.recipe import lr_optimiser


def canvas_factor(distilled: DistilledSet) -> int:
    """How many images a canvas is wide and high; 0 where the images are none."""
    canvas = distilled.provenance.get("config", {}).get("canvas") or 1
    return int(canvas) if canvas > 1 else 0


_SPACE = {
    "normalise": (
        'mean, std = (torch.from_numpy(space[name])[:, None, None] for name in ("mean", "std"))',
        "return (pixels - mean) / std",
    ),
    "zca": (
        'mean, whiten = (torch.from_numpy(space[name]) for name in ("mean", "whiten"))',
        "return ((pixels.flatten(1) - mean) @ whiten).reshape(pixels.shape)",
    ),
}


def _load_npz(distilled: DistilledSet) -> list[str]:
    return ['x, y = torch.from_numpy(space["x"]), torch.from_numpy(space["y"])']


def _load_parquet(distilled: DistilledSet) -> list[str]:
    label = "soft_label" if distilled.labels.is_floating_point() else "label"
    return [
        f'table = pq.read_table("{PARQUET}")',
        f'x, y = (torch.tensor(table[name].to_pylist()) for name in ("input", "{label}"))',
    ]


def _load_folders(distilled: DistilledSet) -> list[str]:
    channels, height, width = distilled.images.shape[1:]
    if distilled.labels.is_floating_point():
        lines = [
            f'lines = Path("{LABELS}").read_text(encoding="utf-8").splitlines(True)',
            "rows = list(csv.reader(lines))[1:]",
            "files = [row[0] for row in rows]",
            "y = torch.tensor([[float(word) for word in row[1:]] for row in rows])",
        ]
    else:
        lines = [
            "folders = sorted(path for path in Path().iterdir() if path.is_dir())  # as ImageFolder does",
            'files = [file for folder in folders for file in sorted(folder.glob("*.png"))]',
            "y = torch.tensor([folders.index(file.parent) for file in files])",
        ]
    return [
        *lines,
        f"pictures = np.stack([np.array(Image.open(file)).reshape({height}, {width}, {channels}) for file in files])",
        "x = to_input(torch.from_numpy(pictures).permute(0, 3, 1, 2) / 255)",
    ]


def _load_pt(suffix: str, logits: bool) -> Callable[[DistilledSet], list[str]]:
    def load(distilled: DistilledSet) -> list[str]:
        lines = [f'x, y = torch.load("images{suffix}.pt"), torch.load("labels{suffix}.pt")']
        return [*lines, "y = y.softmax(1)  # from logits"] if logits or soft_logits(distilled) else lines

    def soft_logits(distilled: DistilledSet) -> bool:
        return not suffix and distilled.labels.is_floating_point()

    return load


class Style(NamedTuple):
    """How the files of a style are read, for cards.

    files: lines that say what is in them; soft_files: those that sets with soft labels have too.
    load: set -> lines of code that make x and y. space: the file of the numbers that map pixels to network input.
    standard, packages: imports of `load`, of Python's own modules and of others.
    """

    files: tuple[str, ...]
    load: Callable[[DistilledSet], list[str]]
    space: str = PREPROCESS
    soft_files: tuple[str, ...] = ()
    standard: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()


_SPACE_FILE = f"`{PREPROCESS}`: the numbers that map pixels to network input"
STYLES = {
    "imagefolder": Style(
        (
            "`CLASS/00000.png` and so on: pictures of 8 bits a value, a folder for every class. "
            "`torchvision.datasets.ImageFolder(PATH, loader=Image.open)` reads them; its own loader makes grey RGB",
            _SPACE_FILE,
        ),
        _load_folders,
        soft_files=(f"`{LABELS}`: for every picture the probabilities of the classes, in the order of labels",),
        standard=("import csv", "from pathlib import Path"),
        packages=("from PIL import Image",),
    ),
    "npz": Style(
        (
            f"`{NPZ}`: `x` float32 (n, c, h, w), exact, in network input space; `y` int64, or float32 probabilities "
            "with `labels` int64; `pixels` uint8 (n, h, w[, 3]), to look at; `classes`; `lr`; `mean` and `std`, or "
            "`mean`, `whiten` and `colour` of ZCA. It opens with `allow_pickle=False`, numpy's default",
        ),
        _load_npz,
        NPZ,
    ),
    "hf": Style(
        (
            f"`{PARQUET}`: `image` (PNG, 8 bits a value), `label`, `input` (float32 (c, h, w), exact, in network "
            "input space), and `soft_label` or `target` where the set has them. `datasets.load_dataset` reads it",
            _SPACE_FILE,
        ),
        _load_parquet,
        packages=("import pyarrow.parquet as pq",),
    ),
    "mtt": Style(
        (
            "`images_best.pt`, `labels_best.pt`, `lr_best.pt`: tensors in network input space, as MTT writes them",
            _SPACE_FILE,
        ),
        _load_pt("_best", False),
    ),
    "datm": Style(
        ("`images_best.pt`, `labels_best.pt` (logits), `lr_best.pt`: as DATM writes them", _SPACE_FILE),
        _load_pt("_best", True),
    ),
    "ddranking": Style(
        (
            "`images.pt`, `labels.pt` (classes, or logits), `lr.pt`, `images/`, `ddranking.yaml`: for DD-Ranking",
            _SPACE_FILE,
        ),
        _load_pt("", False),
    ),
}


def training_code(distilled: DistilledSet, to: str) -> str:
    """Code that trains a small network on the exported files, in their folder, with torch alone.

    It ends with `predict`: pixels float32 (n, c, h, w) in 0..1 -> the numbers of classes.
    """
    style, recipe = STYLES[to], distilled.recipe
    channels, height, width = distilled.images.shape[1:]
    canvas = canvas_factor(distilled) or 1
    size = height // canvas, width // canvas
    grid = max(1, min(4, min(size) // 4))
    epochs, batch = int(recipe.get("epochs", 1000)), int(recipe.get("batch_size", 256))
    momentum, decay = float(recipe.get("momentum", 0.9)), float(recipe.get("weight_decay", 5e-4))
    optimiser = f"optimiser = torch.optim.SGD(net.parameters(), LR, momentum={momentum:g}, weight_decay={decay:g})"
    if lr_optimiser(distilled) == "adamw":
        optimiser = f"optimiser = torch.optim.AdamW(net.parameters(), LR, weight_decay={decay:g})"
    tensors, formula = _SPACE[distilled.preprocess.kind]
    crop = [
        f"        shift = torch.randint({min(height, width)}, (2,)).tolist()  # images are canvases: a random window",
        f"        images = images.roll(shift, (2, 3))[:, :, :{size[0]}, :{size[1]}]",
    ]
    drop = ["    if epoch == EPOCHS // 2:", '        optimiser.param_groups[0]["lr"] /= 10'] if epochs > 1 else []
    packages = ("import numpy as np", "import torch", "from torch import nn", "from torch.nn import functional as F")
    lines = [
        *style.standard,
        *([""] if style.standard else []),
        *sorted((*packages, *style.packages), key=lambda line: (line.startswith("from"), line)),
        "",
        f'space = dict(np.load("{style.space}"))',
        tensors,
        "",
        "",
        f"def to_input(pixels):  # float32 (n, {channels}, {size[0]}, {size[1]}), 0 black and 1 white",
        f"    {formula}",
        "",
        "",
        *style.load(distilled),
        "net = nn.Sequential(",
        f"    nn.Conv2d({channels}, 32, 3, padding=1), nn.GroupNorm(32, 32), nn.ReLU(), nn.AvgPool2d(2),",
        f"    nn.Conv2d(32, 64, 3, padding=1), nn.GroupNorm(64, 64), nn.ReLU(), nn.AdaptiveAvgPool2d({grid}),",
        f"    nn.Flatten(), nn.Linear({64 * grid * grid}, {len(distilled.classes)}),",
        ")",
        f"EPOCHS, LR = {epochs}, {distilled.lr:.6g}  # the step size belongs to the set's own network; try others too",
        optimiser,
        "for epoch in range(EPOCHS):",
        *drop,
        f"    for rows in torch.randperm(len(x)).split({batch}):",
        "        images = x[rows]",
        *(crop if canvas > 1 else []),
        "        loss = F.cross_entropy(net(images), y[rows])  # y may be probabilities",
        "        optimiser.zero_grad(), loss.backward(), optimiser.step()",
        "",
        "",
        "def predict(pixels):",
        "    with torch.no_grad():",
        "        return net(to_input(pixels)).argmax(1)",
    ]
    return "\n".join(lines) + "\n"
