"""The page of `limbeck inspect`, from inspect.json."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.core.inspection_records import InspectionRecord, PathCurves, PlaneRecord
from limbeck.core.record_files import read_record
from limbeck.report.page import render_page, write_page
from limbeck.report.plots import Line, Plot, clean, mean_with_range, plot

if TYPE_CHECKING:  # matplotlib takes half a second to import, and only a page that is drawn needs it
    from matplotlib.figure import Figure


def write_inspection(folder: Path) -> Path:
    """Write inspect.html beside inspect.json and return its path.

    Raises UserError where there is no inspect.json, or it is damaged.
    """
    record = read_record(folder / "inspect.json", InspectionRecord, "limbeck-inspection")
    plots = [_accuracy(record.accuracy), _straightness(record.straightness)]
    page = render_page(
        "inspection.html",
        record=record,
        plots=[plot for plot in plots if plot is not None],
        squares=[plot for plot in (_plane(record.plane), _cosine(record.cosine)) if plot is not None],
    )
    return write_page(page, folder / "inspect.html")


def _accuracy(accuracy: PathCurves | None) -> Plot | None:
    if accuracy is None:
        return None
    lines = []
    for colour, (name, rows) in enumerate(accuracy.curves.items()):
        mean, _, _ = mean_with_range([[100 * value for value in row] for row in rows])
        lines.append(Line(name, [float(t) for t in accuracy.t], mean, colour=colour))
    return plot("Validation accuracy (%) along each path", lines, "epoch of the expert", salt="paths")


def _straightness(distances: list[float] | None) -> Plot | None:
    if distances is None:
        return None
    line = Line("recorded", list(range(len(distances))), [100 * value for value in distances])
    return plot("Distance to the straight line (% of its length)", [line], "epoch of the expert", salt="line")


def _figure(salt: str, draw: Any) -> str:
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": f"limbeck-{salt}", "font.size": 9.5}):
        figure = Figure(figsize=(4.4, 3.6))
        draw(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return buffer.getvalue()


def _plane(plane: PlaneRecord | None) -> Plot | None:
    """The paths of the first expert in the plane of the first two principal components of the recorded one."""
    if plane is None:
        return None
    colours = [f"#0a00{index + 1:02x}" for index in range(len(plane.paths))]

    def draw(figure: Figure) -> None:
        axes = figure.add_axes((0.14, 0.14, 0.84, 0.83))
        for colour, (x, y) in zip(colours, plane.paths.values()):
            axes.plot(x, y, color=colour, linewidth=1.4, marker="o", markersize=2.5)
            axes.annotate("start", (x[0], y[0]), color="#010203", fontsize=8)
        first, second = (100 * share for share in plane.explained)
        axes.set_xlabel(f"first component ({first:.0f} %)", color="#010203")
        axes.set_ylabel(f"second component ({second:.0f} %)", color="#010203")
        axes.tick_params(colors="#010203", width=0.6, length=3)
        axes.grid(True, color="#010204", linewidth=0.6)
        for spine in axes.spines.values():
            spine.set_visible(False)

    legend = [(index + 1, False, name) for index, name in enumerate(plane.paths)]
    title = "The first expert in the plane of its two principal components"
    return Plot(title, clean(_figure("plane", draw), title), legend)


def _cosine(cosine: list[list[float]] | None) -> Plot | None:
    """A heat map of the cosines between updates; they are means over experts."""
    if cosine is None:
        return None

    def draw(figure: Figure) -> None:
        axes = figure.add_axes((0.12, 0.14, 0.72, 0.83))
        image = axes.imshow(cosine, vmin=-1, vmax=1, cmap="RdBu_r", origin="lower", interpolation="nearest")
        bar = figure.colorbar(image, cax=figure.add_axes((0.87, 0.14, 0.03, 0.83)))
        bar.ax.tick_params(colors="#010203")
        axes.set_xlabel("update of epoch", color="#010203")
        axes.set_ylabel("update of epoch", color="#010203")
        axes.tick_params(colors="#010203", width=0.6, length=3)

    title = "Cosine between update vectors"
    return Plot(title, clean(_figure("cosine", draw), title), [])
