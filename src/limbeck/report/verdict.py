"""What a run comes to, in sentences: its headline, and whether it is better than random real images."""

from __future__ import annotations

from math import sqrt

from limbeck.core.records import DataRecord, ResultRow
from limbeck.report.heat_map import NAMES
from limbeck.report.records import Run
from limbeck.report.text import NONE, count, count_sides, percent


def headline_row(run: Run) -> ResultRow | None:
    """The row of the headline: the distilled set on test, at the chosen step rather than the last.

    A row by the field's protocol comes before others.
    """
    rows = [row for row in run.summary.results if row.set not in ("random", "full")]
    rows.sort(key=lambda row: (bool(row.protocol), row.set != "distilled", row.split != "test", row.which != "chosen"))
    return rows[0] if rows else None


def comparable_row(run: Run, row: ResultRow, name: str) -> ResultRow | None:
    """The row of the set `name` with the network, the images and the protocol of `row`; None where there is none."""
    key = (name, row.model, row.split, row.protocol)
    return next((other for other in run.summary.results if _key(other) == key), None)


def _key(row: ResultRow) -> tuple[str, str, str, str | None]:
    return row.set, row.model, row.split, row.protocol


def gain_of(run: Run, row: ResultRow) -> float | None:
    """The accuracy of a row less that of random real images, which have none themselves."""
    random = comparable_row(run, row, "random")
    return None if random is None or row.set == "random" else row.accuracy_mean - random.accuracy_mean


def images_per_class(run: Run) -> int | None:
    """Images per class of the run's sets; None where the records do not say."""
    ipc = run.meta.config.get("ipc") if run.summary.ipc is None else run.summary.ipc
    return ipc if isinstance(ipc, int) else None


def accuracy_of(row: ResultRow) -> str:
    """The accuracy of a row in percent, with its deviation; that of one network says so instead."""
    alone = " (n = 1)" if row.accuracy_std is None and row.n == 1 else ""
    return percent(row.accuracy_mean, row.accuracy_std) + alone


def headline(run: Run) -> str:
    """The result of a run in one sentence; how far it is, where there is none yet."""
    data = run.meta.data
    name, ipc, classes = data.name or "the data", images_per_class(run), len(data.classes)
    best = headline_row(run)
    if best is None:
        validations = run.validations.get("distilled", [])
        step = f"step {max(run.steps):,} is the last logged" if run.steps else "no step is logged"
        progress = [
            f"; validation accuracy was {percent(line.accuracy_mean, line.accuracy_std)} at step {line.step:,}"
            for line in validations[-1:]
        ]
        return f"No result yet for {name}: {step}{''.join(progress)}."
    number, area = f"{ipc * classes:,}" if ipc and classes else "", count_sides(run.meta.config, "canvas") ** 2
    kind = {"distilled": "", "kmeans": "k-means"}.get(best.set, best.set)
    per_class = f" ({ipc:,} per class)" if ipc else ""
    noun, verb = ("image", "trains") if number == "1" else ("images", "train")
    subject = " ".join(word for word in (number, kind, noun) if word)
    model = best.model or "network"
    article = "an" if model[:1].lower() in "aeio" or model == "mlp" else "a"
    where = {"test": "on test", "validation": "on validation (not test)"}.get(best.split, f"on {best.split or NONE}")
    result = f"{verb} {article} {model} to {percent(best.accuracy_mean, best.accuracy_std)} (n = {best.n})"
    parts = [f"{subject}{per_class} of {name} {result} {where}"]
    for name in ("random", "kmeans"):
        real = comparable_row(run, best, name)
        if real is not None and real is not best:
            total = f"{ipc * classes * area:,}" if number and ipc else ""
            words = f"{NAMES[name].removesuffix('s')}{'' if total == '1' else 's'}"
            parts.append(f"{total + ' ' if total else ''}{words} {accuracy_of(real)}")
    if full := comparable_row(run, best, "full"):
        images = split_totals(data)["train"]
        parts.append(f"all {count(images) + ' ' if images else ''}training images {accuracy_of(full)}")
    sentence = "; ".join(parts) + (f" (protocol: {best.protocol})." if best.protocol else ".")
    return sentence[0].upper() + sentence[1:]


def describe_row(row: ResultRow) -> str:
    """The name of a row's set, with its protocol where that is one of its own."""
    return NAMES.get(row.set, row.set or NONE) + (f", {row.protocol}" if row.protocol else "")


def split_totals(data: DataRecord) -> dict[str, int | None]:
    """Images by split; None where the record does not say."""
    counts = {split: data.counts.get(split) for split in ("train", "validation", "test")}
    return {split: sum(numbers) if numbers else None for split, numbers in counts.items()}


def verdicts(run: Run) -> list[str]:
    """Sentences on what the set of the headline is not better than; none where it is, or where nothing compares.

    Two means differ where they are more than two standard errors of their difference apart. One network has no
    deviation, so that only a smaller accuracy says something.

    >>> row = ResultRow(set="distilled", model="mlp", split="test", accuracy_mean=0.5, accuracy_std=0.1, n=4)
    >>> compare_means(row, row.model_copy(update={"accuracy_mean": 0.55}))
    'the difference of −5.0 points is within two standard errors (14.1 points)'
    """
    best = headline_row(run)
    if best is None:
        return []
    sentences = []
    if best.step == 0 and run.steps:
        sentences.append(
            "Validation chose step 0: no later step did better, so that these are the images before distillation."
        )
    random, kmeans = comparable_row(run, best, "random"), comparable_row(run, best, "kmeans")
    if random is not None and (words := compare_means(best, random)):
        sentences.append(f"Not better than random: {_as_many(run, 'random')} reach {accuracy_of(random)}; {words}.")
    if kmeans is not None and kmeans.accuracy_mean > best.accuracy_mean:
        words = compare_means(best, kmeans)
        subject = _as_many(run, "k-means")
        sentences.append(f"{subject[0].upper()}{subject[1:]} reach {accuracy_of(kmeans)}; {words}.")
    return sentences


def _as_many(run: Run, kind: str) -> str:
    """The real images of a kind that a set is compared with, in words."""
    if count_sides(run.meta.config, "canvas") > 1:
        return f"{kind} real images of as many pixels"
    return f"as many {kind} real images"


def compare_means(row: ResultRow, other: ResultRow) -> str:
    """How much the accuracy of a row is below another, in words; empty where it is clearly above, or may be."""
    difference = 100 * (row.accuracy_mean - other.accuracy_mean)
    if row.accuracy_std is None or other.accuracy_std is None:
        return f"one network of each differs by {_signed(difference)} points" if difference <= 0 else ""
    error = 100 * sqrt(row.accuracy_std**2 / row.n + other.accuracy_std**2 / other.n)
    if abs(difference) <= 2 * error:
        return f"the difference of {_signed(difference)} points is within two standard errors ({2 * error:.1f} points)"
    return f"this set is worse by {-difference:.1f} points" if difference < 0 else ""


def _signed(difference: float) -> str:
    return f"{difference:+.1f}".replace("-", "−")


def test_error(row: ResultRow, images: int | None) -> str:
    """How uncertain an accuracy is because of the number of images it is measured on, in words."""
    if not images or row.accuracy_mean is None:
        return ""
    error = 100 * sqrt(row.accuracy_mean * (1 - row.accuracy_mean) / images)
    return f"{error:.1f}"
