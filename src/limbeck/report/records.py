"""Reads a run folder for the report: strict with run.json, forgiving with everything an unfinished run may lack."""

from __future__ import annotations

import base64
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limbeck.core.errors import UserError
from limbeck.report.text import deviation

FORMAT = "limbeck-run"
VERSION = 1
PREVIEWS = ("chosen", "initial", "last")
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Validation:
    """One validation of a set during the run: accuracies are fractions, None where unknown."""

    step: int
    mean: float | None
    std: float | None


@dataclass(frozen=True)
class Result:
    """One row of results.json: a set, trained from scratch `n` times; accuracies are fractions, None where unknown.

    protocol: how it was trained where not by the run's common protocol, else nothing.
    """

    set: str
    which: str | None
    model: str
    split: str
    mean: float | None
    std: float | None
    n: int | None
    step: int | None
    lr: float | None
    protocol: str
    balanced_mean: float | None
    balanced_std: float | None


@dataclass(frozen=True)
class Picture:
    """A PNG as a data address, with its size in pixels."""

    name: str
    data: str
    width: int
    height: int


@dataclass(frozen=True)
class Run:
    """What a run folder holds; `missing` says in sentences what was absent or unreadable."""

    name: str
    meta: dict[str, Any]
    steps: dict[int, tuple[float | None, float | None]]
    validations: dict[str, list[Validation]]
    experts: dict[str, Any]
    summary: dict[str, Any]
    results: list[Result]
    pictures: list[Picture]
    sets: list[tuple[str, int]]
    missing: list[str]


def number(value: object) -> float | None:
    """A finite float, or None for anything else: NaN, null, text, truth values, numbers too large.

    >>> number(2), number(float("nan")), number("2"), number(True)
    (2.0, None, None, None)
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        result = float(value)
    except OverflowError:
        return None
    return result if math.isfinite(result) else None


def whole(value: object) -> int | None:
    """A whole number, or None for anything else."""
    result = number(value)
    return int(result) if result is not None and result == int(result) else None


def mapping(value: object) -> dict[str, Any]:
    """The value if it is a mapping, else an empty one."""
    return value if isinstance(value, dict) else {}


def items(value: object) -> list[Any]:
    """The value if it is a list, else an empty one."""
    return value if isinstance(value, list) else []


def text(value: object) -> str:
    """The value as text; nothing for None."""
    return "" if value is None else str(value)


def read_run(folder: Path) -> Run:
    """Read a run folder; a UserError unless it holds a run.json that this version understands."""
    meta = _read_meta(folder)
    missing: list[str] = []
    steps, validations = _read_log(folder / "log.jsonl", missing)
    alone = mapping(meta.get("config")).get("experts") == "none"
    experts = {} if alone else _read_optional(folder / "experts.json", "the experts are not described", missing)
    summary = _read_optional(folder / "results.json", "the run has not been evaluated", missing)
    results = [_result(row) for row in items(summary.get("results")) if isinstance(row, dict)]
    pictures = [p for name in PREVIEWS if (p := _read_picture(folder / "previews" / f"{name}.png"))]
    if unseen := [name for name in PREVIEWS if name not in [p.name for p in pictures]]:
        missing.append(f"previews: no readable picture of the {', '.join(unseen)} set.")
    files = [folder / name for name in ("set-chosen.safetensors", "set-last.safetensors")]
    sets = [(path.name, path.stat().st_size) for path in files if path.is_file()]
    if not sets:
        missing.append("set-chosen.safetensors, set-last.safetensors: not there, so no distilled set is saved.")
    name = folder.resolve().name
    return Run(name, meta, steps, validations, experts, summary, results, pictures, sets, missing)


def _read_meta(folder: Path) -> dict[str, Any]:
    path = folder / "run.json"
    if not path.is_file():
        raise UserError(f"{str(folder)!r} is not a run folder: it holds no run.json; give the folder that a run wrote.")
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise UserError(f"{str(path)!r} is damaged and cannot be read ({error}); restore it or run again.") from error
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise UserError(f"{str(path)!r} is not the record of a run: its format is not {FORMAT!r}.")
    version = whole(meta.get("version"))
    if version is None or version < 1:
        raise UserError(f"{str(path)!r} is damaged: its version is {meta.get('version')!r}, not a whole number from 1.")
    if version > VERSION:
        raise UserError(
            f"{str(path)!r} has version {version}, but this limbeck reads up to version {VERSION}; "
            "upgrade limbeck to report on this run."
        )
    return meta


def _read_optional(path: Path, meaning: str, missing: list[str]) -> dict[str, Any]:
    """A mapping from a JSON file that may be absent or damaged; then an empty one and a sentence in `missing`."""
    if not path.is_file():
        missing.append(f"{path.name}: not there, so {meaning}.")
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError):
        value = None
    if not isinstance(value, dict):
        missing.append(f"{path.name}: damaged, so {meaning}.")
        return {}
    return value


def _read_log(
    path: Path, missing: list[str]
) -> tuple[dict[int, tuple[float | None, float | None]], dict[str, list[Validation]]]:
    """Loss and learned step size per step, and the validations; of a step logged twice the later line counts."""
    steps: dict[int, tuple[float | None, float | None]] = {}
    checks: dict[str, dict[int, Validation]] = {}
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        missing.append("log.jsonl: not there, so there are no curves.")
        return {}, {}
    damaged = 0
    for index, line in enumerate(lines):
        try:
            entry = json.loads(line) if line.strip() else {}
        except (ValueError, RecursionError):
            # A crash may cut the last line off; that loses nothing worth a warning.
            damaged += index < len(lines) - 1
            continue
        entry = mapping(entry)
        step = whole(entry.get("step"))
        if step is None:
            continue
        if entry.get("event") == "step":
            steps[step] = (number(entry.get("loss")), number(entry.get("lr")))
        elif entry.get("event") == "validate":
            check = Validation(step, number(entry.get("accuracy_mean")), number(deviation(entry)))
            checks.setdefault(text(entry.get("which")), {})[step] = check
    if damaged:
        missing.append(f"log.jsonl: lines that could not be read and were skipped: {damaged}.")
    return dict(sorted(steps.items())), {k: [v[s] for s in sorted(v)] for k, v in checks.items()}


def _result(row: dict[str, Any]) -> Result:
    return Result(
        set=text(row.get("set")),
        which=None if row.get("which") is None else text(row["which"]),
        model=text(row.get("model")),
        split=text(row.get("split")),
        mean=number(row.get("accuracy_mean")),
        std=number(deviation(row)),
        n=whole(row.get("n")),
        step=whole(row.get("step")),
        lr=number(row.get("lr")),
        protocol=text(row.get("protocol")),
        balanced_mean=number(row.get("balanced_accuracy_mean")),
        balanced_std=number(deviation(row, "balanced_accuracy")),
    )


def _read_picture(path: Path) -> Picture | None:
    try:
        content = path.read_bytes()
    except OSError:
        return None
    if not content.startswith(_PNG) or len(content) < 24:
        return None
    width, height = int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big")
    return Picture(path.stem, "data:image/png;base64," + base64.b64encode(content).decode(), width, height)
