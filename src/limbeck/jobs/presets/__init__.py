"""Published settings by name: options, experts, source, and the published accuracy.

The settings are data, one JSON file per method. A preset that changes gets a new version.
"""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from limbeck.core.errors import UserError, suggest_names
from limbeck.core.text import quote

PRESET_METHODS = ("mtt", "tesla", "ftd", "datm", "mct", "att", "hop-tm", "dream", "tgdd", "ncfm", "rcig", "rat-bptt")
_DICTS = ("model", "expert", "options", "eval")


class Published(BaseModel):
    """A published test accuracy: mean and standard deviation in percent, as the source gives them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mean: float
    std: float | None
    source: str

    def __str__(self) -> str:
        return f"{self.mean}" if self.std is None else f"{self.mean} ± {round(self.std, 2)}"


class Preset(BaseModel):
    """One published setting.

    name:        method/data/ipcN, with words that tell settings of the same budget apart.
    version:     raised when the setting or its number changes.
    num_experts: None for a method without experts.
    options:     the method's own and ema_decay; model, expert and eval are parts of `JobConfig`.
    source:      where the setting is published.
    published:   the accuracy that its authors report; None where they report none.
    notes:       what the source leaves open, and how that was filled in.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str = Field(pattern=r"^[a-z][a-z-]*/[a-z0-9-]+/ipc\d+(-[a-z0-9-]+)?$")
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
    """Return every preset by name, method by method."""
    presets: dict[str, Preset] = {}
    for method in PRESET_METHODS:
        content = json.loads(files("limbeck.jobs.presets").joinpath(f"{method}.json").read_text(encoding="utf-8"))
        common = content["common"]
        for row in content["presets"]:
            merged = {**common, **row} | {name: {**common.get(name, {}), **row.get(name, {})} for name in _DICTS}
            merged["notes"] = [*row["notes"], *common.get("notes", [])]
            preset = Preset(method=method, **merged)
            presets[preset.name] = preset
    return presets


def load_preset(name: str) -> Preset:
    """Return the preset of this name; UserError with the nearest names if there is none."""
    presets = all_presets()
    if name not in presets:
        method = name.split("/")[0]
        names = [other for other in presets if other.startswith(f"{method}/")]
        near = suggest_names(name, names or presets)
        families = ", ".join(f"{first}/..." for first in PRESET_METHODS)
        suggestion = near if names or near.startswith("did you mean") else f"choose one of {families}."
        raise UserError(f"there is no preset called {quote(name)} in 'limbeck presets'; {suggestion}")
    return presets[name]


def preset_options(name: str) -> dict[str, Any]:
    """Return the keyword options of a preset for `limbeck.distill`; UserError for an unknown name."""
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
WINDOW = {"T": "total_steps", "M": "window"}
WINDOW |= {name: name for name in ("place", "learn_labels", "lr_img", "batch_syn", "batch_real")}
FEATURES = {"f": "factor", "steps": "iterations"}
FEATURES |= {name: name for name in ("lr_img", "optimizer", "batch_real")}
COLUMNS: dict[str, dict[str, str]] = {
    "dream": MATCHING,
    "tgdd": FEATURES | {"alpha": "alpha"},
    "ncfm": FEATURES | {"frequencies": "frequencies"},
    "rcig": IMPLICIT,
    "rat-bptt": WINDOW,
}
"""Headings and options of the table of a method; of trajectory matching where none are given."""


def markdown() -> str:
    """Return the page docs/presets.md: one table per method."""
    lines = [
        "# Presets",
        "",
        "`limbeck distill DATA --preset NAME` starts from a published setting, and ends with the published accuracy",
        "beside ours; options given with it win. Every setting is its source's, with the released gradient where the",
        "learning rates belong to it; notes name the source, and say what it leaves open. Published accuracies are in",
        "percent, and most are the best over evaluations on the test set. [Symbols](symbols.md) says which option a",
        "symbol is.",
        "",
        "`limbeck presets --markdown` writes this page; a test keeps it up to date.",
    ]
    for method in PRESET_METHODS:
        presets = [preset for preset in all_presets().values() if preset.method == method]
        columns = COLUMNS.get(method, TRAJECTORY)
        headings = ("name", *columns, "published", "notes")
        lines += ["", f"## {method}", "", f"| {' | '.join(headings)} |", f"|{'---|' * len(headings)}"]
        notes: list[str] = []
        for preset in presets:
            own = (f"source: {preset.source}", *preset.notes)
            notes += [note for note in own if note not in notes]
            marks = ", ".join(str(notes.index(note) + 1) for note in own)
            lines.append(f"| {' | '.join(_cells(preset, list(columns.values()), marks))} |")
        lines += ["", *(f"{number}. {note}" for number, note in enumerate(notes, 1))]
    return "\n".join(lines) + "\n"


def _cells(preset: Preset, columns: list[str], marks: str) -> list[str]:
    values = [preset.options.get(name, "all") for name in columns]
    return [
        f"`{preset.name}`",
        *(str(value) if isinstance(value, str | bool) else f"{value:g}" for value in values),
        "" if preset.published is None else str(preset.published),
        marks,
    ]
