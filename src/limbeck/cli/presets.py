"""Commands of the published settings: list them, and run one beside its published number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro
from pydantic import Field

from limbeck.cli.common import Command, Common, Listener
from limbeck.core.errors import UserError
from limbeck.jobs.presets import PRESET_METHODS, Preset, all_presets, load_preset, markdown, preset_options
from limbeck.report.text import deviation, percent

if TYPE_CHECKING:
    from limbeck.data import ImageData


class Presets(Common):
    """List the published settings, with their source and number."""

    method: str | None = None
    """of this method only"""
    markdown: bool = False
    """as the page docs/presets.md"""
    seed: int = 0
    """accepted by every command; nothing here is random"""


class Reproduce(Common):
    """Run a published setting and put its number beside the published one."""

    preset: tyro.conf.Positional[str]
    """a name that 'limbeck presets' lists"""
    data: tyro.conf.Positional[str]
    """the data to run it on: a name or a path, as for 'limbeck distill'"""
    resize: int | None = Field(default=None, ge=1)
    """resize every image to this many pixels a side"""
    out: str | None = None
    """the run folder; by default runs/DATA-METHOD-ipcN-seedS"""
    experts: str | None = None
    """a store of experts; by default they are trained as the setting says"""
    seed: int = 0
    """of everything random"""
    change: tuple[str, ...] = ()
    """NAME=VALUE ...: other options than the setting's, as iterations=10 expert.epochs=2; the result says so"""


def changes(words: tuple[str, ...]) -> dict[str, Any]:
    """NAME=VALUE words as nested options, values as JSON where they are; UserError for a word of another form.

    >>> changes(("iterations=10", "expert.epochs=2", "init=kmeans"))
    {'iterations': 10, 'expert': {'epochs': 2}, 'init': 'kmeans'}
    """
    made: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise UserError(f"--change takes NAME=VALUE, not '{word}'.")
        first, _, rest = name.replace("-", "_").partition(".")
        try:
            parsed = json.loads(value)
        except json.JSONDecodeError:
            parsed = value
        if rest:
            made.setdefault(first, {})[rest] = parsed
        else:
            made[first] = parsed
    return made


def reproduce(
    name: str,
    data: str | Path | ImageData,
    changed: dict[str, Any] | None = None,
    *,
    out: str | Path | None = None,
    experts: str | Path | None = None,
    seed: int = 0,
    device: str = "cpu",
    resize: int | None = None,
    listen: Listener = lambda event: None,
) -> dict[str, Any]:
    """Distil `data` by the preset `name`; results.json's rows, and ours beside the published number.

    changed: options other than the preset's, nested as in `preset_options`; they are named in the result.
    Raises UserError for an unknown preset, and whatever `limbeck.distill` refuses.
    """
    from limbeck.jobs.stages import distill

    preset, options = load_preset(name), preset_options(name)
    changed = changed or {}
    for key, value in changed.items():
        options[key] = {**options.get(key, {}), **value} if isinstance(value, dict) else value
    if experts is not None:  # how they were trained, and how many there are, is the store's to say
        options = {
            key: value for key, value in options.items() if key not in ("expert", "num_experts") or key in changed
        }
    path = distill(
        data, out=out, experts=experts, device=device, resize=resize, listen=listen, **{"seed": seed, **options}
    )
    results = json.loads((path / "results.json").read_text())
    rows = results["results"]
    return {
        **results,
        "run": str(path),
        "preset": f"{preset.name}, version {preset.version} ({preset.source})",
        "changed": changed,
        "published": None if preset.published is None else preset.published.model_dump(),
        "comparison": comparison(preset, rows, results["data"]["name"], bool(changed)),
        "notes": list(preset.notes),
    }


def comparison(preset: Preset, rows: list[dict[str, Any]], data: str, changed: bool) -> str:
    """One sentence: our last set's accuracy with n, the published number, and what makes them differ in kind."""
    last = [row for row in rows if row["set"] == "distilled" and row["which"] == "last"]
    ours = next((row for row in last if "protocol" in row), last[0])  # its own, by which the figure was published
    how = f", by {ours['protocol']}" if "protocol" in ours else ""
    said = (
        f"ours {percent(ours['accuracy_mean'], deviation(ours), 2)} (last set, test{how}, "
        f"n = {ours['n']} networks, 1 distillation seed)"
    )
    theirs = "nothing published"
    if preset.published is not None:
        theirs = f"published {preset.published} % ({preset.published.source})"
    but = [f"on {data}, and the setting is for {preset.data}"] if data != preset.data else []
    but += ["options were changed"] if changed else []
    return f"{said}; {theirs}{'; ' + '; '.join(but) if but else ''}"


def run_presets(args: Presets, listen: Listener) -> Any:
    """The presets as data with --json, else a line each."""
    if args.method is not None and args.method not in PRESET_METHODS:
        raise UserError(f"there are no presets of '{args.method}'; choose one of {', '.join(PRESET_METHODS)}.")
    if args.markdown and not args.as_json:
        print(markdown(), end="")
        return {}
    held = [preset for preset in all_presets().values() if args.method in (None, preset.method)]
    if args.as_json:
        return {"presets": [preset.model_dump(mode="json") for preset in held]}
    width = max(len(preset.name) for preset in held)
    lines = {}
    for preset in held:
        number = f"{preset.published} %" if preset.published else "no number"
        lines[preset.name] = f"{'':{width - len(preset.name)}}{number:<15} {preset.source}"
    return lines


def run_reproduce(args: Reproduce, listen: Listener) -> Any:
    """Call `reproduce`."""
    return reproduce(
        args.preset,
        args.data,
        changes(args.change),
        out=args.out,
        experts=args.experts,
        seed=args.seed,
        device=args.device,
        resize=args.resize,
        listen=listen,
    )


COMMANDS = {
    "presets": Command(Presets, run_presets),
    "reproduce": Command(Reproduce, run_reproduce),
}
