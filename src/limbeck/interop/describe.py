"""What a .pt file of the field is, for `limbeck info`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from limbeck.core.errors import UserError
from limbeck.interop.read import NAME, STEPS, as_list, as_tensors, guess_network, open_pt


def describe_pt(path: Path) -> dict[str, Any]:
    """Facts of a file of experts or of a tensor of a distilled set, JSON-able, with its kind under "kind".

    Raises UserError when it is neither, or refused.
    """
    held = open_pt(path)
    size = path.stat().st_size
    if isinstance(held, Tensor):
        return {"kind": "tensor of torch.save", "shape": list(held.shape), "dtype": str(held.dtype), "bytes": size}
    if STEPS.fullmatch(path.name):
        return {
            "kind": "path fractions of MCT's experts",
            "experts": len(as_list(held, str(path), "experts")),
            "bytes": size,
        }
    if not NAME.fullmatch(path.name):
        raise UserError(f"{path} is a file of torch.save, but neither one tensor nor named like a file of experts.")
    experts = as_list(held, str(path), "experts")
    first = as_list(experts[0], f"{path}, expert 0", "checkpoints")
    guess = guess_network([tuple(t.shape) for t in as_tensors(first[0], f"{path}, expert 0, checkpoint 0")])
    return {
        "kind": "experts of MCT, waypoints" if path.name.startswith("waypoint") else "experts of MTT, recorded",
        "experts": len(experts),
        "checkpoints": len(first),
        "parameters": sum(t.numel() for t in first[0]),
        "model": None if guess is None else guess.model.model_dump(exclude_none=True),
        "classes": None if guess is None else guess.classes,
        "shape": None if guess is None else list(guess.shape),
        "bytes": size,
        "next": "limbeck import-experts",
    }
