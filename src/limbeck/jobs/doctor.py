"""What is wrong with a data set, a job, a store of experts or a run, before hours are spent on it."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator, Sequence
from math import isfinite, prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from limbeck.core.errors import UserError
from limbeck.core.events import Listener
from limbeck.core.findings import Finding
from limbeck.core.folders import home_folder
from limbeck.core.record_files import read_record
from limbeck.core.records import ExpertsRecord, ResultRow, ResultsRecord, RunRecord, StepLine, WarningLine
from limbeck.core.text import counted
from limbeck.data import ImageData
from limbeck.data.memory import machine_memory
from limbeck.data.overview import make_overview
from limbeck.data.sources import DATA_NAMES
from limbeck.experts.store import Expert, Store
from limbeck.jobs.estimate import Estimate
from limbeck.jobs.job import Job
from limbeck.jobs.record import RunFolder
from limbeck.report.text import percent, size
from limbeck.report.verdict import accuracy_of
from limbeck.synthetic.tiles import tile_sides

MIN_PER_CLASS, MAX_ERROR = 10, 0.05
"""Fewer images of a class, or a larger standard error of an accuracy of one half, are a finding."""
GAIN = 0.05
"""An expert that gains less validation accuracy than this did not learn."""
SMALL_TILE = 8
"""Pixels. With tiles of 4 x 4 a set of digits lost 10 points against whole images; 10 x 10 of Fashion-MNIST gained."""

NAMED = 5  # experts that a finding names


# --- data


def examine_data(data: ImageData, *, near: bool | None = None, listen: Listener | None = None) -> list[Finding]:
    """What is odd about a data set: duplicates, pixels, balance, and parts that are too small.

    near, listen: as in `limbeck.data.overview.make_overview`.
    """
    findings = make_overview(data, near=near, listen=listen).findings()
    counts = data.train.counts(data.num_classes)
    few = [name for name, count in zip(data.classes, counts) if count < MIN_PER_CLASS]
    if few:
        names = ", ".join(few[:NAMED]) + (f" and {len(few) - NAMED} more" if few[NAMED:] else "")
        text = f"{len(few)} of {len(counts)} classes have fewer than {MIN_PER_CLASS} training images ({names})"
        findings.append(Finding(text, "give them more images, or leave these classes out"))
    return [*findings, *find_small_splits(data)]


def find_small_splits(data: ImageData) -> list[Finding]:
    """A validation part that is too small to choose by, or a test part that is too small to measure by."""
    sentences = {
        "validation": (
            "steps and step sizes are chosen on {}: the choice is partly chance",
            "give the data more images, or keep more for validation (--validation 0.2).",
        ),
        "test": (
            "results are measured on {}, which their deviation over networks does not show",
            "give the data more test images, perhaps in a folder of their own (--test).",
        ),
    }
    findings = []
    for split, (sentence, remedy) in sentences.items():
        counts = getattr(data, split).counts(data.num_classes)
        fewest, total = min(counts), sum(counts)
        error = 0.5 / max(total, 1) ** 0.5
        if fewest < MIN_PER_CLASS or error > MAX_ERROR:
            images = (
                f"{counted(total, f'{split} image')} ({fewest} of class '{data.classes[counts.index(fewest)]}'), "
                f"on which an accuracy is uncertain by up to {100 * error:.0f} points"
            )
            findings.append(Finding(sentence.format(images), remedy))
    return findings


# --- a job


def examine_job(job: Job, cost: Estimate) -> list[Finding]:
    """What is odd about a job that `prepare` accepted: long segments, too little disk or memory.

    cost: what `estimate` says of it.
    """
    findings = find_small_tiles(job.options.model_dump(), job.task.data.size)
    if job.experts is not None:
        findings += find_long_segments(job.options.model_dump(), job.experts.config.epochs)
    free = shutil.disk_usage(_existing(home_folder())).free
    if cost.store_bytes > free:
        text = f"the experts need {size(cost.store_bytes)}, and {home_folder()} has {size(free)} left"
        findings.append(Finding(text, "set LIMBECK_HOME to another disk, or lower --num-experts"))
    needed, memory = 4 * len(job.task.data.train) * prod(job.task.data.shape), machine_memory()
    if memory is not None and needed > memory / 2:
        text = f"the training images alone take {size(needed)} of {size(memory)} of memory"
        findings.append(Finding(text, "pass --resize, or use fewer images"))
    return findings


def _existing(path: Path) -> Path:
    """The nearest folder on the way to `path` that exists."""
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())


def find_small_tiles(options: dict[str, Any], size: tuple[int, int]) -> list[Finding]:
    """Tiles that are too small to show what an image shows."""
    factor = options.get("factor")
    if not isinstance(factor, int) or factor < 2 or min(tile_sides(size, factor)) >= SMALL_TILE:
        return []
    height, width = tile_sides(size, factor)
    text = f"tiles of {height} x {width} pixels hold little of an image (--factor {factor})"
    return [Finding(text, "compare with a lower --factor; 1 leaves images whole")]


def find_long_segments(options: dict[str, Any], epochs: int) -> list[Finding]:
    """Segments of M epochs, from start epochs below U, that do not fit into experts of `epochs` epochs."""
    span, start = options.get("expert_epochs"), options.get("max_start_epoch")
    if not isinstance(span, int | float) or not isinstance(start, int | float):
        return []
    if span > epochs:
        text = f"segments of {span:g} epochs (M) are longer than the experts, which have {epochs}"
        return [Finding(text, "lower --expert-epochs, or train the experts longer (--expert.epochs)")]
    if span + start - 1 > epochs:
        text = f"segments of {span:g} epochs (M) from start epochs below {start:g} (U) go past the experts' {epochs}"
        return [Finding(text, f"--max-start-epoch {max(epochs - span, 1):g} is what they can have")]
    return []


# --- a store


def examine_store(store: Store) -> list[Finding]:
    """What is odd about the experts of a store: damaged files, no learning, equal or useless parameters."""
    indices = store.indices()
    if not indices:
        return [Finding(f"the store {store.path} holds no finished experts", f"run {_experts_command(store)} first")]
    findings, experts = [], {}
    for index in indices:
        try:
            experts[index] = store.read(index, lazy=True)
        except UserError as error:
            findings.append(Finding(str(error), f"delete the file, and {_experts_command(store)} trains it again"))
    return [*findings, *_find_weak(experts, len(store.header.data.classes)), *_find_equal(experts)]


def _experts_command(store: Store) -> str:
    """The command that trains what a store lacks; its other options are those that it was begun with."""
    name = store.header.data.name
    return f"limbeck experts {name if name in DATA_NAMES else 'DATA'} --out {shlex.quote(str(store.path))}"


def _names(indices: Sequence[int], total: int) -> str:
    """Experts by number, at most `NAMED` of them, and how many there are in all."""
    names = ", ".join(map(str, indices[:NAMED])) + (" ..." if len(indices) > NAMED else "")
    return f"{len(indices)} of {total} experts ({names})"


def _find_weak(experts: dict[int, Expert], classes: int) -> Iterator[Finding]:
    """Experts whose validation accuracy hardly rose. That it still rises at the end is no fault, see docs/LOG.md."""
    ends = {index: expert.validation[-1] for index, expert in experts.items()}
    gains = {index: expert.validation[-1] - min(expert.validation[0], 1 / classes) for index, expert in experts.items()}
    if weak := [index for index, gain in gains.items() if gain < GAIN]:
        best = percent(max(ends[index] for index in weak), None)
        text = f"{_names(weak, len(experts))} did not learn: at most {best} on validation with {classes} classes"
        yield Finding(text, "train them longer (--epochs), or with another step size (--lr)")


def _find_equal(experts: dict[int, Expert]) -> Iterator[Finding]:
    """Snapshots that equal the one before, and experts that equal each other."""
    still: list[int] = []
    ends: dict[bytes, list[int]] = {}
    for index, expert in experts.items():
        thetas = _snapshots(expert)
        before = next(thetas)
        count = 0
        for theta in thetas:
            count += bool(torch.equal(before, theta))
            before = theta
        still += [index] if count else []
        ends.setdefault(before.numpy().tobytes(), []).append(index)
    if still:
        text = f"{_names(still, len(experts))} have snapshots that equal the one before: nothing was trained between"
        yield Finding(text, "a step size above 0 (--lr) moves them; of imported files, check which epochs they hold")
    for same in ends.values():
        if len(same) > 1:
            text = f"{_names(same, len(experts))} have the same parameters, so that they count as one"
            yield Finding(text, "train others with another --seed, or delete the copies")


def _snapshots(expert: Expert) -> Iterator[Tensor]:
    """The parameters (P,) that are stored, in the order of their epochs."""
    points = expert.recorded.points if expert.recorded is not None else None
    if points is None and expert.convex is not None:
        points = expert.convex.waypoints
    yield from () if points is None else (points[row] for row in range(len(points)))


# --- a run


def examine_run(path: Path) -> list[Finding]:
    """What is odd about a run: its warnings, its losses, what was chosen, its results, and its experts."""
    folder, record = RunFolder(path), read_record(path / "run.json", RunRecord, "limbeck-run")
    findings = [Finding(text, "") for text in dict.fromkeys(line.text for line in folder.lines(WarningLine))]
    steps = folder.lines(StepLine)
    bad = sum(line.loss is None or not isfinite(line.loss) for line in steps)
    if bad:
        findings.append(Finding(f"the loss is no number in {bad} of {len(steps)} outer steps", "lower the step sizes"))
    if (path / "results.json").exists():
        rows = read_record(path / "results.json", ResultsRecord, "limbeck-results").results
        findings += _examine_results(path, [row for row in rows if row.protocol is None], record)
    else:
        command = record.command if record.command.startswith("limbeck") else "the same call"
        text = f"the run is not finished: {len(steps):,} outer steps are done"
        findings.append(Finding(text, f"go on with {command}"))
    if (path / "experts.json").exists():
        experts = read_record(path / "experts.json", ExpertsRecord, "limbeck-experts")
        findings += find_long_segments(record.config, experts.epochs or 0)
        store = Path(experts.store)
        if (store / "store.json").exists():
            findings += examine_store(Store.open(store))
        else:
            text = f"the experts in {shlex.quote(str(store))} are gone"
            findings.append(
                Finding(text, f"the command of {shlex.quote(str(path))} trains them again if it needs them")
            )
    return findings


def _examine_results(path: Path, rows: Sequence[ResultRow], record: RunRecord) -> Iterator[Finding]:
    """A set that is no better than real images, or than what it starts from; too few networks to tell."""
    by_set = {(row.set, row.which): row for row in rows}
    chosen, kmeans = by_set.get(("distilled", "chosen")), by_set.get(("kmeans", None))
    if chosen is None:
        return
    if chosen.n < 3:
        text = f"accuracies are of {counted(chosen.n, 'network')}, which shows no deviation to rely on"
        yield Finding(text, f"type limbeck evaluate {shlex.quote(str(path))} --num-networks 5")
    if "iterations" not in record.config:  # a coreset takes no steps, and may be k-means itself
        return
    if chosen.step == 0:
        text = "no step was better on validation than the real images that the set starts from"
        yield Finding(text, "lower --lr-img, or take more --iterations")
    if kmeans is not None and kmeans.accuracy_mean >= chosen.accuracy_mean:
        text = (
            f"k-means real images reach {accuracy_of(kmeans)} on test, the set {accuracy_of(chosen)}: distillation "
            "gained nothing"
        )
        yield Finding(text, "take more --iterations, or another method (see docs/which-method.md)")
