"""Reads a run folder for the report: strict with run.json, forgiving with everything an unfinished run may lack."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from limbeck.core.errors import UserError
from limbeck.core.evaluation_records import EvaluationsRecord
from limbeck.core.files import read_json
from limbeck.core.json_text import parse_json
from limbeck.core.record_files import salvage
from limbeck.core.records import ExpertsRecord, Record, ResultsRecord, RunRecord, StepLine, ValidationLine
from limbeck.report.gallery import REAL, Frame, Picture, read_frames, read_picture

R = TypeVar("R", bound=Record)
FORMAT = "limbeck-run"
VERSION = 1
PREVIEWS = ("chosen", "initial", "last")
UNREADABLE = (ValueError, RecursionError, OSError)


@dataclass(frozen=True)
class Run:
    """The content of a run folder; `missing` has one sentence for each part that was absent or unreadable.

    steps, validations: lines of the log by step, validations also by which set; pictures: of sets, and of real images
    beside them; frames: pictures along the distillation; sets: (file, bytes).
    """

    name: str
    meta: RunRecord
    steps: dict[int, StepLine]
    validations: dict[str, list[ValidationLine]]
    experts: ExpertsRecord
    summary: ResultsRecord
    evaluations: EvaluationsRecord
    pictures: list[Picture]
    frames: list[Frame]
    sets: list[tuple[str, int]]
    missing: list[str]


def finite(value: float | None) -> float | None:
    """The number, or None where it is NaN or infinite."""
    return value if value is not None and math.isfinite(value) else None


def read_run(folder: Path) -> Run:
    """Read a run folder; UserError unless it holds a run.json that this version can read."""
    missing: list[str] = []
    meta = _read_meta(folder, missing)
    steps, validations = _read_log(folder / "log.jsonl", missing)
    if meta.config.get("experts") == "none":
        experts = ExpertsRecord()
    else:
        experts = _read_optional(ExpertsRecord, folder / "experts.json", "the experts are not described", missing)
    summary = _read_optional(ResultsRecord, folder / "results.json", "the run has not been evaluated", missing)
    evaluations = EvaluationsRecord()
    if (folder / "evaluations.json").exists():  # which few runs have
        path = folder / "evaluations.json"
        evaluations = _read_optional(EvaluationsRecord, path, "other networks are not shown", missing)
    previews = folder / "previews"
    pictures = [picture for name in (*PREVIEWS, *REAL) if (picture := read_picture(previews / f"{name}.png"))]
    if unseen := [name for name in PREVIEWS if name not in [picture.name for picture in pictures]]:
        missing.append(f"previews: no readable picture of the {', '.join(unseen)} set.")
    files = [folder / name for name in ("set-chosen.safetensors", "set-last.safetensors")]
    sets = [(path.name, path.stat().st_size) for path in files if path.is_file()]
    if not sets:
        missing.append("set-chosen.safetensors, set-last.safetensors: not there, so no distilled set is saved.")
    return Run(
        name=folder.resolve().name,
        meta=meta,
        steps=steps,
        validations=validations,
        experts=experts,
        summary=summary,
        evaluations=evaluations,
        pictures=pictures,
        frames=read_frames(previews),
        sets=sets,
        missing=missing,
    )


def _read_meta(folder: Path, missing: list[str]) -> RunRecord:
    path = folder / "run.json"
    if not path.is_file():
        raise UserError(f"{folder} is not a run folder: it holds no run.json; give the folder that a run wrote.")
    try:
        meta, faults = salvage(RunRecord, read_json(path, FORMAT, VERSION))
    except ValidationError:
        raise UserError(f"{path} is damaged: it is no record of a run; restore it, or run its command again.") from None
    _tell(path, faults, missing)
    return meta


def _read_optional(model: type[R], path: Path, meaning: str, missing: list[str]) -> R:
    """A record from a JSON file that may be absent or damaged; then an empty one and a sentence in `missing`."""
    if not path.is_file():
        missing.append(f"{path.name}: not there, so {meaning}.")
        return model()
    try:
        record, faults = salvage(model, parse_json(path.read_bytes(), finite=False))
    except (*UNREADABLE, ValidationError):
        missing.append(f"{path.name}: damaged, so {meaning}.")
        return model()
    _tell(path, faults, missing)
    return record


def _tell(path: Path, faults: list[str], missing: list[str]) -> None:
    """Name at most five parts of a file that were left out."""
    if faults:
        others = f" and {len(faults) - 5} more" if len(faults) > 5 else ""
        missing.append(f"{path.name}: these parts are damaged and left out: {', '.join(faults[:5])}{others}.")


def _read_log(path: Path, missing: list[str]) -> tuple[dict[int, StepLine], dict[str, list[ValidationLine]]]:
    """Steps and validations; of a step logged twice the later line counts."""
    steps: dict[int, StepLine] = {}
    validations: dict[str, dict[int, ValidationLine]] = {}
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        missing.append("log.jsonl: not there, so there are no curves.")
        return {}, {}
    damaged = 0
    for index, line in enumerate(lines):
        try:
            entry = parse_json(line, finite=False) if line.strip() else {}
            event = entry.get("event")
            if event == "step":
                step = StepLine.model_validate(entry)
                steps[step.step] = step
            elif event == "validate":
                validation = ValidationLine.model_validate(entry)
                validations.setdefault(validation.which, {})[validation.step] = validation
        except (ValueError, RecursionError, AttributeError):
            # A crash may cut the last line off; that loses nothing worth a warning.
            damaged += index < len(lines) - 1
    if damaged:
        missing.append(f"log.jsonl: lines that could not be read and were skipped: {damaged}.")
    return dict(sorted(steps.items())), {
        which: [by_step[step] for step in sorted(by_step)] for which, by_step in validations.items()
    }
