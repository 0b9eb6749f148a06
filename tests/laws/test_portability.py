"""The compiled network is accurate for every supported instruction set and every installed compiler.

Builds for x86-64 are loaded if this processor has their instructions; the build for aarch64 runs in an emulator. Tests
without their compiler or emulator are skipped, and `make portability` lists the reasons.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from limbeck.derivatives.autograd import NeedsGrad
from limbeck.derivatives.compiled import CompiledDerivatives
from limbeck.derivatives.convnet import _blocks, torch_derivatives
from limbeck.derivatives.kernels.build import FLAGS, LIBRARY, SOURCE, TARGETS, Unavailable, compile_source, target
from limbeck.derivatives.kernels.library import Library
from limbeck.networks.flat import FlatModel
from limbeck.networks.registry import ModelConfig, flat_model

INSTRUCTIONS = {"AVX512": ["sse", "avx2", "avx512"], "AVX2": ["sse", "avx2"]}
AVAILABLE = (
    INSTRUCTIONS.get(torch.backends.cpu.get_cpu_capability(), ["sse"])
    if platform.machine().lower() in ("x86_64", "amd64")
    else ["neon"]
)
MAIN = Path(__file__).parents[1] / "portability" / "main.cpp"
CASES = [((1, 28, 28), 32, None, 7), ((3, 20, 26), 5, 3, 23)]  # shape, width, depth, images
CLOSE = {torch.float64: 1e-13, torch.float32: 1e-5}


def make_inputs(
    case: tuple[tuple[int, int, int], int, int | None, int], dtype: torch.dtype
) -> tuple[FlatModel, list[Tensor]]:
    """A network, and its theta, images, labels and direction."""
    shape, width, depth, count = case
    model, generator = flat_model(ModelConfig(width=width, depth=depth), shape, 5), torch.Generator().manual_seed(0)
    draw = [
        torch.randn(size, generator=generator, dtype=torch.float64) for size in ((model.layout.count,), (count, *shape))
    ]
    theta, images = model.init(0).double() + 0.1 * draw[0], draw[1]
    labels = torch.randn(count, 5, generator=generator, dtype=torch.float64).softmax(1)
    direction = torch.randn(model.layout.count, generator=generator, dtype=torch.float64)
    return model, [tensor.to(dtype) for tensor in (theta, images, labels, direction)]


@cache
def exact_results(index: int, dtype: torch.dtype) -> list[Tensor]:
    """Results in float64 by torch's operations, for the inputs rounded to `dtype`."""
    model, tensors = make_inputs(CASES[index], dtype)
    theta, images, labels, direction = (tensor.double() for tensor in tensors)
    reference = torch_derivatives(model, torch.float64)
    assert reference is not None
    second = reference.hvp(theta, images, labels, direction, NeedsGrad(True, True, True))
    results = [reference.gradient(theta, images, labels), reference.logits(theta, images), second.theta, second.images]
    leaf = images.requires_grad_()
    features = model.features(theta, leaf)
    (adjoint,) = torch.autograd.grad(features, leaf, cotangent(features))
    return [tensor for tensor in (*results, second.labels, features.detach(), adjoint) if tensor is not None]


def cotangent(features: Tensor) -> Tensor:
    """A direction (n, d) in the space of the features, of their type."""
    return torch.randn(features.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float32).to(features)


def make_derivatives(library: Library, model: FlatModel, dtype: torch.dtype) -> CompiledDerivatives:
    architecture = _blocks(model)
    assert architecture is not None
    blocks, eps = architecture
    classes, features = model.layout.shapes[-2]
    return CompiledDerivatives(library, blocks, classes, features, model.layout.count, eps, dtype)


def check_results(results: list[Tensor], index: int, dtype: torch.dtype) -> None:
    for result, expected in zip(results, exact_results(index, dtype), strict=True):
        assert float((result.double() - expected).norm() / expected.norm()) < CLOSE[dtype]


@pytest.fixture(scope="session")
def build_folder(request: pytest.FixtureRequest) -> Path:
    return Path(request.config.cache.mkdir("portability"))


AVOID_FMA = "g++ --param avoid-fma-max-bits=512"
"""As g++ 13 does unasked: the same image had other bits alone in a thread's part than beside others."""


@pytest.mark.parametrize("compiler", ["g++", "clang++", AVOID_FMA])
@pytest.mark.parametrize("instructions", AVAILABLE)
def test_builds_for_this_processor_are_accurate_and_independent_of_threads(
    instructions: str, compiler: str, build_folder: Path
) -> None:
    """Two builds once shared their tables."""
    command = compiler.split()
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    path = build_folder / f"{instructions}-{'-'.join(command)}-{source_key()}.so"
    if not path.exists():
        try:
            compile_source((*command, *FLAGS, *LIBRARY, *TARGETS[instructions]), (SOURCE,), path)
        except Unavailable as reason:
            if "no OpenMP" not in str(reason):
                raise
            pytest.skip(f"{reason}; Debian's package is called libomp-dev")
    library = Library.open(path, instructions)
    before = torch.get_num_threads()
    try:
        for index, case in enumerate(CASES):
            for dtype in CLOSE:
                model, (theta, images, labels, direction) = make_inputs(case, dtype)
                network, results = make_derivatives(library, model, dtype), []
                for threads in (1, 2, 5):
                    torch.set_num_threads(threads)
                    second = network.hvp(theta, images, labels, direction, NeedsGrad(True, True, True))
                    tensors = [network.gradient(theta, images, labels), network.logits(theta, images), *second[1:]]
                    features = network.features(theta, images)
                    tensors += [features, network.features_adjoint(theta, images, cotangent(features))]
                    results.append([tensor for tensor in tensors if tensor is not None])
                check_results(results[0], index, dtype)
                assert all(a.equal(b) for one, other in pairwise(results) for a, b in zip(one, other))
    finally:
        torch.set_num_threads(before)


def test_the_build_for_aarch64_is_accurate_and_independent_of_threads(build_folder: Path, tmp_path: Path) -> None:
    compiler = "aarch64-linux-gnu-g++"
    emulator = next((path for name in ("qemu-aarch64-static", "qemu-aarch64") if (path := shutil.which(name))), None)
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed; Debian's package is called g++-aarch64-linux-gnu")
    if emulator is None:
        pytest.skip("qemu-aarch64-static is not installed; Debian's package is called qemu-user-static")
    program = build_folder / f"aarch64-{source_key()}"
    if not program.exists():
        compile_source((compiler, *FLAGS, "-static"), (SOURCE, MAIN), program)
    for index, case in enumerate(CASES):
        for dtype in CLOSE:
            model, (theta, images, labels, direction) = make_inputs(case, dtype)
            network = make_derivatives(_NeonLibrary(), model, dtype)
            wide, direction = network._pad(theta), network._pad(direction)
            counts = [len(wide), images.numel(), labels.numel(), len(images) * network._padded_features]
            head = [dtype.itemsize, len(network.blocks), len(images), *counts]
            dfeatures = network._pad_features(cotangent(torch.zeros(len(images), network.width, dtype=dtype)))
            tensors = [torch.tensor(head), torch.tensor([network.eps], dtype=torch.float64), network._sizes(images)]
            arrays = [tensor.numpy() for tensor in (*tensors, wide, images, labels, direction, dfeatures)]
            source, answers = tmp_path / "input", []
            source.write_bytes(b"".join(array.tobytes() for array in arrays))
            for threads in ("1", "3"):
                subprocess.run([emulator, program, source, tmp_path / "output", threads], check=True)
                answers.append((tmp_path / "output").read_bytes())
            assert answers[0] == answers[1]
            outputs = torch.frombuffer(bytearray(answers[0][:-8]), dtype=dtype)
            lengths = [len(wide), labels.numel(), len(wide), images.numel(), labels.numel(), counts[3], images.numel()]
            gradient, logits, dtheta, dimages, dlabels, features, adjoint = outputs.split(lengths)
            results = [network._unpad(gradient), logits.view_as(labels), network._unpad(dtheta)]
            results += [dimages.view_as(images), dlabels.view_as(labels)]
            results += [features.view(len(images), -1)[:, : network.width], adjoint.view_as(images)]
            check_results(results, index, dtype)


class _NeonLibrary(Library):
    """Stands for a library with vectors of 16 bytes, for the layout of its parameters."""

    def __init__(self) -> None:
        super().__init__(Path(), "neon", None)  # type: ignore[arg-type]

    def panel(self, dtype: torch.dtype) -> int:
        return 2 * 16 // dtype.itemsize


@cache
def source_key() -> str:
    """A key of the sources and flags, which names the builds in pytest's cache."""
    from limbeck.core.files import content_key
    from limbeck.derivatives.kernels.build import HEADERS

    texts = [path.read_text() for path in (SOURCE, *HEADERS, MAIN)]
    return content_key(
        {"texts": texts, "flags": [*FLAGS, *LIBRARY], "targets": {k: list(v) for k, v in TARGETS.items()}}
    )


def test_the_library_of_this_machine_is_among_the_tested_builds() -> None:
    assert target() in AVAILABLE
