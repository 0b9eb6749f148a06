"""Reader of folders of pictures: a folder per class, perhaps below or above a folder per split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

import numpy as np

from limbeck.core.errors import UserError
from limbeck.core.text import shorten
from limbeck.data.archives import archive_suffix
from limbeck.data.decoding import decode_splits
from limbeck.data.images import RawData, ReadOptions
from limbeck.data.pictures import Encoded, is_picture
from limbeck.data.readers.reader import Reader
from limbeck.data.readers.table_files import list_names
from limbeck.data.splits import NEUTRAL, SPLIT_OF, find_splits, is_general, name_parts, sort_class_names, split_of
from limbeck.data.tree import File, Folder, relative_paths

MAX_NOTES = 3  # of one kind
ADVICE = "give one folder per class with that class's images in it"


class ClassFolders(NamedTuple):
    """What the folders of a source mean.

    classes: the folders of each class by its name, by split.
    notes:   on folders that were left out, or understood in one of several ways.
    """

    classes: dict[str, dict[str, Folder]]
    notes: list[str]


def holds_pictures(folder: Folder) -> bool:
    """Whether a folder holds pictures at any depth."""
    return any(is_picture(file) for _, file in folder.walk())


def _picture_folders(folder: Folder) -> dict[str, Folder]:
    return {name: inner for name, inner in folder.folders.items() if holds_pictures(inner)}


def _holds_loose_pictures(folder: Folder) -> bool:
    return any(map(is_picture, folder.files.values()))


def _enter(folder: Folder) -> Folder:
    """The folder, or the one inside it that is called the same or by a word like "images" and has all its pictures."""
    while len(folder.folders) == 1 and not _holds_loose_pictures(folder):
        ((name, inner),) = folder.folders.items()
        is_plain = name == folder.name or all(part in NEUTRAL or part in SPLIT_OF for part in name_parts(name))
        if not (is_plain and holds_pictures(inner)):
            break
        folder = inner
    return folder


def understand_folders(folder: Folder) -> ClassFolders:
    """The classes of a folder by split. Raises UserError where the folders have no clear meaning."""
    inner = {name: _enter(path) for name, path in folder.folders.items()}
    with_classes = {name: path for name, path in inner.items() if _picture_folders(path)}
    splits = find_splits(with_classes, folder.where)
    if "train" in splits:
        notes = _describe_others(folder, list(splits.values()))
        notes += _describe_loose(folder, "the folders of the splits")
        for name in splits.values():
            notes += _describe_loose(with_classes[name], f"the class folders of {name}")
        classes = {split: _choose_classes(with_classes[name], notes) for split, name in splits.items()}
        return ClassFolders(classes, notes)
    if splits and len(splits) == len(with_classes):
        name = next(iter(splits.values()))
        raise UserError(f"{folder.where}: has {name}/ but no train/ with class folders; add it, a folder per class")
    return _classes_at_top(folder, inner)


def _choose_classes(folder: Folder, notes: list[str]) -> dict[str, Folder]:
    """The folders in a folder as classes, without those that hold the folders beside them once more, as some archives.

    Notes on the latter are appended. Raises UserError for a folder whose name says that it holds images of any kind.
    """
    classes = dict(folder.folders)
    for name, inner in folder.folders.items():
        parts = _picture_folders(inner)
        if len(parts) > 1 and classes.keys() - {name} >= parts.keys():
            count = sum(1 for _ in classes.pop(name).walk())
            notes.append(f"left out: {name}/ ({count} files), whose folders are called as those beside it")
    for name, inner in classes.items():
        if is_general(name) and holds_pictures(inner):
            raise UserError(f"{inner.where}: a folder of images, by its name, and no class; {ADVICE}, or rename it")
    return classes


def _classes_at_top(folder: Folder, inner: Mapping[str, Folder]) -> ClassFolders:
    """The classes where the folders at the top are no splits. inner: these by `_enter`."""
    notes: list[str] = []
    tops = {name: path for name, path in _choose_classes(folder, notes).items() if holds_pictures(path)}
    with_folders = {name: inner[name] for name in tops if _picture_folders(inner[name])}
    count = Counter(part for path in with_folders.values() for part in _picture_folders(path))
    shared = [part for part, number in count.items() if number > 1]
    tops |= with_folders
    if any(split_of(part) for name, top in tops.items() if not split_of(name) for part in _picture_folders(top)):
        return _splits_inside(folder, tops)
    if len(shared) > 1:
        return _images_inside(folder, tops, shared)
    loose = find_splits((name for name, path in inner.items() if not path.folders), folder.where)
    splits = {split: name for split, name in loose.items() if split != "train"}
    classes = {name: path for name, path in _choose_classes(folder, []).items() if name not in splits.values()}
    notes += [
        f"left out: {name}/, which is named like a split and has images but no class folders"
        for name in splits.values()
    ]
    if len(classes) < 2 and splits:
        names = shorten(" and ".join([*classes, *splits.values()]))
        raise UserError(
            f"{folder.where}: {names} hold images and no class folders; {ADVICE}, "
            f"and rename {next(iter(splits.values()))}/ if it is a class"
        )
    if [*classes] == [loose.get("train")]:
        raise UserError(f"{folder.where}: {loose['train']}/ holds images and no class folders; {ADVICE}")
    if "train" in loose:
        notes.append(f"{loose['train']}/ was read as a class, since its images have no class folders")
    nested = [
        f"the images of class {name} come from its folders {list_names(path.folders)}, too"
        for name, path in with_folders.items()
        if name in classes
    ]
    number = f"the images of {len(nested)} classes come from folders inside theirs, as of {list_names(with_folders)}"
    notes += nested if len(nested) <= MAX_NOTES else [number]
    return ClassFolders({"train": classes}, [*notes, *_describe_loose(folder)])


def _splits_inside(folder: Folder, tops: Mapping[str, Folder]) -> ClassFolders:
    """The classes where folders at the top hold folders of splits, which have to be the same ones everywhere."""
    parts = {name: _picture_folders(top) for name, top in tops.items()}
    by_class = {name: find_splits(inner, tops[name].where) for name, inner in parts.items()}
    if any(_picture_folders(parts[name][part]) for name, splits in by_class.items() for part in splits.values()):
        raise UserError(f"{folder.where}: several data sets lie in it, in {list_names(tops)}; name one of them")
    first, *others = tops
    odd = next((name for name in others if by_class[name].keys() != by_class[first].keys()), None)
    if odd or "train" not in by_class[first] or any(len(by_class[name]) < len(parts[name]) for name in tops):
        contents = " and ".join(
            f"{list_names([name])} {list_names(parts[name], 3) or 'none'}" for name in (first, odd or others[0])
        )
        raise UserError(
            f"{folder.where}: class folders hold folders that are called as splits, but not alike: {contents}; give "
            "all the same (train, validation, test), or none"
        )
    classes = {split: {name: parts[name][by_class[name][split]] for name in tops} for split in by_class[first]}
    notes = _describe_loose(folder)
    if loose := sum(len(top.files) for top in tops.values()):
        notes.append(f"{loose} files beside the folders of splits in the classes were left out")
    return ClassFolders(classes, notes)


def _images_inside(folder: Folder, tops: Mapping[str, Folder], shared: Sequence[str]) -> ClassFolders:
    """The classes where folders at the top hold folders of the same names, of which one says that it holds the images.

    Raises UserError where none does, or several do, since the lower folders may then be the classes.
    """
    images = [name for name in shared if is_general(name)]
    if len(images) != 1 or not all(images[0] in _picture_folders(top) for top in tops.values()):
        raise UserError(
            f"{folder.where}: {list_names(tops, 2)} hold the same folders, {list_names(shared, 2)}, so nothing says "
            "which are the classes; name one of the upper ones, or call them train, validation and test"
        )
    classes = {name: top.folders[images[0]] for name, top in tops.items()}
    inside = dict.fromkeys(name for top in tops.values() for name in (*top.folders, *top.files))
    others = [name for name in inside if name != images[0]]
    note = f"images are those of the folders {images[0]}; beside these {list_names(others)} were left out"
    return ClassFolders({"train": classes}, [note, *_describe_loose(folder)])


def _describe_others(folder: Folder, splits: Collection[str]) -> list[str]:
    """A note on the folders beside those of the splits."""
    counts = {f"{name}/": sum(1 for _ in inner.walk()) for name, inner in folder.folders.items() if name not in splits}
    reason = "is not named like a split or has" if len(counts) == 1 else "are not named like splits or have"
    note = f"left out: {list_names(counts)} ({sum(counts.values())} files), which {reason} no class folders"
    return [note] if counts else []


def _describe_loose(folder: Folder, beside: str = "the class folders") -> list[str]:
    """A note on the files beside the folders of classes or splits."""
    pictures = sum(map(is_picture, folder.files.values()))
    others = [name for name, file in folder.files.items() if not is_picture(file)]
    notes = [f"{pictures} images beside {beside} were left out"] if pictures else []
    return notes + ([f"files beside {beside} were left out: {list_names(others)}"] if others else [])


def recognises(folder: Folder) -> bool:
    """Whether a folder holds two folders with pictures that may be classes, or one named like a split.

    A folder that holds a data set, at any depth, or is called as images in general, is no class.
    """
    inner = _picture_folders(folder)
    if any(split_of(name) for name in inner):
        return True
    if any(map(is_general, inner)):
        return False
    return len(inner) > 1 and not any(
        _is_split(part) for top in inner.values() for part in (top, *(lower for _, lower in top.all_folders()))
    )


def _is_split(folder: Folder) -> bool:
    """Whether a folder holds a folder of train, by its name, which has class folders."""
    return any(split_of(name) == "train" and _picture_folders(inner) for name, inner in folder.folders.items())


def read_class_folders(folder: Folder, options: ReadOptions) -> RawData:
    """Read the pictures of all class folders. Raises UserError for unclear folders and for bad files."""
    by_split, notes = understand_folders(folder)
    if not by_split["train"]:
        _refuse(folder)
    names = sort_class_names(by_split["train"])
    files: dict[str, list[list[File]]] = {}
    others: Counter[str] = Counter()
    for split, classes in by_split.items():
        for name in sorted(set(classes) - set(names)):
            raise UserError(f"{folder.where}: class folder {name} is in {split} and not in train; add it there")
        if missing := [name for name in names if name not in classes]:
            notes.append(f"{split} has no folder of {list_names(missing)}")
        files[split] = [_pictures(classes[name], others) if name in classes else [] for name in names]
    splits = {
        split: (sum(map(len, lists)), (Encoded(file, file.where) for files in lists for file in files))
        for split, lists in files.items()
    }
    images, remarks = decode_splits(splits, options, folder.where)
    labels = {split: np.repeat(np.arange(len(names)), [len(part) for part in files[split]]) for split in images}
    if others:
        kinds = list_names([f"{count} {suffix}" for suffix, count in sorted(others.items())], 8)
        notes.append(f"{others.total()} files other than images were left out ({kinds})")
    paths = {split: relative_paths(folder, (file for part in files[split] for file in part)) for split in images}
    return RawData(folder.name, images, labels, names, (*notes, *remarks), paths)


def _pictures(folder: Folder, others: Counter[str]) -> list[File]:
    """The pictures of a class, in order; the suffixes of other files are counted in `others`."""
    pictures = []
    for path, file in folder.walk():
        if is_picture(file):
            pictures.append(file)
        else:
            others[PurePosixPath(path).suffix.lower() or "without a suffix"] += 1
    if not pictures:
        raise UserError(f"{folder.where}: a class folder without images; add some or remove it")
    return sorted(pictures, key=lambda file: file.where)


def _refuse(folder: Folder) -> None:
    if _holds_loose_pictures(folder):
        raise UserError(
            f"{folder.where}: images but no class folders; name the folder above if this is one class, or a table of "
            f"their labels (.csv); else {ADVICE}"
        )
    content = "no class folders of images" if folder.files or folder.folders else "an empty folder"
    archives = [path for path, _ in folder.walk() if archive_suffix(PurePosixPath(path))]
    if archives and not holds_pictures(folder):
        raise UserError(f"{folder.where}: holds archives, {list_names(archives, 2)}; unpack them, or name one")
    raise UserError(f"{folder.where}: {content}; {ADVICE}")


READER = Reader("a folder with one folder of images per class", recognises, read_class_folders, decodes=True)
