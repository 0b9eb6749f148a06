"""The command that shows and clears the cache."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from limbeck.cli.common import Command, Options
from limbeck.core.events import Listener
from limbeck.core.folders import home_folder, kernels_folder, size_of
from limbeck.report.text import size

LOCK = "lock"
"""The file by which processes share the folder of compiled kernels."""
KINDS = {
    "images": "decoded images, at most 20 GB or $LIMBECK_CACHE_GB; the next command decodes them again",
    "pictures": "what 'limbeck info' draws of a data set; it draws them again",
    "experts": "stores of experts that a run made for itself; they are trained again",
    "teachers": "networks trained on real images that label batches in an evaluation; they are trained again",
    "baselines": "accuracies of random, k-means and all real images; they are measured again",
    "studies": "runs of studies, whose rows are in the studies' own files; an unfinished one begins again",
    "kernels": "compiled kernels; they are compiled again",
}


class Cache(Options):
    """Show what limbeck keeps for reuse and how large it is, or clear it."""

    clear: tuple[Literal["images", "pictures", "experts", "teachers", "baselines", "studies", "kernels"], ...] = ()
    """The kinds of things to remove; no other command may be using them."""


def folder_of(kind: str) -> Path:
    """The folder of one kind."""
    return kernels_folder() if kind == "kernels" else home_folder() / kind


def sizes(folder: Path) -> dict[str, int]:
    """Bytes of the entries of a folder, by name; empty where there is no folder."""
    if not folder.is_dir():
        return {}
    return {path.name: size_of(path) for path in sorted(folder.iterdir()) if path.name != LOCK}


def clear_folder(folder: Path) -> None:
    """Remove what is in a folder, but for the file of a lock: two processes with two such files exclude nobody."""
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()


def run_cache(args: Cache, listen: Listener) -> Any:
    """Remove the kinds that --clear names; then return the sizes of all kinds with --json, else print them."""
    for kind in args.clear:
        clear_folder(folder_of(kind))
    kinds = {name: sizes(folder_of(name)) for name in KINDS}
    if args.as_json:
        return {
            "home": str(home_folder()),
            "entries": kinds,
            "bytes": {name: sum(content.values()) for name, content in kinds.items()},
        }
    console = Console(highlight=False)
    for name, content in kinds.items():
        console.print(f"[bold]{name}[/]: {size(sum(content.values()))} in {folder_of(name)}", soft_wrap=True)
        console.print(f"  [dim]{KINDS[name]}[/]", soft_wrap=True)
        for entry, count in content.items():
            console.print(f"  {size(count):>10}  {entry}", soft_wrap=True, markup=False)
    return {}


COMMANDS = {"cache": Command(Cache, run_cache, ("limbeck cache", "limbeck cache --clear images kernels"))}
