"""Columns of Arrow tables: which of them hold images and labels, by type and name, and what their cells are."""

from __future__ import annotations

import json
from collections.abc import Iterator
from math import isqrt
from typing import Any

import numpy as np

from limbeck.core.errors import UserError
from limbeck.data.images import Array
from limbeck.data.readers.columns import FIRST_LABEL_COLUMNS, LABEL_COLUMNS, label_columns, usual_columns
from limbeck.data.readers.table_files import list_names

IMAGE_COLUMNS = ("img", "image", "images", "picture", "photo", "jpg", "jpeg", "png", "pixels")
PATH_COLUMNS = ("file_name", "filename", "file", "file_path", "filepath", "path", "image_path")


def choose_columns(where: str, schema: Any) -> tuple[str, str]:
    """(image column, label column) of a pyarrow schema, by type and usual name; an only column of images needs no name.

    Raises UserError where there is none, or more than one.
    """
    texts = [field.name for field in schema if is_text(field.type)]
    fitting = [field.name for field in schema if _holds_images(field.type)]
    flat = [field.name for field in schema if _depth(field.type) == 1]
    images = usual_columns([*fitting, *flat, *texts], IMAGE_COLUMNS) or fitting or usual_columns(texts, PATH_COLUMNS)
    labels = label_columns([field.name for field in schema if _holds_labels(field.type)])
    usual = {"image": IMAGE_COLUMNS, "label": (*FIRST_LABEL_COLUMNS, *LABEL_COLUMNS)}
    for kind, columns in (("image", images), ("label", labels)):
        if len(columns) > 1:
            raise UserError(f"{where}: several {kind} columns, {list_names(columns)}; remove or rename all but one")
        if not columns:
            shown = list_names(schema.names, 8) or "nothing"
            raise UserError(
                f"{where}: no {kind} column ({list_names(usual[kind], 3)}) among {shown}; rename the one that is meant"
            )
    return images[0], labels[0]


def class_names(schema: Any, label: str) -> list[str] | None:
    """Class names from the metadata that the Hugging Face library writes; None where there are none."""
    try:
        return list(map(str, json.loads(schema.metadata[b"huggingface"])["info"]["features"][label]["names"]))
    except (KeyError, TypeError, ValueError, RecursionError):
        return None


def is_text(kind: Any) -> bool:
    """Whether a pyarrow type is that of text, with a dictionary or without."""
    from pyarrow import types

    kind = _value_type(kind)
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def holds_words(kind: Any) -> bool:
    """Whether labels of this type are words: text or truth values, perhaps in lists of one."""
    from pyarrow import types

    kind = kind.value_type if _is_list(kind) else kind
    return is_text(kind) or bool(types.is_boolean(kind))


def _holds_labels(kind: Any) -> bool:
    from pyarrow import types

    inner = _value_type(kind.value_type if _is_list(kind) else kind)
    return holds_words(kind) or bool(types.is_integer(inner))


def _holds_images(kind: Any) -> bool:
    """Whether a column of this type holds images, whatever its name."""
    from pyarrow import types

    if types.is_struct(kind):
        fields = {field.name: field.type for field in kind}
        return ("bytes" in fields and _is_bytes(fields["bytes"])) or ("path" in fields and is_text(fields["path"]))
    return _is_bytes(kind) or _depth(kind) > 1 or len(getattr(kind, "shape", ())) > 1


def _value_type(kind: Any) -> Any:
    from pyarrow import types

    return kind.value_type if types.is_dictionary(kind) else kind


def _is_list(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _is_bytes(kind: Any) -> bool:
    from pyarrow import types

    kind = _value_type(kind)
    views = types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)
    return bool(views or types.is_fixed_size_binary(kind))


def _depth(kind: Any) -> int:
    """How deep lists of numbers are nested; 0 for any other type."""
    from pyarrow import types

    depth = 0
    while _is_list(kind):
        kind, depth = kind.value_type, depth + 1
    return depth if types.is_integer(kind) or types.is_floating(kind) else 0


def _decode_dictionary(cells: Any) -> Any:
    from pyarrow import types

    return cells.dictionary_decode() if types.is_dictionary(cells.type) else cells


def word_codes(cells: Any, words: dict[str, int]) -> Array:
    """Cells as positions in `words`, to which new words are appended; -1 for empty cells."""
    cells.validate(full=True)  # reading text at a damaged offset would end the process
    texts = [None if cell in (None, "") else str(cell) for cell in _decode_dictionary(cells).to_pylist()]
    return np.array([-1 if text is None else words.setdefault(text, len(words)) for text in texts], np.int64)


def label_codes(cells: Any, words: dict[str, int] | None, where: str) -> Array:
    """Labels as int64, -1 for empty cells: positions in `words`, see `word_codes`, or for None the numbers themselves.

    Raises UserError for lists of any length but one.
    """
    import pyarrow.compute as pc

    cells.validate(full=True)
    if _is_list(cells.type):
        lengths = pc.list_value_length(cells).to_numpy(zero_copy_only=False)
        if not (lengths == 1).all():
            raise UserError(f"{where}: the label column has empty cells or lists of several labels; give one an image")
        cells = cells.flatten()
    if words is not None:
        return word_codes(cells, words)
    cells = _decode_dictionary(cells)
    values = cells.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    return np.where(cells.is_null().to_numpy(zero_copy_only=False), -1, values)


def cell_contents(cells: Any) -> Iterator[Any]:
    """Each cell of an image column: encoded bytes, a path, the pixels or a list of pixels; None where it is empty."""
    from pyarrow import types

    cells.validate(full=True)
    cells = _decode_dictionary(cells)
    if types.is_struct(cells.type):
        fields = dict(zip([field.name for field in cells.type], cells.flatten(), strict=True))
        columns = [_decode_dictionary(fields[name]).to_pylist() for name in ("bytes", "path") if name in fields]
        for row in zip(*columns, strict=True):
            yield next((cell for cell in row if cell is not None), None)
    elif hasattr(cells.type, "shape"):
        yield from (cell.to_numpy() if cell.is_valid else None for cell in cells)
    elif _is_list(cells.type):
        yield from (cell.values for cell in cells)
    else:
        yield from cells.to_pylist()


def stack_pixels(values: Any, where: str) -> Array:
    """The pixels of one cell: nested lists, or a flat list of a grey square. Raises UserError for other lists."""
    import pyarrow.compute as pc

    shape = [len(values)]
    while _is_list(values.type):
        lengths = pc.list_value_length(values).to_numpy(zero_copy_only=False)
        if not len(lengths) or not (lengths == lengths[0]).all():
            raise UserError(f"{where}: its lists of pixels differ in length, or are empty; give each image whole rows")
        shape.append(int(lengths[0]))
        values = values.flatten()
    if values.null_count:
        raise UserError(f"{where}: {values.null_count} pixels are missing; replace them, or leave it out")
    pixels: Array = values.to_numpy(zero_copy_only=False)
    side = isqrt(len(pixels))
    if len(shape) == 1 and side * side != len(pixels):
        raise UserError(f"{where}: a flat list of {len(pixels)} pixels is no grey square; give lists of rows of pixels")
    return pixels.reshape(shape if len(shape) > 1 else (side, side))
