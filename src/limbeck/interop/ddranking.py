"""What DD-Ranking 0.2.0 reads beside tensors: the options of its scores, and the input space of its data sets."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import torch

from limbeck.core.errors import UserError
from limbeck.data.preprocess import CONSTANTS, Preprocess
from limbeck.synthetic.distilled import DistilledSet

DATASETS = {
    name.lower(): name
    for name in (
        *("CIFAR10", "CIFAR100", "TinyImageNet", "ImageNette", "ImageWoof", "ImageMeow", "ImageSquawk"),
        *("ImageFruit", "ImageYellow", "ImageNet1K"),
    )
}
"""The data sets of DD-Ranking, by their names in lower case without signs."""

DSA_OPTIONS = {
    "flip": 0.5,
    "rotate": 15.0,
    "saturation": 2.0,
    "brightness": 1.0,
    "contrast": 0.5,
    "scale": 1.2,
    "crop": 0.125,
    "cutout": 0.5,
}


def find_dataset(distilled: DistilledSet) -> str | None:
    """DD-Ranking's name of the data that a set was made from; None where it has no such data set.

    >>> preprocess = Preprocess("normalise", (3, 32, 32), 0.0, torch.zeros(3), torch.ones(3))
    >>> provenance = {"data": {"name": "cifar-10"}}
    >>> find_dataset(DistilledSet(torch.zeros(1, 3, 32, 32), torch.zeros(1), 0.01, preprocess, ("a",), {}, provenance))
    'CIFAR10'
    """
    name = str(distilled.provenance.get("data", {}).get("name", ""))
    return DATASETS.get("".join(filter(str.isalnum, name.lower())))


def map_to_input_space(distilled: DistilledSet) -> DistilledSet:
    """The same pictures, normalised as DD-Ranking normalises the test images of its data set.

    Whitened sets, and sets of data that DD-Ranking does not have, are returned as they are.
    """
    dataset = find_dataset(distilled)
    if dataset is None or distilled.preprocess.kind != "normalise":
        return distilled
    mean, std = (torch.tensor(values) for values in CONSTANTS["cifar" if dataset.startswith("CIFAR") else "imagenet"])
    preprocess = Preprocess("normalise", distilled.preprocess.shape, 0.0, mean, std)
    if preprocess.describe() == distilled.preprocess.describe():
        return distilled
    return replace(distilled, images=preprocess.apply(distilled.pictures()), preprocess=preprocess)


RECIPE = ("model", "augment", "networks", "epochs", "batch_size", "momentum", "weight_decay")
"""What DD-Ranking's configuration takes from the recipe of a set."""


def format_config(distilled: DistilledSet) -> str:
    """The options of its score for the set's labels, hard or soft, as YAML whose values are JSON.

    Every option that the score reads is there, since DD-Ranking has no default for most of them. Full-data accuracies
    are not in its cache for CIFAR, so that it measures them (`eval_full_data`).
    """
    height, width = distilled.images.shape[2:]
    stored = distilled.images if distilled.mosaics is None else distilled.mosaics.images
    recipe, dataset = distilled.recipe, find_dataset(distilled)
    if missing := [name for name in RECIPE if recipe.get(name) is None]:
        raise UserError(
            f"the set's recipe says nothing of {', '.join(missing)}, which DD-Ranking needs; make it again."
        )
    model = _network_name(recipe["model"])
    options: dict[str, Any] = {
        "dataset": dataset or distilled.provenance.get("data", {}).get("name", "?"),
        "real_data_path": "./dataset/",
        "ipc": len(stored) // len(distilled.classes),  # of the real images, too, that it compares with
        "im_size": [height, width],
        "model_name": model,
        "data_aug_func": None if recipe["augment"] == "none" else "dsa",
        "aug_params": DSA_OPTIONS,
        "custom_train_trans": None,
        "custom_val_trans": None,
        "use_zca": distilled.preprocess.kind == "zca",
        "optimizer": "sgd",
        "lr_scheduler": "step",
        "step_size": max(1, recipe["epochs"] // 2),
        "weight_decay": recipe["weight_decay"],
        "momentum": recipe["momentum"],
        "num_eval": recipe["networks"],
        "num_epochs": recipe["epochs"],
        "syn_batch_size": recipe["batch_size"],
        "real_batch_size": 256,
        "random_data_format": "tensor",
        "random_data_path": "./random_data",
        "eval_full_data": True,
        "num_workers": 4,
        "device": "cuda",
        "dist": False,
        "save_path": "./results.csv",
    }
    if distilled.labels.dtype.is_floating_point:
        options |= {
            "soft_label_mode": "S",
            "soft_label_criterion": "sce",
            "loss_fn_kwargs": {"temperature": 1.0, "scale_loss": False},
            "use_aug_for_hard": options["data_aug_func"] is not None,
            "stu_use_torchvision": False,
            "tea_use_torchvision": False,
            "teacher_dir": "./teacher_models",
            "teacher_model_names": [model],
        }
    else:
        options["use_torchvision"] = False
    head = ["# For DD-Ranking 0.2.0; hand images.pt, labels.pt and lr.pt to compute_metrics."]
    if dataset is None:
        head.append("# DD-Ranking has no data set of this name.")
    return "\n".join([*head, *(f"{name}: {json.dumps(value)}" for name, value in options.items()), ""])


def _network_name(model: dict[str, Any]) -> str:
    """A network in DD-Ranking's words; its widths are its own, and a network that it lacks is its usual ConvNet."""
    names = {"alexnet": "AlexNet", "lenet": "LeNet", "mlp": "MLP", "resnet18": "ResNet-18", "vgg11": "VGG-11"}
    name = names.get(model.get("name", "convnet"), f"ConvNet-{model.get('depth') or 3}")
    return f"{name}-BN" if model.get("norm") == "batch" and "-" in name else name
