"""The authors' .pt files: found by name, opened without running code, and checked tensor by tensor."""

from __future__ import annotations

import pickle
import re
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from limbeck.core.errors import UserError
from limbeck.networks.flat import Layout
from limbeck.networks.registry import ModelConfig, flat_model

NAME = re.compile(
    r"(?P<kind>(?:convexified_(?:v[23]_)?)?replay_buffer|waypoint_buffer(?:_uni|_dec|_proj|_ip\d+)?)_(?P<number>\d+)\.pt"
)
STEPS = re.compile(r"step_buffer(?:_uni|_dec|_proj|_ip\d+)?_\d+\.pt")


class Buffer(NamedTuple):
    """One file of experts; `steps` is the path fractions' file that belongs to a file of waypoints."""

    kind: str
    number: int
    path: Path
    steps: Path | None


def open_pt(path: Path) -> Any:
    """What a torch.save file holds, its tensors mapped rather than read where the file allows.

    Raises UserError where there is no such file, it is not of torch.save, or it holds more than tensors and containers.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist or is not a file.")
    try:
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except (RuntimeError, OSError):  # files of torch before 1.6 cannot be mapped
            return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, LookupError, ValueError, TypeError) as error:
        if "Unsupported global" in str(error) or "weights_only" in str(error).lower():
            raise UserError(
                f"{path} holds pickled code or objects other than tensors, lists and dictionaries, or is not a file of "
                "torch.save; it is refused, since opening it would run what it says."
            ) from None
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} is not a file of torch.save, or is cut short ({reason}).") from None


def find_buffers(source: Path | list[Path], kind: str | None = None) -> list[Buffer]:
    """The files of experts in a folder, or those given, in the order of their numbers.

    kind: which, where a folder holds several: the name of its files without the number, as waypoint_buffer_ip4.
    Raises UserError where there are none or of several kinds, where numbers are missing, or waypoints lack their steps.
    """
    given = source if isinstance(source, list) else [source] if source.is_file() else None
    if given is None and isinstance(source, Path) and not source.is_dir():
        raise UserError(f"{source} does not exist.")
    files = given if given is not None else sorted(Path(str(source)).iterdir())
    matches = [(match, file) for file in files if (match := NAME.fullmatch(file.name))]
    wrong = [file for file in given or [] if not NAME.fullmatch(file.name)]
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
    chosen = sorted((int(match["number"]), file) for match, file in matches if match["kind"] == kind)
    if given is None:
        for expected, (number, file) in enumerate(chosen):
            if number != expected:
                raise UserError(
                    f"{file.parent} has no {kind}_{expected}.pt but a {file.name}: numbers must run from 0 without a "
                    "gap; find the missing file, or rename those after it."
                )
    return [Buffer(kind, number, file, _steps(kind, number, file)) for number, file in chosen]


def _steps(kind: str, number: int, file: Path) -> Path | None:
    if not kind.startswith("waypoint"):
        return None
    path = file.with_name(f"{kind.replace('waypoint', 'step', 1)}_{number}.pt")
    if not path.exists():
        raise UserError(f"{file} lacks {path.name} beside it: waypoints mean nothing without their path fractions.")
    return path


def as_list(value: Any, where: str, of: str) -> list[Any]:
    """A list or tuple with something in it; UserError that says where one of `of` was expected."""
    if not isinstance(value, list | tuple) or not value:
        what = f"a {type(value).__name__}" if not isinstance(value, list | tuple) else "an empty list"
        raise UserError(f"{where} is {what}, not a list of {of}; the file is not laid out as its name says.")
    return list(value)


def as_tensors(value: Any, where: str) -> list[Tensor]:
    """A non-empty list of tensors; UserError otherwise."""
    tensors = as_list(value, where, "parameter tensors")
    for index, tensor in enumerate(tensors):
        if not isinstance(tensor, Tensor) or not tensor.dtype.is_floating_point:
            what = f"of type {tensor.dtype}" if isinstance(tensor, Tensor) else f"a {type(tensor).__name__}"
            raise UserError(f"{where}, item {index} is {what}, not a floating-point tensor.")
    return [tensor.detach() for tensor in tensors]


def flat_parameters(value: Any, layout: Layout, where: str) -> Tensor:
    """One checkpoint as a vector (P,) float32; UserError that names the first tensor that does not fit the network."""
    tensors = as_tensors(value, where)
    shapes = [tuple(tensor.shape) for tensor in tensors]
    for name, wanted, found in zip(layout.names, layout.shapes, shapes):
        if found != wanted:
            raise UserError(f"{where}: {name} has shape {found}, and this network needs {wanted}; {_fitting(shapes)}.")
    if len(shapes) != len(layout.shapes):
        raise UserError(
            f"{where} has {len(shapes)} parameter tensors, and this network has {len(layout.shapes)}; "
            f"{_fitting(shapes)}."
        )
    theta = layout.join([tensor.float() for tensor in tensors])
    if not bool(torch.isfinite(theta).all()):
        bad = next(n for n, part in zip(layout.names, layout.split(theta)) if not bool(torch.isfinite(part).all()))
        raise UserError(f"{where}: {bad} holds NaN or infinity, so this expert diverged; leave its file out.")
    return theta


def are_identical(points: Tensor) -> bool:
    """Whether every checkpoint (rows) is the first: snapshots taken on a CPU that were never copied."""
    return bool((points[1:] == points[0]).all())


class NetworkGuess(NamedTuple):
    """A network that these parameters fit."""

    model: ModelConfig
    classes: int
    shape: tuple[int, int, int]


def guess_network(shapes: list[tuple[int, ...]], size: tuple[int, int] | None = None) -> NetworkGuess | None:
    """The ConvNet or MLP whose parameters have these shapes; None where it is neither.

    Depth is the number of 4-D tensors; classes and image side come from the classifier. size: of the images, to tell
    a network without pooling. Average from max pooling, and instance from group norm, cannot be told: the defaults.
    """
    if not shapes or len(shapes[-1]) != 1 or len(shapes) < 2 or len(shapes[-2]) != 2:
        return None
    classes, width = shapes[-1][0], shapes[0][0]
    convolutions = [shape for shape in shapes if len(shape) == 4]
    if not convolutions:
        pixels = shapes[0][1] if len(shapes[0]) == 2 else 0
        found = [(c, round((pixels / c) ** 0.5)) for c in (1, 3) if c * round((pixels / c) ** 0.5) ** 2 == pixels]
        guesses = [NetworkGuess(ModelConfig(name="mlp", width=width), classes, (c, side, side)) for c, side in found]
        return next((guess for guess in guesses if _has(guess, shapes)), None)
    depth, channels = len(convolutions), convolutions[0][1]
    side = round((shapes[-2][1] / width) ** 0.5)
    norm = "none" if len(shapes) == 2 * depth + 2 else "layer" if len(shapes[2]) == 3 else None
    plain = NetworkGuess(
        ModelConfig(depth=depth, width=width, norm=norm), classes, (channels, side << depth, side << depth)
    )
    flat = NetworkGuess(plain.model.model_copy(update={"pooling": "none"}), classes, (channels, side, side))
    order = [flat, plain] if size is not None and side >= min(size) else [plain]
    return next((guess for guess in order if _has(guess, shapes)), None)


def _has(guess: NetworkGuess, shapes: list[tuple[int, ...]]) -> bool:
    if not all(prod(shape) for shape in shapes) or guess.shape[1] < 1:
        return False
    try:
        return list(flat_model(guess.model, guess.shape, guess.classes).layout.shapes) == shapes
    except UserError:
        return False


def _fitting(shapes: list[tuple[int, ...]]) -> str:
    """Which network would have fitted, as the end of a sentence."""
    guess = guess_network(shapes)
    if guess is None:
        return "they are neither a ConvNet's nor an MLP's parameters, so name the network they were trained as"
    options = {name: value for name, value in guess.model.model_dump().items() if value is not None}
    flags = " ".join(f"--model.{name} {value}" for name, value in options.items())
    c, h, w = guess.shape
    return f"what fits is {flags}, for {guess.classes} classes and images of {h} x {w} pixels with {c} channel(s)"
