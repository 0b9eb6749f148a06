"""Make the tables of PAGES in docs, and a picture, from benchmarks/results: python -m benchmarks.page."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from benchmarks.__main__ import INSTRUCTIONS
from benchmarks.measure import RESULTS, ROOT

Json = dict[str, Any]
PAGES = ("performance.md", "gpu.md")
AXES = {"steps": "N, student steps", "ipc": "images per class", "width": "width", "side": "side of the images, pixels"}


def format_table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    return "\n".join(["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)])


def format_ratio(part: Json, name: str) -> str:
    """How many times as fast, with the spread over pairs."""
    times = part["times_faster"][name]
    return f"{times['of_medians']:.2f} ({times['min']:.2f} to {times['max']:.2f})"


def format_steps(step: Json) -> str:
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
                rate, memory = case["rate"].get(side, {}), case["memory"].get(side)
                peak = f"{memory['peak_mb']:.0f}" if isinstance(memory, dict) and "peak_mb" in memory else "–"
                against = case["times_faster_of_medians"]["released"][side]
                rows.append(
                    [
                        side,
                        format_ratio(case["main"], side) if part == "main" else f"{against:.2f}",
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
                    format_ratio(few, "ours float32"),
                    "–",
                    "–",
                    "–",
                ]
            )
        lost = case["image_gradient_against_ours_float32"]
        errors = "; ".join(f"{side} {e['relative_error']:.1e}, {e['cosine']:.4f}" for side, e in lost.items())
        exact = "; ".join(f"{side} {e['relative_error']:.1e}" for side, e in case["one_step_against_float64"].items())
        head = ["side", "times as fast as released", "with the allocator tuned for released too", "GFLOP/s", "peak MiB"]
        parts.append(
            f"**{name}**, N {case['case']['timed']} (memory: N {case['case']['steps']}), n = {case['main']['n']}\n\n"
            f"{format_table(head, rows)}\n\n"
            f"Image gradient of the whole step against ours in float32, relative error and cosine: {errors}. "
            f"One student step against autograd in float64: {exact}."
        )
    rates = "; ".join(
        f"{kind} {measured['rate']:.0f} GFLOP/s" for kind, measured in step["machine_gflop_per_s"].items()
    )
    built = f"Compiling the kernels, once for a machine: {step['kernels_build_seconds']} s."
    head = f"{describe_machine(step)} Measured rates of matrix products and convolutions: {rates}. {built}"
    return "\n\n".join([head, *parts])


def format_loops(result: Json, parts: dict[str | None, str]) -> str:
    """Ours against the field's loop, a row per case."""
    rows = []
    for name, case in result["cases"].items():
        for key, title in parts.items():
            measurements = case if key is None else case.get(key)
            if not isinstance(measurements, dict):
                continue
            sides = [side for side in measurements["median_seconds"] if side != measurements["base"]]
            rows += [
                [f"{name}{title}", side, format_ratio(measurements, side), str(measurements["n"])] for side in sides
            ]
    return (
        describe_machine(result)
        + "\n\n"
        + format_table(["case", "side", "times as fast as the field's loop", "n"], rows)
    )


def format_growth(result: Json) -> str:
    """Tables of time and memory, and the store's bytes."""
    parts = []
    for field, points in result["series"].items():
        rows = []
        for point in points:
            cells = [format_point(point["ours float32"]), format_point(point["released"])]
            rows.append([str(point[field]), *cells])
        parts.append(format_table([AXES[field], "ours, float32", "released"], rows))
    stored = result["store_bytes"]
    rows = [
        [str(point["epochs"]), f"{point['convexified'] / 1e6:.2f} MB", f"{point['recorded'] / 1e6:.2f} MB"]
        for point in stored["of_one_expert_by_epochs"]
    ]
    parts.append(format_table(["epochs of one expert", "convexified, 2 waypoints", "recorded"], rows))
    return describe_machine(result) + "\n\n" + "\n\n".join(parts)


def format_point(point: Json | str) -> str:
    """A measured point in words."""
    if isinstance(point, str) or "seconds" not in point:
        return "–"
    return f"{point['seconds']:.2f} s, {point['peak_mb']:.0f} MiB"


def describe_machine(result: Json) -> str:
    """The machine in a sentence."""
    m = result["machine"]
    return f"{m['processor']}, {m['instructions']}, {m['threads']} threads, torch {m['torch']}."


def draw_growth(result: Json, path: Path) -> None:
    """Time and memory against what they grow with; the same bytes for the same numbers."""
    matplotlib.rcParams["svg.hashsalt"] = "limbeck"
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    axes = figure.subplots(2, len(result["series"]), squeeze=False)
    for column, (field, points) in enumerate(result["series"].items()):
        for row, (key, label) in enumerate((("seconds", "seconds a step"), ("peak_mb", "peak MiB"))):
            axis = axes[row][column]
            for side, colour in (("ours float32", "#2166ac"), ("released", "#b2182b")):
                measured = [p for p in points if isinstance(p[side], dict) and key in p[side]]
                axis.plot(
                    [p[field] for p in measured],
                    [p[side][key] for p in measured],
                    marker="o",
                    ms=3,
                    color=colour,
                    label=side,
                )
            axis.set_ylim(bottom=0)
            axis.set_xlabel(AXES[field])
            axis.grid(alpha=0.3)
            if column == 0:
                axis.set_ylabel(label)
    axes[0][0].legend(frameon=False, fontsize=8)
    figure.savefig(path, metadata={"Date": None})


def load_results() -> dict[str, dict[str, Json]]:
    """What there is, by folder (an instruction set of the processor or a GPU) and script."""
    folders = [*INSTRUCTIONS, *sorted({path.parent.name for path in RESULTS.glob("*/device.json")})]
    return {
        name: {file.stem: json.loads(file.read_text()) for file in sorted((RESULTS / name).glob("*.json"))}
        for name in folders
        if (RESULTS / name).is_dir()
    }


def format_device(result: Json) -> str:
    """Seconds on a GPU, a row per job, with how many times as fast as eager float32."""
    names = list(result["device_gflop_per_s"])
    rows = []
    for title, case in result["cases"].items():
        for job, comparison in case["jobs"].items():
            if isinstance(comparison, str):
                rows.append([f"{title}, {job}", *["–"] * len(names)])
                continue
            seconds, faster = comparison["median_seconds"], comparison["times_faster"]
            cells = [f"{seconds[name]:.2f} ({faster[name]['of_medians']:.2f})" for name in names]
            rows.append([f"{title}, {job}, n = {comparison['n']}", *cells])
    rates = result["device_gflop_per_s"]
    rows.append(["the GPU's own rate, TFLOP/s", *(f"{rates[name] / 1000:.0f}" for name in names)])
    return f"{result['device']}, torch {result['machine']['torch']}.\n\n" + format_table(
        ["seconds (times as fast)", *names], rows
    )


def format_gradients(checks: Json) -> str:
    """Relative errors of the exact gradient on a GPU, a row per precision."""
    first, last = checks["gradient"].values()
    steps = list(checks["gradient"])
    rows = [
        [side, *(f"{errors[name]:.1e}" for errors in (first[side], last[side]) for name in ("images", "step_size"))]
        for side in first
    ]
    head = [f"{name}, N {count}" for count in steps for name in ("images", "step size")]
    return f"{checks['device']}, torch {checks['torch']}.\n\n" + format_table(["computed in", *head], rows)


def format_memory(checks: Json) -> str:
    """Memory of an outer step on a GPU, a row per number of images and of student steps."""
    peaks = {(row["ipc"], row["steps"], row["adjoint"]): row["peak_mib"] for row in checks["memory"]}
    rows = []
    for ipc, steps in sorted({key[:2] for key in peaks}):
        full = peaks.get((ipc, steps, "backprop"))
        cells = [f"{peaks[ipc, steps, 'exact']:.0f}", f"{1024 * checks['graphs_gib'][str(ipc)]['shared']:.0f}"]
        rows.append([str(ipc), str(steps), *cells, "–" if full is None else f"{full:.0f}"])
    head = ["images per class", "N", "exact, MiB", "CUDA graphs, MiB", "full graph, MiB"]
    return f"{checks['device']}, torch {checks['torch']}.\n\n" + format_table(head, rows)


def fill_tables(text: str) -> str:
    """The page `text` with the tables in its marked places made anew."""
    tables = load_results()

    def sections(script: str, of: Callable[[Json], str]) -> str:
        parts = [f"### {format_title(name)}\n\n{of(part[script])}" for name, part in tables.items() if script in part]
        return "\n\n".join(parts)

    makers: dict[str, Callable[[], str]] = {
        "step": lambda: sections("step", format_steps),
        "experts": lambda: sections(
            "experts", lambda part: format_loops(part, {"one": ", one expert", "two": ", two experts"})
        ),
        "evaluate": lambda: sections("evaluate", lambda part: format_loops(part, {None: ""})),
        "growth": lambda: format_growth(find_growth(tables)),
        "speed on a GPU": lambda: "\n\n".join(
            format_device(part["device"]) for part in tables.values() if "device" in part
        ),
        **{
            f"{name} on a GPU": lambda of=of: "\n\n".join(  # type: ignore[misc]
                of(part["checks"]) for part in tables.values() if "checks" in part
            )
            for name, of in (("gradient", format_gradients), ("memory", format_memory))
        },
    }
    for name in re.findall(r"<!-- end of ([\w ]+) -->", text):
        before, after = text.split(f"<!-- {name} -->\n", 1)
        _, after = after.split(f"<!-- end of {name} -->", 1)
        text = f"{before}<!-- {name} -->\n\n{makers[name]()}\n\n<!-- end of {name} -->{after}"
    return text


def find_growth(tables: dict[str, dict[str, Json]]) -> Json:
    """What was measured of growth, on the first machine that has it."""
    return next(part["growth"] for part in tables.values() if "growth" in part)


def main() -> None:
    """Fill the marked places of the pages, and draw the picture."""
    for name in PAGES:
        page = ROOT / "docs" / name
        page.write_text(fill_tables(page.read_text(encoding="utf-8")), encoding="utf-8")
    draw_growth(find_growth(load_results()), ROOT / "docs" / "performance.svg")


def format_title(instructions: str) -> str:
    """AVX-512, AVX2."""
    return instructions.upper().replace("AVX512", "AVX-512")


if __name__ == "__main__":
    main()
