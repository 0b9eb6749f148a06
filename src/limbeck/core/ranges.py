"""Ranges of options by what they mean. The limits refuse slips of the pen; no published setting is near them.

An option is annotated by one of these types, so that options of the same meaning have the same range in every config.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, StrictFloat, StrictInt
from pydantic_core import PydanticCustomError


def _refuse_truth(value: Any) -> Any:
    """Return a value that is no truth value, which pydantic would read as 0 or 1."""
    if isinstance(value, bool):
        raise PydanticCustomError("number_type", "Input should be a number")
    return value


NUMBER = BeforeValidator(_refuse_truth)

Count = Annotated[int, Field(ge=1, le=10**9), NUMBER]
"""A number of steps, epochs or images of which memory does not grow."""
Passes = Annotated[int, Field(ge=1, le=10**6), NUMBER]
"""A number of passes over a distilled set, which a stranger's set may ask for."""
CountOrZero = Annotated[int, Field(ge=0, le=10**9), NUMBER]
"""The same, where 0 leaves something out."""
Size = Annotated[int, Field(ge=1, le=10**5), NUMBER]
"""A number of images, networks or steps that are kept in memory or on the disk, or computed in one outer step."""
Width = Annotated[int, Field(ge=1, le=2**16), NUMBER]
"""A number of channels or features."""
Depth = Annotated[int, Field(ge=1, le=1000), NUMBER]
"""A number of blocks of a network."""
Tiles = Annotated[int, Field(ge=1, le=64), NUMBER]
"""A number of images along the side of a larger one."""
MAX_SIDE = 8192
Side = Annotated[int, Field(ge=1, le=MAX_SIDE), NUMBER]
"""The pixels of an image's side."""
Workers = Annotated[int, Field(ge=1, le=4096), NUMBER]
"""A number of threads or processes."""
Seed = Annotated[int, Field(ge=-(2**63), le=2**63 - 1), NUMBER]
"""A seed: a whole number of 64 bits."""
StepSize = Annotated[float, Field(gt=0, le=1e9), NUMBER]
"""A step size, a temperature or another positive factor."""
Weight = Annotated[float, Field(ge=0, le=1e9), NUMBER]
"""The weight of a term, or a radius; 0 leaves it out."""
Epoch = Annotated[float, Field(gt=0, le=1e9), NUMBER]
"""A time in epochs, which need not be whole."""
Decay = Annotated[float, Field(ge=0, lt=1), NUMBER]
"""The decay of an average, or a momentum."""
Number = Annotated[StrictInt | StrictFloat, Field(ge=-1e9, le=1e9)]
"""Any number that an option can have; a whole one stays whole."""
Share = Annotated[float, Field(ge=0, le=1), NUMBER]
"""A part of a whole."""
