"""The compiled network is the same function on every processor it is built for, and by every compiler that is here.

Builds for x86-64 are loaded where this processor has their instructions; that for aarch64 is run by an emulator. What
is not installed is skipped, and `make portability` says what that is.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from limbeck.compiled import Compiled
from limbeck.derivatives import Wanted
from limbeck.flat import FlatModel
from limbeck.kernels import Library
from limbeck.kernels.build import FLAGS, LIBRARY, SOURCE, TARGETS, Unavailable, compile_source, find_compiler
from limbeck.models import ModelConfig, flat_model
from limbeck.pearlmutter import _blocks, in_torch_operations

CAPABLE = {"AVX512": ["sse", "avx2", "avx512"], "AVX2": ["sse", "avx2"]}
HERE = (
    CAPABLE.get(torch.backends.cpu.get_cpu_capability(), ["sse"])
    if platform.machine().lower() in ("x86_64", "amd64")
    else ["neon"]
)
MAIN = Path(__file__).parents[1] / "portability" / "main.cpp"
CASES = [((1, 28, 28), 32, None, 7), ((3, 20, 26), 5, 3, 23)]  # shape, width, depth, images
CLOSE = {torch.float64: 1e-13, torch.float32: 1e-5}


def inputs(
    case: tuple[tuple[int, int, int], int, int | None, int], dtype: torch.dtype
) -> tuple[FlatModel, list[Tensor]]:
    """The network, and theta, images, labels and direction."""
    shape, width, depth, count = case
    model, generator = flat_model(ModelConfig(width=width, depth=depth), shape, 5), torch.Generator().manual_seed(0)
    draw = [
        torch.randn(size, generator=generator, dtype=torch.float64) for size in ((model.layout.count,), (count, *shape))
    ]
    theta, images = model.fresh(0).double() + 0.1 * draw[0], draw[1]
    labels = torch.randn(count, 5, generator=generator, dtype=torch.float64).softmax(1)
    direction = torch.randn(model.layout.count, generator=generator, dtype=torch.float64)
    return model, [tensor.to(dtype) for tensor in (theta, images, labels, direction)]


@cache
def exact(index: int, dtype: torch.dtype) -> list[Tensor]:
    """In torch's operations and float64, of inputs as they are in `dtype`."""
    model, given = inputs(CASES[index], dtype)
    theta, images, labels, direction = (tensor.double() for tensor in given)
    reference = in_torch_operations(model, torch.float64)
    assert reference is not None
    second = reference.products(theta, images, labels, direction, Wanted(True, True, True))
    results = [reference.gradient(theta, images, labels), reference.logits(theta, images), second.theta, second.images]
    return [tensor for tensor in (*results, second.labels) if tensor is not None]


def compiled(library: Library, model: FlatModel, dtype: torch.dtype) -> Compiled:
    found = _blocks(model)
    assert found is not None
    classes, features = model.layout.shapes[-2]
    return Compiled(library, found[0], classes, features, model.layout.count, found[1], dtype)


def check(results: list[Tensor], index: int, dtype: torch.dtype) -> None:
    for result, expected in zip(results, exact(index, dtype), strict=True):
        assert float((result.double() - expected).norm() / expected.norm()) < CLOSE[dtype]


@pytest.fixture(scope="session")
def builds(request: pytest.FixtureRequest) -> Path:
    return Path(request.config.cache.mkdir("portability"))


@pytest.mark.parametrize("compiler", ["g++", "clang++"])
@pytest.mark.parametrize("target", HERE)
def test_every_build_for_this_processor_computes_the_same(target: str, compiler: str, builds: Path) -> None:
    """Once a vector wider than the registers was four times as slow as none, and two builds shared their tables."""
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    path = builds / f"{target}-{compiler}-{digest()}.so"
    if not path.exists():
        try:
            compile_source((compiler, *FLAGS, *LIBRARY, *TARGETS[target]), (SOURCE,), path)
        except Unavailable as reason:
            if "no OpenMP" not in str(reason):
                raise
            pytest.skip(f"{reason}; Debian's package is called libomp-dev")
    library = Library.open(path, target)
    before = torch.get_num_threads()
    try:
        for index, case in enumerate(CASES):
            for dtype in CLOSE:
                model, (theta, images, labels, direction) = inputs(case, dtype)
                network, results = compiled(library, model, dtype), []
                for threads in (1, 2, 5):
                    torch.set_num_threads(threads)
                    second = network.products(theta, images, labels, direction, Wanted(True, True, True))
                    tensors = [network.gradient(theta, images, labels), network.logits(theta, images), *second[1:]]
                    results.append([tensor for tensor in tensors if tensor is not None])
                check(results[0], index, dtype)
                assert all(a.equal(b) for one, other in pairwise(results) for a, b in zip(one, other))
    finally:
        torch.set_num_threads(before)


def test_the_build_for_aarch64_computes_the_same(builds: Path, tmp_path: Path) -> None:
    compiler = "aarch64-linux-gnu-g++"
    emulator = next((path for name in ("qemu-aarch64-static", "qemu-aarch64") if (path := shutil.which(name))), None)
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed; Debian's package is called g++-aarch64-linux-gnu")
    if emulator is None:
        pytest.skip("qemu-aarch64-static is not installed; Debian's package is called qemu-user-static")
    program = builds / f"aarch64-{digest()}"
    if not program.exists():
        compile_source((compiler, *FLAGS, "-static"), (SOURCE, MAIN), program)
    for index, case in enumerate(CASES):
        for dtype in CLOSE:
            model, given = inputs(case, dtype)
            network = compiled(_FourLanes(), model, dtype)
            theta, direction = network._wide(given[0]), network._wide(given[3])
            sizes = network._sizes(given[1])
            head = [dtype.itemsize, len(network.blocks), len(given[1]), len(theta), given[1].numel(), given[2].numel()]
            arrays = [
                np.array(head),
                np.array([network.eps]),
                sizes.numpy(),
                theta.numpy(),
                given[1].numpy(),
                given[2].numpy(),
            ]
            source, answers = tmp_path / "input", []
            source.write_bytes(b"".join(array.tobytes() for array in (*arrays, direction.numpy())))
            for threads in ("1", "3"):
                subprocess.run([emulator, program, source, tmp_path / "output", threads], check=True)
                answers.append((tmp_path / "output").read_bytes())
            assert answers[0] == answers[1]
            wide = torch.frombuffer(bytearray(answers[0][:-8]), dtype=dtype)
            lengths = [len(theta), given[2].numel(), len(theta), given[1].numel(), given[2].numel()]
            gradient, logits, dtheta, dimages, dlabels = wide.split(lengths)
            results = [network._narrow(gradient), logits.view_as(given[2]), network._narrow(dtheta)]
            check([*results, dimages.view_as(given[1]), dlabels.view_as(given[2])], index, dtype)


class _FourLanes(Library):
    """Stands for a library with vectors of 16 bytes, to lay parameters out for it."""

    def __init__(self) -> None:
        super().__init__(Path(), "neon", None)  # type: ignore[arg-type]

    def panel(self, dtype: torch.dtype) -> int:
        return 2 * 16 // dtype.itemsize


@cache
def digest() -> str:
    """Of the sources and flags, so that a build in pytest's cache is not taken for another."""
    from limbeck.files import content_key
    from limbeck.kernels.build import HEADERS

    texts = [path.read_text() for path in (SOURCE, *HEADERS, MAIN)]
    return content_key(
        {"texts": texts, "flags": [*FLAGS, *LIBRARY], "targets": {k: list(v) for k, v in TARGETS.items()}}
    )


def test_this_machine_has_a_compiler_where_its_processor_has_a_target() -> None:
    """Otherwise everything here was skipped in silence."""
    try:
        find_compiler()
    except Unavailable as reason:
        pytest.skip(str(reason))
    assert set(HERE) <= set(TARGETS)
