"""Finds a method, network, selector or reader by name, of limbeck or of a user, and checks the laws of its kind."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any, Literal

from limbeck.core.errors import UserError, suggest_names
from limbeck.core.text import quote
from limbeck.core.user_imports import entry_points, import_object
from limbeck.data import DataSource, load_data
from limbeck.data.readers.reader import Reader
from limbeck.data.sources import DATA_NAMES
from limbeck.jobs.rehearsal import subset
from limbeck.laws.law import Outcome, check_laws
from limbeck.laws.methods import METHOD_LAWS, MethodTrial
from limbeck.laws.networks import NETWORK_LAWS, NetworkTrial
from limbeck.laws.readers import READER_LAWS, ReaderTrial
from limbeck.laws.selectors import SELECTOR_LAWS
from limbeck.methods import METHODS, Method, find_method
from limbeck.networks.registry import MODELS, ModelConfig
from limbeck.select import SELECTORS, find_selector
from limbeck.task import make_task

Kind = Literal["method", "network", "selector", "reader"]
IMAGES, WIDTH = 30, 8
"""Training images of a class in a trial of a method, and the channels of its ConvNet."""


def find_kind(name: str) -> Kind:
    """Whether a name is that of a method, a network, a selector or a reader.

    MODULE:NAME is a method where it is a `Method`, a reader where it is a `Reader`, a selector where its first
    parameter is called `features`, and a network otherwise. Raises UserError for a name that is none of these, and for
    what cannot be imported.

    >>> find_kind("mct"), find_kind("lenet"), find_kind("limbeck.select:herding")
    ('method', 'network', 'selector')
    """
    if ":" in name and not name.startswith("timm:"):
        return _kind_of_value(name, import_object(name, "plug-in"))
    names: dict[Kind, set[str]] = {
        "method": {*METHODS, *entry_points("method")},
        "network": {*MODELS, *entry_points("network")},
        "selector": {*SELECTORS, *entry_points("selector")},
        "reader": {*entry_points("reader")},
    }
    if name.startswith("timm:"):
        return "network"
    for kind, known_names in names.items():
        if name in known_names:
            return kind
    raise UserError(
        f"there is nothing called {quote(name)}; {suggest_names(name, sorted(set().union(*names.values())))}"
    )


def _kind_of_value(name: str, value: Any) -> Kind:
    if isinstance(value, Method):
        return "method"
    if isinstance(value, Reader):
        return "reader"
    if not callable(value):
        raise UserError(
            f"{quote(name)} is a {type(value).__name__}; it has to be a Method, a Reader, a function (channels, size, "
            "classes) that builds a network, or a selector (features, count, seed)."
        )
    try:
        first = next(iter(inspect.signature(value).parameters), "")
    except ValueError:
        first = ""
    return "selector" if first == "features" else "network"


def check(
    name: str, data: DataSource = "digits", kind: Kind | None = None, resize: int | None = None
) -> Iterator[Outcome]:
    """Yield the outcome of every law of a method, network, selector or reader.

    name:   MODULE:NAME of a user's own, or the name of one of limbeck's.
    data:   images on which a method is tried, and whose shape and number of classes a network is built for;
            the path of what a reader has to read.
    kind:   what `name` is; by default `find_kind` says it.
    resize: pixels a side of the images.

    A method is tried with a small ConvNet, 30 images of a class, and a straight line between two random networks in
    place of an expert. Raises UserError for what cannot be imported, is of the wrong type, or has a name of limbeck's.

    >>> [outcome.status for outcome in check("limbeck.select:herding")]
    ['passed', 'passed', 'passed']
    """
    kind = kind or find_kind(name)
    if kind == "selector":
        yield from check_laws(SELECTOR_LAWS, find_selector(name))
        return
    if kind == "reader":
        if not isinstance(data, str) or data in DATA_NAMES:
            raise UserError(f"a reader is checked on data of yours: limbeck check {name} PATH.")
        yield from check_laws(READER_LAWS, ReaderTrial(name, data))
        return
    method = find_method(name) if kind == "method" else None
    images = load_data(data, resize=resize)
    if method is None:
        trial = NetworkTrial(ModelConfig(name=name), images.shape, images.num_classes)
        yield from check_laws(NETWORK_LAWS, trial)
        return
    task = subset(make_task(images, ModelConfig(width=WIDTH)), IMAGES)
    yield from check_laws(METHOD_LAWS, MethodTrial.on_stand_in(method, task))
