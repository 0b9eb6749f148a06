"""The header of a distilled set's file; anybody may have written it, so that every field has its range."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, JsonValue

from limbeck.core.ranges import Decay, Passes, Weight
from limbeck.core.records import DataName, Record

Count = Annotated[int, Field(ge=1, le=2**31)]


class NetworkRecord(Record):
    """A network by name, with its options; those that it does not know are refused where it is built."""

    name: Annotated[str, Field(max_length=200)] = "convnet"
    depth: Annotated[int, Field(ge=1, le=1000)] | None = None
    width: Annotated[int, Field(ge=1, le=1 << 16)] | None = None


class RecipeRecord(Record):
    """How networks are meant to be trained on a set: fields of `EvalConfig`, with network and augmentation."""

    model: NetworkRecord | None = None
    augment: Annotated[str, Field(max_length=200)] | None = None
    networks: Count | None = None
    epochs: Passes | None = None
    batch_size: Count | None = None
    momentum: Decay | None = None
    weight_decay: Weight | None = None
    labels: Literal["set", "hard", "teacher"] = "set"
    optimiser: Literal["sgd", "adamw"] = "sgd"
    decay: Literal["step", "cosine"] = "step"
    ema: Decay = 0.0


class SetData(DataName):
    """The data that a set was distilled from, where it lies, and how it was read: arguments of `load_data`."""

    source: str | None = None
    resize: Count | Annotated[list[Count], Field(min_length=2, max_length=2)] | None = None
    pixel_range: Annotated[list[float], Field(min_length=2, max_length=2)] | None = None
    follow_links: bool = False
    validation: Annotated[float, Field(ge=0, lt=1)] | str = 0.1
    resize_mode: Literal["stretch", "crop", "pad"] = "stretch"
    test: str | None = None
    seed: int | None = None


class SetConfig(Record):
    """The options of a set's run that are read when the set is used."""

    canvas: Annotated[int, Field(ge=1, le=64)] | None = None
    ipc: Count | None = None
    fill: Literal["none", "repeat", "augment", "noise"] = "none"
    seed: int = 0
    flip: bool = False
    eval: dict[str, JsonValue] = Field(default_factory=dict)


class Imported(Record):
    """Of a set that was imported: the name of its file, and what had to be assumed."""

    file: str = ""
    notes: list[str] = Field(default_factory=list)


class Provenance(Record):
    """Where a set comes from, as its header says; step: outer steps done, None where it is unknown."""

    method: str | None = None
    config: SetConfig = SetConfig()
    data: SetData = SetData()
    which: str | None = None
    step: Annotated[int, Field(ge=0)] | None = None
    imported: Imported | None = None


class TilesRecord(Record):
    """How training images are cut from stored ones: the fields of a `Partition`."""

    factor: Annotated[int, Field(ge=1, le=64)]
    mode: Literal["single", "multi", "bound"]
    pad: list[float]
    max_per_class: Annotated[int, Field(ge=1)]


class SetHeader(Record):
    """Header of a distilled set's file, see `limbeck.DistilledSet`; tiles: from version 2 on, of sets of tiles."""

    format: str = "limbeck-set"
    version: int = 1
    tiles: TilesRecord | None = None
    classes: Annotated[list[str], Field(min_length=1)]
    preprocess: dict[str, JsonValue]
    recipe: RecipeRecord
    provenance: Provenance
