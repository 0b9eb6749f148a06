"""Line plots as inline SVG: the same bytes for the same numbers, in the colours of the page."""

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
# Colours that `clean` replaces by variables of the page, so that one SVG serves light, dark and print.
_INK, _GRID = "#010203", "#010204"
_SERIES = [f"#0a00{index + 1:02x}" for index in range(COLOURS)]
_LIMIT = 1e30  # beyond this, the arithmetic of axes overflows; a gap says "diverged" as well
_MAX_POINTS, _THINNED_POINTS = 300, 150


@dataclass(frozen=True)
class Line:
    """A curve with an optional band; a value of None is a gap. `colour` counts from 0 and wraps around."""

    label: str
    x: Sequence[float]
    y: Sequence[float | None]
    low: Sequence[float | None] | None = None
    high: Sequence[float | None] | None = None
    colour: int = 0

    @property
    def dashed(self) -> bool:
        """Whether the colours have wrapped around, so that the line needs dashes to be told apart."""
        return self.colour >= COLOURS


@dataclass(frozen=True)
class Plot:
    """A plot as SVG, and what its caption says: legend (colour, dashed, label), logarithmic axis, notes."""

    title: str
    svg: str
    legend: list[tuple[int, bool, str]]
    log: bool = False
    notes: list[str] = field(default_factory=list)


def plot(
    title: str, lines: Sequence[Line], x_label: str, *, salt: str, marks: Sequence[float] = (), log_x: bool = False
) -> Plot | None:
    """Draw the lines, with a vertical mark at each of `marks`; None where no value is finite.

    The y axis is logarithmic where the values are positive and span a factor of 20. salt: makes ids unique on a page.
    """
    import matplotlib
    from matplotlib.figure import Figure

    lines = [line for line in lines if any(_finite(y) is not None for y in line.y)]
    if not lines:
        return None
    lines = [_thin(line) for line in lines]
    log = _needs_log_axis([y for line in lines for value in line.y if (y := _finite(value)) is not None])
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": f"limbeck-{salt}", "font.size": 9.5}):
        figure = Figure(figsize=(3.6, 2.3))
        axes = figure.add_axes((0.14, 0.19, 0.84, 0.775))
        for line in lines:
            _draw(axes, line)
        for mark in marks:
            axes.axvline(mark, color=_INK, linewidth=1, linestyle=(0, (3, 3)), alpha=0.7)
        _style_axes(axes, x_label, log, [y for line in lines for y in line.y], log_x)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    legend = [(line.colour % COLOURS + 1, line.dashed, line.label) for line in lines]
    return Plot(title, clean(buffer.getvalue(), title), legend, log)


def mean_with_range(rows: Sequence[Sequence[float | None]]) -> tuple[Values, Values, Values]:
    """Mean, minimum and maximum at each position over rows, which may differ in length."""
    columns: list[list[float]] = [[] for _ in range(max((len(row) for row in rows), default=0))]
    for row in rows:
        for column, value in zip(columns, row):
            if value is not None:
                column.append(value)
    mean = [statistics.fmean(column) if column else None for column in columns]
    return mean, [min(column, default=None) for column in columns], [max(column, default=None) for column in columns]


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) and abs(value) < _LIMIT else None


def _with_gaps(values: Sequence[float | None]) -> list[float]:
    return [math.nan if _finite(value) is None else float(value or 0) for value in values]


def _needs_log_axis(values: list[float]) -> bool:
    return min(values) > 0 and max(values) / min(values) >= 20


def _thin(line: Line) -> Line:
    """A curve of many points as medians of equal stretches, with their extremes as a band."""
    if len(line.x) <= _MAX_POINTS or line.low is not None:
        return line
    size = math.ceil(len(line.x) / _THINNED_POINTS)
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
    y = _with_gaps(line.y)
    neighbours = [math.nan, *y, math.nan]
    alone = [i for i in range(len(y)) if math.isnan(neighbours[i]) and math.isnan(neighbours[i + 2])]
    axes.plot(
        line.x,
        y,
        color=colour,
        linewidth=1.5,
        linestyle=(0, (5, 2)) if line.dashed else "-",
        marker="o",
        markersize=2.8,
        markevery=None if len(y) <= 40 else alone,  # a value between two gaps has no line to be seen by
    )
    if line.low is not None and line.high is not None:
        axes.fill_between(line.x, _with_gaps(line.low), _with_gaps(line.high), color=colour, alpha=0.18, linewidth=0)


def _style_axes(axes: Axes, x_label: str, log: bool, values: list[float | None], log_x: bool) -> None:
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
    if log_x:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=8))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.3g}" if log_x else f"{value:,.0f}"))
    if log:
        finite = [y for value in values if (y := _finite(value)) is not None]
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(
            LogLocator(subs=(1.0,) if max(finite) / min(finite) > 1e3 else (1.0, 2.0, 5.0), numticks=8)
        )
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))


def clean(svg: str, title: str) -> str:
    """Reduce an SVG to its drawing: no prolog, no metadata, no ids that collide on a page, colours of the page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r'^<svg [^>]*viewBox="([^"]*)"[^>]*>', rf'<svg viewBox="\1" role="img" aria-label="{title}">', svg)
    svg = svg.replace(_INK, "var(--ink)").replace(_GRID, "var(--line)")
    for index, colour in enumerate(_SERIES):
        svg = svg.replace(colour, f"var(--c{index + 1})")
    return re.sub(r"\s*\n\s*", "\n", svg)
