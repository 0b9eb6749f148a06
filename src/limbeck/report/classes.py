"""Accuracy by class and the confusion of classes, from rows that have them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from limbeck.core.records import ResultRow
from limbeck.report.records import Run
from limbeck.report.text import NONE, count
from limbeck.report.verdict import comparable_row, describe_row, headline_row

MOST_CLASSES = 20  # of a confusion matrix; of more classes, the most frequent confusions are listed
MOST_CONFUSIONS = 15


@dataclass(frozen=True)
class ClassCell:
    """An accuracy of a class in percent, as a number and as a heat of 0 to 100."""

    text: str
    heat: int | None


@dataclass(frozen=True)
class ClassTable:
    """Accuracy by class: sets are the columns, and every line has a class, its test images, and a cell a set."""

    sets: list[str]
    lines: list[tuple[str, str, list[ClassCell]]]
    networks: str


@dataclass(frozen=True)
class Confusion:
    """Where the images of every class go, in percent of the class, or the most frequent confusions of many classes."""

    classes: list[str]
    lines: list[tuple[str, list[ClassCell]]]
    pairs: list[tuple[str, str, str]]


def class_table(run: Run) -> ClassTable | None:
    """Accuracy by class of the set of the headline, and of the real images beside it; None where none is recorded."""
    best = headline_row(run)
    if best is None:
        return None
    others = [comparable_row(run, best, name) for name in ("random", "kmeans", "full")]
    return table_of([(describe_row(row), row) for row in (best, *others) if row is not None], run)


def table_of(rows: Sequence[tuple[str, ResultRow]], run: Run) -> ClassTable | None:
    """Accuracy by class of named rows, which are all about the classes of `run`."""
    classes = run.meta.data.classes
    named = [(name, row) for name, row in rows if row.class_accuracy and len(row.class_accuracy) == len(classes)]
    if not named:
        return None
    counts = run.meta.data.counts.get("test", [])
    lines = [
        (
            label,
            count(counts[place]) if place < len(counts) else NONE,
            [_cell((row.class_accuracy or [])[place]) for _, row in named],
        )
        for place, label in enumerate(classes)
    ]
    return ClassTable([name for name, _ in named], lines, count(named[0][1].n))


def confusion_of(run: Run) -> Confusion | None:
    """The confusion of the set of the headline; None where none is recorded."""
    best, classes = headline_row(run), run.meta.data.classes
    if best is None or not best.confusion or len(best.confusion) != len(classes):
        return None
    shares = [[number / max(1, sum(line)) for number in line] for line in best.confusion]
    if len(classes) > MOST_CLASSES:
        wrong = [(share, i, j) for i, line in enumerate(shares) for j, share in enumerate(line) if i != j and share]
        worst = sorted(wrong, key=lambda entry: (-entry[0], entry[1:]))[:MOST_CONFUSIONS]
        return Confusion(classes, [], [(classes[i], classes[j], _percent(share)) for share, i, j in worst])
    lines = [(name, [_cell(share) for share in line]) for name, line in zip(classes, shares)]
    return Confusion(classes, lines, [])


def _cell(share: float | None) -> ClassCell:
    return ClassCell(NONE, None) if share is None else ClassCell(_percent(share), round(100 * share))


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"
