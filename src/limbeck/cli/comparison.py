"""The result of a preset beside its published number, and how the two differ in kind."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from limbeck.core.records import ResultRow, ResultsRecord
from limbeck.jobs.presets import Preset, load_preset
from limbeck.report.text import percent


def compare_with_published(name: str, results: ResultsRecord, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The published number beside the result, JSON-able; `limbeck distill --preset NAME` prints it.

    changes: options that are not the preset's, as `changed_options` lists them.
    """
    preset = load_preset(name)
    return {
        "preset": f"{preset.name}, version {preset.version} ({preset.source})",
        "changed": dict(changes),
        "published": None if preset.published is None else preset.published.model_dump(),
        "comparison": comparison(preset, results.results, results.data.name, changes),
        "notes": list(preset.notes),
    }


def comparison(preset: Preset, rows: Sequence[ResultRow], data: str, changes: Mapping[str, Any]) -> str:
    """One sentence: the accuracy of the last set with n, the published number, and how the two differ in kind."""
    last = [row for row in rows if (row.set, row.which) == ("distilled", "last")]
    last.sort(key=lambda row: row.protocol is None)  # first the protocol by which the figure was published
    ours = "no accuracy of ours"
    for row in last[:1]:
        protocol = "" if row.protocol is None else f", by {row.protocol}"
        ours = (
            f"ours {percent(row.accuracy_mean, row.accuracy_std, 2)} (last set, test{protocol}, n = {row.n} networks, "
            "1 distillation seed)"
        )
    theirs = "nothing published"
    if preset.published is not None:
        theirs = f"published {preset.published} % ({preset.published.source})"
    differences = [f"on {data}, and the setting is for {preset.data}"] if data != preset.data else []
    if changes:
        differences.append("changed: " + ", ".join(f"{name} {value}" for name, value in changes.items()))
    return "; ".join([ours, theirs, *differences])


def changed_options(options: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options whose values are not those of `defaults`, by their flags; the seed does not count.

    >>> changed_options({"iterations": 10, "seed": 1, "ipc": 2}, {"iterations": 300, "seed": 0, "ipc": 2})
    {'iterations': 10}
    """
    flat = dict(_flatten(defaults))
    changes = {name: value for name, value in _flatten(options) if flat.get(name) != value}
    return {name: value for name, value in changes.items() if name != "seed"}


def _flatten(options: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in options.items():
        flag = f"{prefix}{name}".replace("_", "-")
        if isinstance(value, BaseModel):
            yield from _flatten(dict(value), f"{flag}.")
        else:
            yield flag, value
