"""What the command line's parts share: options of every command, what a command is, and how a job is foretold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import tyro
from pydantic import BaseModel, ConfigDict, Field


class Common(BaseModel):
    """Options of every command."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, populate_by_name=True)

    device: str = "cpu"
    """cpu, cuda, cuda:1, ..."""
    threads: int | None = Field(default=None, ge=1)
    """processor threads; by default one per core"""
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False
    """print the result as JSON on standard output (progress goes to standard error)"""
    debug: bool = False
    """show the traceback of an error"""
    estimate: bool = True
    """say first how long it will take, where that may be long"""


class Data(Common):
    """Options of commands that read images."""

    data: tyro.conf.Positional[str]
    """digits, fashion-mnist, or the path of a folder of class folders, an .npz, idx or parquet files"""
    resize: int | None = Field(default=None, ge=1)
    """resize every image to this many pixels a side"""


Listener = Callable[[dict[str, Any]], None]
Options = type[Common]


def unchanged(options: Options, arguments: list[str]) -> tuple[Options, list[str]]:
    """The options of a command do not depend on its arguments."""
    return options, arguments


class Command(NamedTuple):
    """A command's options and what it calls; `adapt` makes both options and arguments depend on the arguments."""

    options: Options
    run: Callable[[Any, Listener], Any]
    adapt: Callable[[Options, list[str]], tuple[Options, list[str]]] = unchanged


def announce(estimate: Callable[[], Any], listen: Listener) -> None:
    """Say how long the work will take; an estimate that fails is left out, since it must not stop the work."""
    try:
        result = estimate()
    except Exception:  # the work itself will say what is wrong, if it matters
        return
    if result.total:
        listen({"event": "estimate", **result.to_json()})
