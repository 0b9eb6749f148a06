"""Accuracies of several networks on several sets, as a heat map: one line a set, one column a network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from limbeck.core.evaluation_records import EvaluationRecord, EvaluationRow

NAMES = {"random": "random real images", "kmeans": "k-means real images", "full": "all training images"}
ORIGINS = {"set": "its own step size", "validation": "step size chosen on validation"}

Line = tuple[str, str | None, str | None]
"""Set, which of a distilled one, and where its step size comes from."""


@dataclass(frozen=True)
class Cell:
    """One row of an evaluation; heat: 0 for the lowest accuracy of the map, 100 for the highest."""

    row: EvaluationRow
    heat: int


@dataclass(frozen=True)
class HeatMap:
    """Lines of cells, None where a network was not trained on that set; protocol: how they were trained, in words."""

    networks: list[str]
    lines: list[tuple[str, list[Cell | None]]]
    protocol: str


def heat_map(rows: Sequence[EvaluationRow], protocol: str = "") -> HeatMap | None:
    """The heat map of rows; None where there is one set alone on one network.

    Of a run whose last set is the chosen one too, the chosen one alone is shown.

    >>> row = EvaluationRow(set="random", model="mlp", split="test", accuracy_mean=0.5, n=2)
    >>> drawn = heat_map([row, row.model_copy(update={"model": "vit", "accuracy_mean": 0.4})])
    >>> drawn.networks, [(name, [cell.heat for cell in cells]) for name, cells in drawn.lines]
    (['mlp', 'vit'], [('random real images', [100, 0])])
    """
    cells = {(line_of(row), row.model): row for row in rows}
    networks = list(dict.fromkeys(row.model for row in rows))
    lines = sorted(dict.fromkeys(line for line, _ in cells), key=_place)
    last = [line for line in lines if line[1] == "last"]
    if all(_is_repeated(line, networks, cells) for line in last):
        lines = [line for line in lines if line not in last]
    if len(networks) * len({line[0] for line in lines}) < 2:
        return None
    means = [row.accuracy_mean for row in rows]
    low, spread = min(means), max(means) - min(means) or 1.0

    def cell(line: Line, network: str) -> Cell | None:
        row = cells.get((line, network))
        return None if row is None else Cell(row, round(100 * (row.accuracy_mean - low) / spread))

    table = [(describe(line, lines), [cell(line, network) for network in networks]) for line in lines]
    return HeatMap(networks, table, protocol)


def heat_maps(evaluations: Iterable[EvaluationRecord]) -> list[HeatMap]:
    """The heat maps of all evaluations that have one."""
    drawings = [heat_map(evaluation.rows, evaluation.protocol) for evaluation in evaluations]
    return [drawing for drawing in drawings if drawing is not None]


def line_of(row: EvaluationRow) -> Line:
    """The line on which a row stands; real images have one, whatever their step size."""
    return row.set, row.which, row.lr_from if row.set == "distilled" else None


def describe(line: Line, lines: Sequence[Line]) -> str:
    """The name of a line, with its step size where the same set is on another line with another one."""
    name, which, origin = line
    words = [NAMES.get(name, name), *([which] if which else [])]
    if origin and sum(other[:2] == line[:2] for other in lines) > 1:
        words.append(ORIGINS.get(origin, origin))
    return ", ".join(words)


def _place(line: Line) -> list[int]:
    """The place of a line: distilled sets come first, real images last, and names that are none of these between."""
    orders: tuple[list[str | None], ...] = (["distilled", None, *NAMES], ["last", "chosen"], [*ORIGINS])
    return [order.index(part) if part in order else 1 for part, order in zip(line, orders)]


def _is_repeated(line: Line, networks: Sequence[str], cells: dict[tuple[Line, str], EvaluationRow]) -> bool:
    """Whether the chosen set has the same rows as the last one on this line."""
    pairs = [(cells.get((line, network)), cells.get(((line[0], "chosen", line[2]), network))) for network in networks]
    fields = {"which": None, "step": None}
    return all((a and a.model_copy(update=fields)) == (b and b.model_copy(update=fields)) for a, b in pairs)
