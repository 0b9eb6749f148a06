"""Which split a file of rows (.parquet, .arrow, .csv) belongs to, by its name or by that of its folder."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from limbeck.data.splits import find_splits, split_of
from limbeck.data.tree import File, Folder

SHARD = re.compile(r"-\d+-of-(\d+).*")  # train-00000-of-00002, perhaps with a digest behind it
NUMBER = re.compile(r"[-_. ](?:part|shard|chunk)?[-_. ]?\d+$")  # train-0, train_part1
MAX_NAMES = 4  # in one note

Select = Callable[[Folder], dict[str, File]]
"""The files of rows that lie directly in a folder, by name, in order."""


class TableFile(NamedTuple):
    """A file of rows.

    path:   below the folder of the data set, for messages.
    folder: in which it lies; its cells name other files from there.
    """

    path: str
    file: File
    folder: Folder


class TableFiles(NamedTuple):
    """The files of rows of a data set by split, and notes on those that were left out."""

    by_split: dict[str, list[TableFile]]
    notes: list[str]


def list_names(names: Iterable[str], limit: int = MAX_NAMES) -> str:
    """The first few names, cut short, and the number of the others.

    >>> list_names("abcdef")
    'a, b, c, d and 2 more'
    """
    names = [name if len(name) <= 40 else f"{name[:37]}..." for name in names]
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def cut_number(name: str) -> str:
    """The name of a file without its suffix and without the number of its part.

    >>> [cut_number(name) for name in ("train-00000-of-00002-b21867bf.parquet", "cifar10-test.parquet", "train1.csv")]
    ['train', 'cifar10-test', 'train']
    """
    stem = name.rpartition(".")[0] or name
    stem = NUMBER.sub("", SHARD.sub("", stem))
    return stem.rstrip("0123456789") if split_of(stem) else stem


def describe_left_out(names: Sequence[str], reason: str) -> list[str]:
    """One note on files or folders that were left out for one reason; none where there are none.

    >>> describe_left_out(["a.csv"], "not called as a split"), describe_left_out([], "no table")
    (['a.csv was left out: not called as a split'], [])
    """
    return [f"{list_names(names)} {'was' if len(names) == 1 else 'were'} left out: {reason}"] if names else []


def describe_shards(names: Iterable[str]) -> list[str]:
    """Notes on files that are not there, by the names of those that are.

    >>> describe_shards(["train-00000-of-00003.parquet", "train-00002-of-00003.parquet", "test-00000-of-00001.parquet"])
    ['of the 3 files of train, 2 are here; fetch the others if they are meant']
    """
    counts: Counter[tuple[str, int]] = Counter()
    for name in names:
        if match := SHARD.search(name):
            counts[name[: match.start()], int(match[1])] += 1
    return [
        f"of the {total:,} files of {start}, {count:,} are here; fetch the others if they are meant"
        for (start, total), count in counts.items()
        if count < total
    ]


def with_suffix(*suffixes: str) -> Select:
    """The files with one of these suffixes, which are in lower case."""
    return lambda folder: {name: file for name, file in folder.files.items() if name.lower().endswith(suffixes)}


def holds_tables(folder: Folder, select: Select) -> bool:
    """Whether files of rows lie in a folder, or in one below it that is called train."""
    return bool(select(folder)) or "train" in _split_folders(folder, select)


def _split_folders(folder: Folder, select: Select) -> dict[str, str]:
    """The names of the folders that are called as splits and hold files of rows, by split."""
    return find_splits([name for name, inner in folder.folders.items() if select(inner)], folder.where)


def find_tables(folder: Folder, select: Select) -> TableFiles:
    """The files of rows of a folder by split.

    Files that lie directly in it are sorted by their names, else those one folder below by the names of their folders.
    A file alone is train, and so are all files where no name is that of a split.
    Raises UserError where two names mean one split.
    """
    if not (own := select(folder)):
        splits = _split_folders(folder, select)
        outside = [
            f"{name}/" for name in folder.folders if name not in splits.values() and select(folder.folders[name])
        ]
        notes = describe_left_out(outside, "not called as a split")
        notes += [
            note
            for name in splits.values()
            for note in describe_shards(f"{name}/{key}" for key in select(folder.folders[name]))
        ]
        return TableFiles(
            {
                split: [TableFile(f"{name}/{key}", file, inner) for key, file in select(inner).items()]
                for split, name in splits.items()
                for inner in [folder.folders[name]]
            },
            notes,
        )
    files = [TableFile(name, file, folder) for name, file in own.items()]
    deeper = [path for path, inner in folder.all_folders() if select(inner)]
    notes = [f"the files in {list_names(deeper)} were left out, since others lie above them"] if deeper else []
    if len(files) == 1:
        split = split_of(cut_number(files[0].path))
        other = f"{files[0].path} was read as train, since it is alone"
        return TableFiles({"train": files}, [*notes, *([other] if split not in (None, "train") else [])])
    notes += describe_shards(own)
    stems = {name: cut_number(name) for name in own}
    splits = find_splits(dict.fromkeys(stems.values()), folder.where)
    if not splits:
        shards = len(set(stems.values())) == 1
        note = [] if shards else [f"{list_names(own)}: no name is that of a split, so all are train, in this order"]
        return TableFiles({"train": files}, [*notes, *note])
    outside = [name for name, stem in stems.items() if stem not in splits.values()]
    notes += describe_left_out(outside, "not called as a split")
    return TableFiles(
        {split: [table for table in files if stems[table.path] == stem] for split, stem in splits.items()}, notes
    )
