"""The pictures of a folder by their names, for tables that name them."""

from __future__ import annotations

from collections import defaultdict

from limbeck.data.pictures import SUFFIXES, is_picture
from limbeck.data.readers.columns import leads_out
from limbeck.data.splits import NEUTRAL, NUMBERED, name_parts, split_of, split_with_prefix
from limbeck.data.tree import File, Folder, compose

PART_WORDS = NEUTRAL | NUMBERED


class PictureIndex:
    """The files of a folder by their names, with suffix and without, in any case."""

    def __init__(self, folder: Folder) -> None:
        self.files = dict(folder.walk())
        self.by_name: dict[str, list[str]] = defaultdict(list)
        for path in self.files:
            name = path.rpartition("/")[2].casefold()
            self.by_name[name].append(path)
            if name.endswith(SUFFIXES):
                self.by_name[name.rpartition(".")[0]].append(path)

    def find(self, cell: str, split: str | None = None) -> list[str]:
        """The paths of the files that a cell may mean: one, or several where nothing decides between them.

        A path from the folder itself wins, then one in the same case, then one in a folder that is called as the split.
        """
        name = "/".join(part for part in compose(cell).strip().replace("\\", "/").split("/") if part != ".")
        if name in self.files:
            return [name]
        paths = self.by_name.get(name.rpartition("/")[2].casefold(), [])
        paths = [path for path in paths if _ends_with(path.casefold(), name.casefold())]
        same_case = [path for path in paths if _ends_with(path, name)]
        paths = same_case or paths
        same_split = [path for path in paths if split and split in map(split_of, path.split("/")[:-1])]
        return same_split or paths

    def is_named(self, cell: str) -> bool:
        """Whether a cell means pictures of the folder, or leads out of it to pictures of the same name."""
        cell = cell.replace("\\", "/").rpartition("/")[2] if leads_out(cell) else cell
        return bool(cell.strip()) and any(is_picture(self.files[path]) for path in self.find(cell)[:1])

    def count_pictures(self) -> int:
        """The number of files that are pictures by their suffix."""
        return sum(path.lower().endswith(SUFFIXES) for path in self.files)

    def coverage(self, paths: set[str]) -> float:
        """The share of these files among all pictures of the folders in which they lie."""
        folders = {path.rpartition("/")[0] for path in paths}
        beside = [path for path in self.files if path.lower().endswith(SUFFIXES) and path.rpartition("/")[0] in folders]
        return len(paths) / max(len(beside), len(paths), 1)


def _ends_with(path: str, name: str) -> bool:
    """Whether a path, with its suffix or without, ends with a name or path."""
    return f"/{path}".endswith(f"/{name}") or f"/{path}".rpartition(".")[0].endswith(f"/{name}")


def has_class_folders(folder: Folder) -> bool:
    """Whether pictures lie in folders that may be classes: not called as splits, images, or parts of one another."""
    inner = [name for name, part in folder.folders.items() if any(_is_picture_name(file) for _, file in part.walk())]
    words = {name: tuple(part for part in name_parts(name) if not part.isdigit()) for name in inner}
    plain = [words[name] for name in inner if not (split_with_prefix(name) or 0 < len(words[name]) <= _neutral(name))]
    if len(plain) > 1:
        return len(set(plain)) > 1 or not PART_WORDS & set(plain[0])
    return any(has_class_folders(folder.folders[name]) for name in inner)


def _neutral(name: str) -> int:
    return sum(part in NEUTRAL for part in name_parts(name))


def _is_picture_name(file: File) -> bool:
    return file.where.lower().endswith(SUFFIXES)
