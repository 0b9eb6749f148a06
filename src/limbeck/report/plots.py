"""Line plots as inline SVG: no pyplot, no date, the same bytes for the same numbers, colours from the page's style."""

from __future__ import annotations

import io
import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # matplotlib takes half a second to import, and only a page that is drawn needs it
    from matplotlib.axes import Axes

Values = list[float | None]
COLOURS = 6
# Drawn in colours no plot would use, then replaced by the page's variables, so one SVG serves light, dark and print.
_INK, _GRID = "#010203", "#010204"
_SERIES = [f"#0a00{index + 1:02x}" for index in range(COLOURS)]
_LIMIT = 1e30  # beyond this, axis arithmetic overflows; such a value says "diverged" as well by its absence
_MOST_POINTS, _THINNED = 300, 150


@dataclass(frozen=True)
class Line:
    """A curve with an optional band; values that are None are gaps. `colour` counts from 0 and wraps around."""

    label: str
    x: Sequence[float]
    y: Sequence[float | None]
    low: Sequence[float | None] | None = None
    high: Sequence[float | None] | None = None
    colour: int = 0

    @property
    def dashed(self) -> bool:
        """Whether the colours have wrapped around, so that the line needs another mark."""
        return self.colour >= COLOURS


@dataclass(frozen=True)
class Plot:
    """A finished plot: its SVG, and what a caption needs to say about it."""

    title: str
    svg: str
    legend: list[tuple[int, bool, str]]
    log: bool = False
    notes: list[str] = field(default_factory=list)


def plot(title: str, lines: Sequence[Line], x_label: str, *, salt: str, marks: Sequence[float] = ()) -> Plot | None:
    """Draw the lines; None when there is no finite value to draw. The axis is logarithmic where that shows more."""
    import matplotlib
    from matplotlib.figure import Figure

    lines = [line for line in lines if any(_finite(y) is not None for y in line.y)]
    if not lines:
        return None
    lines = [_thin(line) for line in lines]
    log = _wants_log([y for line in lines for value in line.y if (y := _finite(value)) is not None])
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": f"limbeck-{salt}", "font.size": 9.5}):
        figure = Figure(figsize=(4.4, 2.5))
        axes = figure.add_axes((0.12, 0.18, 0.86, 0.785))
        for line in lines:
            _draw(axes, line)
        for mark in marks:
            axes.axvline(mark, color=_INK, linewidth=1, linestyle=(0, (3, 3)), alpha=0.7)
        _dress(axes, x_label, log, [y for line in lines for y in line.y])
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    legend = [(line.colour % COLOURS + 1, line.dashed, line.label) for line in lines]
    return Plot(title, clean(buffer.getvalue(), title), legend, log)


def mean_with_range(rows: Sequence[Sequence[float | None]]) -> tuple[Values, Values, Values]:
    """Mean, lowest and highest at each position over rows of perhaps unequal length."""
    columns: list[list[float]] = [[] for _ in range(max((len(row) for row in rows), default=0))]
    for row in rows:
        for column, value in zip(columns, row):
            if value is not None:
                column.append(value)
    mean = [statistics.fmean(column) if column else None for column in columns]
    return mean, [min(column, default=None) for column in columns], [max(column, default=None) for column in columns]


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) and abs(value) < _LIMIT else None


def _gaps(values: Sequence[float | None]) -> list[float]:
    return [math.nan if _finite(value) is None else float(value or 0) for value in values]


def _wants_log(values: list[float]) -> bool:
    return min(values) > 0 and max(values) / min(values) >= 20


def _thin(line: Line) -> Line:
    """A long noisy curve as medians of equal stretches, its extremes as the band: smaller and easier to read."""
    if len(line.x) <= _MOST_POINTS or line.low is not None:
        return line
    size = math.ceil(len(line.x) / _THINNED)
    middle: list[float | None] = []
    low: list[float | None] = []
    high: list[float | None] = []
    starts = range(0, len(line.x), size)
    for start in starts:
        part = [y for value in line.y[start : start + size] if (y := _finite(value)) is not None]
        middle.append(statistics.median(part) if part else None)
        low.append(min(part, default=None))
        high.append(max(part, default=None))
    x = [line.x[min(start + size // 2, len(line.x) - 1)] for start in starts]
    return Line(line.label, x, middle, low, high, line.colour)


def _draw(axes: Axes, line: Line) -> None:
    colour = _SERIES[line.colour % COLOURS]
    y = _gaps(line.y)
    neighbours = [math.nan, *y, math.nan]
    alone = [i for i in range(len(y)) if math.isnan(neighbours[i]) and math.isnan(neighbours[i + 2])]
    few = len(y) <= 40
    axes.plot(
        line.x,
        y,
        color=colour,
        linewidth=1.5,
        linestyle=(0, (5, 2)) if line.dashed else "-",
        marker="o",
        markersize=2.8,
        markevery=None if few else alone,  # a value between two gaps has no line to be seen by
    )
    if line.low is not None and line.high is not None:
        axes.fill_between(line.x, _gaps(line.low), _gaps(line.high), color=colour, alpha=0.18, linewidth=0)


def _dress(axes: Axes, x_label: str, log: bool, values: list[float | None]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(_INK)
        axes.spines[side].set_alpha(0.5)
    axes.tick_params(colors=_INK, which="both", width=0.6, length=3)
    axes.tick_params(which="minor", length=0)
    axes.grid(True, color=_GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel(x_label, color=_INK)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    if log:
        finite = [y for value in values if (y := _finite(value)) is not None]
        wide = max(finite) / min(finite) > 1e3
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0), numticks=8))
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))


def clean(svg: str, title: str) -> str:
    """Only the drawing of an SVG: no prolog or metadata, ids that cannot collide on a page, colours from the page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r'^<svg [^>]*viewBox="([^"]*)"[^>]*>', rf'<svg viewBox="\1" role="img" aria-label="{title}">', svg)
    svg = svg.replace(_INK, "var(--ink)").replace(_GRID, "var(--line)")
    for index, colour in enumerate(_SERIES):
        svg = svg.replace(colour, f"var(--c{index + 1})")
    return re.sub(r"\s*\n\s*", "\n", svg)
