"""The card of an exported set, README.md: what is in the files, and code that trains on them without limbeck."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from limbeck.core.record_files import read_record
from limbeck.core.records import ResultRow, ResultsRecord, RunRecord
from limbeck.interop.card_code import STYLES, canvas_factor, training_code
from limbeck.interop.hub import describe_for_hub
from limbeck.interop.portable import LABELS, folder_names
from limbeck.interop.rounding import RoundingLoss, clipped_fraction
from limbeck.synthetic.distilled import DistilledSet
from limbeck.synthetic.recipe import lr_optimiser, name_optimiser

CARD = "README.md"
MAX_CLASSES = 100  # that a card lists
UNKNOWN = "unknown"
ROUNDED = ("imagefolder", "hf")
"""Styles in which images are pictures of 8 bits that somebody trains on."""
BY_SGD = ("mtt", "datm", "ddranking")
"""Styles that are read by code which trains by SGD."""
HEADS = {"hf": describe_for_hub}
"""(set, folder, license) -> what comes before the text of a card."""


class CardFacts(NamedTuple):
    """What a card says beside the set itself.

    command: the command that made the set. results: the rows of its run. loss: what 8 bits cost, where it was measured.
    license: of the original data.
    """

    command: str = ""
    results: Sequence[ResultRow] = ()
    loss: RoundingLoss | None = None
    license: str = UNKNOWN


def read_facts(source: Path) -> CardFacts:
    """Command and results of the run that a path is, or in which it is a file; nothing where it is neither."""
    run = source if source.is_dir() else source.parent
    if not (run / "run.json").exists():
        return CardFacts()
    record = read_record(run / "run.json", RunRecord, "limbeck-run")
    has_results = (run / "results.json").exists()
    rows = read_record(run / "results.json", ResultsRecord, "limbeck-results").results if has_results else []
    return CardFacts(record.command, rows)


def describe_export(distilled: DistilledSet, to: str, most: int = 8) -> list[str]:
    """Sentences on what a user of the files has to know and might not see; most: classes that one of them lists."""
    notes = []
    if to in ROUNDED and (fraction := clipped_fraction(distilled)):
        notes.append(f"{100 * fraction:.1f} % of the pixel values lie outside of 0..1 and are clipped in the pictures")
    if to in ROUNDED and distilled.preprocess.kind == "zca":
        notes.append(
            "its images are whitened (ZCA): pictures are rounded in pixel space, and whitened again for training"
        )
    if to == "imagefolder":
        notes += _describe_folders(distilled, most)
    if (stored := len(distilled.stored_pair[0])) != (count := len(distilled.images)):
        notes.append(
            f"the set stores {stored} mosaics, from which these {count} training images are cut; limbeck counts the "
            "former, and compares with as many real images, and other code that reads the files counts the latter"
        )
    if to in BY_SGD and (optimiser := name_optimiser(lr_optimiser(distilled))) != "SGD":
        notes.append(
            f"its step size was chosen for {optimiser}, and the code that reads these files trains by SGD: choose "
            "another on validation"
        )
    if canvas := canvas_factor(distilled):
        height, width = distilled.images.shape[2:]
        notes.append(
            f"its images are canvases, {height} x {width}: networks are trained on random windows of "
            f"{height // canvas} x {width // canvas}, which continue at the opposite edge; limbeck compares with "
            f"{canvas * canvas} real images for each, which have as many pixels"
        )
    return notes


def _describe_folders(distilled: DistilledSet, most: int) -> list[str]:
    names, notes = folder_names(distilled.classes), []
    filled = sorted(names[label] for label in set(distilled.hard_labels().tolist()))
    if missing := [name for name in names if name not in filled]:
        notes.append(f"classes without an image have no folder: {_join(missing, most)}")
    numbers = [(name, filled.index(name), label) for label, name in enumerate(names) if name in filled]
    if moved := [f"{name} is {number} there and {label} here" for name, number, label in numbers if number != label]:
        notes.append(f"torchvision's ImageFolder numbers classes in the order of their names: {_join(moved, most)}")
    if renamed := [f"{name!r} is {new}" for name, new in zip(distilled.classes, names) if name != new]:
        notes.append(
            "names of classes that are no names of folders, or that limbeck.load_data does not read as classes, were "
            f"changed: {_join(renamed, most)}"
        )
    if distilled.labels.is_floating_point():
        notes.append(f"folders hold the most likely class of each image; its probabilities are in {LABELS}")
    return notes


def _join(words: Sequence[str], most: int) -> str:
    return ", ".join(words[:most]) + (f" and {len(words) - most} more" if len(words) > most else "")


def write_card(distilled: DistilledSet, folder: Path, to: str, facts: CardFacts) -> Path:
    """Write README.md beside the exported files, and return it."""
    from limbeck import __version__  # here, since that package loads this module where types are checked

    provenance = distilled.provenance
    data, method = provenance.get("data", {}), str(provenance.get("method") or "unknown")
    name = str(data.get("name") or "images")
    count, classes = len(distilled.images), len(distilled.classes)
    soft_files = STYLES[to].soft_files if distilled.labels.is_floating_point() else ()
    numbered = [f"{label}: {class_name}" for label, class_name in enumerate(distilled.classes)]
    head = HEADS[to](distilled, folder, facts.license) if to in HEADS else ""
    blocks = [
        f"# {name}: {count} training images for {classes} classes",
        _describe_nature(distilled, name, method),
        "## Files",
        _list(
            [*STYLES[to].files, *soft_files, *(f"Note: {note}" for note in describe_export(distilled, to, MAX_CLASSES))]
        ),
        "## Train on it",
        "Without limbeck:",
        f"```python\n{training_code(distilled, to)}```",
        f"The set was made for augmented training ({distilled.recipe.get('augment', 'none')}), which this code leaves "
        "out: it is worth some points of accuracy. In Python, `limbeck.DSA` is that augmentation.",
        "## Recipe",
        _list(_describe_recipe(distilled, folder / STYLES[to].space)),
        *_describe_results(distilled, facts),
        "## Origin",
        _list(
            [
                f"Data: {name}, fingerprint `{data.get('fingerprint') or 'unknown'}`",
                f"Method: {method}, by limbeck {__version__}",
                *([f"Command: `{facts.command}`"] if facts.command else []),
                f"Licence: that of the original data ({facts.license})",
                f"Classes, in the order of labels: {_join(numbered, MAX_CLASSES)}",
            ]
        ),
    ]
    text = head + "\n\n".join(blocks) + "\n"
    path = folder / CARD
    path.write_text(text, encoding="utf-8", errors="replace")
    return path


def _describe_nature(distilled: DistilledSet, name: str, method: str) -> str:
    if distilled.provenance.get("step") == 0:
        how = "unchanged" if distilled.mosaics is None else "made smaller, to be tiles, and enlarged again"
        return (
            f"These images are those from which the method `{method}` starts: real images of {name}, {how}, unless it "
            "was told to start from noise."
        )
    return (
        f"**These are not real images.** The method `{method}` computed them so that networks that are trained on them "
        f"alone recognise real images of {name}. They are no photographs, no sample of the data, and no evidence of "
        "what it shows; still they were made from it, and can show parts of it."
    )


def _list(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _describe_recipe(distilled: DistilledSet, space: Path) -> list[str]:
    """Lines on input space and training. space: the file of the numbers that map pixels to network input."""
    recipe = distilled.recipe
    network = {name: value for name, value in (recipe.get("model") or {}).items() if value is not None}
    options = {name: recipe[name] for name in ("epochs", "batch_size", "momentum", "weight_decay") if name in recipe}
    step_for = name_optimiser(lr_optimiser(distilled))
    if (by := name_optimiser(recipe.get("optimiser"))) != step_for:
        step_for += f"; the evaluation trains by {by}, with a step size that is chosen on validation"
    parts = [f"Network input: {_describe_space(space)}", f"Step size: {distilled.lr:.6g}, for {step_for}"]
    for title, values in (("Network", network), ("Training", options)):
        if values:
            parts.append(f"{title}: {', '.join(f'{name} {value}' for name, value in values.items())}")
    return [*parts, f"Augmentation: {recipe.get('augment', 'none')}"]


def _describe_space(file: Path) -> str:
    with np.load(file) as arrays:  # which for DD-Ranking are its own
        if "std" not in arrays:
            return "ZCA whitening, (pixels / 255 - mean) @ whiten of flat images (c, h, w)"
        mean, std = (", ".join(map(str, arrays[name])) for name in ("mean", "std"))
        return f"(pixels / 255 - mean) / std by channel, mean {mean}, std {std}"


def _describe_results(distilled: DistilledSet, facts: CardFacts) -> list[str]:
    """The section on accuracies: rows of the run, and what 8 bits cost."""
    which = distilled.provenance.get("which")
    rows = [row for row in facts.results if row.set != "distilled" or row.which == which]
    if not rows and facts.loss is None:
        return []
    table = [
        "| images | network | test accuracy | n |",
        "|---|---|---|---|",
        *(
            f"| {'this set' if row.set == 'distilled' else row.set} | {row.model} | {_percent(row)} | {row.n} |"
            for row in rows
        ),
    ]
    stored, canvas = len(distilled.stored_pair[0]), canvas_factor(distilled)
    budget: list[str] = []
    if canvas:
        budget = [f"Of random and kmeans images there are {canvas * canvas} for every canvas, of as many pixels."]
    elif stored != len(distilled.images):
        budget = [f"Of random and kmeans images, as of mosaics, there are {stored}."]
    loss = [] if facts.loss is None else [f"As pictures: {facts.loss.text}."]
    return ["## Accuracy", *(["\n".join(table), *budget] if rows else []), *loss]


def _percent(row: ResultRow) -> str:
    spread = "" if row.accuracy_std is None else f" ± {100 * row.accuracy_std:.1f}"
    return f"{100 * row.accuracy_mean:.1f}{spread} %"
