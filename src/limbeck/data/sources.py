"""Sources of labelled images, and `load_data`. A new layout of files is a file in `readers` and a line in READERS."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

from torch.utils.data import Dataset

from limbeck.core.errors import UserError, suggest_names
from limbeck.core.events import Listener
from limbeck.core.files import refuse_own_folder
from limbeck.core.ranges import MAX_SIDE
from limbeck.core.sizes import ResizeMode, Size
from limbeck.core.text import quote
from limbeck.data.archives import archive_suffix, read_archive_tree
from limbeck.data.assemble import assemble
from limbeck.data.cache import read_with_cache
from limbeck.data.images import DEFAULT_VALIDATION, ImageData, Origin, RawData, ReadOptions
from limbeck.data.pictures import SUFFIXES, forget_files, is_picture
from limbeck.data.pixels import PixelRange, check_pixel_range
from limbeck.data.readers import (
    arrow,
    builtin,
    cifar,
    class_folders,
    file_tables,
    idx,
    npz,
    parquet,
    stl10,
    svhn,
    text_rows,
    tiny_imagenet,
)
from limbeck.data.readers.objects import MapDataset, read_objects
from limbeck.data.readers.own import find_reader, split_source
from limbeck.data.readers.reader import Reader
from limbeck.data.readers.table_files import list_names
from limbeck.data.split_folders import describe_neighbours, join_splits, remove_folders
from limbeck.data.splits import NEUTRAL, SPLIT_OF, name_parts, split_of
from limbeck.data.tree import Folder, Tree, file_on_disk, is_hidden, read_folder_tree

ObjectSource = Dataset[Any] | MapDataset | tuple[Any, Any] | Mapping[str, Any]
"""A Dataset, arrays (X, y), scikit-learn's Bunch, or, as a dict by split, several of these."""

DataSource = str | Path | ImageData | ObjectSource
"""Whatever `load_data` reads."""

NAMES: dict[str, Callable[[ReadOptions], RawData]] = {
    "digits": builtin.read_digits,
    "fashion-mnist": builtin.read_fashion_mnist,
}
DATA_NAMES = tuple(NAMES)

READERS: list[Reader] = [
    npz.READER,
    idx.READER,
    cifar.READER,
    svhn.READER,
    stl10.READER,
    tiny_imagenet.READER,
    parquet.READER,
    arrow.READER,
    file_tables.READER,
    class_folders.READER,
]
"""The first that recognises a folder reads it. Class folders come last, since others may contain pictures, too."""

log = logging.getLogger("limbeck")
ANNOUNCED = 1000  # images whose decoding takes long enough to be announced


def load_data(
    source: DataSource,
    *,
    validation: float | str | Path = DEFAULT_VALIDATION,
    seed: int = 0,
    resize: int | tuple[int, int] | None = None,
    resize_mode: ResizeMode = "stretch",
    pixel_range: PixelRange | None = None,
    follow_links: bool = False,
    test: ObjectSource | str | Path | None = None,
    name: str | None = None,
    listen: Listener | None = None,
) -> ImageData:
    """Read a labelled image set as uint8 (n, c, h, w) tensors with train, validation and test splits.

    source:       a name in `DATA_NAMES`; the path of a file, folder or archive in a layout of `READERS`; a path behind
                  the name of a reader of your own (my_file:READER=PATH); a map-style
                  Dataset of torch or Hugging Face, whose items are (image, label) or a dict of them; arrays (X, y); a
                  dict of these by split; or an ImageData, which is returned as it is. A name wins over a path: write
                  ./digits for a folder.
    validation:   fraction of every class, in [0, 1), that is split off train where the source has no validation split.
                  A source without a test split first loses 20 % of every class to one. `notes` of the result say so.
                  Or the path of a folder of class folders with the validation images, beside such a folder as source.
    seed:         of these random splits.
    resize:       height and width in pixels, or one number for both; antialiased and bilinear.
    resize_mode:  what happens to images of other proportions: "stretch" them, or "crop" them at the centre, or "pad"
                  them by repeating their edges.
    pixel_range:  the pixel values that become 0 and 255; what lies beyond is clipped. None: 8 bits stay as they are,
                  floating point is 0 to 1, and whole numbers of more bits end at the fewest that hold the whole set.
    follow_links: follow links that lead out of a folder.
    test:         the test split: a Dataset or arrays where the source is such, and else the path of a folder of class
                  folders, beside such a folder as source.
    name:         of the result; by default that of the source.
    listen:       receives the events of reading many images; None: the log gets a line.

    Raises UserError, in one sentence, for a source that cannot be read or whose parts do not fit each other.

    >>> data = load_data("digits")
    >>> data.shape, data.num_classes, len(data.train), len(data.validation), len(data.test)
    ((1, 8, 8), 10, 1295, 143, 359)
    """
    size = _check_size(resize)
    options = ReadOptions(size, check_pixel_range(pixel_range), partial(_announce, listen), resize_mode)
    if not isinstance(validation, str | Path) and not 0 <= validation < 1:
        raise UserError(f"validation is a fraction of train in [0, 1), not {validation}; 0.1 is usual")
    if resize_mode not in get_args(ResizeMode):
        raise UserError(f"--resize-mode is {', '.join(get_args(ResizeMode))}, not {quote(resize_mode)}")
    if size is None and resize_mode != "stretch":
        raise UserError(f"--resize-mode {resize_mode} needs --resize; say how large the images are to be")
    if isinstance(source, ImageData):
        changes = options.size not in (None, source.size) or options.pixel_range is not None or test is not None
        if changes or validation not in (DEFAULT_VALIDATION, source.origin.validation):
            raise UserError(
                "resize, pixel_range, test and validation do nothing to data already loaded; give them where it is "
                "loaded first"
            )
        return source
    beside = {
        split: Path(path)
        for split, path in (("validation", validation), ("test", test))
        if isinstance(path, str | Path)
    }
    _check_beside(source, test, beside)
    try:
        if isinstance(source, str | Path):
            raw, remaining_range = _read_named(source, options, follow_links, beside)
        else:
            raw, remaining_range = read_objects(source, test, options)
    except OSError as error:
        raise UserError(f"{error.filename or source}: cannot be read ({error.strerror or error}); check it") from error
    raw = raw._replace(name=name or raw.name)
    data = assemble(
        raw,
        validation=DEFAULT_VALIDATION if isinstance(validation, str | Path) else validation,
        seed=seed,
        resize=options.size,
        pixel_range=remaining_range,
        resize_mode=resize_mode,
    )
    places = {split: str(path.resolve()) for split, path in beside.items()}
    origin = Origin(
        _absolute(source),
        resize,
        options.pixel_range,
        follow_links,
        validation=places["validation"] if isinstance(validation, str | Path) else validation,
        seed=seed,
        resize_mode=resize_mode,
        test=places.get("test"),
    )
    return replace(data, origin=origin)


def _check_beside(source: Any, test: Any, beside: Mapping[str, Path]) -> None:
    """Raise UserError for splits that cannot lie beside this source, or do not exist. beside: their paths, by split."""
    is_path = isinstance(source, str | Path) and source not in NAMES and not split_source(source)
    for split, path in beside.items():
        if not is_path:
            name = source if isinstance(source, str) else f"a {type(source).__name__}"
            raise UserError(
                f"--{split} names a folder beside a folder of class folders, which {name} is not; leave it out"
            )
        if not path.exists():
            raise UserError(f"--{split} {path}: there is no such folder; {_suggest_paths(path)}")
    if test is not None and "test" not in beside and isinstance(source, str | Path):
        raise UserError("test= is a Dataset beside a Dataset as source, and a folder beside a folder")


def _absolute(source: object) -> str | None:
    """The source as it is found again from another folder: a name that is known stays a name, a path gets absolute."""
    if isinstance(source, str) and source in NAMES:
        return source
    if own := split_source(source):
        return own.absolute
    return str(Path(source).resolve()) if isinstance(source, str | Path) else None


def describe_kinds() -> str:
    """What `load_data` reads by a name or at a path, for messages."""
    return "; ".join([", ".join(DATA_NAMES), *(reader.kind for reader in READERS)])


def _check_size(resize: int | tuple[int, int] | None) -> Size | None:
    if resize is None:
        return None
    sides = tuple(resize) if isinstance(resize, tuple | list) else (resize, resize)
    if len(sides) != 2 or not all(type(side) is int and 1 <= side <= MAX_SIDE for side in sides):
        raise UserError(
            f"--resize is a height and a width of at least 1 pixel and at most {MAX_SIDE}, not {resize}; give, say, 32."
        )
    return sides


def _announce(listen: Listener | None, count: int, where: str) -> Callable[[], None]:
    """Say that `count` images are about to be decoded, where they are many; returns a function to call after each."""
    if count < ANNOUNCED:
        return lambda: None
    if listen is None:
        log.info("reading %s images of %s", f"{count:,}", where)
        return lambda: None
    listen({"event": "stage", "name": f"reading {where}", "total": count, "unit": "image"})
    return lambda: listen({"event": "advance", "text": ""})


def _read_named(
    source: str | Path, options: ReadOptions, follow_links: bool, beside: Mapping[str, Path]
) -> tuple[RawData, PixelRange | None]:
    """The images of a name or path, and the pixel range that has yet to be applied to them."""
    if isinstance(source, str) and source in NAMES:
        return NAMES[source](options), options.pixel_range
    if own := split_source(source):
        tree = open_own_tree(own.path, follow_links)
        return own.read(tree, options), None if find_reader(own.reader).decodes else options.pixel_range
    path = Path(source)
    if not path.exists():
        raise UserError(f"no data called {quote(str(source))}; {_suggest_paths(path)}")
    try:
        return _read_path(path, options, follow_links, beside)
    finally:
        forget_files()


def _suggest_paths(path: Path) -> str:
    """What to do about a path that does not exist: the names nearest to it, or all names of data sets."""
    beside = (
        [place.name for place in path.parent.iterdir() if not is_hidden(place.name)] if path.parent.is_dir() else []
    )
    near = suggest_names(path.name, [*beside, *(DATA_NAMES if path.parent == Path() else ())])
    advice = f"give a path that exists or a known name: {', '.join(DATA_NAMES)}"
    return near if near.startswith("did you mean") else advice


def _read_path(
    path: Path, options: ReadOptions, follow_links: bool, beside: Mapping[str, Path]
) -> tuple[RawData, PixelRange | None]:
    tree = _open_with(path, follow_links, beside) if beside else open_tree(path, follow_links)
    if _is_table(path):
        inner, folder, reader = "", tree.root, file_tables.reader_of_table(path.name)
    else:
        inner, folder, reader = _find_data(tree.root)
    notes = [f"read from the folder {inner}"] if inner else []
    if inner and (others := [_fork(name, inner) for name, _ in tree.root.walk() if not name.startswith(f"{inner}/")]):
        notes.append(f"{len(others)} files beside it were left out: {list_names(dict.fromkeys(others))}")
    place = next(filter(_is_telling, reversed(inner.split("/"))), tree.root.name)
    read = partial(reader.read, folder, options)
    if not reader.decodes:
        raw = read()
        if pictures := sum(name.lower().endswith(SUFFIXES) for name, _ in folder.walk()):
            notes.append(f"{pictures} image files were left out, since {reader.kind} lies beside them")
        remaining_range = options.pixel_range
    else:
        raw = read_with_cache(path, partial(_digest, path, follow_links, beside), options, read)
        remaining_range = None
    name = place if raw.name == folder.name else raw.name
    files = {split: [f"{inner}/{file}" if inner else file for file in part] for split, part in raw.files.items()}
    notes = [*tree.notes, *notes, *describe_neighbours(path, beside), *raw.notes]
    return raw._replace(name=name, notes=tuple(notes), files=files, layout=reader.kind), remaining_range


def _open_with(path: Path, follow_links: bool, beside: Mapping[str, Path]) -> Tree:
    """The tree of class folders with splits that lie in folders of their own, `beside`, by split."""
    tree = open_tree(path, follow_links)
    root = remove_folders(tree.root, beside) if path.is_dir() else tree.root
    trees = {split: open_tree(place, follow_links) for split, place in beside.items()}
    parts = {"": _find_data(root), **{split: _find_data(other.root) for split, other in trees.items()}}
    for split, (_, folder, reader) in parts.items():
        if reader is not class_folders.READER:
            names = " and ".join(f"--{name}" for name in ([split] if split else beside))
            raise UserError(f"{folder.where}: {reader.kind}; {names} needs {class_folders.READER.kind}")
    folder = join_splits(parts[""][1], {split: parts[split][1] for split in beside})
    if split_of(folder.name):  # photos/train beside photos/test
        folder = replace(folder, name=Path(folder.where).resolve().parent.name)
    notes = [note for other in trees.values() for note in other.notes]
    return Tree(
        folder, (*tree.notes, *notes, *(f"{split} images are those of {place}" for split, place in beside.items()))
    )


def _fork(path: str, inner: str) -> str:
    """The first part of a path that it does not share with `inner`, with a / where it is a folder.

    A file of an archive can have the name of a folder.

    >>> _fork("pets/labels/1.txt", "pets/images"), _fork("pets/README", "pets/images"), _fork("pets", "pets/images")
    ('labels/', 'README', 'pets')
    """
    parts, others = path.split("/"), inner.split("/")
    start = next((i for i, part in enumerate(parts) if others[i : i + 1] != [part]), len(parts) - 1)
    return parts[start] + ("/" if parts[start + 1 :] else "")


UNTELLING = {"raw", "default", "archive", "download", "downloads", "datasets"}


def _is_telling(name: str) -> bool:
    """Whether the name of a folder says what lies in it, unlike "data" or "raw", or "default" on the hub."""
    return not all(word in NEUTRAL or word in SPLIT_OF or word in UNTELLING for word in name_parts(name))


def open_tree(path: Path, follow_links: bool = False) -> Tree:
    """The tree of a path: of a folder, of an archive, or of one file. That of a table of files is its folder.

    Raises UserError for a path that is none of these, and for runs and stores of limbeck.
    """
    if path.is_dir():
        refuse_own_folder(path)
        return read_folder_tree(path, follow_links)
    if not path.is_file():
        raise UserError(f"{path}: neither a file nor a folder; give one of: {describe_kinds()}")
    if archive_suffix(path):
        return read_archive_tree(path)
    if _is_table(path):
        refuse_own_folder(path.parent)
        tree = read_folder_tree(path.parent, follow_links)
        tree.root.files[path.name] = file_on_disk(path)  # which may be hidden
        return tree
    return Tree(_file_folder(path))


def open_own_tree(source: str | Path, follow_links: bool = False) -> Tree:
    """The tree of a path for a user's reader, which gets a file alone, whatever its type. Raises as `open_tree`."""
    path = Path(source)
    is_plain_file = path.is_file() and not archive_suffix(path)
    return Tree(_file_folder(path)) if is_plain_file else open_tree(path, follow_links)


def _is_table(path: Path) -> bool:
    return path.is_file() and path.name.lower().endswith(text_rows.SUFFIXES)


def _file_folder(path: Path) -> Folder:
    return Folder(path.resolve().stem, str(path), {}, {path.name: file_on_disk(path)})


def _digest(path: Path, follow_links: bool, beside: Mapping[str, Path]) -> str:
    """A digest of the files of a source, for the cache. An archive is one file: it need not be unpacked for that."""
    if beside:
        return _open_with(path, follow_links, beside).root.digest()
    return (
        _file_folder(path) if path.is_file() and not _is_table(path) else open_tree(path, follow_links).root
    ).digest()


def _find_data(root: Folder) -> tuple[str, Folder, Reader]:
    """The path below `root` of the folder in which the data lies, this folder, and its reader.

    That is `root`, or a folder inside it that is the only one with data. Raises UserError where there is none, or more.
    """
    if reader := _find_reader(root):
        return "", root, reader
    places: dict[str, tuple[Folder, Reader]] = {}
    for path, folder in root.all_folders():
        if not any(path.startswith(f"{place}/") for place in places) and (reader := _find_reader(folder)):
            places[path] = folder, reader
    if len(places) == 1:
        ((path, (folder, reader)),) = places.items()
        if any(is_picture(file) for name, file in root.walk() if not name.startswith(f"{path}/")):
            raise UserError(f"{root.where}: the data set seems to lie in its folder {path}; name that")
        return path, folder, reader
    if places:
        shown = ", ".join(list(places)[:3]) + (" and others" if len(places) > 3 else "")
        raise UserError(f"{root.where}: several data sets lie in it, in {shown}; name one of them")
    if len(root.files) == 1 and not root.folders and root.where.endswith(next(iter(root.files))):
        if is_picture(next(iter(root.files.values()))):
            raise UserError(
                f"{root.where}: one picture; name the folder above those of the classes, or a table of files"
            )
        raise UserError(
            f"{root.where}: unknown file type {quote(Path(root.where).suffix)}; give one of: {describe_kinds()}"
        )
    while len(root.folders) == 1 and not root.files and next(iter(root.folders.values())).folders:
        (root,) = root.folders.values()
    return "", root, class_folders.READER  # which says what is missing


def _find_reader(folder: Folder) -> Reader | None:
    return next((reader for reader in READERS if reader.recognises(folder)), None)
