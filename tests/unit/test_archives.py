"""Archives: the result is that of the folder that was packed; what is damaged, hostile or too big is refused."""

from __future__ import annotations

import gc
import io
import random
import shutil
import struct
import tarfile
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from image_files import colour, grey, labelled_arrays, make_class_folders, refuses, save_npz
from image_layouts import (
    cifar10_folder,
    cifar100_folder,
    idx_folder,
    stl10_folder,
    svhn_folder,
    tiny_imagenet_folder,
)
from PIL import Image

from limbeck.data import archives, load_data
from limbeck.data.archives import read_archive_tree

TARS = {".tar": "w", ".tar.gz": "w:gz", ".tgz": "w:gz", ".tar.bz2": "w:bz2", ".txz": "w:xz"}
KINDS = (".zip", ".ZIP", *TARS)


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("LIMBECK_HOME", str(folder))
    return folder


def pack(folder: Path, archive: Path, prefix: str = "", stored: bool = False) -> Path:
    """Pack a folder; its files come in a random order."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    random.Random(0).shuffle(files)
    names = [prefix + str(path.relative_to(folder)) for path in files]
    kind = next(kind for kind in KINDS if archive.name.endswith(kind))
    if kind.lower() == ".zip":
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED) as packed:
            for path, name in zip(files, names):
                packed.write(path, name)
    else:
        with tarfile.open(archive, TARS[kind]) as tar:  # type: ignore[call-overload]
            for path, name in zip(files, names):
                tar.add(path, name)
    return archive


def describe(source: Path) -> Any:
    data = load_data(source)
    return data.name, data.fingerprint, data.classes, data.notes


def parquet_folder(folder: Path, seed: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (folder / "default" / "train").mkdir(parents=True)
    pictures = [io.BytesIO() for _ in range(10)]
    for picture, pixels in zip(pictures, grey(10, seed=seed)):
        Image.fromarray(pixels).save(picture, "png")
    cells = [{"bytes": picture.getvalue(), "path": None} for picture in pictures]
    table = pa.table({"image": cells, "label": pa.array([i % 2 for i in range(10)])})
    pq.write_table(table, folder / "default" / "train" / "0000.parquet")


def table_folder(folder: Path, seed: int) -> None:
    make_class_folders(folder / "images", seed=seed)
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.png"))
    (folder / "labels.csv").write_text("file,label\n" + "".join(f"{name},{name.split('/')[1]}\n" for name in names))


LAYOUTS: dict[str, Callable[[Path, int], object]] = {
    "class folders": lambda folder, seed: make_class_folders(folder, "abc", seed=seed),
    "splits": lambda folder, seed: [make_class_folders(folder / part, "ab", seed=seed) for part in ("Train", "TEST")],
    "idx": lambda folder, seed: idx_folder(folder, seed % 2 == 0),
    "npz": lambda folder, seed: (folder.mkdir(), save_npz(folder / "a.npz", **labelled_arrays(10 + seed))),
    "parquet": parquet_folder,
    "table": table_folder,
    "CIFAR-10": lambda folder, seed: cifar10_folder(folder, seed=seed),
    "CIFAR-100": lambda folder, seed: cifar100_folder(folder, seed=seed),
    "Tiny-ImageNet": lambda folder, seed: tiny_imagenet_folder(folder, seed, seed % 2 == 0),
    "SVHN": lambda folder, seed: svhn_folder(folder, seed),
    "STL-10": lambda folder, seed: stl10_folder(folder, seed),
}
"""Layouts of files: each writes a data set into a folder that does not exist."""


@given(layout=st.sampled_from(list(LAYOUTS)), kind=st.sampled_from(KINDS), stored=st.booleans(), seed=st.integers(0, 3))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_an_archive_reads_as_its_folder(
    tmp_path_factory: pytest.TempPathFactory, layout: str, kind: str, stored: bool, seed: int
) -> None:
    place = tmp_path_factory.mktemp("archives")
    LAYOUTS[layout](place / "pets", seed)
    expected = describe(place / "pets")
    archive = pack(place / "pets", place / f"pets{kind}", stored=stored)
    (place / "other").mkdir()
    inside = pack(place / "pets", place / "other" / f"archive{kind}", prefix="./pets/")
    shutil.rmtree(place / "pets")
    assert describe(archive) == expected
    name, fingerprint, classes, notes = describe(inside)
    assert (name, fingerprint, classes) == expected[:3]
    notes, folder_notes = ([note for note in part if "read from" not in note] for part in (notes, expected[3]))
    assert notes == folder_notes


@pytest.mark.parametrize("kind", [".zip", ".tar.gz"])
def test_nothing_is_left_behind(tmp_path: Path, home: Path, kind: str) -> None:
    archive = pack(make_class_folders(tmp_path / "pets"), tmp_path / f"pets{kind}")
    shutil.rmtree(tmp_path / "pets")
    load_data(archive)
    assert [path.suffix for path in (home / "images").rglob("*") if path.is_file()] == [
        ".safetensors"
    ]  # the decoded images
    assert list(tmp_path.iterdir()) == [archive]
    whole = archive.read_bytes()
    archive.write_bytes(whole[: len(whole) // 2])
    refuses(archive, "not an archive that opens")
    assert len(list((home / "images").iterdir())) == 1


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="the system does not list open files")
@pytest.mark.parametrize("kind", [".zip", ".tar", ".tar.gz"])
def test_archives_are_closed(tmp_path: Path, kind: str) -> None:
    folder = make_class_folders(tmp_path / "pets")
    (folder / "a" / "0.png").rename(folder / "a" / "no suffix")
    archive = pack(folder, tmp_path / f"pets{kind}")
    gc.collect()
    before = len(list(Path("/proc/self/fd").iterdir()))
    load_data(archive)
    gc.collect()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_packed_tar_is_unpacked_once_a_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = pack(make_class_folders(tmp_path / "pets"), tmp_path / "pets.tar.gz")
    calls = []
    real = archives._open_tar
    monkeypatch.setattr(archives, "_open_tar", lambda path: (calls.append(path), real(path))[1])
    first = load_data(archive)
    assert load_data(archive).fingerprint == first.fingerprint
    assert len(calls) == 2
    pack(make_class_folders(tmp_path / "pets", seed=9), archive)  # a changed archive is read again
    assert load_data(archive).fingerprint != first.fingerprint


@pytest.mark.parametrize("kind", [".zip", ".tar", ".tar.gz"])
def test_threads_may_read_at_once(tmp_path: Path, kind: str) -> None:
    folder = make_class_folders(tmp_path / "pets", count=40, make=lambda n, seed: colour(n, 50, 50, seed))
    tree = read_archive_tree(pack(folder, tmp_path / f"pets{kind}")).root
    files = list(tree.walk())
    wrong = []

    def read(seed: int) -> None:
        order = random.Random(seed).sample(files, len(files))
        wrong.extend(path for path, file in order if file.read() != (folder / path).read_bytes())

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        assert load_data(tmp_path / f"pets{kind}").fingerprint == load_data(folder).fingerprint
    finally:
        torch.set_num_threads(before)


def test_the_content_says_which_archive_it_is(tmp_path: Path) -> None:
    folder = make_class_folders(tmp_path / "pets")
    expected = load_data(folder).fingerprint
    for kind, other in ((".zip", ".tar"), (".tar", ".zip"), (".tar.gz", ".zip"), (".txz", ".tar")):
        file = pack(folder, tmp_path / f"a{kind}").rename(tmp_path / f"b{other}")
        assert load_data(file).fingerprint == expected
    pack(folder, tmp_path / "c.zip").rename(tmp_path / "c.docx")
    refuses(tmp_path / "c.docx", "unknown file type '.docx'")
    pack(folder, tmp_path / "c.zip").rename(tmp_path / "c.npz")
    refuses(tmp_path / "c.npz", "no images with labels")


def write_zip(path: Path, *entries: tuple[str, bytes], kind: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", kind) as archive:
        for name, content in entries:
            archive.writestr(zipfile.ZipInfo(name), content, kind)
    return path


def write_tar(path: Path, *entries: tuple[str, bytes, dict[str, Any]]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content, fields in entries:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            for field, value in fields.items():
                setattr(member, field, value)
            archive.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.parametrize(
    "name", ["../x.png", "a/../../x.png", "/x.png", "C:\\x.png", "\\\\srv\\x.png", "..\\x", "a\nb/.."]
)
@pytest.mark.parametrize("kind", [".zip", ".tar"])
def test_paths_that_lead_out_are_refused(tmp_path: Path, name: str, kind: str) -> None:
    path = tmp_path / f"a{kind}"
    write_zip(path, (name, b"")) if kind == ".zip" else write_tar(path, (name, b"", {}))
    refuses(path, "leads out of the archive")


def test_paths_are_cleaned_and_the_last_of_a_kind_counts(tmp_path: Path) -> None:
    entries = [("./a//b/./1.png", b"1"), ("a\\b\\2.png", b"2"), ("a/b/", b""), ("12:30/x", b"3"), ("a/b/1.png", b"4")]
    hidden = [("__MACOSX/a/._1.png", b"5"), (".git/x", b"6")]
    tree = read_archive_tree(write_zip(tmp_path / "a.zip", *entries, *hidden))
    assert {path: file.read() for path, file in tree.root.walk()} == {
        "12:30/x": b"3",
        "a/b/1.png": b"4",
        "a/b/2.png": b"2",
    }
    assert tree.notes == ("1 entries of the archive with the path of a later one were left out",)


def test_a_file_may_be_called_as_the_folder_of_the_images(tmp_path: Path) -> None:
    folder = make_class_folders(tmp_path / "images", count=2)
    with zipfile.ZipFile(tmp_path / "pets.zip", "w") as archive:
        archive.writestr("archive", b"a list of what is inside")
        for file in sorted(folder.rglob("*.png")):
            archive.write(file, f"archive/{file.relative_to(folder)}")
    assert "1 file beside it was left out: archive" in load_data(tmp_path / "pets.zip").notes


def test_names_in_any_encoding_are_read(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", encoding="latin-1") as archive:
        for name in ("caf\xe9", "th\xe9"):
            folder = make_class_folders(tmp_path / "x", "z")
            archive.add(folder / "z", name)
    data = load_data(tmp_path / "a.tar")
    assert data.classes == ("caf\xe9", "th\xe9")


def test_links_and_devices_are_left_out(tmp_path: Path) -> None:
    kinds = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE)
    links = [(f"a/{i}", b"", {"type": kind, "linkname": "/etc/passwd"}) for i, kind in enumerate(kinds)]
    tree = read_archive_tree(write_tar(tmp_path / "a.tar", ("a/x", b"1", {}), *links))
    assert [path for path, _ in tree.root.walk()] == ["a/x"]
    assert tree.notes == ("4 links and special files of the archive were left out",)
    info = zipfile.ZipInfo("a/link")
    info.create_system, info.external_attr = 3, 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(info, "/etc/passwd")
        archive.writestr("a/x", b"1")
    tree = read_archive_tree(tmp_path / "a.zip")
    assert [path for path, _ in tree.root.walk()] == ["a/x"]
    assert tree.notes == ("1 links and special files of the archive were left out",)


def test_damage_is_told_from_the_end(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", ("a/x", b"1" * 600, {}), ("a/y", b"2", {}))
    whole = path.read_bytes()
    for cut in (700, 1400, 1536, 2000, 2560):  # in content, in a header, between entries
        path.write_bytes(whole[:cut])
        refuses(path, "not an archive that opens")
    path.write_bytes(whole[:1536] + b"?" * 512 + whole[2048:])  # a damaged header would end the archive without a word
    refuses(path, "no valid entry at byte 1,536")
    path.write_bytes(b"")
    refuses(path, "not an archive that opens (empty file)")
    path = write_zip(tmp_path / "a.zip", ("a/1.png", b"1" * 600))
    path.write_bytes(path.read_bytes()[:-30])
    refuses(path, "not an archive that opens")
    damaged = pack(make_class_folders(tmp_path / "pets"), tmp_path / "pets.zip", stored=True)
    damaged.write_bytes(damaged.read_bytes().replace(b"IDAT", b"idat"))
    refuses(damaged, "not an archive that opens (Bad CRC-32")


def test_tar_headers_that_lead_back_or_claim_too_much_are_refused(tmp_path: Path) -> None:
    def header(name: str, size: int, kind: bytes) -> bytes:
        block = bytearray(tarfile.TarInfo(name).tobuf(tarfile.GNU_FORMAT))
        block[124:136] = (b"\xff" if size < 0 else b"\x80") + size.to_bytes(11, "big", signed=True)
        block[148:157] = b" " * 8 + kind
        block[148:156] = b"%06o\0 " % sum(block)
        return bytes(block)

    blocks = header("a", 0, b"0") * 2
    for size in (-1, -512, -1024, 1 << 13, 1 << 40, 1 << 62):
        for kind in (b"0", b"1", b"5", b"S", b"L", b"x"):
            (tmp_path / "a.tar").write_bytes(blocks + header("b", size, kind) + bytes(1024))
            refuses(tmp_path / "a.tar", *["not an archive that opens"] * (kind != b"S"))


def patch_zip(path: Path, **fields: int) -> Path:
    """Change fields of the first entry in the central directory of a zip."""
    places = {"flags": (8, "<H"), "method": (10, "<H"), "packed": (20, "<I"), "size": (24, "<I")}
    content = bytearray(path.read_bytes())
    start = content.index(b"PK\1\2")
    for field, value in fields.items():
        offset, kind = places[field]
        struct.pack_into(kind, content, start + offset, value)
    path.write_bytes(content)
    return path


def test_zip_entries_that_claim_what_cannot_be_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    pixels = b"a/1.png", np.random.default_rng(0).bytes(3000)
    name, content = pixels[0].decode(), pixels[1]
    refuses(patch_zip(write_zip(path, (name, content)), size=4_000_000_000), "claims 4,000,000,000 bytes", "cannot be")
    refuses(patch_zip(write_zip(path, (name, content)), packed=4_000_000_000), "cannot be")
    refuses(patch_zip(write_zip(path, (name, content), kind=0), size=4000), "claims 4,000 bytes in 3,000")
    refuses(patch_zip(write_zip(path, (name, content)), flags=1), "1.png is encrypted", "name the folder")
    refuses(write_zip(path, (name, content), kind=zipfile.ZIP_BZIP2), "compressed by bzip2")
    refuses(write_zip(path, (name, content), kind=zipfile.ZIP_LZMA), "compressed by lzma")
    refuses(patch_zip(write_zip(path, (name, content)), method=9), "compressed by deflate64")
    refuses(patch_zip(write_zip(path, (name, content)), method=99), "compressed by 99")


def test_limits_of_archives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_zip(tmp_path / "a.zip", *((f"a/{i}", b"1") for i in range(20)))
    monkeypatch.setattr(archives, "MAX_FILES", 19)
    refuses(path, "holds over 20 files", "unpack it yourself")
    monkeypatch.setattr(archives, "MAX_FILES", 20)
    monkeypatch.setattr(archives, "MAX_BYTES", 19)
    refuses(path, "20 bytes", "unpack it yourself")
    refuses(write_zip(path, ("a/" * 60 + "x", b"")), "nested over 50 deep")
    monkeypatch.setattr(archives, "MIN_LIMIT", 10_000)
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("a"))
        big = tarfile.TarInfo("b")
        big.size = 5_000_000
        archive.addfile(big, io.BytesIO(bytes(5_000_000)))
    refuses(tmp_path / "a.tar.gz", "unpacks to over", "unpack it yourself")


def test_folders_on_disk_have_a_depth_too(tmp_path: Path) -> None:
    deep = tmp_path / "pets"
    deep.joinpath(*"a" * 60).mkdir(parents=True)
    refuses(deep, "nested over 50 deep")
