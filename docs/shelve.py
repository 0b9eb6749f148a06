"""Put the chosen set of a run on the shelf of sets that come with limbeck.

    python docs/shelve.py RUN NAME --source cifar10 --licence "..." --commit HASH [--networks 5]

The images are rounded to 16 bits. The rounded set and the set as it was train the same fresh networks; the rows of the rounded one, and
of random and k-means images, go into src/limbeck/sets/shelf.json with the commands that made the run.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import limbeck
from limbeck.core.files import write_json
from limbeck.core.records import ResultRow
from limbeck.core.shelf import FOLDER, FORMAT, Shelf, ShelfEntry


def without_place(distilled: limbeck.DistilledSet, source: str) -> limbeck.DistilledSet:
    """The set, naming its data by `source` and not by where it lay on one machine."""
    data = {**distilled.provenance["data"], "source": source}
    return replace(distilled, provenance={**distilled.provenance, "data": data})


def shelve(
    run: Path, name: str, source: str, licence: str, commit: str, networks: int
) -> ShelfEntry:
    """Write the file of the set, and return its entry."""
    exact = limbeck.load(run)
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    data, network = exact.provenance["data"]["source"], exact.recipe["model"]["name"]
    path = FOLDER / f"{name}.safetensors"
    without_place(exact, source).save(path, half=True)
    rows: dict[str, Any] = {}
    for row in limbeck.evaluate(
        path, data=data, num_networks=networks, networks=[network]
    ):
        rows.setdefault(row.set, row)
    (before,) = limbeck.evaluate(exact, data=data, num_networks=networks)
    images, labels = exact.stored_pair
    return ShelfEntry(
        data=exact.provenance["data"]["name"],
        source=source,
        ipc=record["config"]["ipc"],
        tiles=len(exact.images) // len(images),
        method=record["config"]["method"],
        network=f"{network}, depth {exact.recipe['model']['depth']}, width {exact.recipe['model']['width']}",
        bytes=images.numel() * 2 + labels.numel() * labels.element_size(),
        rows=[
            ResultRow(**rows[name].result.to_json())
            for name in ("distilled", "random", "kmeans")
        ],
        difference=fmean(rows["distilled"].accuracies) - fmean(before.accuracies),
        commands=[record["command"]],
        commit=commit,
        licence=licence,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("name")
    parser.add_argument("--source", required=True)
    parser.add_argument("--licence", required=True)
    parser.add_argument(
        "--commit", required=True, help="of the limbeck that made the run"
    )
    parser.add_argument(
        "--command",
        action="append",
        help="what made the run, where its record does not say it",
    )
    parser.add_argument("--networks", type=int, default=5)
    options = parser.parse_args()
    entry = shelve(
        options.run,
        options.name,
        options.source,
        options.licence,
        options.commit,
        options.networks,
    )
    if options.command:
        entry = entry.model_copy(update={"commands": options.command})
    path = FOLDER / "shelf.json"
    sets = json.loads(path.read_text(encoding="utf-8"))["sets"] if path.exists() else {}
    sets[options.name] = entry.to_json()
    write_json(
        path, Shelf(format=FORMAT, version=1, sets=dict(sorted(sets.items()))).to_json()
    )
    print(
        f"{options.name}: "
        + ", ".join(f"{row.set} {100 * row.accuracy_mean:.1f}" for row in entry.rows)
    )


if __name__ == "__main__":
    main()
