"""Loads network.cpp as a library, once, and checks arguments before they reach C++.

Nothing depends on the library: where it cannot be built, `load` returns None, `unavailable_reason` explains why, and
autograd computes the same derivatives.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from limbeck.derivatives.kernels.build import Unavailable, find_compiler, library, target

NAMES = {torch.float32: "float32", torch.float64: "float64"}
BUFFERS = (
    *("theta", "images", "labels", "direction", "dfeatures"),
    *("features", "logits", "gradient", "dtheta", "dimages", "dlabels", "directional"),
)
"""The buffers that `compute` of network.cpp takes: inputs, then outputs."""


@dataclass(frozen=True, eq=False)
class Library:
    """network.cpp as a loaded library.

    path:      Of the library's file.
    name:      Instruction set and compiler, which together with the inputs determine the bits.
    functions: The library's C functions.
    """

    path: Path
    name: str
    functions: ctypes.CDLL

    @classmethod
    def open(cls, path: Path, name: str) -> Library:
        """Load a library. Raises OSError where the system cannot."""
        functions = ctypes.CDLL(str(path))
        for dtype in NAMES.values():
            number, address = ctypes.c_int64, ctypes.c_void_p
            compute = getattr(functions, f"compute_{dtype}")
            compute.argtypes = [
                number,
                address,
                ctypes.c_double,
                number,
                address,
                *[address] * len(BUFFERS),
                ctypes.c_int,
            ]
            compute.restype = getattr(functions, f"panel_{dtype}").restype = ctypes.c_int
        return cls(path, name, functions)

    def panel(self, dtype: torch.dtype) -> int:
        """The number of which a block's channels have to be a multiple."""
        return int(getattr(self.functions, f"panel_{NAMES[dtype]}")())

    def compute(
        self, dtype: torch.dtype, sizes: Tensor, eps: float, count: int, buffers: Mapping[str, Tensor | None]
    ) -> None:
        """Call `compute` of network.cpp on a batch of `count` images.

        dtype:   Of all buffers but `directional`, which is float64.
        sizes:   The network in the format of `Net` in network.hpp: int64 (1 + 5 blocks).
        eps:     Of instance norm.
        buffers: By their names in `BUFFERS`; outputs are overwritten. A buffer that is None or missing is not needed.

        Raises ValueError for a buffer of another type, device, layout or length, and MemoryError where memory is short.
        """
        tensors = [buffers.get(name) for name in BUFFERS]
        for name, tensor in zip(BUFFERS, tensors):
            expected = torch.float64 if name == "directional" else dtype
            if tensor is not None:
                _check(name, tensor, expected)
        _check("sizes", sizes, torch.int64)
        lengths = torch.tensor([0 if tensor is None else tensor.numel() for tensor in tensors])
        depth, threads = (len(sizes) - 1) // 5, torch.get_num_threads()
        code = getattr(self.functions, f"compute_{NAMES[dtype]}")(
            depth,
            sizes.data_ptr(),
            eps,
            count,
            lengths.data_ptr(),
            *(None if tensor is None else tensor.data_ptr() for tensor in tensors),
            threads,
        )
        if code == 1:
            raise MemoryError("there is not enough memory for a pass of the compiled network; use fewer threads")
        if code:
            shapes = {name: tuple(t.shape) for name, t in zip(BUFFERS, tensors) if t is not None}
            raise ValueError(f"tensors of shapes {shapes} do not fit the compiled network of sizes {sizes.tolist()}")


def _check(name: str, tensor: Tensor, dtype: torch.dtype) -> None:
    if tensor.dtype is not dtype or tensor.device.type != "cpu" or not tensor.is_contiguous():
        raise ValueError(
            f"the compiled network needs {name} as a contiguous {dtype} tensor on the processor, not "
            f"{tensor.dtype} on {tensor.device}{'' if tensor.is_contiguous() else ', not contiguous'}"
        )


@cache
def _loaded() -> tuple[Library | None, str]:
    """The library, or None and the reason."""
    if os.environ.get("LIMBECK_KERNELS") == "0":
        return None, "they are switched off (LIMBECK_KERNELS=0)"
    try:
        instructions, compiler = target(), find_compiler()
        number = re.search(r"\d+(\.\d+)+", compiler.version)
        kind = "clang" if "clang" in compiler.version else "g++"
        name = f"{instructions}, {kind} {number[0] if number else compiler.version}"
        return Library.open(library(compiler, instructions), name), ""
    except Unavailable as error:
        return None, str(error)
    except OSError as error:
        return None, f"the library cannot be loaded ({error})"


def load() -> Library | None:
    """The library, compiled at the first call on this machine; None where it cannot be built."""
    return _loaded()[0]


def unavailable_reason() -> str:
    """A clause that explains why there is no library; empty where there is one."""
    return _loaded()[1]
