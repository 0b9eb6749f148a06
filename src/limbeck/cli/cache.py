"""The command that shows what is kept for reuse, and clears it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from limbeck.cli.common import Command, Listener, Options
from limbeck.core.folders import home_folder, kernels_folder, size_of
from limbeck.report.text import size

KINDS = {
    "images": "decoded images, at most 20 GB or $LIMBECK_CACHE_GB; the next command decodes them again",
    "experts": "stores of experts that a run made for itself; they are trained again",
    "baselines": "accuracies of random, k-means and all real images; they are measured again",
    "kernels": "compiled kernels; they are compiled again",
}


class Cache(Options):
    """Show what limbeck keeps for reuse, and how large it is; clear it."""

    clear: tuple[Literal["images", "experts", "baselines", "kernels"], ...] = ()
    """The kinds of things to remove; no other command may be using them."""


def folder(kind: str) -> Path:
    """Where things of this kind are kept."""
    return kernels_folder() if kind == "kernels" else home_folder() / kind


def entries(place: Path) -> dict[str, int]:
    """Bytes of everything in a folder, by name."""
    if not place.is_dir():
        return {}
    return {path.name: size_of(path) for path in sorted(place.iterdir())}


def run_cache(args: Cache, listen: Listener) -> Any:
    """Everything in the cache as data with --json, else a few lines a kind; after what is to be cleared is gone."""
    for kind in args.clear:
        if folder(kind).is_dir():
            shutil.rmtree(folder(kind))
    kinds = {name: entries(folder(name)) for name in KINDS}
    if args.as_json:
        return {
            "home": str(home_folder()),
            "entries": kinds,
            "bytes": {name: sum(content.values()) for name, content in kinds.items()},
        }
    console = Console(highlight=False)
    for name, content in kinds.items():
        console.print(f"[bold]{name}[/]: {size(sum(content.values()))} in {folder(name)}", soft_wrap=True)
        console.print(f"  [dim]{KINDS[name]}[/]", soft_wrap=True)
        for entry, count in content.items():
            console.print(f"  {size(count):>10}  {entry}", soft_wrap=True, markup=False)
    return {}


COMMANDS = {"cache": Command(Cache, run_cache, ("limbeck cache", "limbeck cache --clear images kernels"))}
