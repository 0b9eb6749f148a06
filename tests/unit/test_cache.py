"""Decoded images that are kept: the same bits with and without them, and an entry for every state of the files."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from limbeck.core.errors import UserError
from limbeck.data import ImageData, cache, decoding, load_data, sources


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LIMBECK_HOME", str(tmp_path / "home"))
    cache._warn_once.cache_clear()
    return tmp_path / "home"


def png(seed: int, side: int = 6, colour: bool = True) -> bytes:
    shape = (side, side, 3) if colour else (side, side)
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)).save(buffer, "png")
    return buffer.getvalue()


def a_folder(path: Path, colour: bool = True, side: int = 6) -> Path:
    """Two classes of ten pictures, and a file that is none."""
    for seed in range(20):
        file = path / ("cat", "dog")[seed % 2] / f"{seed:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(seed, side, colour))
    (path / "cat" / "about.txt").write_text("cats")
    return path


def a_table(path: Path, seed: int = 0) -> Path:
    cells = [{"bytes": png(seed + i), "path": None} for i in range(20)]
    path.parent.mkdir(parents=True, exist_ok=True)
    labels = pa.array([i % 2 for i in range(20)], pa.int8())
    pq.write_table(pa.table({"img": cells, "label": labels}), path)
    return path


def a_parquet_folder(path: Path) -> Path:
    a_table(path / "train-0.parquet")
    a_table(path / "test-0.parquet", seed=50)
    return path


SOURCES: dict[str, Callable[[Path], Path]] = {
    "folder": a_folder,
    "grey folder": lambda path: a_folder(path, colour=False),
    "splits": lambda path: a_folder(path / "train") and a_folder(path / "test").parent,
    "parquet": lambda path: a_table(path / "pictures.parquet"),
    "parquet folder": a_parquet_folder,
}


def are_equal(first: ImageData, second: ImageData) -> bool:
    parts = [(getattr(first, name), getattr(second, name)) for name in ("train", "validation", "test")]
    bits = all(torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels) for a, b in parts)
    return bits and first.fingerprint == second.fingerprint and first.describe() == second.describe()


def no_cache(path: Path, **options: Any) -> ImageData:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIMBECK_CACHE_GB", "0")
        return load_data(path, **options)


@pytest.fixture
def decodes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Where the pictures come from that are decoded from now on."""
    sources_decoded: list[str] = []
    plain = decoding.decode_picture
    monkeypatch.setattr(decoding, "decode_picture", lambda *args: sources_decoded.append(args[0].where) or plain(*args))
    return sources_decoded


@pytest.mark.parametrize("make", SOURCES.values(), ids=SOURCES)
@pytest.mark.parametrize("resize", [None, 4, (5, 3)], ids=str)
def test_the_same_data_with_and_without_the_cache(make: Any, resize: Any, tmp_path: Path, decodes: list[str]) -> None:
    source = make(tmp_path / "pictures")
    plain = no_cache(source, seed=3, resize=resize)
    assert not (tmp_path / "home").exists()
    cold = load_data(source, seed=3, resize=resize)
    decodes.clear()
    warm = load_data(source, seed=3, resize=resize)
    assert decodes == []
    assert are_equal(plain, cold)
    assert are_equal(plain, warm)
    assert are_equal(no_cache(source, seed=4, resize=resize), load_data(source, seed=4, resize=resize))  # another split
    assert len(list((tmp_path / "home" / "images").iterdir())) == 1


def test_every_size_has_its_own_entry(tmp_path: Path) -> None:
    source = a_folder(tmp_path / "pictures")
    for _ in range(2):
        assert [load_data(source, resize=size).size for size in (4, None, (5, 3))] == [(4, 4), (6, 6), (5, 3)]


def test_the_same_file_under_another_name_is_another_entry(tmp_path: Path) -> None:
    """Also where renaming changes no time: both names are of one inode here."""
    (tmp_path / "a").write_text("a")
    os.link(tmp_path / "a", tmp_path / "b")
    first, second = (sources.open_tree(tmp_path / name).root.digest() for name in "ab")
    assert first != second


def test_one_entry_however_the_source_is_named(
    tmp_path: Path, decodes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its full path, from inside another folder, and through a link."""
    source = a_folder(tmp_path / "pictures")
    (tmp_path / "link").symlink_to(source)
    load_data(source)
    decodes.clear()
    monkeypatch.chdir(tmp_path)
    for name in ("pictures", "./pictures", "link"):
        load_data(name)
    assert decodes == []


def test_hidden_folders_do_not_count(tmp_path: Path, decodes: list[str]) -> None:
    source = a_folder(tmp_path / "pictures")
    load_data(source)
    decodes.clear()
    hidden = source / ".history" / "file"
    hidden.parent.mkdir()
    hidden.touch()
    load_data(source)
    assert decodes == []


def replace_with_its_time(source: Path) -> None:
    """Other pixels in a file of the same size and modification time, as tools that copy files leave it."""
    file = source / "cat" / "00.png"
    before = file.stat()
    buffer = io.BytesIO()
    Image.fromarray(np.full((6, 6, 3), 7, np.uint8)).save(buffer, "png")
    assert len(buffer.getvalue()) <= before.st_size
    file.write_bytes(buffer.getvalue().ljust(before.st_size, b"\0"))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


CHANGES: dict[str, Callable[[Path], Any]] = {
    "touched": lambda source: os.utime(source / "cat" / "00.png"),
    "changed": lambda source: (source / "cat" / "00.png").write_bytes(png(99)),
    "changed at the same time": replace_with_its_time,
    "renamed": lambda source: (source / "cat" / "00.png").rename(source / "cat" / "99.png"),
    "to another class": lambda source: (source / "cat" / "00.png").rename(source / "dog" / "00.png"),
    "class renamed": lambda source: (source / "cat").rename(source / "lion"),
    "added": lambda source: (source / "dog" / "99.png").write_bytes(png(99)),
    "removed": lambda source: (source / "dog" / "01.png").unlink(),
    "another file": lambda source: (source / "dog" / "more.txt").write_text("dogs"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_files_that_changed_are_decoded_again(change: Any, tmp_path: Path, decodes: list[str]) -> None:
    source = a_folder(tmp_path / "pictures")
    load_data(source)
    change(source)
    decodes.clear()
    data = load_data(source)
    assert decodes
    assert are_equal(data, no_cache(source))


def test_an_empty_class_is_refused_whatever_is_kept(tmp_path: Path) -> None:
    source = a_folder(tmp_path / "pictures")
    load_data(source)
    (source / "cow").mkdir()
    with pytest.raises(UserError, match="cow: a class folder without images"):
        load_data(source)


def test_files_that_change_while_they_are_decoded_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = a_folder(tmp_path / "pictures")
    plain = decoding.decode_picture
    monkeypatch.setattr(decoding, "decode_picture", lambda *args: os.utime(source / "dog" / "01.png") or plain(*args))
    load_data(source)
    assert not (tmp_path / "home" / "images").exists()


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "flipped": flip,
    "cut": lambda file: file.write_bytes(file.read_bytes()[:-9]),
    "empty": lambda file: file.write_bytes(b""),
    "no tensors": lambda file: file.write_text("no tensors"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_entry_is_made_again(
    damage: Any, tmp_path: Path, decodes: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    source = a_folder(tmp_path / "pictures")
    plain = load_data(source)
    (entry,) = (tmp_path / "home" / "images").iterdir()
    damage(entry)
    assert are_equal(load_data(source), plain)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "decoded again" in caplog.text
    decodes.clear()
    assert are_equal(load_data(source), plain)
    assert decodes == []


def test_an_entry_of_other_files_under_this_name_is_not_used(tmp_path: Path) -> None:
    first, second = a_folder(tmp_path / "a" / "x"), a_folder(tmp_path / "b" / "x", colour=False)
    load_data(first)
    (entry,) = (tmp_path / "home" / "images").iterdir()
    content = entry.read_bytes()
    entry.unlink()
    load_data(second)
    (entry,) = (tmp_path / "home" / "images").iterdir()
    entry.write_bytes(content)
    assert are_equal(load_data(second), no_cache(second))


def test_a_home_that_cannot_be_written_costs_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("mine")
    monkeypatch.setenv("LIMBECK_HOME", str(tmp_path / "file" / "home"))
    source = a_folder(tmp_path / "pictures")
    assert are_equal(load_data(source), load_data(source))
    assert len(caplog.records) == 1
    assert "every command decodes them again" in caplog.text


def test_a_full_disk_costs_one_warning_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr(Path, "replace", fail)
    source = a_folder(tmp_path / "pictures")
    assert are_equal(load_data(source), no_cache(source))
    assert are_equal(load_data(source), no_cache(source))
    assert len(caplog.records) == 1
    assert list((tmp_path / "home" / "images").iterdir()) == []


def test_what_was_used_least_recently_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, two, three = (a_folder(tmp_path / name, side=40) for name in ("one", "two", "three"))
    load_data(first)
    (entry,) = (tmp_path / "home" / "images").iterdir()
    monkeypatch.setenv("LIMBECK_CACHE_GB", str(2.5 * entry.stat().st_size / 1e9))
    load_data(two)
    for age, file in enumerate(sorted((tmp_path / "home" / "images").iterdir())):
        os.utime(file, (1000 + age, 1000 + age))  # both long ago, and "one" before "two"
    load_data(two)
    load_data(first)
    load_data(three)
    names = sorted(file.name.split("-")[0] for file in (tmp_path / "home" / "images").iterdir())
    assert names == ["one", "three"]
    monkeypatch.setenv("LIMBECK_CACHE_GB", "1e-9")  # smaller than one of them: all stay as they are
    load_data(two)
    assert len(list((tmp_path / "home" / "images").iterdir())) == 2


@pytest.mark.parametrize("limit", ["much", "-1", "nan"])
def test_a_limit_that_is_none_is_refused(limit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMBECK_CACHE_GB", limit)
    with pytest.raises(UserError, match="LIMBECK_CACHE_GB"):
        load_data(a_folder(tmp_path / "pictures"))


def test_arrays_are_not_kept(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x_train=np.zeros((9, 8, 8), np.uint8), y_train=np.arange(9) % 3)
    load_data(tmp_path / "a.npz")
    load_data("digits")
    assert not (tmp_path / "home").exists()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no /proc here")
def test_the_pixels_are_mapped_from_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So they take memory once: in the splits that are made of them."""
    source = a_folder(tmp_path / "pictures")
    load_data(source)
    (entry,) = (tmp_path / "home" / "images").iterdir()
    plain, maps = sources.assemble, []

    def look(raw: Any, **options: Any) -> ImageData:
        maps.append(str(entry) in Path("/proc/self/maps").read_text())
        return plain(raw, **options)

    monkeypatch.setattr(sources, "assemble", look)
    load_data(source)
    assert maps == [True]


def test_two_processes_at_once(tmp_path: Path) -> None:
    source = a_folder(tmp_path / "pictures")
    code = "import sys; from limbeck.data import load_data; print(load_data(sys.argv[1]).fingerprint)"
    command = [sys.executable, "-c", code, str(source)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert outputs == [(f"{no_cache(source).fingerprint}\n", "")] * 2
    assert [file.suffix for file in (tmp_path / "home" / "images").iterdir()] == [".safetensors"]


def test_many_images_are_announced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sources, "ANNOUNCED", 20)
    caplog.set_level(logging.INFO, "limbeck")
    for source in (a_folder(tmp_path / "pictures"), a_table(tmp_path / "t.parquet")):
        load_data(source)
        assert caplog.messages == [f"reading 20 images of {source}"]
        caplog.clear()
        load_data(source)
        assert caplog.messages == []


# The command


def test_the_command_shows_and_clears(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from limbeck.cli.main import main

    def call(*words: str) -> str:
        with pytest.raises(SystemExit) as end:
            main(["cache", *words])
        assert end.value.code == 0
        return capsys.readouterr().out

    home = tmp_path / "home"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "cache" / "limbeck" / "kernels").mkdir(parents=True)
    (tmp_path / "cache" / "limbeck" / "kernels" / "kernels.so").write_bytes(b"123")
    lock = tmp_path / "cache" / "limbeck" / "kernels" / "lock"
    lock.write_text("process 1 on here\n")
    load_data(a_folder(tmp_path / "pictures"))
    (entry,) = (home / "images").iterdir()
    (home / "experts" / "digits-1").mkdir(parents=True)
    (home / "experts" / "digits-1" / "expert-0000.safetensors").write_bytes(b"12345")
    outputs = json.loads(call("--json"))
    assert outputs["home"] == str(home)
    size = entry.stat().st_size
    assert outputs["entries"]["images"] == {entry.name: size}
    assert outputs["entries"]["experts"] == {"digits-1": 5}
    assert {name: count for name, count in outputs["bytes"].items() if count} == {
        "images": size,
        "experts": 5,
        "kernels": 3,
    }
    text = call()
    assert all(part in text for part in (entry.name, str(home / "images"), "5 B", "digits-1", "20 GB"))
    assert json.loads(call("--clear", "images", "baselines", "--json"))["bytes"]["images"] == 0
    assert json.loads(call("--clear", "kernels", "--json"))["bytes"]["kernels"] == 0
    assert [path.name for path in lock.parent.iterdir()] == ["lock"], "a process may be waiting for it"
    assert not entry.exists()
    assert (home / "experts" / "digits-1" / "expert-0000.safetensors").exists()


def test_the_command_clears_nothing_it_does_not_know(tmp_path: Path) -> None:
    from limbeck.cli.main import main

    with pytest.raises(SystemExit) as end:
        main(["cache", "--clear", "everything"])
    assert end.value.code == 2
