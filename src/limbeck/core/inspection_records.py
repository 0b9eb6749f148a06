"""The record of an analysis of experts: `jobs` writes it and `report` reads it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, JsonValue, model_validator

from limbeck.core.records import Fraction, Number, Record

Coordinate = Annotated[float, Field(ge=-1e30, le=1e30)]
"""A number that an axis can have: beyond this, its arithmetic overflows."""


class PathCurves(Record):
    """Validation accuracy at the epochs `t`: by path, one curve an expert."""

    t: list[int]
    curves: dict[str, list[list[Fraction]]]

    @model_validator(mode="after")
    def _has_one_value_an_epoch(self) -> PathCurves:
        if any(len(curve) != len(self.t) for curves in self.curves.values() for curve in curves):
            raise ValueError("a curve has not one value for each epoch")
        return self


class PlaneRecord(Record):
    """Paths in the plane of two principal components: shares of variance, and by path the two coordinates."""

    explained: Annotated[list[Fraction], Field(min_length=2, max_length=2)]
    paths: dict[
        str, Annotated[list[Annotated[list[Coordinate], Field(min_length=1)]], Field(min_length=2, max_length=2)]
    ]

    @model_validator(mode="after")
    def _has_two_coordinates_a_point(self) -> PlaneRecord:
        if any(len(x) != len(y) for x, y in self.paths.values()):
            raise ValueError("a point of a path has one coordinate")
        return self


class StorageRow(Record):
    """Bytes of one expert in one form, and how many times smaller that is than every epoch recorded."""

    form: str
    bytes: int
    ratio: float


class InspectedTraining(Record):
    """How the experts were trained: their epochs, beside the other options."""

    epochs: Number


class InspectionRecord(Record):
    """inspect.json: the analyses of a store; those without the points that they need are None."""

    format: str = "limbeck-inspection"
    version: int = 1
    store: str
    data: str
    model: dict[str, JsonValue]
    expert: InspectedTraining
    experts: int
    accuracy: PathCurves | None
    cosine: Annotated[list[list[Coordinate]], Field(min_length=1)] | None
    straightness: list[Coordinate] | None
    plane: PlaneRecord | None
    storage: list[StorageRow]

    @model_validator(mode="after")
    def _has_a_square_of_cosines(self) -> InspectionRecord:
        if self.cosine is not None and any(len(row) != len(self.cosine) for row in self.cosine):
            raise ValueError("the cosines are no square")
        return self
