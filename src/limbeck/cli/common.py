"""Parts that commands share: `Command`, and the options that several of them have."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import tyro
from pydantic import BaseModel, ConfigDict
from tyro.conf import FlagCreatePairsOff, Positional

from limbeck.core.errors import UserError
from limbeck.core.events import Listener
from limbeck.core.ranges import Workers
from limbeck.core.sizes import ResizeMode, parse_size
from limbeck.engines import EngineName
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

    threads: Workers | None = None
    """Processor threads to use; the default is one per core."""


class Device(Threads):
    """Options of commands that compute on a device."""

    device: Annotated[str, tyro.conf.arg(metavar="DEVICE")] = "cpu"
    """The device to compute on: cpu, cuda, cuda:1 and so on."""


class WithEstimate(OptionGroup):
    """The option of commands that may take long."""

    estimate: Annotated[FlagCreatePairsOff[bool], SWITCH] = True
    """Do not say first how long the command will take."""


class WithEngine(OptionGroup):
    """Options of commands whose work several machines can share."""

    engine: EngineName = "local"
    """Where the work is done: on this machine, or on the machines of a Ray cluster (docs/several-gpus.md)."""
    address: Annotated[str | None, tyro.conf.arg(metavar="HOST:PORT")] = None
    """The cluster; the default is that of $RAY_ADDRESS, or of this machine."""


class WithTracker(OptionGroup):
    """The option of commands whose numbers another tool may show."""

    tracker: TrackerName | None = None
    """Also write the numbers for another tool: jsonl and tensorboard into the folder; trackio and wandb, and
    tensorboard, need their packages."""


class Reading(OptionGroup):
    """How images are read."""

    resize: Annotated[str | None, tyro.conf.arg(metavar="N|HxW")] = None
    """Resize images to N pixels a side, or height x width."""
    resize_mode: ResizeMode = "stretch"
    """What happens to images of other proportions: stretch them, crop at the centre, or pad by the edges."""
    test: Annotated[str | None, PATH] = None
    """Class folders of test images, where DATA has none."""
    validation: Annotated[str | None, tyro.conf.arg(metavar="FRACTION|PATH")] = None
    """The part of every class of train that is kept for validation, or a folder of class folders with such images;
    the default is 0.1."""
    pixel_range: Annotated[tuple[float, float] | None, tyro.conf.arg(metavar="LOW HIGH")] = None
    """The pixel values that are black and white; the default follows from the whole data set."""
    follow_links: Annotated[FlagCreatePairsOff[bool], SWITCH] = False
    """Follow links to files and folders outside the data folder."""


def load_keywords(options: Reading) -> dict[str, Any]:
    """The options as keywords of `load_data`, without those that are at their default."""
    default = Reading()
    values = {name: getattr(options, name) for name in Reading.model_fields}
    keywords = {name: value for name, value in values.items() if value != getattr(default, name)}
    if options.resize is not None:
        keywords["resize"] = parse_size(options.resize)
    if options.validation is not None:
        keywords["validation"] = _parse_validation(options.validation)
    return keywords


def _parse_validation(text: str) -> float | str:
    """A fraction, or else the path of a folder. Raises UserError for a number that is no fraction.

    >>> _parse_validation("0.2"), _parse_validation("photos/val")
    (0.2, 'photos/val')
    """
    try:
        fraction = float(text)
    except ValueError:
        return text
    if not 0 <= fraction < 1:
        raise UserError(f"--validation is a fraction of train below 1, or a folder, not {text}; 0.1 is usual.")
    return fraction


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
