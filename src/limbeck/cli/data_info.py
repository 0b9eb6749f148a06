"""What `limbeck info` says of a data set: facts as JSON values, tables for a terminal, and a picture."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.columns import Columns
from rich.console import Console
from rich.table import Table
from rich.text import Text

from limbeck.core.disk import make_folder
from limbeck.core.errors import UserError
from limbeck.core.events import Listener
from limbeck.core.files import require_writable
from limbeck.core.folders import home_folder
from limbeck.core.text import agree, counted, printable
from limbeck.data import ImageData
from limbeck.data.duplicates import SPLITS, NearPair, Place
from limbeck.data.overview import Overview, make_overview
from limbeck.report.contact_sheet import PER_LINE, Pair, Row, contact_sheet
from limbeck.report.text import NONE
from limbeck.synthetic.grids import save_png

NAME_WIDTH = 40  # characters of a class name in the table
BLOCK = 25  # classes in each of several tables side by side
ONE_TABLE = 30  # classes that stand in one table
ROWS, PAIRS = 24, 8  # classes and pairs in the picture
FEW_CLASSES = 4  # so few get several lines in the picture


def require_picture(path: Path) -> None:
    """Raise UserError unless a PNG file can be written there."""
    if path.suffix.lower() != ".png" or path.is_dir():
        raise UserError(f"--picture writes a PNG file; name one, as {path.stem or 'picture'}.png.")
    require_writable(path, "name another file with --picture")


def describe_data(
    data: ImageData, *, near: bool | None = None, picture: Path | None = None, listen: Listener | None = None
) -> dict[str, Any]:
    """Facts of a data set as JSON values: those of `Overview.to_json`, "source", and "picture", a file that is written.

    near:    whether to look for near duplicates; see `limbeck.data.duplicates.find_duplicates`.
    picture: the PNG file; the default lies in limbeck's cache folder, and is left out where that cannot be written.
    """
    overview = make_overview(data, near=near, listen=listen)
    path = picture or default_picture(data)
    facts = {"source": data.origin.source, "layout": data.layout, **overview.to_json(), "picture": str(path)}
    try:
        make_folder(path.parent)
        save_png(draw_overview(overview), path)
    except OSError as error:
        if picture is not None:
            raise
        facts["picture"] = None
        reason = error.strerror or error
        facts["warnings"].append(f"no picture: {path} cannot be written ({reason}); name a file with --picture")
    return facts


def default_picture(data: ImageData) -> Path:
    """The file of a data set's picture in limbeck's cache folder."""
    name = re.sub(r"[^\w.-]+", "-", data.name)[:60]
    return home_folder() / "pictures" / f"{name}-{data.fingerprint}.png"


def draw_overview(overview: Overview) -> Any:
    """A contact sheet of the first classes, with images spread over each class and split, and pairs of duplicates."""
    data = overview.data
    height, width = data.size
    size = f"{height}x{width} pixels (height x width)"
    counts = {split: getattr(data, split).counts(data.num_classes) for split in SPLITS}
    per_split = PER_LINE * (1 if data.num_classes > FEW_CLASSES else 2)
    rows = []
    for label, name in enumerate(data.classes[:ROWS]):
        detail = " | ".join(f"{counts[split][label]:,}" for split in SPLITS)
        rows.append(
            Row(f"{label}  {name}", detail, [_spread_images(data, split, label, per_split) for split in SPLITS])
        )
    hidden = data.num_classes - ROWS
    note = f"{hidden} more classes are not shown, {ROWS} to {data.num_classes - 1}" if hidden > 0 else ""
    return contact_sheet(
        f"{data.name}: {data.num_classes} classes, {size}",
        [f"{split} ({len(getattr(data, split)):,})" for split in SPLITS],
        rows,
        note,
        [_make_pair(data, pair) for pair in _choose_pairs(overview)],
    )


def _spread_images(data: ImageData, split: str, label: int, count: int) -> list[Any]:
    """Up to `count` images of a class, at equal distances from its first one to its last one."""
    part = getattr(data, split)
    rows = (part.labels == label).nonzero()[:, 0].numpy()
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int))
    return [part.images[int(row)].numpy() for row in rows[chosen]]


def _choose_pairs(overview: Overview) -> list[NearPair]:
    """Some pairs of duplicates of every kind: equal ones before nearly equal ones, those of other labels first."""
    equal = [NearPair(group[0], _other(group), 1.0) for group in overview.duplicates.exact]
    kinds: dict[tuple[bool, bool, bool], list[NearPair]] = {}
    for is_near, pairs in ((False, equal), (True, overview.duplicates.near or ())):
        for pair in pairs:
            kind = is_near, not pair.contradicts, pair.first.split == pair.second.split
            kinds.setdefault(kind, []).append(pair)
    share = -(-PAIRS // max(1, len(kinds)))
    return [pair for kind in sorted(kinds) for pair in kinds[kind][:share]][:PAIRS]


def _other(group: Sequence[Place]) -> Place:
    """The image of a group that is most at odds with its first one: by its label, else by its split, else any."""
    first = group[0]
    return max(group[1:], key=lambda place: (place.label != first.label, place.split != first.split))


def _make_pair(data: ImageData, pair: NearPair) -> Pair:
    first, second = (getattr(data, place.split).images[place.row].numpy() for place in (pair.first, pair.second))
    captions = [(_caption(data, place), data.classes[place.label]) for place in (pair.first, pair.second)]
    relation = "equal" if np.array_equal(first, second) else f"similar, {pair.similarity:.2f}"
    caption = f"{relation}, other label" if pair.contradicts else relation
    return Pair((first, second), (captions[0], captions[1]), caption, pair.contradicts)


def _caption(data: ImageData, place: Place) -> str:
    """The name of the file of an image, or its split and row."""
    files = data.files.get(place.split)
    return files[place.row].rpartition("/")[2] if files else f"{place.split} {place.row}"


def show_data(facts: dict[str, Any], console: Console) -> None:
    """Print the facts of `describe_data` as a person reads them, warnings and notes last."""

    def write(text: str, style: str = "") -> None:
        console.print(Text(printable(text), style=style), soft_wrap=True)

    channels, height, width = facts["shape"]
    colours = "grey" if channels == 1 else "RGB"
    write("kind: data set")
    write(f"name: {facts['name']}")
    if facts["source"] not in (None, facts["name"]):
        write(f"source: {facts['source']}")
    if facts["layout"]:
        write(f"layout: {facts['layout']}")
    write(f"images: {_total(facts['counts']):,} of {height}x{width} pixels (height x width), {colours}")
    print_tables(console, class_tables(facts["classes"], facts["counts"]))
    console.print(pixel_table(facts["pixels"], channels))
    balance, duplicates = facts["balance"], facts["duplicates"]
    least, most = balance["smallest"], balance["largest"]
    write(f"balance: {least:,}{'' if least == most else f' to {most:,}'} images a class in train")
    write(f"duplicates: {_describe_duplicates(duplicates)}")
    for note in facts["notes"]:
        write(f"note: {note}")
    for warning in facts["warnings"]:
        write(f"warning: {warning}", "bold yellow")
    if facts["picture"]:
        write(f"picture: {facts['picture']}", "bold")


def _total(counts: dict[str, list[int]]) -> int:
    return sum(map(sum, counts.values()))


def class_tables(classes: Sequence[str], counts: dict[str, list[int]]) -> list[Table]:
    """Classes in their order with their counts by split, in several tables where they are many; the last has the sums.

    Zeros are red.
    """
    size = max(len(classes), 1) if len(classes) <= ONE_TABLE else BLOCK
    tables = []
    for start in range(0, len(classes), size):
        table = Table(box=None, pad_edge=False, header_style="dim")
        table.add_column("label", justify="right")
        table.add_column("class", no_wrap=True, max_width=NAME_WIDTH)
        for split in SPLITS:
            table.add_column(split, justify="right")
        for label in range(start, min(start + size, len(classes))):
            cells = [_count_cell(counts[split][label]) for split in SPLITS]
            table.add_row(str(label), Text(printable(classes[label], NAME_WIDTH)), *cells)
        tables.append(table)
    sums = [f"{sum(counts[split]):,}" for split in SPLITS]
    tables[-1].add_row("", "all", *sums, style="bold")
    return tables


def print_tables(console: Console, tables: Sequence[Table]) -> None:
    """Print tables side by side, as many as the console is wide, with the sums below the last one."""
    console.print(Columns(tables, padding=(0, 3)) if len(tables) > 1 else tables[0])


def _count_cell(count: int) -> Text:
    return Text(f"{count:,}", style="" if count else "bold red")


def pixel_table(pixels: dict[str, dict[str, Any]], channels: int) -> Table:
    """The range, the mean and the number of levels of the pixels of every split, by channel."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("pixels")
    for name in ("lowest", "highest", "mean", "levels"):
        table.add_column(name if channels == 1 or name == "levels" else f"{name} (R G B)", justify="right")
    for split in SPLITS:
        if split not in pixels:
            table.add_row(split, *[NONE] * 4)
            continue
        values = pixels[split]
        parts = [" ".join(f"{value:.{digits}f}" for value in values[name]) for name, digits in RANGE]
        table.add_row(split, *parts, str(values["levels"]))
    return table


RANGE = (("min", 0), ("max", 0), ("mean", 1))


def _describe_duplicates(duplicates: dict[str, Any]) -> str:
    exact, near = duplicates["exact"], duplicates["near"]
    count = sum(len(group) - 1 for group in exact["groups"])
    equal = agree(f"{count:,} images have the pixels of another one") if count else "no two images are equal"
    if near is None:
        return f"{equal}; {duplicates['near_skipped']}"
    total = len(near["pairs"])
    alike = counted(total, "near duplicate") if total else "no near duplicates"
    return f"{equal}, {alike} between splits (similarity above {near['min_similarity']:.2f})"
