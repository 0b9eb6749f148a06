"""Parts that commands share: `Command`, and the options that several of them have."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import tyro
from pydantic import BaseModel, ConfigDict, Field
from tyro.conf import FlagCreatePairsOff, Positional

from limbeck.core.events import Listener
from limbeck.progress.combine import combine
from limbeck.progress.trackers import TrackerName, open_tracker

DATA, PATH, STORE = (tyro.conf.arg(metavar=word) for word in ("DATA", "PATH", "STORE"))
SWITCH = tyro.conf.arg(help_behavior_hint="")  # a switch that is off needs no "(default: False)"


class OptionGroup(BaseModel):
    """Base of the options of commands; the docstring under a field is its help."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Options(OptionGroup):
    """Options of every command."""

    as_json: Annotated[FlagCreatePairsOff[bool], SWITCH, tyro.conf.arg(name="json")] = False
    """Print the result as JSON on standard output; progress goes to standard error."""
    quiet: Annotated[FlagCreatePairsOff[bool], SWITCH] = False
    """Print the result, warnings and errors alone: no progress, no notes."""
    debug: Annotated[FlagCreatePairsOff[bool], SWITCH] = False
    """Show the traceback of an error."""


class Threads(OptionGroup):
    """The option of commands that compute."""

    threads: int | None = Field(default=None, ge=1)
    """Processor threads to use; the default is one per core."""


class Device(Threads):
    """Options of commands that compute on a device."""

    device: Annotated[str, tyro.conf.arg(metavar="DEVICE")] = "cpu"
    """The device to compute on: cpu, cuda, cuda:1 and so on."""


class WithEstimate(OptionGroup):
    """The option of commands that may take long."""

    estimate: Annotated[FlagCreatePairsOff[bool], SWITCH] = True
    """Do not say first how long the command will take."""


class WithTracker(OptionGroup):
    """The option of commands whose numbers another tool may show."""

    tracker: TrackerName | None = None
    """Also write the numbers for another tool: jsonl and tensorboard into the folder; trackio and wandb, and
    tensorboard, need their packages."""


class Reading(OptionGroup):
    """How images are read."""

    resize: int | None = Field(default=None, ge=1)
    """Resize every image to this many pixels a side."""
    pixel_range: Annotated[tuple[float, float] | None, tyro.conf.arg(metavar="LOW HIGH")] = None
    """The pixel values that are black and white; the default follows from the whole data set."""
    follow_links: Annotated[FlagCreatePairsOff[bool], SWITCH] = False
    """Follow links to files and folders outside the data folder."""


def load_keywords(options: Reading) -> dict[str, Any]:
    """The options as keywords of `load_data`."""
    return {"resize": options.resize, "pixel_range": options.pixel_range, "follow_links": options.follow_links}


class Data(Reading):
    """Options of commands that read images."""

    data: Annotated[Positional[str], DATA]
    """The images: digits, fashion-mnist, or a path: a folder of class folders, an archive, a file ('limbeck info')."""


class Command(NamedTuple):
    """A command: its options, the function it calls, and words that show its use.

    choose_defaults: (program name, arguments) -> the options to start from, where these depend on the arguments.
    status: result -> the exit status.
    everyday: The flags that --help shows where a command has many; --help-all shows all.
    is_shareable: whether several processes of torchrun can share its work.
    """

    options: type[Options]
    run: Callable[[Any, Listener], Any]
    examples: tuple[str, ...]
    choose_defaults: Callable[[str, Sequence[str]], Options] | None = None
    status: Callable[[Any], int] = lambda result: 0
    everyday: tuple[str, ...] = ()
    is_shareable: bool = False


@contextmanager
def tracking(name: TrackerName | None, folder: Path, config: Mapping[str, Any], listen: Listener) -> Iterator[Listener]:
    """The listener for a `with` block, with the tracker of this name beside it where there is one."""
    if name is None:
        yield listen
        return
    with open_tracker(name, folder, config) as track:
        yield combine(listen, track)


def announce(estimate: Callable[[], Any], listen: Listener) -> None:
    """Say how long the work will take; an estimate that fails is left out, since it must not stop the work."""
    listen({"event": "note", "text": "timing a few steps, to say how long it will take"})
    try:
        result = estimate()
    except Exception:  # the work itself will say what is wrong, if it matters
        return
    if result.total:
        listen({"event": "estimate", **result.to_json()})
