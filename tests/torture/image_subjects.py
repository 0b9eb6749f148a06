"""Readers of images: every layout of files, and archives."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import image_layouts
import numpy as np
from image_files import colour, make_class_folders
from PIL import Image
from torture.mutations import Hostile, Mutation, change_value, damage_bytes, mutate_bytes, mutate_json
from torture.run_subjects import mutate_text
from torture.subject import Subject, Use, damage_one, sometimes

from limbeck import load_data
from limbeck.cli.commands import _show
from limbeck.cli.info import describe


def use_data(source: str, share: float = 0.1) -> Callable[[Random], list[Use]]:
    """Reading of a data set, as it is and resized, and at times its description."""

    def uses(generator: Random) -> list[Use]:
        return [
            lambda: load_data(source).describe(),
            *sometimes(lambda: load_data(source, resize=6), generator, 0.3),
            *sometimes(lambda: _show(describe(source), False), generator, share),
        ]

    return uses


def mutate_gzip(content: bytes, generator: Random) -> tuple[bytes, str]:
    """A gzip file: as bytes, or its content."""
    if generator.random() < 0.4:
        return mutate_bytes(content, generator)
    return gzip.compress(damage_bytes(gzip.decompress(content), generator), 1), "bytes of the content"


def _idx_files(pack: bool) -> dict[str, Mutation]:
    end, mutation = (".gz", mutate_gzip) if pack else ("", mutate_bytes)
    names = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3")
    return {f"data/{name}-ubyte{end}": mutation for name in names}


SHAPES = (
    *("(-1, 5, 5, 3)", "(12, 5, 5, -3)", "(10000000000, 5, 5, 3)", "()", "(0,)", "(12,)", "(2**70,)", "None"),
    *("(12, 5, 5, 3, 1)", "(4611686018427387904, 4)", "(True,)", "12", "(1.5,)", "(12, 75)", "'x'"),
)
TYPES = (
    *("'|u1'", "'|O'", "'<f8'", "'<M8[s]'", "'|S100000000'", "'<U7'", "[('a', '<i4')]", "'<c16'", "'>i8'", "'|V3'"),
    *("'x'", "3", "'|b1'", "'<f2'", "[('a', '<i4', (1000000000,))]"),
)
HEADERS = (
    "(" * 5000,
    "[" * 100_000,
    "{'descr': " + "-" * 5000 + "1}",
    "__import__('os').system('touch code-was-run')",
    "",
)
ARRAYS: dict[str, Callable[[], Any]] = {
    "0 dimensions": lambda: np.array(3),
    "5 dimensions": lambda: np.zeros((2, 2, 2, 2, 2), np.uint8),
    "nan": lambda: np.full((12, 5, 5), np.nan),
    "float64": lambda: np.full((12, 5, 5), 0.5),
    "uint16": lambda: np.zeros((12, 5, 5), np.uint16),
    "bool": lambda: np.zeros((12, 5, 5), bool),
    "text": lambda: np.array(["a"] * 12),
    "negative": lambda: np.full(12, -1),
    "large": lambda: np.full(12, 2**62),
    "uint64": lambda: np.full(12, 2**64 - 1, np.uint64),
    "wide": lambda: np.arange(12) * 2**50,
    "objects": lambda: np.array([None] * 12, object),
    "code": lambda: np.array([Hostile()] * 3, object),
    "no images": lambda: np.zeros((0, 5, 5), np.uint8),
    "no labels": lambda: np.zeros(0, int),
    "no pixel": lambda: np.zeros((12, 0, 5), np.uint8),
    "5 channels": lambda: np.zeros((12, 5, 5, 5), np.uint8),
    "dates": lambda: np.zeros(12, "M8[s]"),
    "complex": lambda: np.zeros((12, 5, 5), complex),
    "records": lambda: np.zeros(12, [("a", int)]),
    "one hot": lambda: np.eye(12),
    "float labels": lambda: np.arange(12) / 1.0,
}


def make_npz() -> None:
    generator = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for split, n in (("train", 12), ("val", 6), ("test", 6)):
        arrays[f"{split}_images"] = generator.integers(0, 256, (n, 5, 5, 3), np.uint8)
        arrays[f"{split}_labels"] = (np.arange(n) % 3)[:, None]
    np.savez_compressed("data.npz", **arrays)


def damage_npz(generator: Random) -> str:
    """Its bytes, those of an array, the text of an array's header, or an array."""
    path, kind = Path("data.npz"), generator.randrange(4)
    if kind == 0:
        path.write_bytes(damage_bytes(path.read_bytes(), generator))
        return "bytes"
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    name = generator.choice(sorted(parts))
    if kind == 1:
        parts[name], change = damage_bytes(parts[name], generator), "bytes of an array"
    elif kind == 2:
        order = generator.choice(("True", "False", "1", "None"))
        shape, dtype = generator.choice(SHAPES), generator.choice(TYPES)
        change = f"{{'descr': {dtype}, 'fortran_order': {order}, 'shape': {shape}, }}"
        change = generator.choice(HEADERS) if generator.random() < 0.1 else change
        head = change.encode() + b"\n"
        parts[name] = b"\x93NUMPY\x01\x00" + struct.pack("<H", min(len(head), 65535)) + head + parts[name][128:]
    else:
        change, file = generator.choice(sorted(ARRAYS)), io.BytesIO()
        np.lib.format.write_array(file, ARRAYS[change](), allow_pickle=True)
        parts[name] = file.getvalue()
    if generator.random() < 0.05:
        parts[generator.choice(("../../evil.npy", "/tmp/evil.npy", "train_images", "x_train.npy"))] = parts.pop(name)
    methods = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", generator.choice(methods)) as archive:
        warnings.simplefilter("ignore")
        for part, content in parts.items():
            archive.writestr(part, content)
    return f"{name}: {change[:80]}"


def encode_png(width: int, height: int, content: bytes, depth: int = 8, kind: int = 0) -> bytes:
    """A PNG file that claims this size, depth and kind of colour, whatever its content."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(content, 1)) + chunk(b"IEND", b"")


def make_folders() -> None:
    """Class folders of pictures in six formats."""
    for number, name in enumerate("abc"):
        Path("data", name).mkdir(parents=True)
        for place, suffix in enumerate(("png", "jpg", "bmp", "webp", "gif", "tif", "png", "tiff")):
            image = Image.fromarray(colour(1, 6, 6, 8 * number + place)[0])
            image = image if suffix == "webp" else image.convert(("RGB", "L", "P")[place % 3])
            image.save(f"data/{name}/{place}.{suffix}")


FILE_NAMES = ("<b>.png", "a\nb.png", "[red].png", ".png", "x" * 200 + ".png", "a\x1b[31m.png")
FOLDER_NAMES = (
    "<script>alert(1)<script>",
    "a b",
    "[red]",
    "train",
    "test",
    "x" * 250,
    "ä\u202e",
    "\n",
    "\x1b[2J",
    "CON",
)


def damage_folders(generator: Random) -> str:
    """A picture damaged, or a picture, a link, a folder or a name that is odd."""
    inside = Path("data", generator.choice("abc"))
    path = generator.choice(sorted(inside.iterdir()))
    if generator.random() < 0.7:
        path.write_bytes(damage_bytes(path.read_bytes(), generator))
        return f"{path.name}: bytes"
    side = generator.choice((12_000, 20_000, 65_535, 2**31 - 1))
    depth, kind = generator.choice((1, 2, 4, 16)), generator.choice((0, 2, 3, 4, 6))
    pictures = {
        "a picture that claims to be huge": lambda: encode_png(side, side, b"\0" * 100),
        "a wide picture": lambda: encode_png(generator.choice((1, 2**31 - 1)), 1, b"\0" * 100),
        "another depth": lambda: encode_png(6, 6, b"\0" + generator.randbytes(200), depth, kind),
        "one pixel": lambda: encode_png(1, 1, b"\0\0"),
        "no pixel": lambda: encode_png(0, generator.choice((0, 6)), b""),
        "an empty file": lambda: b"",
    }
    odd: dict[str, Use] = {
        **{name: lambda make=make: path.with_suffix(".png").write_bytes(make()) for name, make in pictures.items()},
        "a file name": lambda: path.rename(path.with_name(generator.choice(FILE_NAMES))),
        "a folder name": lambda: inside.rename(inside.with_name(generator.choice(FOLDER_NAMES))),
        "a link": lambda: _link(path, generator.choice(("/etc/passwd", "/dev/null", "/", "..", "../../..", path.name))),
        "a link to nothing": lambda: _link(path, "/nowhere/x.png"),
        "a folder in place of a picture": lambda: (path.unlink(), path.mkdir()),
        "deep folders": lambda: _nest(inside, path),
        "another suffix": lambda: path.rename(path.with_suffix(generator.choice((".png", ".jpg", ".gif", ".txt")))),
        "a class less": lambda: shutil.rmtree(inside),
    }
    change = generator.choice(sorted(odd))
    odd[change]()
    return f"{path.name}: {change}"


def _link(path: Path, target: str) -> None:
    path.unlink()
    path.symlink_to(target)


def _nest(folder: Path, path: Path) -> None:
    inner = folder.joinpath(*["d"] * 60)
    inner.mkdir(parents=True)
    shutil.copy(path, inner / path.name)


def arrow_table(change: str = "", generator: Random | None = None) -> Any:
    """A table of pictures and labels with the metadata of the Hugging Face library, perhaps with a change."""
    import pyarrow as pa

    cells: list[Any] = []
    for pixels in colour(12, 5, 5):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "png")
        cells.append(file.getvalue())
    names: Any = {"info": {"features": {"label": {"names": ["a", "b", "c"], "_type": "ClassLabel"}}}}
    labels: Any = pa.array([i % 3 for i in range(12)])
    if generator is not None and change == "cell":
        place = generator.randrange(12)
        cells[place] = generator.choice((damage_bytes(cells[place], generator), None, b"", b"x"))
    if generator is not None and change == "names":
        names, _ = change_value(names, generator)
    if generator is not None and change == "labels":
        others = [["a"] * 12, [-1] * 12, [2**62] * 12, [1.5] * 12, [[1]] * 12, [True, False] * 6]
        odd = [pa.array(values) for values in others]
        odd += [
            pa.array([None] * 12, pa.int64()),
            pa.array([2**64 - 1] * 12, pa.uint64()),
            pa.array([0, 1] * 6, pa.int8()),
        ]
        labels = generator.choice(odd)
    pictures = [None if cell is None else {"bytes": cell, "path": None} for cell in cells]
    images = pa.array(pictures, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    if generator is not None and change == "images":
        values = (["x"] * 12, [1] * 12, [[cell] for cell in cells], [{"bytes": {"bytes": cell}} for cell in cells])
        odd = [*map(pa.array, values), pa.array(cells, pa.binary()), pa.array(cells, pa.large_binary())]
        images = generator.choice([*odd, pa.array([None] * 12, pa.struct([("bytes", pa.binary())]))])
    return pa.table({"image": images, "label": labels}).replace_schema_metadata({"huggingface": json.dumps(names)})


def make_parquet() -> None:
    import pyarrow.parquet as pq

    Path("data").mkdir()
    pq.write_table(arrow_table(), "data/train-0.parquet", compression="snappy")
    pq.write_table(arrow_table(), "data/test-0.parquet", compression="zstd")


def damage_parquet(generator: Random) -> str:
    import pyarrow.parquet as pq

    if generator.random() < 0.6:
        return damage_one({"data/train-0.parquet": mutate_bytes})(generator)
    change = generator.choice(("cell", "cell", "labels", "names", "images"))
    pq.write_table(arrow_table(change, generator), "data/train-0.parquet")
    return change


def make_arrow() -> None:
    import pyarrow as pa

    Path("data").mkdir()
    for split in ("train", "test"):
        table = arrow_table()
        with pa.OSFile(f"data/data-{split}.arrow", "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)


def make_tables() -> None:
    make_class_folders(Path("data/images"), "ab", 4)
    rows = [(f"images/{name}/{i}.png", name) for name in "ab" for i in range(4)]
    Path("data/train.csv").write_text("file,label\n" + "".join(f"{file},{name}\n" for file, name in rows))


def make_jsonl() -> None:
    make_tables()
    lines = Path("data/train.csv").read_text().splitlines()[1:]
    records = [dict(zip(("file_name", "label"), line.split(","))) for line in lines]
    Path("data/train.csv").unlink()
    Path("data/metadata.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def make_zip() -> None:
    make_class_folders(Path("data"), "ab", 4)
    shutil.make_archive("data", "zip", ".", "data")
    shutil.rmtree("data")


def make_tar(kind: str) -> None:
    make_class_folders(Path("data"), "ab", 4)
    shutil.make_archive("data", kind, ".", "data")
    shutil.rmtree("data")


def in_data(make: Callable[[Path], object]) -> Callable[[], object]:
    return lambda: make(Path("data"))


def damage_any(generator: Random) -> str:
    """The bytes of any file of the data."""
    files = sorted(str(path) for path in Path("data").rglob("*") if path.is_file())
    return damage_one({generator.choice(files): mutate_bytes})(generator)


IMAGES: dict[str, Subject] = {
    "idx": Subject(
        in_data(lambda path: image_layouts.idx_folder(path, pack=False)),
        damage_one(_idx_files(False)),
        use_data("data"),
    ),
    "idx.gz": Subject(in_data(image_layouts.idx_folder), damage_one(_idx_files(True)), use_data("data")),
    "npz": Subject(make_npz, damage_npz, use_data("data.npz")),
    "folders": Subject(make_folders, damage_folders, use_data("data")),
    "parquet": Subject(make_parquet, damage_parquet, use_data("data")),
    "arrow": Subject(make_arrow, damage_one({"data/data-train.arrow": mutate_bytes}), use_data("data")),
    "csv": Subject(make_tables, damage_one({"data/train.csv": mutate_text}), use_data("data/train.csv")),
    "jsonl": Subject(make_jsonl, damage_one({"data/metadata.jsonl": mutate_json}), use_data("data")),
    "zip": Subject(make_zip, damage_one({"data.zip": mutate_bytes}), use_data("data.zip")),
    "tar": Subject(lambda: make_tar("tar"), damage_one({"data.tar": mutate_bytes}), use_data("data.tar")),
    "tar.gz": Subject(lambda: make_tar("gztar"), damage_one({"data.tar.gz": mutate_gzip}), use_data("data.tar.gz")),
    "cifar10": Subject(in_data(image_layouts.cifar10_folder), damage_any, use_data("data")),
    "cifar100": Subject(in_data(image_layouts.cifar100_folder), damage_any, use_data("data")),
    "svhn": Subject(in_data(image_layouts.svhn_folder), damage_any, use_data("data")),
    "stl10": Subject(in_data(image_layouts.stl10_folder), damage_any, use_data("data")),
    "tiny-imagenet": Subject(in_data(image_layouts.tiny_imagenet_folder), damage_any, use_data("data")),
}
"""By name."""
