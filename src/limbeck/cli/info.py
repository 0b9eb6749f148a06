"""Describes files and folders: data sets, stores, distilled sets, runs, and files of other code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from limbeck.cli.data_info import describe_data, require_picture
from limbeck.core.errors import UserError
from limbeck.core.events import Listener
from limbeck.core.folders import home_folder, size_of
from limbeck.core.record_files import parse_record, read_record
from limbeck.core.records import ExpertHeader, ResultsRecord, RunRecord
from limbeck.core.shelf import find_shelf_file
from limbeck.core.tensors import read_header
from limbeck.core.text import counted
from limbeck.data import load_data
from limbeck.data.sources import DATA_NAMES, READERS, open_tree
from limbeck.data.tree import Folder
from limbeck.experts.store import Store
from limbeck.interop import describe_pt
from limbeck.synthetic.distilled import DistilledSet, load

PARTS = (".json", ".jsonl", ".html")
"""Endings of files of a run or a store that say what their folder says."""


def describe(
    source: str,
    listen: Listener | None = None,
    *,
    near: bool | None = None,
    picture: Path | None = None,
    **reading: Any,
) -> dict[str, Any]:
    """Facts of a data set, a store of experts, a distilled set, a run or a .pt file of the field, JSON-able.

    "kind" says which of these it is. near, picture: of a data set, see `describe_data`. reading: keywords of
    `load_data`. Raises UserError where it is none of these, damaged, or no data set to draw.
    """
    if picture is not None:
        require_picture(picture)
    path = find_shelf_file(source) or Path(source)
    facts = None if source in DATA_NAMES else _describe_file(path, bool(reading.get("follow_links")))
    if facts is None:
        data = load_data(source, listen=listen, **reading)
        return {"kind": "data set", **describe_data(data, near=near, picture=picture, listen=listen)}
    if picture is not None:
        raise UserError(f"{source} is a {facts['kind']}, and --picture draws data sets; leave it out.")
    return facts


def _describe_file(path: Path, follow_links: bool) -> dict[str, Any] | None:
    """Facts of anything but a data set; None for what may be one."""
    if not path.exists():
        return None  # which reading says
    if path.suffix in PARTS and any((path.parent / name).exists() for name in ("run.json", "store.json")):
        path = path.parent
    if (path / "store.json").exists():
        return _store(path)
    if (path / "run.json").exists():
        return _run(path)
    if path.is_dir():
        return _folder(path, follow_links)
    if path.suffix == ".safetensors":
        return _tensors(path)
    if path.suffix == ".pt":
        return describe_pt(path)
    return None


def _folder(path: Path, follow_links: bool) -> dict[str, Any] | None:
    """Facts of a folder whose parts can be described: limbeck's cache, runs, or files of other code.

    None for a data set, whatever lies beside its images, since reading leaves that out.
    """
    if home_folder().exists() and path.resolve() == home_folder().resolve():
        return {"kind": "limbeck's cache", "bytes": size_of(path), "next": "limbeck cache"}
    runs = sorted(run.parent for run in path.glob("*/run.json"))
    files = sorted(path.glob("*.pt"))
    root = _open_data(path, follow_links) if runs or files else None
    if root is not None and _is_data(root):
        return None
    if runs:
        words = {run: "finished" if (run / "results.json").exists() else "not finished" for run in runs}
        return {"kind": "folder of runs", "runs": {run.name: text for run, text in words.items()}}
    if files:
        try:
            described = {file.name: describe_pt(file) for file in files}
        except UserError:  # as weights of a network beside the folder of the images
            if root is not None and any(_is_data(inner) for _, inner in root.all_folders()):
                return None
            raise
        following = {facts["next"] for facts in described.values() if "next" in facts}
        kinds = {name: facts["kind"] for name, facts in described.items()}
        return {"kind": "folder of .pt files", **kinds, **({"next": following.pop()} if len(following) == 1 else {})}
    return None


def _open_data(path: Path, follow_links: bool) -> Folder | None:
    """The tree of a folder as `load_data` sees it; None where it cannot be read, or holds runs of limbeck alone."""
    try:
        return open_tree(path, follow_links).root
    except (UserError, OSError):
        return None


def _is_data(folder: Folder) -> bool:
    return any(reader.recognises(folder) for reader in READERS)


def _store(path: Path) -> dict[str, Any]:
    store = Store.open(path)
    indices = store.indices()
    files = [store.file(index) for index in indices]
    experts = [parse_record(file, ExpertHeader, read_header(file)) for file in files]
    return {
        "kind": "store of experts",
        "store": str(path),
        "experts": len(indices),
        "data": store.header.data.name,
        "fingerprint": store.header.data.fingerprint,
        "model": store.header.model,
        "preprocess": store.header.preprocess.get("kind"),
        "expert": store.header.expert,
        "seed": store.header.seed,
        "validation_accuracy": [round(expert.validation[-1], 4) for expert in experts],
        "test_accuracy": [round(expert.test, 4) for expert in experts],
        "bytes": store.bytes_of(indices),
    }


def _run(path: Path) -> dict[str, Any]:
    record = read_record(path / "run.json", RunRecord, "limbeck-run")
    finished = (path / "results.json").exists()
    rows = read_record(path / "results.json", ResultsRecord, "limbeck-results").results if finished else []
    return {
        "kind": "run",
        "run": str(path),
        "finished": finished,
        "command": record.command,
        "method": record.config.get("method"),
        "data": record.data.name,
        "ipc": record.config.get("ipc"),
        "results": [row.to_json() for row in rows],
        "bytes": size_of(path),
    }


def _stored(distilled: DistilledSet) -> dict[str, Any]:
    """What the images are cut from, where they are."""
    if distilled.mosaics is None:
        return {}
    tiles = distilled.mosaics.partition.factor
    return {"cut from": f"{counted(len(distilled.stored_pair[0]), 'stored image')} of {tiles} x {tiles} tiles"}


def _tensors(path: Path) -> dict[str, Any]:
    header = read_header(path)
    if header.get("format") != "limbeck-set":
        names = ("index", "store", "validation", "test", "waypoint_epochs", "step")
        facts = {name: header[name] for name in names if name in header}
        return {"kind": str(header.get("format")).replace("limbeck-", ""), **facts, "bytes": size_of(path)}
    distilled = load(path)
    imported = distilled.provenance.get("imported")
    return {
        "kind": "distilled set",
        "images": list(distilled.images.shape),
        **_stored(distilled),
        "labels": "soft" if distilled.labels.dtype.is_floating_point else "hard",
        "classes": list(distilled.classes),
        "step_size": distilled.lr,
        "preprocess": distilled.preprocess.kind,
        "recipe": distilled.recipe,
        "method": distilled.provenance.get("method"),
        "step": distilled.provenance.get("step"),
        "data": distilled.provenance.get("data"),
        **({"notes": imported.get("notes")} if isinstance(imported, dict) else {}),
        "bytes": size_of(path),
    }
