"""What tests of the command line share: small settings, pictures, and what a call gave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

EXPERTS = ["--model.width", "4", "--num-experts", "1", "--epochs", "2"]


TINY = [
    *("--model.width", "4", "--num-experts", "1", "--expert.epochs", "2", "--iterations", "4", "--syn-steps", "2"),
    *("--max-start-epoch", "1", "--expert-epochs", "1", "--lr-img", "5", "--lr-teacher", "0.05"),
    *("--validate-every", "2", "--validate-networks", "1", "--validate-epochs", "2"),
    *("--eval.epochs", "2", "--eval.networks", "1", "--eval.full-epochs", "1", "--eval.full-networks", "1"),
]


class Result(NamedTuple):
    status: Any
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def picture(path: Path, width: int = 8, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, width), dtype=np.uint8)).save(path)
    return path


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
