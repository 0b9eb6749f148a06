"""Make docs/performance.md and its picture from benchmarks/results: python -m benchmarks.page."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from benchmarks.__main__ import INSTRUCTIONS
from benchmarks.measure import RESULTS, ROOT

Json = dict[str, Any]
AXES = {"steps": "N, student steps", "ipc": "images per class", "width": "width", "side": "side of the images, pixels"}


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    return "\n".join(["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)])


def ratio(part: Json, name: str) -> str:
    """How many times as fast, with the spread over pairs."""
    each = part["times_faster"][name]
    return f"{each['of_medians']:.2f} ({each['min']:.2f} to {each['max']:.2f})"


def of_step(step: Json) -> str:
    """One table per case."""
    parts = []
    for name, case in step["cases"].items():
        if isinstance(case, str):
            parts.append(f"**{name}**: {case}.")
            continue
        tuned = case["times_faster_of_medians"]["released, tuned allocator"]
        rows = []
        for part in ("main", "more"):
            for side in case[part]["median_seconds"]:
                rate, held = case["rate"].get(side, {}), case["memory"].get(side)
                peak = f"{held['peak_mb']:.0f}" if isinstance(held, dict) and "peak_mb" in held else "–"
                against = case["times_faster_of_medians"]["released"][side]
                rows.append(
                    [
                        side,
                        ratio(case["main"], side) if part == "main" else f"{against:.2f}",
                        f"{tuned[side]:.2f}",
                        f"{rate['gflop_per_s']:.0f} ({rate['percent_of_machine']:.0f} %)" if rate else "–",
                        peak,
                    ]
                )
        if "full_graph" in case:
            few = case["full_graph"]
            rows.append(
                [
                    f"MTT's full graph, N {few['steps']}: ours float32 beside it",
                    ratio(few, "ours float32"),
                    "–",
                    "–",
                    "–",
                ]
            )
        lost = case["image_gradient_against_ours_float32"]
        said = "; ".join(f"{side} {e['relative_error']:.1e}, {e['cosine']:.4f}" for side, e in lost.items())
        exact = "; ".join(f"{side} {e['relative_error']:.1e}" for side, e in case["one_step_against_float64"].items())
        head = ["side", "times as fast as released", "with the allocator tuned for released too", "GFLOP/s", "peak MiB"]
        parts.append(
            f"**{name}**, N {case['case']['timed']} (memory: N {case['case']['steps']}), n = {case['main']['n']}\n\n"
            f"{table(head, rows)}\n\n"
            f"Image gradient of the whole step against ours in float32, relative error and cosine: {said}. "
            f"One student step against autograd in float64: {exact}."
        )
    rates = "; ".join(f"{kind} {each['rate']:.0f} GFLOP/s" for kind, each in step["machine_gflop_per_s"].items())
    built = f"Compiling the kernels, once for a machine: {step['kernels_build_seconds']} s."
    said = f"{described(step)} Measured rates of matrix products and convolutions: {rates}. {built}"
    return "\n\n".join([said, *parts])


def of_loops(result: Json, parts: dict[str | None, str]) -> str:
    """Ours against the field's loop, a row per case."""
    rows = []
    for name, case in result["cases"].items():
        for key, title in parts.items():
            held = case if key is None else case.get(key)
            if not isinstance(held, dict):
                continue
            sides = [side for side in held["median_seconds"] if side != held["base"]]
            rows += [[f"{name}{title}", side, ratio(held, side), str(held["n"])] for side in sides]
    return described(result) + "\n\n" + table(["case", "side", "times as fast as the field's loop", "n"], rows)


def of_growth(result: Json) -> str:
    """Tables of time and memory, and the store's bytes."""
    parts = []
    for field, points in result["series"].items():
        rows = []
        for point in points:
            cells = [shown(point["ours float32"]), shown(point["released"])]
            rows.append([str(point[field]), *cells])
        parts.append(table([AXES[field], "ours, float32", "released"], rows))
    stored = result["store_bytes"]
    rows = [
        [str(point["epochs"]), f"{point['convexified'] / 1e6:.2f} MB", f"{point['recorded'] / 1e6:.2f} MB"]
        for point in stored["of_one_expert_by_epochs"]
    ]
    parts.append(table(["epochs of one expert", "convexified, 2 waypoints", "recorded"], rows))
    return described(result) + "\n\n" + "\n\n".join(parts)


def shown(point: Json | str) -> str:
    """A measured point in words."""
    if isinstance(point, str) or "seconds" not in point:
        return "–"
    return f"{point['seconds']:.2f} s, {point['peak_mb']:.0f} MiB"


def described(result: Json) -> str:
    """The machine in a sentence."""
    m = result["machine"]
    return f"{m['processor']}, {m['instructions']}, {m['threads']} threads, torch {m['torch']}."


def draw(result: Json, path: Path) -> None:
    """Time and memory against what they grow with; the same bytes for the same numbers."""
    matplotlib.rcParams["svg.hashsalt"] = "limbeck"
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    axes = figure.subplots(2, len(result["series"]), squeeze=False)
    for column, (field, points) in enumerate(result["series"].items()):
        for row, (key, label) in enumerate((("seconds", "seconds a step"), ("peak_mb", "peak MiB"))):
            axis = axes[row][column]
            for side, colour in (("ours float32", "#2166ac"), ("released", "#b2182b")):
                held = [p for p in points if isinstance(p[side], dict) and key in p[side]]
                axis.plot(
                    [p[field] for p in held], [p[side][key] for p in held], marker="o", ms=3, color=colour, label=side
                )
            axis.set_ylim(bottom=0)
            axis.set_xlabel(AXES[field])
            axis.grid(alpha=0.3)
            if column == 0:
                axis.set_ylabel(label)
    axes[0][0].legend(frameon=False, fontsize=8)
    figure.savefig(path, metadata={"Date": None})


def results() -> dict[str, dict[str, Json]]:
    """What there is, by instruction set and script."""
    folders = [RESULTS / name for name in INSTRUCTIONS if (RESULTS / name).is_dir()]
    return {
        folder.name: {file.stem: json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))}
        for folder in folders
    }


def filled(text: str) -> str:
    """The page `text` with the tables in its marked places made anew."""
    tables = results()

    def sections(script: str, of: Callable[[Json], str]) -> str:
        parts = [f"### {title(name)}\n\n{of(part[script])}" for name, part in tables.items() if script in part]
        return "\n\n".join(parts)

    texts = {
        "step": sections("step", of_step),
        "experts": sections("experts", lambda part: of_loops(part, {"one": ", one expert", "two": ", two experts"})),
        "evaluate": sections("evaluate", lambda part: of_loops(part, {None: ""})),
        "growth": of_growth(growth(tables)),
    }
    for name, section in texts.items():
        before, rest = text.split(f"<!-- {name} -->\n", 1)
        _, after = rest.split(f"<!-- end of {name} -->", 1)
        text = f"{before}<!-- {name} -->\n\n{section}\n\n<!-- end of {name} -->{after}"
    return text


def growth(tables: dict[str, dict[str, Json]]) -> Json:
    """What was measured of growth, on the first machine that has it."""
    return next(part["growth"] for part in tables.values() if "growth" in part)


def main() -> None:
    """Fill the marked places of docs/performance.md, and draw its picture."""
    page = ROOT / "docs" / "performance.md"
    page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
    draw(growth(results()), ROOT / "docs" / "performance.svg")


def title(instructions: str) -> str:
    """AVX-512, AVX2."""
    return instructions.upper().replace("AVX512", "AVX-512")


if __name__ == "__main__":
    main()
