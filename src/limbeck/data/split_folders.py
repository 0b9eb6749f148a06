"""One tree of class folders whose validation or test images lie in a folder of their own."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from limbeck.core.errors import UserError
from limbeck.data.readers.class_folders import understand_folders
from limbeck.data.readers.table_files import list_names
from limbeck.data.splits import split_of
from limbeck.data.tree import Folder


def join_splits(main: Folder, others: Mapping[str, Folder]) -> Folder:
    """The class folders of `main` with those of `others`, by split, as a folder of splits.

    Raises UserError where `main` holds one of these splits itself, and where another folder holds several.

    >>> pets, more = (Folder(name, name, {"cat": Folder("cat", f"{name}/cat")}) for name in ("pets", "more"))
    >>> joined = join_splits(pets, {"test": more})
    >>> joined.name, [path for path, _ in joined.all_folders()]
    ('pets', ['train', 'train/cat', 'test', 'test/cat'])
    """
    by_split = dict(understand_folders(main).classes)
    for split, other in others.items():
        if split in by_split:
            raise UserError(f"{main.where}: holds a {split} split of its own; leave out --{split}, or name its train")
        classes = understand_folders(other).classes
        if [*classes] != ["train"]:
            raise UserError(f"--{split} {other.where}: holds several splits ({list_names(classes)}); name one of them")
        by_split[split] = classes["train"]
    places = {split: others[split].where if split in others else main.where for split in by_split}
    folders = {split: Folder(split, places[split], classes) for split, classes in by_split.items()}
    return Folder(main.name, main.where, folders)


def remove_folders(folder: Folder, paths: Mapping[str, Path]) -> Folder:
    """The folder without those on disk that are read as splits of their own, so that no image is in two splits.

    paths: by split. Raises UserError for a path that is this folder, or around it.
    """
    place, inside = Path(folder.where).resolve(), {path.resolve() for path in paths.values()}
    for split, path in paths.items():
        if place.is_relative_to(path.resolve()):
            raise UserError(f"--{split} {path}: holds the images to train on, too; name a folder of other images")
    return _remove(folder, inside)


def _remove(folder: Folder, places: set[Path]) -> Folder:
    inner = {name: part for name, part in folder.folders.items() if Path(part.where).resolve() not in places}
    return Folder(
        folder.name, folder.where, {name: _remove(part, places) for name, part in inner.items()}, folder.files
    )


def describe_neighbours(path: Path, beside: Mapping[str, Path]) -> list[str]:
    """A note on the folders of other splits beside photos/train, which were left out, since it was named alone."""
    place, own = path.resolve(), split_of(path.resolve().name)
    if not own or not path.is_dir() or not os.access(place.parent, os.R_OK):
        return []
    read = {folder.resolve() for folder in beside.values()}
    others = [
        folder.name
        for folder in sorted(place.parent.iterdir())
        if folder.is_dir() and split_of(folder.name) not in (None, own) and folder.resolve() not in read
    ]
    return (
        [f"splits beside it were left out ({list_names(others)}): name {place.parent} for all of them"]
        if others
        else []
    )
