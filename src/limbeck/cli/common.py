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


class Foretell:
    """A listener that says how long the work will take when it begins, to the listener that it is made of.

    An estimate that fails is left out: it must not stop the work.
    """

    def __init__(self, listen: Listener):
        self.listen = listen

    def __call__(self, event: dict[str, Any]) -> None:
        if event["event"] == "begin":
            from limbeck.jobs.estimate import estimate

            self.tell(lambda: estimate(event["work"], event["path"]))
        else:
            self.listen(event)

    def tell(self, estimate: Callable[[], Any]) -> None:
        """Hand the estimate on as an event."""
        try:
            result = estimate()
        except Exception:  # whatever it is, the work itself will say so if it matters
            return
        if result.total:
            self.listen({"event": "estimate", "text": result.text, **result.to_json()})
