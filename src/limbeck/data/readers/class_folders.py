"""Reader of folders of pictures: a folder per class, perhaps below or above a folder per split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import NamedTuple

import numpy as np

from limbeck.core.errors import UserError
from limbeck.data.decoding import decode_splits
from limbeck.data.images import RawData, ReadOptions
from limbeck.data.pictures import Encoded, is_picture
from limbeck.data.readers.reader import Reader
from limbeck.data.splits import NEUTRAL, SPLIT_OF, find_splits, name_parts, sort_class_names, split_of
from limbeck.data.tree import File, Folder

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
    """The folder, or the one inside it that is called the same or by a word like "images" and has the class folders."""
    while len(folder.folders) == 1 and not _holds_loose_pictures(folder):
        ((name, inner),) = folder.folders.items()
        is_plain = name == folder.name or all(part in NEUTRAL or part in SPLIT_OF for part in name_parts(name))
        if not (is_plain and _picture_folders(inner)):
            break
        folder = inner
    return folder


def understand_folders(folder: Folder) -> ClassFolders:
    """The classes of a folder by split. Raises UserError where the folders have no clear meaning."""
    inner = {name: _enter(path) for name, path in folder.folders.items()}
    with_classes = {name: path for name, path in inner.items() if _picture_folders(path)}
    splits = find_splits(with_classes, folder.where)
    if "train" in splits:
        classes = {split: dict(with_classes[name].folders) for split, name in splits.items()}
        return ClassFolders(classes, [*_describe_others(folder, splits.values()), *_describe_loose(folder, splits)])
    if splits and len(splits) == len(with_classes):
        name = next(iter(splits.values()))
        raise UserError(f"{folder.where}: has {name}/ but no train/ with class folders; add it, a folder per class")
    return _classes_at_top(folder, with_classes)


def _classes_at_top(folder: Folder, with_folders: Mapping[str, Folder]) -> ClassFolders:
    """The classes where the folders at the top are no splits. with_folders: those of them that hold folders."""
    names = {name for name, inner in folder.folders.items() if holds_pictures(inner)}
    shared = [tuple(sorted(_picture_folders(inner))) for inner in with_folders.values()]
    if len(with_folders) > 1 and set(with_folders) == names and len(set(shared)) == 1 and len(shared[0]) > 1:
        return _splits_inside(folder, with_folders, shared[0])
    loose = find_splits((name for name, inner in folder.folders.items() if not inner.folders), folder.where)
    splits = {split: name for split, name in loose.items() if split != "train"}
    classes = {name: inner for name, inner in folder.folders.items() if name not in splits.values()}
    notes = [
        f"left out: {name}/, which is named like a split and has images but no class folders"
        for name in splits.values()
    ]
    if len(classes) < 2 and splits:
        raise UserError(
            f"{folder.where}: {' and '.join([*classes, *splits.values()])} hold images and no class folders; {ADVICE}, "
            f"and rename {next(iter(splits.values()))}/ if it is a class"
        )
    if [*classes] == [loose.get("train")]:
        raise UserError(f"{folder.where}: {loose['train']}/ holds images and no class folders; {ADVICE}")
    if "train" in loose:
        notes.append(f"{loose['train']}/ was read as a class, since its images have no class folders")
    for name, inner in with_folders.items():
        notes.append(f"the images of class {name} come from its folders {_list_names(inner.folders)}, too")
    return ClassFolders({"train": classes}, [*notes, *_describe_loose(folder, {})])


def _splits_inside(folder: Folder, tops: Mapping[str, Folder], names: tuple[str, ...]) -> ClassFolders:
    """The classes where every folder at the top holds the same folders, which are called as splits."""
    splits = find_splits(names, folder.where)
    if any(_picture_folders(top.folders[name]) for top in tops.values() for name in splits.values()):
        raise UserError(f"{folder.where}: several data sets lie in it, in {_list_names(tops)}; name one of them")
    if "train" not in splits or len(splits) < len(names):
        raise UserError(
            f"{folder.where}: {_list_names(tops)} hold the same folders, {_list_names(names)}, so nothing says which "
            "are the classes; name the upper ones train, validation and test, or give one folder per class"
        )
    classes = {split: {name: top.folders[inner] for name, top in tops.items()} for split, inner in splits.items()}
    return ClassFolders(classes, _describe_loose(folder, {}))


def _list_names(names: Mapping[str, Folder] | tuple[str, ...]) -> str:
    shown = list(names)[:4]
    return ", ".join(shown) + (f" and {len(names) - len(shown)} more" if len(names) > len(shown) else "")


def _describe_others(folder: Folder, names: object) -> list[str]:
    """Notes on the folders beside those of the splits."""
    notes = []
    for name, inner in folder.folders.items():
        if name not in list(names):  # type: ignore[call-overload]
            count = sum(1 for _ in inner.walk())
            notes.append(f"left out: {name}/ ({count} files), which is not named like a split or has no class folders")
    return notes


def _describe_loose(folder: Folder, splits: Mapping[str, str]) -> list[str]:
    """A note on pictures beside the folders of classes or splits."""
    count = sum(map(is_picture, folder.files.values()))
    beside = "the folders of the splits" if splits else "the class folders"
    return [f"{count} images beside {beside} were left out"] if count else []


def recognises(folder: Folder) -> bool:
    """Whether a folder holds two folders with pictures, or one named like a split, and none that is a data set."""
    inner = _picture_folders(folder)
    if any(split_of(name) for name in inner):
        return True
    return len(inner) > 1 and not any(map(_is_split, inner.values()))


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
        for name in sorted(set(names) ^ set(classes)):
            where, where_not = (split, "train") if name in classes else ("train", split)
            raise UserError(
                f"{folder.where}: class folder {name} is in {where} and not in {where_not}; give both the same classes"
            )
        files[split] = [_pictures(classes[name], others) for name in names]
    splits = {
        split: (sum(map(len, lists)), (Encoded(file, file.where) for files in lists for file in files))
        for split, lists in files.items()
    }
    images, remarks = decode_splits(splits, options, folder.where)
    labels = {split: np.repeat(np.arange(len(names)), [len(part) for part in files[split]]) for split in images}
    if others:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in sorted(others.items()))
        notes.append(f"{others.total()} files that are not images were left out ({kinds})")
    return RawData(folder.name, images, labels, names, (*notes, *remarks))


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
    content = "images but no class folders" if _holds_loose_pictures(folder) else "no class folders of images"
    content = content if folder.files or folder.folders else "an empty folder"
    raise UserError(f"{folder.where}: {content}; {ADVICE}")


READER = Reader("a folder with one folder of images per class", recognises, read_class_folders, decodes=True)
