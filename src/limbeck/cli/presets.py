"""The command that lists the published settings."""

from __future__ import annotations

from typing import Annotated, Any

from tyro.conf import FlagCreatePairsOff

from limbeck.cli.common import SWITCH, Command, Options
from limbeck.core.errors import UserError
from limbeck.core.events import Listener
from limbeck.core.text import quote
from limbeck.jobs.presets import PRESET_METHODS, all_presets, markdown


class Presets(Options):
    """List the published settings, with their sources and accuracies."""

    method: str | None = None
    """List the settings of this method only; 'limbeck methods' lists methods."""
    markdown: Annotated[FlagCreatePairsOff[bool], SWITCH] = False
    """Print the page docs/presets.md."""


def run_presets(args: Presets, listen: Listener) -> Any:
    """Return the presets as data with --json, else one line a preset."""
    if args.method is not None and args.method not in PRESET_METHODS:
        raise UserError(f"there are no presets of {quote(args.method)}; choose one of {', '.join(PRESET_METHODS)}.")
    if args.markdown and not args.as_json:
        print(markdown(), end="")
        return {}
    presets = [preset for preset in all_presets().values() if args.method in (None, preset.method)]
    if args.as_json:
        return {"presets": [preset.model_dump(mode="json") for preset in presets]}
    width = max(len(preset.name) for preset in presets)
    lines = {}
    for preset in presets:
        number = f"{preset.published} %" if preset.published else "no number"
        lines[preset.name] = f"{'':{width - len(preset.name)}}{number:<15} {preset.source}"
    return lines


COMMANDS = {"presets": Command(Presets, run_presets, ("limbeck presets --method mct",))}
