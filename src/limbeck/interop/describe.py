"""Description of a .pt file of other code, for `limbeck info`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from limbeck.core.errors import UserError
from limbeck.interop.read import NAME, STEPS, as_list, as_tensors, guess_network, open_pt


def describe_pt(path: Path) -> dict[str, Any]:
    """Describe a file of experts, or a tensor of a distilled set, as JSON values; "kind" says which of them it is.

    Raises UserError where it is neither, and where `open_pt` refuses it.
    """
    content = open_pt(path)
    size = path.stat().st_size
    if isinstance(content, Tensor):
        return {
            "kind": "tensor of torch.save",
            "shape": list(content.shape),
            "dtype": str(content.dtype),
            "bytes": size,
        }
    if STEPS.fullmatch(path.name):
        return {
            "kind": "path fractions of MCT's experts",
            "experts": len(as_list(content, str(path), "experts")),
            "bytes": size,
        }
    if not NAME.fullmatch(path.name):
        raise UserError(f"{path} is a file of torch.save, but neither one tensor nor named like a file of experts.")
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
