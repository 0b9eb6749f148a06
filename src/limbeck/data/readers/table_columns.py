"""Which columns of a table of files name images, which are labels, and which is that of the splits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from limbeck.core.errors import UserError
from limbeck.data.readers.columns import FIRST_LABEL_COLUMNS, SPLIT_COLUMNS, label_columns, plain_name, usual_columns
from limbeck.data.readers.picture_index import PictureIndex
from limbeck.data.readers.table_files import list_names
from limbeck.data.readers.text_rows import TextRows

FILE_COLUMNS = (
    "file_name", "filename", "filenames", "file", "files", "file_path", "filepath", "filepaths", "path", "paths",
    "fname", "image", "images", "img", "image_name", "image_id", "image_path", "image_file", "image_index", "img_path",
    "img_name", "id", "id_code", "picture", "photo",
)  # fmt: skip
FLAGS = ("0", "1", "0.0", "1.0")
NUMBERS = ("", "unnamed_0", "index")  # columns that count the rows
TOLERANCE = 0.01  # of a sum of probabilities, which may have been rounded
MAX_FLAWS = 0.05  # fraction of rows without exactly one 1 where columns still seem to be one for each class


class Columns(NamedTuple):
    """The columns of a table by their numbers.

    file:    of the names of files.
    labels:  the column of labels; or several, of which one is 1 in each row; or none.
    split:   of words for splits, or None.
    is_sure: whether the label column has a usual name.
    has_probabilities: whether the other columns are probabilities of classes, which are not read as labels.
    """

    file: int
    labels: list[int]
    split: int | None
    is_sure: bool
    has_probabilities: bool = False


class ClassColumns(NamedTuple):
    """Columns of numbers from 0 to 1 that seem to be one for each class, since they sum to 1 in every row.

    flaw:      the line of the first row in which they do not, where they are flags and do so in most rows; or None.
    are_flags: whether all cells are 0 or 1.
    """

    columns: list[int]
    flaw: int | None
    are_flags: bool


def counts_rows(column: str) -> bool:
    """Whether a column of this name only counts the rows, as those that tools add.

    >>> [counts_rows(name) for name in ("", "Unnamed: 0", "猫")]
    [True, True, False]
    """
    return column.isascii() and plain_name(column) in NUMBERS


def choose_columns(text: TextRows, index: PictureIndex, trusts_names: bool) -> Columns | None:
    """The columns of a table, by their names and cells; None where none names images.

    trusts_names: whether the usual names are enough, though no image is where the table says.

    Columns that together have exactly one 1 in each row are the classes, also where one is called as labels are.
    Raises UserError where several name different images, where several are called as labels, and where a column that
    is called so may be the labels or one of the classes.
    """
    names = text.columns
    filled = [[cells[i] for _, cells in text.first if i < len(cells) and cells[i].strip()] for i in range(len(names))]
    hits = [i for i, cells in enumerate(filled) if cells and 2 * sum(map(index.is_named, cells)) >= len(cells)]
    labels = [names.index(name) for name in label_columns(names)]
    splits = [names.index(name) for name in usual_columns(names, SPLIT_COLUMNS)]
    usual = [i for i in hits if plain_name(names[i]) in FILE_COLUMNS]
    words = [i for i in hits if i not in labels + splits and not all(map(str.isdigit, filled[i]))]
    files = usual or words  # numbers name images by chance, as 3 does 3.png
    if not files and trusts_names and labels:
        files = [i for i, name in enumerate(names) if plain_name(name) in FILE_COLUMNS][:1]
    if len({tuple(tuple(index.find(cell)) for cell in filled[i]) for i in files}) > 1:
        raise _several(text, files, "name images")
    if not files:
        return None
    labels = [i for i in labels if i not in files]
    split = splits[0] if splits else None
    beside = [i for i in range(len(names)) if i not in files]
    others = [i for i in beside if i not in splits and not counts_rows(names[i])]
    classes = _find_class_columns(text, others)
    if (classes is None or classes.columns != others) and len(beside) > max(2, len(others)):
        every = _find_class_columns(text, beside)  # a class may be called as splits are
        if every and every.columns == beside and every.flaw is None:
            classes, others, split = every, beside, None
    if classes and classes.columns == others and classes.flaw is None:
        if not classes.are_flags:
            return Columns(files[0], [], split, False, True)
        if len(others) > 2 or not any(plain_name(names[i]) in FIRST_LABEL_COLUMNS for i in others):
            return Columns(files[0], others, split, False)
        raise _ambiguous(text, labels[0], classes)
    if classes and len(classes.columns) > 2 and (doubtful := [i for i in labels if i in classes.columns]):
        raise _ambiguous(text, doubtful[0], classes)
    if len(labels) > 1:
        raise _several(text, labels, "may be the labels")
    is_clear = len(others) == 1 or all(cell.strip() in FLAGS for i in others for cell in filled[i])
    return Columns(files[0], labels or (others if is_clear else []), split, bool(labels))


def _find_class_columns(text: TextRows, columns: Sequence[int]) -> ClassColumns | None:
    """Those of the columns that seem to be one for each class; None where they do not sum to 1."""
    numeric = [i for i in columns if all(_read_shares(cells, [i]) for _, cells in text.first)]
    if len(numeric) < 2:
        return None
    count, flaws, are_flags = 0, list[int](), True
    for line, cells in text.rows():  # to the end, since tables may be sorted by their labels
        shares = _read_shares(cells, numeric)
        if not shares or abs(sum(shares) - 1) > TOLERANCE:
            flaws.append(line)
        count += 1
        are_flags &= all(cells[i].strip() in FLAGS for i in numeric)
    if not count or len(flaws) > MAX_FLAWS * are_flags * count:
        return None
    return ClassColumns(numeric, flaws[0] if flaws else None, are_flags)


def _read_shares(cells: Sequence[str], columns: Sequence[int]) -> list[float]:
    """The numbers in these columns; empty where one is no number from 0 to 1."""
    try:
        shares = [float(cells[i]) for i in columns]
    except (ValueError, IndexError):
        return []
    return shares if all(0 <= share <= 1 for share in shares) else []


def _several(text: TextRows, columns: Sequence[int], meaning: str) -> UserError:
    shown = list_names([text.columns[i] for i in columns])
    return UserError(f"{text.file.where}: several columns {meaning}, {shown}; remove or rename all but one")


def _ambiguous(text: TextRows, label: int, classes: ClassColumns) -> UserError:
    name, shown = text.columns[label], list_names([text.columns[i] for i in classes.columns])
    flaw = "" if classes.flaw is None else f", though line {classes.flaw} has not exactly one 1"
    return UserError(
        f"{text.file.where}: the labels may be the column {name}, or a column for each class ({shown}){flaw}; keep the "
        f"columns that are meant, and call no class {name}"
    )
