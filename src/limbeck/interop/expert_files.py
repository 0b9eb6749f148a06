"""The authors' files of experts: found by name, and checked tensor by tensor."""

from __future__ import annotations

import re
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import ValidationError
from torch import Tensor

from limbeck.core.errors import UserError
from limbeck.networks.flat import Layout
from limbeck.networks.registry import ModelConfig, flat_model

NAME = re.compile(
    r"(?P<kind>(?:convexified_(?:v[23]_)?)?replay_buffer|waypoint_buffer(?:_uni|_dec|_proj|_ip\d+)?)_(?P<number>\d+)\.pt"
)
STEPS = re.compile(r"step_buffer(?:_uni|_dec|_proj|_ip\d+)?_\d+\.pt")


class Buffer(NamedTuple):
    """One file of experts.

    kind:   the name of the file without its number, as waypoint_buffer_ip4.
    number: of the file, from 0 on.
    path:   the file. steps: the file of path fractions that belongs to a file of waypoints; None for other files.
    """

    kind: str
    number: int
    path: Path
    steps: Path | None


def find_buffers(source: Path | list[Path], kind: str | None = None) -> list[Buffer]:
    """The files of experts of a folder, or those in `source` where it is a file or a list, in the order of numbers.

    kind: of the files to take, where a folder has several: their name without the number, as waypoint_buffer_ip4.
    Raises UserError where there are no such files or several kinds, where a number is missing from a folder, and where
    waypoints lack their file of steps.
    """
    listed = source if isinstance(source, list) else [source] if source.is_file() else None
    if listed is None and isinstance(source, Path) and not source.is_dir():
        raise UserError(f"{source} does not exist.")
    files = listed if listed is not None else sorted(Path(str(source)).iterdir())
    matches = [(match, file) for file in files if (match := NAME.fullmatch(file.name))]
    wrong = [file for file in listed or [] if not NAME.fullmatch(file.name)]
    if wrong or not matches:
        where = wrong[0] if wrong else source
        hint = (
            " (give the waypoint file, its steps are found beside it)" if STEPS.fullmatch(Path(str(where)).name) else ""
        )
        raise UserError(
            f"{where} is or holds no file called replay_buffer_N.pt, waypoint_buffer[_uni|_dec|_proj|_ipW]_N.pt or "
            f"convexified_[v2_|v3_]replay_buffer_N.pt{hint}."
        )
    kinds = sorted({match["kind"] for match, _ in matches})
    if kind is not None and kind not in kinds:
        raise UserError(f"{source} holds {', '.join(kinds)}, and no files called {kind}_N.pt.")
    if kind is None and len(kinds) > 1:
        raise UserError(f"{source} holds {', '.join(kinds)}; say which with --kind.")
    kind = kind or kinds[0]
    numbers = sorted((int(match["number"]), file) for match, file in matches if match["kind"] == kind)
    if listed is None:
        for expected, (number, file) in enumerate(numbers):
            if number != expected:
                raise UserError(
                    f"{file.parent} has no {kind}_{expected}.pt but a {file.name}: numbers must run from 0 without a "
                    "gap; find the missing file, or rename those after it."
                )
    return [Buffer(kind, number, file, _steps_file(kind, number, file)) for number, file in numbers]


def _steps_file(kind: str, number: int, file: Path) -> Path | None:
    if not kind.startswith("waypoint"):
        return None
    path = file.with_name(f"{kind.replace('waypoint', 'step', 1)}_{number}.pt")
    if not path.exists():
        raise UserError(f"{file} lacks {path.name} beside it: waypoints mean nothing without their path fractions.")
    return path


def as_list(value: Any, where: str, of: str) -> list[Any]:
    """`value` as a list, where it is a list or tuple that is not empty.

    where, of: the place in the file and what the list should contain, for the UserError that is raised otherwise.
    """
    if not isinstance(value, list | tuple) or not value:
        actual = f"a {type(value).__name__}" if not isinstance(value, list | tuple) else "an empty list"
        raise UserError(f"{where} is {actual}, not a list of {of}; the file is not laid out as its name says.")
    return list(value)


def as_tensors(value: Any, where: str) -> list[Tensor]:
    """`value` as a list of floating-point tensors, where it is one and not empty. Raises UserError otherwise."""
    tensors = as_list(value, where, "parameter tensors")
    for index, tensor in enumerate(tensors):
        if not isinstance(tensor, Tensor) or not tensor.dtype.is_floating_point:
            actual = f"of type {tensor.dtype}" if isinstance(tensor, Tensor) else f"a {type(tensor).__name__}"
            raise UserError(f"{where}, item {index} is {actual}, not a floating-point tensor.")
    return [tensor.detach() for tensor in tensors]


def flat_parameters(value: Any, layout: Layout, where: str) -> Tensor:
    """One checkpoint, a list of parameter tensors, as a float32 vector (P,).

    Raises UserError for tensors that do not fit the network, of which it names the first, and for NaN and infinity.
    """
    tensors = as_tensors(value, where)
    shapes = [tuple(tensor.shape) for tensor in tensors]
    for name, expected, shape in zip(layout.names, layout.shapes, shapes):
        if shape != expected:
            raise UserError(
                f"{where}: {name} has shape {shape}, and this network needs {expected}; {_describe_fit(shapes)}."
            )
    if len(shapes) != len(layout.shapes):
        raise UserError(
            f"{where} has {len(shapes)} parameter tensors, and this network has {len(layout.shapes)}; "
            f"{_describe_fit(shapes)}."
        )
    theta = layout.join([tensor.float() for tensor in tensors])
    if not bool(torch.isfinite(theta).all()):
        parts = zip(layout.names, layout.split(theta))
        first = next(name for name, part in parts if not bool(torch.isfinite(part).all()))
        raise UserError(f"{where}: {first} holds NaN or infinity, so this expert diverged; leave its file out.")
    return theta


def are_identical(points: Tensor) -> bool:
    """Whether all checkpoints, the rows (n, P), are the same: the authors' code does not copy them on a CPU."""
    return bool((points[1:] == points[0]).all())


class NetworkGuess(NamedTuple):
    """A network that parameters of certain shapes fit, with its number of classes and image shape (c, h, w)."""

    model: ModelConfig
    classes: int
    shape: tuple[int, int, int]


def guess_network(shapes: list[tuple[int, ...]], size: tuple[int, int] | None = None) -> NetworkGuess | None:
    """The ConvNet or MLP whose parameters have these shapes; None where they are of neither.

    The depth is the number of 4-D tensors; classes and image side follow from the classifier.
    size: (h, w) of the images, which tells networks with and without pooling apart. Nothing tells average from max
    pooling and instance from group norm: the defaults are assumed.
    """
    if len(shapes) < 2 or len(shapes[-1]) != 1 or len(shapes[-2]) != 2 or not shapes[0] or not all(map(prod, shapes)):
        return None
    with suppress(ValidationError):  # of a width or depth that no network may have
        return _guess(shapes, size)
    return None


def _guess(shapes: list[tuple[int, ...]], size: tuple[int, int] | None) -> NetworkGuess | None:
    classes, width = shapes[-1][0], shapes[0][0]
    convolutions = [shape for shape in shapes if len(shape) == 4]
    if not convolutions:
        pixels = shapes[0][1] if len(shapes[0]) == 2 else 0
        sides = [(c, round((pixels / c) ** 0.5)) for c in (1, 3) if c * round((pixels / c) ** 0.5) ** 2 == pixels]
        guesses = [NetworkGuess(ModelConfig(name="mlp", width=width), classes, (c, side, side)) for c, side in sides]
        return next((guess for guess in guesses if _fits(guess, shapes)), None)
    depth, channels = len(convolutions), convolutions[0][1]
    side = round((shapes[-2][1] / width) ** 0.5)
    norm = "none" if len(shapes) == 2 * depth + 2 else "layer" if len(shapes[2]) == 3 else None
    plain = NetworkGuess(
        ModelConfig(depth=depth, width=width, norm=norm), classes, (channels, side << depth, side << depth)
    )
    flat = NetworkGuess(plain.model.model_copy(update={"pooling": "none"}), classes, (channels, side, side))
    order = [flat, plain] if size is not None and side >= min(size) else [plain]
    return next((guess for guess in order if _fits(guess, shapes)), None)


def _fits(guess: NetworkGuess, shapes: list[tuple[int, ...]]) -> bool:
    if guess.shape[1] < 1:
        return False
    try:
        return list(flat_model(guess.model, guess.shape, guess.classes).layout.shapes) == shapes
    except UserError:
        return False


def _describe_fit(shapes: list[tuple[int, ...]]) -> str:
    """Which network these shapes fit, as the end of a sentence."""
    guess = guess_network(shapes)
    if guess is None:
        return "they are neither a ConvNet's nor an MLP's parameters, so name the network they were trained as"
    options = {name: value for name, value in guess.model.model_dump().items() if value is not None}
    flags = " ".join(f"--model.{name} {value}" for name, value in options.items())
    c, h, w = guess.shape
    return f"what fits is {flags}, for {guess.classes} classes and images of {h} x {w} pixels with {c} channel(s)"
