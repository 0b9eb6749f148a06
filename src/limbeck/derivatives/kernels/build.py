"""Compiles network.cpp for this processor, once, into a folder that only the user can write to."""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

from limbeck.core.errors import UserError
from limbeck.core.folders import kernels_folder
from limbeck.core.locks import locked
from limbeck.core.unfinished import remove_unfinished, reserve

SOURCE = Path(__file__).with_name("network.cpp")
HEADERS = tuple(
    Path(__file__).with_name(f"{name}.hpp") for name in ("vectors", "matrix", "winograd", "block", "memory", "network")
)
FLAGS = ("-O2", "-std=c++17", "-fopenmp", "-fno-math-errno", "-fno-trapping-math")
LIBRARY = ("-shared", "-fPIC", "-fvisibility=hidden")
TARGETS = {
    "avx512": ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"),
    "avx2": ("-mavx2", "-mfma"),
    "sse": ("-msse4.2",),
    "neon": (),
}
"""The instruction sets for which vectors.hpp defines a vector width, with the compiler's flags.

The flags name instructions instead of -march=native, so that all processors of a kind give the same bits.
"""

COMPILER_SECONDS = 300.0  # a slow machine needs one minute; a compiler that hangs must not stop the command

log = logging.getLogger("limbeck")


class Unavailable(Exception):
    """The library cannot be built here; the message is a clause that explains why."""


class Compiler(NamedTuple):
    """The command that runs a compiler, and the first line of the version that it prints."""

    command: tuple[str, ...]
    version: str


def target() -> str:
    """The instruction set that torch uses on this processor, which ATEN_CPU_CAPABILITY can lower.

    Raises Unavailable for a system or a processor for which nothing is built.
    """
    if platform.system() not in ("Linux", "Darwin"):
        raise Unavailable(f"they are not built on {platform.system()}")
    machine = platform.machine().lower()
    if machine in ("aarch64", "arm64"):
        return "neon"
    if machine not in ("x86_64", "amd64"):
        raise Unavailable(f"they are not built for {machine} processors")
    capability = torch.backends.cpu.get_cpu_capability()
    return {"AVX512": "avx512", "AVX2": "avx2"}.get(capability, "sse")


def find_compiler() -> Compiler:
    """The compiler in $CXX, else c++, g++ or clang++. Raises Unavailable where there is none."""
    setting = os.environ.get("CXX", "")
    try:
        words = shlex.split(setting)
    except ValueError:
        raise Unavailable(f"$CXX is {setting}, in which a quotation has no end") from None
    command = words or next(([path] for name in ("c++", "g++", "clang++") if (path := shutil.which(name))), [])
    if not command or shutil.which(command[0]) is None:
        problem = f"$CXX is {command[0]}, which does not exist" if command else "there is no C++ compiler"
        raise Unavailable(f"{problem} (Debian's package g++ has one)")
    version = _run([*command, "--version"]).splitlines()
    if not version:
        raise Unavailable(f"{command[0]} does not say its version")
    return Compiler(tuple(command), version[0])


def library(compiler: Compiler, instructions: str) -> Path:
    """The path of the library for this source, compiler and instruction set; compiled where it is missing or damaged.

    Its checksum lies beside it, because loading a damaged library could end the process. One process compiles while
    others wait. Raises Unavailable where it cannot be compiled.
    """
    sources = [path.read_text() for path in (SOURCE, *HEADERS)]
    flags = (*FLAGS, *LIBRARY, *TARGETS[instructions])
    inputs = "\n".join([*sources, *compiler.command, compiler.version, *flags])
    key = hashlib.sha256(inputs.encode()).hexdigest()[:16]
    folder = private_folder()
    path = folder / f"kernels-{instructions}-{key}.so"
    with lock_folder(folder):
        if not _is_intact(path):
            log.info("compiling the kernels for this processor, once: this takes 5 to 20 seconds")
            compile_source((*compiler.command, *flags), (SOURCE,), path)
            _checksum(path).write_text(_digest(path))
    return path


def compile_source(command: tuple[str, ...], sources: tuple[Path, ...], path: Path) -> None:
    """Compile to a temporary file and rename it to `path`. Raises Unavailable with the compiler's message."""
    with reserve(path) as scratch:
        result = scratch / path.name
        _run([*command, *map(str, sources), "-o", str(result)])
        result.replace(path)


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Lock the folder against other processes of this user.

    On a file system without locks two processes may do the same work; either way files are renamed into place.
    """
    with locked(
        folder / "lock", lambda other: log.info("waiting for %s, which compiles or measures the kernels", other)
    ):
        remove_unfinished(folder)
        yield


def private_folder() -> Path:
    """The folder of compiled code, of mode 700 and owned by the user: in the user's cache, else among temporary files.

    It does not follow $LIMBECK_HOME, which a group may share: anybody who can write a library there could run code as
    this user. Raises Unavailable where the folder belongs to another user, or others can write to it.
    """
    try:
        return _private(kernels_folder())
    except (OSError, UserError):  # the home folder is missing or read-only
        spare = Path(tempfile.gettempdir()) / f"limbeck-kernels-{os.getuid()}"
        try:
            return _private(spare)
        except OSError as error:
            raise Unavailable(f"neither the user's cache nor {spare} can be written to ({error.strerror})") from None


def _private(folder: Path) -> Path:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise Unavailable(
            f"{folder} is not a folder that you alone can write to; remove it, or chmod 700 it if it is yours"
        )
    folder.chmod(0o700)
    (folder / "lock").touch(mode=0o600)
    return folder


def _is_intact(path: Path) -> bool:
    try:
        return path.lstat().st_uid == os.getuid() and _checksum(path).read_text() == _digest(path)
    except (OSError, UnicodeDecodeError):
        return False


def _checksum(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _run(command: list[str]) -> str:
    try:
        process = subprocess.run(
            command, capture_output=True, text=True, errors="replace", check=False, timeout=COMPILER_SECONDS
        )
    except OSError as error:
        raise Unavailable(f"{command[0]} cannot be run: {error.strerror}") from None
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{command[0]} did not end within {COMPILER_SECONDS:.0f} seconds") from None
    if process.returncode == 0:
        return process.stdout or process.stderr
    lines = process.stderr.splitlines() or ["no reason"]
    message = next((line for line in lines if "error" in line), lines[0]).strip()
    if "-fopenmp" in command and any(name in process.stderr for name in ("fopenmp", "omp.h", "libomp", "lomp")):
        raise Unavailable(f"{command[0]} has no OpenMP")
    raise Unavailable(f"{command[0]} could not build them: {message}")
