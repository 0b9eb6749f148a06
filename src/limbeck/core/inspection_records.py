"""The record of an analysis of experts: `jobs` writes it and `report` reads it."""

from __future__ import annotations

from pydantic import JsonValue

from limbeck.core.records import Record


class PathCurves(Record):
    """Validation accuracy at the epochs `t`: by path, one curve an expert."""

    t: list[int]
    curves: dict[str, list[list[float]]]


class PlaneRecord(Record):
    """Paths in the plane of two principal components: shares of variance, and by path the two coordinates."""

    explained: list[float]
    paths: dict[str, list[list[float]]]


class StorageRow(Record):
    """Bytes of one expert in one form, and how many times smaller that is than every epoch recorded."""

    form: str
    bytes: int
    ratio: float


class InspectionRecord(Record):
    """inspect.json: the analyses of a store; those without the points that they need are None."""

    format: str = "limbeck-inspection"
    version: int = 1
    store: str
    data: str
    model: dict[str, JsonValue]
    expert: dict[str, JsonValue]
    experts: int
    accuracy: PathCurves | None
    cosine: list[list[float]] | None
    straightness: list[float] | None
    plane: PlaneRecord | None
    storage: list[StorageRow]
