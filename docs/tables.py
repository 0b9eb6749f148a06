"""Fill the tables of README and pages from records: python docs/tables.py.

results.json   rows of the tables that `limbeck table` wrote at the commits the page names; means, deviations and n in
               percent.
studies/*.json the records of studies, as `limbeck study` wrote them beside their files.
records/N-*.json one run each: its commit, its command, and its results.json as the run left it.
records/networks.json  other networks on two runs and on real images: rows of their evaluations.json.
records/examples.json  what the scripts of examples/ printed. records/medical.json, defaults.json: results.json of runs.
records/ranks.json     what the projection to many GPUs assumes: seconds of a segment, sizes of sets, bandwidths.
records/scaling.json   lines of python -m benchmarks.ranks --record.
records/ddranking.json networks trained by DD-Ranking and by limbeck on one set, accuracies in percent.

A table stands between `<!-- NAME -->` and `<!-- end of NAME -->`; a test holds every page up to date.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

from limbeck.core.record_files import read_record
from limbeck.core.shelf import read_shelf
from limbeck.core.study_records import FORMAT, StudyRecord
from limbeck.evaluation.scores import label_robust_score
from limbeck.methods import METHODS
from limbeck.report.study import (
    Table,
    costs_table,
    differences_table,
    reach_sentence,
    results_table,
    searches_table,
    stability_table,
)
from limbeck.report.text import percent, points, size

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
Json = dict[str, Any]
RESULTS: Json = json.loads((DOCS / "results.json").read_text(encoding="utf-8"))
ROWS: list[Json] = RESULTS["rows"]
NONE = "–"


def format_table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table. Raises ValueError for a row that has not a cell for each column."""
    if odd := [row for row in rows if len(row) != len(head)]:
        raise ValueError(
            f"{odd[0]} has {len(odd[0])} cells, and the table {len(head)} columns"
        )
    return "\n".join(
        "| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)
    )


def format_cell(value: list[float] | None, n: float | None = None) -> str:
    """[mean, deviation, n] -> text; n is said where it is not that of the row."""
    if value is None:
        return NONE
    mean, std, networks = value
    text = f"{mean} ± {std}" + (
        f" (n = {networks:.0f})" if n not in (None, networks) else ""
    )
    return join_by_nbsp(text)


def join_by_nbsp(text: str) -> str:
    """Text that is not broken into lines."""
    return text.replace(" ", "\u00a0")


def format_results(data: str, ipc: int, measure: str = "accuracy") -> str:
    """The rows of one data set and budget."""
    rows = []
    for row in ROWS:
        if (row["data"], row["ipc"], row["measure"]) != (data, ipc, measure):
            continue
        n = row["chosen"][2]
        setting = row.get("protocol") or row.get("setting", "")
        seeds = f"{row['seeds']}\u00a0x\u00a0" if row["seeds"] > 1 else ""
        sets = [
            format_cell(row[name], n)
            for name in ("chosen", "last", "random", "kmeans", "full")
        ]
        rows.append([f"`{row['method']}`", setting, f"{seeds}{n}", *sets])
    head = [
        "method",
        "setting or protocol",
        "n",
        "chosen",
        "last",
        "random",
        "k-means",
        "full data",
    ]
    if not any(row[1] for row in rows):
        head, rows = [head[0], *head[2:]], [[row[0], *row[2:]] for row in rows]
    return format_table(head, rows)


def find_method_pages() -> dict[str, Path]:
    """Method name -> its page: the names that stand as `name` in the title of a page in docs/methods."""
    pages: dict[str, Path] = {}
    for page in sorted((DOCS / "methods").glob("*.md")):
        title = page.read_text(encoding="utf-8").splitlines()[0]
        pages |= dict.fromkeys(re.findall(r"`([\w-]+)`", title), page)
    return pages


def format_methods() -> str:
    """All methods, with their pages."""
    pages, words = find_method_pages(), {"log_lr": "step size", "tau": "temperature"}
    experts = {
        None: "none",
        "convex": "convexified",
        "recorded": "recorded",
        "any": "any",
    }
    rows = []
    for entry in METHODS.values():
        page = pages[entry.name].relative_to(DOCS).as_posix()
        learns = ", ".join(words.get(name, name) for name in entry.learns) or "nothing"
        mark = " (experimental)" if entry.experimental else ""
        rows.append(
            [
                f"[`{entry.name}`]({page}){mark}",
                entry.summary,
                learns,
                experts[entry.experts],
            ]
        )
    return format_table(["method", "what it does", "learns", "experts"], rows)


def load_records() -> Iterator[Json]:
    """The recorded runs that the README shows, in its order."""
    for path in sorted((DOCS / "records").glob("[0-9]*.json")):
        yield json.loads(path.read_text(encoding="utf-8"))


def format_numbers() -> str:
    """The README's table: MCT at one image per class, a recorded run a line."""

    def find_row(record: Json, kind: str, chosen: str | None, measure: str) -> Json:
        rows = record["results"]["results"]
        return next(
            row
            for row in rows
            if (row["set"], row["which"]) == (kind, chosen) and "protocol" not in row
        )

    def format_accuracy(row: Json, measure: str) -> str:
        return join_by_nbsp(
            f"{100 * row[f'{measure}_mean']:.1f} ± {100 * row[f'{measure}_std']:.1f}"
        )

    sets = (
        ("distilled", "chosen"),
        ("distilled", "last"),
        ("random", None),
        ("kmeans", None),
        ("full", None),
    )
    rows, ns = [], set()
    for record in load_records():
        for measure in record["measures"]:
            sets_rows = [find_row(record, kind, chosen, measure) for kind, chosen in sets]
            ns.add(tuple(row["n"] for row in sets_rows))
            name = record["title"] + (
                ", balanced accuracy" if measure == "balanced_accuracy" else ""
            )
            rows.append([name, *(format_accuracy(row, measure) for row in sets_rows)])
    (n,) = ns
    words = ("MCT, chosen", "MCT, last", "random", "k-means", "all images")
    return format_table(
        [
            "data",
            *(
                f"{word} {join_by_nbsp(f'(n = {count})')}"
                for word, count in zip(words, n, strict=True)
            ),
        ],
        rows,
    )


def format_ddranking() -> str:
    """DD-Ranking's numbers beside limbeck's: accuracies in percent, scores of accuracies as fractions."""
    record = json.loads((DOCS / "records/ddranking.json").read_text(encoding="utf-8"))
    full = record["full"]["accuracy"]

    def format_values(values: list[float], digits: int = 1) -> str:
        return join_by_nbsp(
            f"{fmean(values):.{digits}f} ± {stdev(values):.{digits}f} (n = {len(values)})"
        )

    def format_column(side: Json, random: list[float]) -> dict[str, str]:
        pairs = list(zip(side["distilled"], random, strict=True))
        hlr = [full - accuracy for accuracy, _ in pairs]
        ior = [accuracy - baseline for accuracy, baseline in pairs]
        lrs = [
            label_robust_score(loss / 100, gain / 100)
            for loss, gain in zip(hlr, ior, strict=True)
        ]
        return {
            "accuracy of the set": format_values(side["distilled"]),
            "accuracy of random images": format_values(random),
            "HLR": format_values(hlr),
            "IOR": format_values(ior),
            "LRS": format_values(lrs, 3),
        }

    theirs, ours = record["ddranking"], record["limbeck"]
    columns: dict[str, dict[str, str]] = {
        "DD-Ranking": format_column(
            theirs, [max(run) for run in zip(*theirs["random"].values(), strict=True)]
        ),
        "limbeck, step size as in DD-Ranking": format_column(
            ours, [max(run) for run in zip(*ours["random"].values(), strict=True)]
        ),
    }
    columns["limbeck"] = format_column(ours, ours["random"][ours["chosen"]])
    for name, side in zip(columns, (theirs, ours), strict=False):
        for lr, values in side["random"].items():
            columns[name][f"random images, step size {lr}"] = format_values(values)
    printed = record["printed"]["label_robust_score_mean"]
    columns["DD-Ranking"]["LRS as DD-Ranking prints it"] = f"{printed:.4f}"
    names = list(columns["DD-Ranking"])
    rows = [
        [name, *(column.get(name, NONE) for column in columns.values())] for name in names
    ]
    return format_table(["", *columns], rows)


def read_networks(ipc: int) -> Json:
    """The record of other networks at one budget: its commit, device, commands, and rows by method."""
    record = json.loads((DOCS / "records/networks.json").read_text(encoding="utf-8"))
    (table,) = (table for table in record["tables"] if table["ipc"] == ipc)
    return dict(table)


def format_networks(ipc: int) -> str:
    """Networks trained on sets and on real images: a line a set, a column a network."""
    table = read_networks(ipc)
    cells: dict[str, dict[str, str]] = {}
    origins = {"set": "its own step size", "validation": "step size by validation"}
    names = {"random": "random images", "kmeans": "k-means images"}
    for run in table["runs"]:
        for row in run["rows"]:
            line = names.get(
                row["set"], f"{run['method']}, {origins.get(row['lr_from'], '')}"
            )
            accuracy = (
                f"{100 * row['accuracy_mean']:.1f} ± {100 * row['accuracy_std']:.1f}"
            )
            cells.setdefault(line, {})[row["model"]] = join_by_nbsp(accuracy)
    networks = list(dict.fromkeys(name for line in cells.values() for name in line))
    lines = sorted(cells, key=lambda line: line in names.values())
    return format_table(
        ["trained on", *(f"`{name}`" for name in networks)],
        [[line, *(cells[line].get(name, NONE) for name in networks)] for line in lines],
    )


def format_network_commands(ipc: int) -> str:
    """The commands of the record of other networks."""
    table = read_networks(ipc)
    commands = "\n".join(wrap_command(command) for command in table["commands"])
    return f"Commit {table['commit']}, {table['device']}:\n\n<!-- not run: it takes long -->\n```console\n{commands}\n```"


def format_shelf() -> str:
    """The sets that come with limbeck, with what they reach."""
    rows = []
    for name, entry in read_shelf().items():
        cells = [
            join_by_nbsp(percent(row.accuracy_mean, row.accuracy_std).removesuffix(" %"))
            for row in (entry.row(kind) for kind in ("distilled", "random", "kmeans"))
            if row is not None
        ]
        n = entry.rows[0].n
        rows.append(
            [
                *(f"`{name}`", f"`{entry.method}`", entry.network),
                f"{entry.ipc}" + (f" of {entry.tiles} tiles" if entry.tiles > 1 else ""),
                *(
                    join_by_nbsp(size(entry.bytes)),
                    str(n),
                    *cells,
                    points(entry.difference),
                ),
            ]
        )
    head = [
        "set",
        "method",
        "network",
        "images per class",
        "bytes",
        "n",
        "accuracy",
        "random",
        "k-means",
        "16 bits",
    ]
    return format_table(head, rows)


def format_widths() -> str:
    """The sets of the shelf on wider fresh networks: a line a set, a column a width."""
    sets: dict[str, dict[int, str]] = {}
    for row in load_record("widths")["rows"]:
        cell = percent(row["accuracy_mean"], row["accuracy_std"]).removesuffix(" %")
        sets.setdefault(row["name"], {})[row["width"]] = f"{cell} (n = {row['n']})"
    for name, cells in sets.items():
        entry = read_shelf()[name]
        own = int(entry.network.rsplit(" ", 1)[1])
        row = entry.rows[0]
        cell = percent(row.accuracy_mean, row.accuracy_std).removesuffix(" %")
        cells[own] = f"{cell} (n = {row.n})"
    widths = sorted({width for cells in sets.values() for width in cells})
    head = ["set", *(f"width {width}" for width in widths)]
    return format_table(
        head,
        [
            [f"`{name}`", *(join_by_nbsp(cells.get(width, NONE)) for width in widths)]
            for name, cells in sorted(sets.items())
        ],
    )


MARKS = (
    # set of the shelf, published accuracy to reach, and the run of docs/studies/tiles.json that it comes from
    ("fashion-mnist-ipc1", 81.0, None),
    ("fashion-mnist-ipc10", 86.8, ("Fashion-MNIST, IPC 10", "1")),
    ("cifar10-ipc1", 48.5, ("CIFAR-10 (JPEG copy), IPC 1", "3")),
    ("cifar10-ipc10", 66.0, ("CIFAR-10 (JPEG copy), IPC 10", "2")),
)
VALIDATION_STEPS = 50
"""Outer steps between the validations that the table of marks shows."""


def format_marks() -> str:
    """The sets of the shelf beside published accuracies, and the validation curve of the run that a set comes from."""
    head = [
        "set",
        "published",
        "here",
        "network",
        "on a wider one",
        "validation",
        "experts",
    ]
    widest: dict[str, Json] = {}
    for row in load_record("widths")["rows"]:
        name = row["name"]
        if name not in widest or row["width"] > widest[name]["width"]:
            widest[name] = row
    lines = []
    for name, mark, cell in MARKS:
        entry, wide = read_shelf()[name], widest.get(name)
        own = percent(entry.rows[0].accuracy_mean, entry.rows[0].accuracy_std)
        on_widest = NONE
        if wide is not None:
            value = percent(wide["accuracy_mean"], wide["accuracy_std"])
            on_widest = f"{value} (width {wide['width']})"
        width = entry.network.rsplit(", ", 1)[1]
        line = [f"`{name}`", f"{mark:.1f}", own, width, on_widest, *read_validation(cell)]
        lines.append([text.replace(" %", "") for text in line])
    return format_table(head, [[join_by_nbsp(text) for text in line] for line in lines])


def read_validation(cell: tuple[str, str] | None) -> list[str]:
    """Validation every `VALIDATION_STEPS` steps of the first seed of a cell of tiles.json, and that of its experts' end."""
    if cell is None:
        return [NONE, NONE]
    rows = read_record(STUDIES["tiles"], StudyRecord, FORMAT).rows
    (row,) = [
        row
        for row in rows
        if (row.cell["data"], row.cell["factor"], row.seed) == (*cell, 0)
    ]
    curve = [
        f"{100 * accuracy:.1f}"
        for step, accuracy in zip(row.curve.steps, row.curve.accuracy)
        if step % VALIDATION_STEPS == 0
    ]
    return [", ".join(curve), f"{100 * row.paths['recorded'].mean[-1]:.1f}"]


def format_shelf_commands() -> str:
    """The commands that made the sets of the shelf, and the licence of their data."""
    parts = []
    for name, entry in read_shelf().items():
        commands = "\n".join(wrap_command(command) for command in entry.commands)
        block = f"<!-- not run: it takes long -->\n```console\n{commands}\n```"
        parts.append(f"`{name}` (commit {entry.commit}; {entry.licence}):\n\n{block}")
    return "\n\n".join(parts)


def load_record(name: str) -> Json:
    """A record of docs/records by name."""
    record: Json = json.loads((DOCS / f"records/{name}.json").read_text(encoding="utf-8"))
    return record


def format_example(name: str) -> str:
    """What an example printed, and where."""
    record = load_record("examples")["examples"][name]
    lines = "\n".join(record["printed"])
    return f"```text\n{lines}\n```\n\n{record['note']}"


def find_accuracy(rows: list[Json], kind: str, which: str | None, measure: str) -> str:
    """A cell of the row of a set."""
    row = next(row for row in rows if (row["set"], row["which"]) == (kind, which))
    mean, std = row[f"{measure}_mean"], row[f"{measure}_std"]
    spread = "" if std is None else f" ± {100 * std:.1f}"
    return join_by_nbsp(f"{100 * mean:.1f}{spread}")


def format_defaults() -> str:
    """Accuracies on data that nobody tuned for."""
    rows = []
    for run in load_record("defaults")["runs"]:
        sets = (
            ("distilled", "chosen"),
            ("random", None),
            ("kmeans", None),
            ("full", None),
        )
        cells = [find_accuracy(run["rows"], *kind, "accuracy") for kind in sets]
        trained = (
            find_accuracy(run["trained"], "distilled", "chosen", "accuracy")
            if "trained" in run
            else NONE
        )
        rows.append([run["title"], cells[0], trained, *cells[1:]])
    head = ["data", "defaults, chosen", "experts trained to the end", "random", "k-means"]
    commands = "\n\n".join(
        f"{run['command']}\n  and {run['trained_with']} for experts trained to the end"
        for run in load_record("defaults")["runs"]
    )
    table = format_table([*head, "all images (n = 1)"], rows)
    return f"{table}\n\n```text\n{commands}\n```"


MEDICAL = ("balanced_accuracy", "accuracy", "sensitivity", "specificity", "auc")


def format_medical() -> str:
    """Sets of two methods with and without balanced batches, and real images at the same budget."""
    record, rows = load_record("medical"), []
    for ipc in dict.fromkeys(run["ipc"] for run in record["runs"]):
        runs = [run for run in record["runs"] if run["ipc"] == ipc]
        lines = [(run["title"], run["rows"], "distilled", "chosen") for run in runs]
        lines += [
            (f"{name} images", runs[0]["rows"], kind, None)
            for name, kind in (("random", "random"), ("k-means", "kmeans"))
        ]
        for title, of, kind, which in lines:
            rows.append(
                [
                    str(ipc),
                    title,
                    *(find_accuracy(of, kind, which, measure) for measure in MEDICAL),
                ]
            )
    rows.append(
        [
            "all",
            "all images",
            *(
                find_accuracy(record["runs"][0]["rows"], "full", None, measure)
                for measure in MEDICAL
            ),
        ]
    )
    return format_table(
        [
            "images per class",
            "set",
            "balanced accuracy",
            "accuracy",
            "sensitivity",
            "specificity",
            "AUC",
        ],
        rows,
    )


def format_medical_commands() -> str:
    """The command of one of the runs."""
    record = load_record("medical")
    return f"The command, with `--method mtt` and without `--balanced` for the others:\n\n```console\n{wrap_command(record['command'])}\n```"


def format_projection() -> str:
    """Segments a second over many GPUs, by the formula of the page and the assumptions of the record."""
    record = load_record("ranks")
    rows = []
    for part in record["sets"]:
        size = 4 * part["images"] * part["numbers_per_image"]
        for cluster in record["clusters"]:
            gpus, name = (
                cluster["gpus"],
                part["name"] if cluster is record["clusters"][0] else "the same",
            )
            exchange = 2 * (gpus - 1) / gpus * size / cluster["bytes_per_second"]
            seconds = part["segment_seconds"] + exchange
            shown = f"{exchange:.2g} s" if exchange > 0.1 else f"{1000 * exchange:.2g} ms"
            link = "" if cluster["link"] is None else f", {cluster['link']}"
            share = 100 * part["segment_seconds"] / seconds
            rows.append(
                [
                    name,
                    f"{size / 1e6:.1f} MB",
                    f"{gpus}{link}",
                    shown,
                    f"{gpus / seconds:.2g}",
                    f"{share:.3g} %",
                ]
            )
    return format_table(
        ["set", "G", "GPUs", "exchange", "segments a second", "of the ideal"], rows
    )


def format_scaling() -> str:
    """Outer steps and experts over processes of torchrun on one machine: medians over rounds, and what one gains."""
    lines = load_record("scaling")
    groups: dict[int, list[Json]] = {}
    for line in lines:
        groups.setdefault(line["ranks"], []).append(line)
    medians = {
        ranks: {name: median(float(line[name]) for line in group) for name in group[0]}
        for ranks, group in groups.items()
    }
    one = medians[1]
    rows = [
        [
            str(ranks),
            str(len(groups[ranks])),
            f"{1 / row['seconds']:.2g}",
            f"{one['seconds'] / row['seconds']:.2f}",
            f"{100 * row['collective_seconds'] / row['seconds']:.2g} %"
            if ranks > 1
            else NONE,
            f"{row['bytes_sent'] / 1e6:.2f} MB" if ranks > 1 else NONE,
            f"{3600 * 4 / row['expert_seconds']:,.0f}",
            f"{one['expert_seconds'] / row['expert_seconds']:.2f}",
        ]
        for ranks, row in medians.items()
    ]
    head = [
        "processes",
        "n",
        "outer steps a second",
        "times one process",
        "in collective calls",
        "sent a step",
        "experts an hour",
        "times one process",
    ]
    return format_table(head, rows)


def wrap_command(command: str) -> str:
    """A command in lines of 88 characters, each option with its value."""
    glued = re.sub(r"(?<=\w) (?!--)", "\0", f"$ {command}")
    lines = textwrap.wrap(glued, 88, break_on_hyphens=False)
    return " \\\n    ".join(lines).replace("\0", " ")


def format_runs() -> str:
    """The commands and commits of the recorded runs."""
    parts = []
    for record in load_records():
        commands = "\n".join(wrap_command(command) for command in record["commands"])
        parts.append(
            f"{record['title']} (commit {record['commit']}):\n\n```console\n{commands}\n```"
        )
    return "\n\n".join(parts)


STUDIES = {path.stem: path for path in sorted((DOCS / "studies").glob("*.json"))}
STUDY_TABLES = {
    "": results_table,
    " differences": differences_table,
    " costs": costs_table,
    " searches": searches_table,
    " stability": stability_table,
}
"""A block `study NAME` has the accuracies of docs/studies/NAME.json; with a word behind it, another of its tables."""


def format_study(name: str, table: Callable[[StudyRecord], Table]) -> str:
    """A table of a study."""
    head, lines = table(read_record(STUDIES[name], StudyRecord, FORMAT))
    return format_table(head, [[join_by_nbsp(word) for word in line] for line in lines])


EXAMPLES = ("own-folder", "continual", "search", "leakage", "own-trajectory")


def format_reaches(name: str) -> str:
    """When validation first was as good as the final one of the other side: a line a comparison."""
    record = read_record(STUDIES[name], StudyRecord, FORMAT)
    main = [
        row
        for row in record.comparisons
        if (row.which, row.measure) == ("chosen", "accuracy")
    ]
    sentences = [reach_sentence(row) for row in main]
    return "\n".join(f"- {sentence}" for sentence in sentences if sentence is not None)


def format_chosen(name: str, axis: str) -> str:
    """The chosen sets of a study of data and `axis`: a line a value, a column for the data and each measure.

    Where the lines of a column have different n, n stands in them.
    """
    head, lines = results_table(read_record(STUDIES[name], StudyRecord, FORMAT))
    rows = [dict(zip(head, line)) for line in lines]
    rows = [row for row in rows if row["measure"] in ("accuracy", "balanced accuracy")]
    kinds = [(row["data"], row["measure"]) for row in rows]
    counts: dict[tuple[str, str], set[str]] = {kind: set() for kind in kinds}
    for row, kind in zip(rows, kinds):
        counts[kind].add(row["n"])
    cells = {}
    for column, value in (
        ("chosen", None),
        ("random", "random images"),
        ("k-means", "k-means images"),
    ):
        for row, kind in zip(rows, kinds):
            n = f" ({row['n']})" if len(counts[kind]) > 1 else ""
            cells[value or row[axis], *kind] = row[column] + n
    names = dict.fromkeys(name for name, _, _ in cells)
    table = [
        [name, *(cells.get((name, *kind), "–") for kind in counts)] for name in names
    ]
    titles = [
        (data if measure == "accuracy" else f"{data}, {measure}")
        + (f" (n = {min(n)})" if len(n) == 1 else " (n)")
        for (data, measure), n in counts.items()
    ]
    return format_table([axis, *titles], table)


def format_validation(name: str) -> str:
    """Validation accuracy in percent along distillation, a line a cell, as the mean over seeds."""
    record = read_record(STUDIES[name], StudyRecord, FORMAT)
    cells: dict[str, list[Any]] = {}
    for row in record.rows:
        cells.setdefault(" · ".join(row.cell.values()), []).append(row.curve)
    steps = next(iter(cells.values()))[0].steps
    places = range(0, len(steps), max(1, len(steps) // 6))
    rows = [
        [
            name,
            *(
                f"{100 * fmean(curve.accuracy[place] for curve in curves):.1f}"
                for place in places
            ),
        ]
        for name, curves in cells.items()
    ]
    return format_table(
        ["after outer steps", *(str(steps[place]) for place in places)], rows
    )


SECTIONS: dict[str, Any] = {
    **{f"example {name}": partial(format_example, name) for name in EXAMPLES},
    "defaults": format_defaults,
    "projection": format_projection,
    "scaling": format_scaling,
    "medical": format_medical,
    "medical commands": format_medical_commands,
    "numbers": format_numbers,
    "runs": format_runs,
    "ddranking": format_ddranking,
    "methods": format_methods,
    "shelf": format_shelf,
    "shelf commands": format_shelf_commands,
    "widths": format_widths,
    "marks": format_marks,
    **{f"networks {ipc}": partial(format_networks, ipc) for ipc in (1, 10)},
    **{
        f"network commands {ipc}": partial(format_network_commands, ipc)
        for ipc in (1, 10)
    },
    "digits 1": lambda: format_results("digits", 1),
    "cifar 1": lambda: format_results("cifar10", 1),
    **{
        f"fashion {ipc}": lambda ipc=ipc: format_results("fashion-mnist", ipc)
        for ipc in (1, 10)
    },
    **{
        f"chest {ipc}": lambda ipc=ipc: format_results("pneumoniamnist", ipc)
        for ipc in (1, 2, 10)
    },
    **{
        f"chest {ipc} balanced": lambda ipc=ipc: format_results(
            "pneumoniamnist", ipc, "balanced accuracy"
        )
        for ipc in (1, 2, 10)
    },
}
STUDY_SECTIONS: dict[str, Any] = (
    {
        f"study {name}{word}": partial(format_study, name, table)
        for name in STUDIES
        for word, table in STUDY_TABLES.items()
    }
    | {
        f"study {name} {word}": partial(function, name)
        for name in STUDIES
        for word, function in (
            ("reaches", format_reaches),
            ("validation", format_validation),
        )
    }
    | {
        f"study {name} chosen": partial(format_chosen, name, axis)
        for name, axis in (
            ("table-ipc1", "method"),
            ("table-ipc10", "method"),
            ("table-seeds", "method"),
            ("tiles", "factor"),
            ("waypoints", "waypoints"),
        )
    }
)
PAGES = (
    ROOT / "README.md",
    DOCS / "index.md",
    DOCS / "results.md",
    DOCS / "evaluate.md",
    DOCS / "which-method.md",
    DOCS / "shelf.md",
    DOCS / "claims.md",
    DOCS / "best-set.md",
    DOCS / "defaults.md",
    DOCS / "several-gpus.md",
    DOCS / "medical.md",
    *(DOCS / "examples" / f"{name}.md" for name in EXAMPLES),
)


def fill_tables(text: str) -> str:
    """A page with its tables written anew."""
    for name in re.findall(r"<!-- end of ([\w -]+) -->", text):
        before, after = text.split(f"<!-- {name} -->\n", 1)
        _, after = after.split(f"<!-- end of {name} -->", 1)
        text = f"{before}<!-- {name} -->\n\n{(SECTIONS | STUDY_SECTIONS)[name]()}\n\n<!-- end of {name} -->{after}"
    return text


def main() -> None:
    """Write the pages."""
    for page in PAGES:
        page.write_text(fill_tables(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
