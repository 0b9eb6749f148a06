"""Compiled parts: a ConvNet's derivatives in one call; normalisation, ReLU and pooling as one function with its own.

They are compiled once by the machine's C++ compiler (some seconds) and kept in the cache folder. Nothing needs them:
without a compiler `load` returns None, `trouble` says why, and the same mathematics runs through autograd.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from limbeck.files import home

SOURCES = tuple(Path(__file__).with_name(name) for name in ("block.cpp", "network.cpp"))
HEADERS = tuple(
    Path(__file__).with_name(f"{name}.hpp") for name in ("vectors", "matrix", "winograd", "block", "memory", "network")
)
FLAGS = ("-O2", "-march=native", "-std=c++17", "-shared", "-fPIC", "-fno-math-errno", "-fno-trapping-math")
TYPES = {torch.float32: "float32", torch.float64: "float64", torch.bfloat16: "bfloat16"}


class Kernels:
    """The functions of block.cpp on tensors (n, c, h, w) whose memory is channels last (NHWC).

    gamma, beta (c,), stats and sums (n, 2, c) are of `arithmetic(dtype)`. See block.cpp for what each is.
    """

    def __init__(self, library: ctypes.CDLL):
        self.library, self.found = library, dict[str, Any]()

    def forward(self, z: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """y, stats."""
        y, stats = _pooled(z), _per_image(z)
        self._call("forward", z, z, gamma, beta, eps, y, stats)
        return y, stats

    def backward(self, z: Tensor, gamma: Tensor, beta: Tensor, stats: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
        """dz, sums."""
        dz, sums = torch.empty_like(z), _per_image(z)
        self._call("backward", z, z, gamma, beta, stats, dy, dz, sums)
        return dz, sums

    def forward_tangent(
        self, z: Tensor, gamma: Tensor, beta: Tensor, stats: Tensor, z1: Tensor, gamma1: Tensor, beta1: Tensor
    ) -> tuple[Tensor, Tensor]:
        """y1, stats1."""
        y1, stats1 = _pooled(z), _per_image(z)
        self._call("forward_tangent", z, z, gamma, beta, stats, z1, gamma1, beta1, y1, stats1)
        return y1, stats1

    def backward_tangent(
        self,
        z: Tensor,
        gamma: Tensor,
        beta: Tensor,
        stats: Tensor,
        dy: Tensor,
        sums: Tensor,
        z1: Tensor,
        gamma1: Tensor,
        stats1: Tensor,
        dy1: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """dz1, sums1."""
        dz1, sums1 = torch.empty_like(z), _per_image(z)
        self._call("backward_tangent", z, z, gamma, beta, stats, dy, sums, z1, gamma1, stats1, dy1, dz1, sums1)
        return dz1, sums1

    def fold(self, columns: Tensor, shape: torch.Size, padding: int) -> Tensor:
        """The gradient in the images (n, c, h, w) of a 3 x 3 convolution from that in its patches (n oh ow, 9 c)."""
        dx = torch.empty(shape, dtype=columns.dtype, memory_format=torch.channels_last)
        self._call("fold", dx, padding, columns, dx)
        return dx

    def run(self, name: str, dtype: torch.dtype, *arguments: Tensor | float | None) -> None:
        """A function of the library, of its SIGNATURES: numbers as they are, tensors by their address.

        Raises MemoryError where it found none.
        """
        if self._function(name, dtype)(*map(_plain, arguments), torch.get_num_threads()):
            raise MemoryError("the compiled network found no memory for a pass; use fewer threads")

    def _call(self, name: str, shaped: Tensor, *arguments: Tensor | float | None) -> None:
        n, c, h, w = shaped.shape
        self.run(name, shaped.dtype, n, h, w, c, *arguments)

    def _function(self, name: str, dtype: torch.dtype) -> Any:
        """With the types of its arguments, so that numbers and addresses are passed as they are."""
        key = f"{name}_{TYPES[dtype]}"
        if key not in self.found:
            function = getattr(self.library, key)
            function.argtypes = [C_TYPES[kind] for kind in SIGNATURES[name] + "t"]
            function.restype = ctypes.c_int if name == "answer" else None  # None: it cannot fail
            self.found[key] = function
        return self.found[key]


SIGNATURES = {  # as in the C++ files, before the number of threads: n a count, p an address, d a real number
    "forward": "n" * 4 + "ppp" + "d" + "pp",
    "backward": "n" * 4 + "p" * 7,
    "forward_tangent": "n" * 4 + "p" * 9,
    "backward_tangent": "n" * 4 + "p" * 12,
    "fold": "n" * 5 + "p" * 2,
    "tape_size": "npnp",
    "answer": "np" + "d" + "nn" + "p" * 11,
}
C_TYPES = {"n": ctypes.c_int64, "p": ctypes.c_void_p, "d": ctypes.c_double, "t": ctypes.c_int}


def arithmetic(dtype: torch.dtype) -> torch.dtype:
    """What is computed with where activations are stored as `dtype`."""
    return torch.float32 if dtype is torch.bfloat16 else dtype


def _pooled(z: Tensor) -> Tensor:
    n, c, h, w = z.shape
    return torch.empty(n, c, h // 2, w // 2, dtype=z.dtype, memory_format=torch.channels_last)


def _per_image(z: Tensor) -> Tensor:
    return torch.empty(len(z), 2, z.shape[1], dtype=arithmetic(z.dtype))


def _plain(argument: Tensor | float | None) -> float | None:
    """A number as it is, a tensor as its address."""
    if not isinstance(argument, Tensor):
        return argument
    layout = torch.channels_last if argument.ndim == 4 else torch.contiguous_format
    if not argument.is_contiguous(memory_format=layout):
        raise ValueError(f"a kernel was handed a tensor {tuple(argument.shape)} that is not contiguous in its layout")
    return argument.data_ptr()


@cache
def _built() -> tuple[Kernels | None, str]:
    """The kernels, or None and why there are none."""
    if os.environ.get("LIMBECK_KERNELS") == "0":
        return None, "they are switched off (LIMBECK_KERNELS=0)"
    compiler = shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        return None, "there is no C++ compiler (a Debian package called g++ has one)"
    try:
        library = ctypes.CDLL(str(_compiled(compiler)))
    except (OSError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", None) or "").strip() or str(error)
        return None, f"{compiler} could not build them: {said.splitlines()[0]}"
    _keep_freed_memory()
    return Kernels(library), ""


def load() -> Kernels | None:
    """The kernels, built at the first call on this machine; None where they cannot be."""
    return _built()[0]


def trouble() -> str:
    """Why there are no kernels, as half a sentence; empty where there are."""
    return _built()[1]


def _compiled(compiler: str) -> Path:
    """The library for this source, compiler and processor; made under another name and renamed, as all our files.

    Its checksum lies beside it: a damaged one is made again, since loading it could end the process.
    """
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    key = hashlib.sha256(
        "\n".join([*(source.read_text() for source in SOURCES + HEADERS), version, *FLAGS, _processor()]).encode()
    ).hexdigest()[:16]
    path = home() / "kernels" / f"kernels-{key}.so"
    checksum = path.with_suffix(".sha256")
    if _intact(path, checksum):
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        command = [compiler, *FLAGS, *map(str, SOURCES), "-o", str(made)]
        threaded = subprocess.run([*command, "-fopenmp"], capture_output=True, text=True, check=False)
        if threaded.returncode:  # a compiler without OpenMP: the loops then run on one thread
            subprocess.run(command, capture_output=True, text=True, check=True)
        noted = Path(folder) / checksum.name
        noted.write_text(hashlib.sha256(made.read_bytes()).hexdigest())
        made.replace(path)
        noted.replace(checksum)
    return path


def _intact(path: Path, checksum: Path) -> bool:
    try:
        return checksum.read_bytes() == hashlib.sha256(path.read_bytes()).hexdigest().encode()
    except OSError:
        return False


def _processor() -> str:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine() + platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())


def _keep_freed_memory() -> None:
    """Ask the allocator not to hand large blocks back between steps.

    glibc maps blocks above 32 MB anew each time, and every page is cleared on its first use: a convolution of 3 to 128
    channels at 32 pixels took 40 ms, 11 without (100 images, one thread).
    """
    try:
        libc = ctypes.CDLL(None)
        if not libc.mallopt(-3, 1 << 30):  # M_MMAP_THRESHOLD; older ones take no more than this
            libc.mallopt(-3, 32 << 20)
        libc.mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD
        libc.mallopt(-8, 1)  # M_ARENA_MAX: a thread's own arena could not keep blocks above 64 MB
    except (OSError, AttributeError):  # not glibc
        return
