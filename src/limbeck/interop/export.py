"""Export of stores and distilled sets: as the files that other code writes, or, of sets, as portable ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from limbeck.core.disk import make_folder
from limbeck.core.errors import UserError
from limbeck.core.files import require_new_folder, write_atomically, write_folder
from limbeck.core.text import quote
from limbeck.experts.convexified import Convexified
from limbeck.experts.store import Store
from limbeck.interop.card import CardFacts, write_card
from limbeck.interop.ddranking import format_config, map_to_input_space
from limbeck.interop.hub import export_hf
from limbeck.interop.portable import export_imagefolder, export_npz, pictures_of, save_preprocess
from limbeck.networks.flat import Layout
from limbeck.synthetic.distilled import DistilledSet
from limbeck.synthetic.grids import save_png

EXPERTS_PER_FILE = 10
LOGIT_FLOOR = 1e-9  # the smallest probability whose logarithm is written


def _save(value: Any, path: Path) -> Path:
    write_atomically(path, lambda temporary: torch.save(value, temporary))
    return path


def _copy(tensor: Tensor) -> Tensor:
    """A float32 copy with its own storage, since torch.save writes the whole storage of a view."""
    return tensor.detach().to("cpu", torch.float32, copy=True).contiguous()


def _checkpoint(theta: Tensor, layout: Layout) -> list[Tensor]:
    return [_copy(part) for part in layout.split(theta)]


def export_experts(store: Store, folder: str | Path, to: str = "mtt") -> list[Path]:
    """Write the experts of a store as .pt files of ten experts each, and return the files.

    folder: a new folder, or an empty one.
    to: mtt writes recorded trajectories, `replay_buffer_N.pt`; mct writes convexified ones, as waypoints and steps.
    Raises UserError for a folder that holds files, an unknown style, an empty store, and experts without the trajectory
    of that style.
    """
    if to not in EXPERT_STYLES:
        raise UserError(
            f"experts are exported as {' or '.join(EXPERT_STYLES)}, not as {quote(to)}; name one with --to."
        )
    indices = store.require_experts()

    def write(place: Path) -> list[Path]:
        files = []
        for number, first in enumerate(range(0, len(indices), EXPERTS_PER_FILE)):
            files += EXPERT_STYLES[to](store, indices[first : first + EXPERTS_PER_FILE], place, number)
        return files

    return _write(Path(folder), write)


def _write(folder: Path, write: Callable[[Path], list[Path]]) -> list[Path]:
    """Call `write` with a temporary folder that becomes `folder`, and return the files by their names there."""
    require_new_folder(folder, "an empty folder")
    return write_folder(folder, lambda place: [folder / file.relative_to(place) for file in write(place)])


def _export_recorded(store: Store, indices: list[int], folder: Path, number: int) -> list[Path]:
    experts = []
    for index in indices:
        recorded = store.read(index).recorded
        if recorded is None:
            raise UserError(f"{store.file(index)} holds no recorded trajectory; '--to mct' exports convexified ones.")
        experts.append([_checkpoint(theta, store.layout) for theta in map(recorded.at, range(recorded.end + 1))])
    return [_save(experts, folder / f"replay_buffer_{number}.pt")]


def _export_convex(store: Store, indices: list[int], folder: Path, number: int) -> list[Path]:
    waypoints, steps, counts = [], [], set()
    for index in indices:
        convex = store.read(index).convex
        if convex is None:
            raise UserError(
                f"{store.file(index)} holds no convexified trajectory; 'limbeck convexify' the store first."
            )
        counts.add(len(convex.epochs))
        waypoints.append([_checkpoint(theta, store.layout) for theta in convex.waypoints])
        segments = _segments(convex)
        steps.append(segments[0] if len(segments) == 1 else segments)
    if len(counts) > 1:
        raise UserError(
            f"the experts of {store.path} have {sorted(counts)} waypoints, and a file has one number of them; "
            "'limbeck convexify' the recorded experts anew."
        )
    (count,) = counts
    name = str(number) if count == 2 else f"ip{count}_{number}"
    return [
        _save(waypoints, folder / f"waypoint_buffer_{name}.pt"),
        _save(steps, folder / f"step_buffer_{name}.pt"),
    ]


def _segments(convex: Convexified) -> list[list[list[Tensor]]]:
    """Path fractions by segment and row, from 0 on, every fraction a scalar tensor."""
    segments = []
    for first, last in pairwise(convex.epochs):
        rows = [torch.zeros_like(convex.beta[0]), *convex.beta[first:last]]
        segments.append([[_copy(value) for value in row] for row in rows])
    return segments


def export_set(
    distilled: DistilledSet, folder: str | Path, to: str = "mtt", facts: CardFacts | None = None
) -> list[Path]:
    """Write a distilled set as files of other code or as portable ones, with a card, README.md; return the files.

    folder: a new folder, or an empty one; nobody sees half of it.
    to: imagefolder, npz and hf (parquet) need no limbeck. mtt writes images_best.pt, labels_best.pt and lr_best.pt,
        with hard labels as int64 and soft ones as probabilities; datm writes logits; ddranking writes DD-Ranking's
        folder, with hard labels as int64 and soft ones as logits. MTT's own code has no file of the step size, and
        ignores it.
    facts: what the card says beside the set, see `limbeck.interop.card.read_facts`.
    Raises UserError for a folder that holds files, an unknown style, and from ddranking for classes of different size
    where labels are hard.
    """
    if to not in SET_STYLES:
        raise UserError(f"sets are exported as {', '.join(SET_STYLES)}, not as {quote(to)}; name one with --to.")

    def write(place: Path) -> list[Path]:
        return [*SET_STYLES[to](distilled, place), write_card(distilled, place, to, facts or CardFacts())]

    return _write(Path(folder), write)


def _logits(distilled: DistilledSet) -> Tensor:
    labels = distilled.labels
    if not labels.dtype.is_floating_point:
        labels = torch.nn.functional.one_hot(labels, len(distilled.classes)).float()
    return labels.clamp_min(LOGIT_FLOOR).log()


def _export_mtt(distilled: DistilledSet, folder: Path) -> list[Path]:
    soft = distilled.labels.dtype.is_floating_point
    labels = _copy(distilled.labels) if soft else distilled.labels.cpu().clone()
    return _save_tensors(distilled, labels, folder, "_best")


def _export_datm(distilled: DistilledSet, folder: Path) -> list[Path]:
    return _save_tensors(distilled, _copy(_logits(distilled)), folder, "_best")


def _save_tensors(distilled: DistilledSet, labels: Tensor, folder: Path, suffix: str) -> list[Path]:
    return [
        _save(_copy(distilled.images), folder / f"images{suffix}.pt"),
        _save(labels, folder / f"labels{suffix}.pt"),
        _save(torch.tensor(distilled.lr, dtype=torch.float32), folder / f"lr{suffix}.pt"),
        save_preprocess(distilled, folder),
    ]


def _export_ddranking(distilled: DistilledSet, folder: Path) -> list[Path]:
    """Write tensors class by class, pictures in class folders, and a configuration whose paths the user fills in."""
    distilled = map_to_input_space(distilled)
    order = distilled.hard_labels().argsort(stable=True)
    soft = distilled.labels.dtype.is_floating_point
    labels = _copy(_logits(distilled))[order] if soft else distilled.labels.cpu()[order]
    counts = distilled.hard_labels().bincount(minlength=len(distilled.classes)).tolist()
    if len(set(counts)) > 1 and not soft:
        raise UserError(
            f"DD-Ranking wants the same number of images for every class, and this set has {quote(counts)}."
        )
    targets = None if distilled.targets is None else distilled.targets[order]
    ordered = replace(distilled, images=distilled.images[order], labels=labels, targets=targets)
    files = _save_tensors(ordered, labels, folder, "")
    numbers = [0] * len(distilled.classes)
    for picture, label in zip(pictures_of(ordered), distilled.hard_labels()[order].tolist()):
        path = folder / "images" / f"{label:05d}" / f"{numbers[label]:05d}.png"
        make_folder(path.parent)
        save_png(picture, path)
        numbers[label] += 1
        files.append(path)
    text = format_config(distilled)
    write_atomically(folder / "ddranking.yaml", lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return [*files, folder / "ddranking.yaml"]


EXPERT_STYLES: dict[str, Callable[[Store, list[int], Path, int], list[Path]]] = {
    "mtt": _export_recorded,
    "mct": _export_convex,
}
SET_STYLES: dict[str, Callable[[DistilledSet, Path], list[Path]]] = {
    "imagefolder": export_imagefolder,
    "npz": export_npz,
    "hf": export_hf,
    "mtt": _export_mtt,
    "datm": _export_datm,
    "ddranking": _export_ddranking,
}
