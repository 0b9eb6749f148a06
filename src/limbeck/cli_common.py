"""What the command line's parts share: options of every command, and what a command is."""

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


class Run(Data):
    """Options of commands that are about a run."""

    method: str = "mct"
    """which method, see 'limbeck methods'"""
    out: str | None = None
    """the run folder; by default runs/DATA-METHOD-ipcN-seedS"""
    experts: str | None = None
    """a store of experts; by default they are trained once and found again"""
    preset: str | None = None
    """a paper's setting, see 'limbeck presets'; options given beside it win"""


Listener = Callable[[dict[str, Any]], None]


class Command(NamedTuple):
    """A command's options and what it calls."""

    options: type[Common]
    run: Callable[[Any, Listener], Any]
