"""Description of a .pt file of other code, for `limbeck info`."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor

from limbeck.core.errors import UserError
from limbeck.interop.expert_files import NAME, STEPS, as_list, as_tensors, guess_network
from limbeck.interop.pt_files import FLOATS, INTEGERS, open_pt
from limbeck.interop.set_files import IMAGES, SetFile, find_sets, read_name

ORDER = "not in the file: import-set takes labels in the order of the data's classes"

KINDS = {
    "experiments": "distilled sets of DC, DSA or DM, one an experiment",
    "snapshots": "snapshots of one run of DataDAM",
    "set": "distilled set, as DataDAM's syn_data",
    "pixels": "distilled set of IDC, in pixels",
}


def describe_pt(path: Path) -> dict[str, Any]:
    """Describe a file of experts or of distilled sets, as JSON values; "kind" says which of them it is.

    Raises UserError where it is neither, and where `open_pt` refuses it.
    """
    content = open_pt(path)
    size = path.stat().st_size
    if isinstance(content, Tensor):
        of_set = {"class order": ORDER, "next": "limbeck import-set"} if IMAGES.fullmatch(path.name) else {}
        return {
            "kind": "images of a distilled set" if of_set else "tensor of torch.save",
            "shape": list(content.shape),
            "dtype": str(content.dtype),
            **of_set,
            "bytes": size,
        }
    if (sets := find_sets(content, path)) is not None:
        return {**_describe_sets(sets, path), "bytes": size, "next": "limbeck import-set"}
    if STEPS.fullmatch(path.name):
        return {
            "kind": "path fractions of MCT's experts",
            "experts": len(as_list(content, str(path), "experts")),
            "bytes": size,
        }
    if not NAME.fullmatch(path.name):
        raise UserError(
            f"{path} is a file of torch.save, but neither one tensor nor a distilled set nor named like a file of "
            "experts."
        )
    experts = as_list(content, str(path), "experts")
    checkpoints = as_list(experts[0], f"{path}, expert 0", "checkpoints")
    parameters = as_tensors(checkpoints[0], f"{path}, expert 0, checkpoint 0")
    guess = guess_network([tuple(tensor.shape) for tensor in parameters])
    return {
        "kind": "experts of MCT, waypoints" if path.name.startswith("waypoint") else "experts of MTT, recorded",
        "experts": len(experts),
        "checkpoints": len(checkpoints),
        "parameters": sum(tensor.numel() for tensor in parameters),
        "model": None if guess is None else guess.model.model_dump(exclude_none=True),
        "classes": None if guess is None else guess.classes,
        "shape": None if guess is None else list(guess.shape),
        "bytes": size,
        "next": "limbeck import-experts",
    }


def _describe_sets(sets: SetFile, path: Path) -> dict[str, Any]:
    """What a file of sets holds, and what its name says of it; images and labels are those of the first set."""
    images, labels = sets.pairs[0]
    origin = read_name(path, sets.kind)
    facts = {"method": origin.method, "dataset": origin.dataset, "network": origin.network, "factor": origin.factor}
    return {
        "kind": KINDS[sets.kind],
        "sets": len(sets.pairs),
        "images": list(images.shape),
        "dtype": str(images.dtype),
        "range": _find_range(images, FLOATS),
        "labels": _find_range(labels, (*FLOATS, *INTEGERS)) if labels.ndim == 1 else list(labels.shape),
        "class order": ORDER,
        "named": {name: value for name, value in facts.items() if value is not None},
        "accuracies": {network: _summarise(values) for network, values in sets.accuracies.items() if values},
    }


def _find_range(values: Tensor, types: tuple[Any, ...]) -> list[float | int] | None:
    """The smallest and largest value, where all are finite and of one of these types; None where they are not."""
    if values.dtype not in types or not values.numel() or not bool(torch.isfinite(values).all()):
        return None
    return [values.min().item(), values.max().item()]


def _summarise(values: list[float]) -> dict[str, float | int | None]:
    spread = round(stdev(values), 4) if len(values) > 1 else None
    return {"mean": round(fmean(values), 4), "std": spread, "n": len(values)}
