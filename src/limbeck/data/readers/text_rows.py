"""Rows of text: .csv and .tsv files with any usual delimiter and encoding, and .jsonl files."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from io import StringIO
from typing import NamedTuple

from limbeck.core.errors import UserError
from limbeck.core.text import shorten
from limbeck.data.tree import File

SUFFIXES = (".csv", ".tsv", ".jsonl")
DELIMITERS = (",", ";", "\t", "|")
HEAD = 1 << 16  # bytes by which delimiter and columns are chosen
LINES = 200

Row = tuple[int, list[str]]
"""(number of the line in the file, counted from 1; the cells)."""


class TextRows(NamedTuple):
    """The rows of a file as lists of cells.

    columns:    names of the columns. first: the first rows.
    encoding, delimiter: how the file is read; the delimiter of .jsonl is "".
    has_header: whether the first line names the columns.
    """

    file: File
    columns: list[str]
    first: list[Row]
    encoding: str
    delimiter: str
    has_header: bool = True

    def without_header(self, columns: list[str]) -> TextRows:
        """The same file, whose first line is a row, with these names for its columns."""
        return self._replace(columns=columns, first=[(1, self.columns), *self.first], has_header=False)

    def rows(self) -> Iterator[Row]:
        """All rows. Raises UserError for one with more or fewer cells than there are columns."""
        text = _decode(self.file.read(), self.encoding)
        if not self.delimiter:
            yield from _json_rows(self.file.where, text, self.columns)
            return
        rows = _split_rows(self.file.where, text, self.delimiter)
        if self.has_header:
            next(rows, None)
        for line, cells in rows:
            if any(cells[len(self.columns) :]) or len(cells) < len(self.columns):
                widths = f"{len(cells)} cells under {len(self.columns)} columns"
                raise UserError(f"{self.file.where} line {line}: {widths}; mend the line")
            yield line, cells[: len(self.columns)]


def open_rows(file: File) -> TextRows:
    """Read the beginning of a file. Raises UserError for what is no table of text."""
    head = file.head(HEAD)
    if is_cut := file.size > len(head):
        head = head[: head.rfind(b"\n") + 1]
    encoding = _encoding(head)
    text = _decode(head, encoding)
    if file.where.lower().endswith(".jsonl"):
        first = list(_json_rows(file.where, "\n".join(text.split("\n")[:LINES]), None))
        columns = list(dict.fromkeys(name for _, record in first for name in record))
        return TextRows(file, columns, list(_json_rows(file.where, text, columns)), encoding, "")
    delimiter = _delimiter(file.where, text)
    rows: list[Row] = []
    try:
        rows += _split_rows(file.where, text, delimiter)
    except UserError:
        if not is_cut:
            raise
    if not rows:
        raise UserError(f"{file.where}: no rows; give a table of file names and labels")
    return TextRows(file, [cell.strip() for cell in rows[0][1]], rows[1 : LINES + 1], encoding, delimiter)


def _encoding(head: bytes) -> str:
    """UTF-8, UTF-16 by its mark, or Latin-1 for bytes that are neither."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    try:
        head.decode("utf-8-sig")
    except UnicodeDecodeError:
        return "latin-1"
    return "utf-8-sig"


def _decode(content: bytes, encoding: str) -> str:
    try:
        return content.decode(encoding, "ignore" if encoding == "utf-16" else "strict")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def _split_rows(where: str, text: str, delimiter: str) -> Iterator[Row]:
    """The rows that are not empty."""
    reader = csv.reader(StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=True)
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield reader.line_num, cells
    except csv.Error as error:
        raise UserError(
            f"{where} line {reader.line_num}: not a row of a table ({shorten(error)}); mend the line"
        ) from error


def _delimiter(where: str, text: str) -> str:
    """The delimiter that divides most of the first lines into as many cells as the header, and then into the most."""
    start = "".join(text.splitlines(keepends=True)[:20])
    counts = {}
    for delimiter in DELIMITERS:
        try:
            widths = [len(cells) for _, cells in _split_rows(where, start, delimiter)]
        except UserError:
            continue
        counts[delimiter] = (widths.count(widths[0]), widths[0]) if widths and widths[0] > 1 else (0, 0)
    return max(counts, key=lambda delimiter: counts[delimiter], default=",")


def _json_rows(where: str, text: str, columns: list[str] | None) -> Iterator[tuple[int, list[str]]]:
    """The records as cells of these columns; None: the names of the columns of each record."""
    for line, content in enumerate(text.split("\n"), 1):  # strings may hold other ends of lines
        if not content.strip():
            continue
        try:
            record = json.loads(content)
            if not isinstance(record, dict):
                raise TypeError(f"a {type(record).__name__}")
        except (ValueError, TypeError, RecursionError) as error:
            raise UserError(f"{where} line {line}: not a JSON object ({str(error)[:60]}); mend the line") from error
        if columns is None:
            yield line, list(map(str, record))
        else:
            cells = (record.get(name) for name in columns)
            yield line, ["" if cell is None else cell if isinstance(cell, str) else json.dumps(cell) for cell in cells]
