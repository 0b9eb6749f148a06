"""Every published setting by name: which options, which experts, where it is written, and the number it got.

The settings are data, one JSON file a method. A preset is changed by giving it a new version, never in place.
"""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from limbeck.core.errors import UserError, suggest_names

PRESET_METHODS = ("mtt", "tesla", "ftd", "datm", "mct", "dream", "rcig")
_DICTS = ("model", "expert", "options", "eval")


class Published(BaseModel):
    """A published accuracy in percent; `std` as its source gives it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mean: float
    std: float | None
    source: str

    def __str__(self) -> str:
        return f"{self.mean}" if self.std is None else f"{self.mean} ± {round(self.std, 2)}"


class Preset(BaseModel):
    """One published setting. `options` are the method's own; model, expert and eval are parts of `JobConfig`.

    num_experts: experts; None for a method that has none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str = Field(pattern=r"^[a-z]+/[a-z0-9-]+/ipc\d+(-[a-z0-9-]+)?$")
    version: int = Field(ge=1)
    method: str
    data: str
    ipc: int = Field(ge=1)
    preprocess: Literal["normalise", "zca"]
    model: dict[str, Any]
    num_experts: int | None = Field(ge=1)
    expert: dict[str, Any]
    options: dict[str, Any]
    eval: dict[str, Any]
    source: str
    published: Published | None
    notes: tuple[str, ...]


@cache
def all_presets() -> dict[str, Preset]:
    """Every preset by name, method by method."""
    found: dict[str, Preset] = {}
    for method in PRESET_METHODS:
        held = json.loads(files("limbeck.jobs.presets").joinpath(f"{method}.json").read_text(encoding="utf-8"))
        common = held["common"]
        for row in held["presets"]:
            merged = {**common, **row} | {name: {**common.get(name, {}), **row.get(name, {})} for name in _DICTS}
            merged["notes"] = [*row["notes"], *common.get("notes", [])]
            preset = Preset(method=method, **merged)
            found[preset.name] = preset
    return found


def load_preset(name: str) -> Preset:
    """The preset of this name; UserError that lists the nearest names otherwise."""
    presets = all_presets()
    if name not in presets:
        method = name.split("/")[0]
        names = [other for other in presets if other.startswith(f"{method}/")]
        suggestion = suggest_names(name, names or [f"{first}/..." for first in PRESET_METHODS])
        raise UserError(f"there is no preset called '{name}' in 'limbeck presets'; {suggestion}")
    return presets[name]


def preset_options(name: str) -> dict[str, Any]:
    """Keyword options for `limbeck.distill`; UserError for an unknown name."""
    preset = load_preset(name)
    parts = {part: dict(getattr(preset, part)) for part in ("model", "expert", "eval") if getattr(preset, part)}
    return {
        "method": preset.method,
        "ipc": preset.ipc,
        "preprocess": preset.preprocess,
        **({} if preset.num_experts is None else {"num_experts": preset.num_experts}),
        **preset.options,
        **parts,
    }


TRAJECTORY = {"N": "syn_steps", "M": "expert_epochs", "U": "max_start_epoch"}
TRAJECTORY |= {name: name for name in ("lr_img", "lr_lr", "lr_teacher", "batch_syn")}
MATCHING = {"f": "factor"}
MATCHING |= {name: name for name in ("distance", "lr_img", "batch_real", "inner", "net_steps", "batch_net", "cutmix")}
IMPLICIT = {"steps": "iterations"}
IMPLICIT |= {name: name for name in ("batch_real", "ridge", "flip", "grad_images", "pool_width", "pool_activation")}
COLUMNS: dict[str, dict[str, str]] = {"dream": MATCHING, "rcig": IMPLICIT}
"""Headings and options of the table of a method; of trajectory matching where none are given."""


def markdown() -> str:
    """docs/presets.md: one table a method."""
    lines = [
        "# Presets",
        "",
        "Written by `limbeck presets --markdown`; a test holds it up to date. Every setting is that of its source,",
        "with the released gradient where the learning rates belong to it. Published accuracies are in percent, and",
        "most are the best over evaluations on the test set. [symbols.md](symbols.md) says which option a symbol is.",
    ]
    for method in PRESET_METHODS:
        held = [preset for preset in all_presets().values() if preset.method == method]
        columns = COLUMNS.get(method, TRAJECTORY)
        heads = ("name", *columns, "published", "source")
        lines += ["", f"## {method}", "", f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
        notes: list[str] = []
        for preset in held:
            new = [note for note in preset.notes if note not in notes]
            notes += new
            marks = " ".join(f"[{notes.index(note) + 1}]" for note in preset.notes)
            lines.append(f"| {' | '.join(_cells(preset, list(columns.values()), marks))} |")
        lines += ["", *(f"{number}. {note}" for number, note in enumerate(notes, 1))]
    return "\n".join(lines) + "\n"


def _cells(preset: Preset, columns: list[str], marks: str) -> list[str]:
    values = [preset.options.get(name, "all") for name in columns]
    return [
        f"`{preset.name}`",
        *(str(value) if isinstance(value, str | bool) else f"{value:g}" for value in values),
        "" if preset.published is None else str(preset.published),
        f"{preset.source} {marks}".strip(),
    ]
