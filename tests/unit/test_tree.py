"""Trees of files: links, what is neither file nor folder, and limits before memory is taken."""

from __future__ import annotations

import os
import struct
import sys
import zlib
from pathlib import Path

import pytest
from image_files import grey, refuses, save_picture

from limbeck.core.errors import UserError
from limbeck.data import ImageData, load_data, memory
from limbeck.data.tree import File, Folder, file_on_disk, read_folder_tree


def make(folder: Path, names: tuple[str, ...] = ("cat", "dog"), count: int = 5) -> Path:
    for k, name in enumerate(names):
        for i, pixels in enumerate(grey(count, seed=k)):
            save_picture(folder / name / f"{i}.png", pixels)
    return folder


def paths(folder: Folder) -> list[str]:
    return [path for path, _ in folder.walk()]


def same_images(first: ImageData, second: ImageData) -> bool:
    return first.fingerprint == second.fingerprint


def test_a_folder_is_visited_once_however_links_lead_to_it(tmp_path: Path) -> None:
    plain = load_data(make(tmp_path / "plain"))
    linked = make(tmp_path / "linked")
    (linked / "cat" / "up").symlink_to("..", target_is_directory=True)
    (linked / "cat" / "self").symlink_to(".", target_is_directory=True)
    (linked / "dog" / "cats").symlink_to(linked / "cat", target_is_directory=True)
    (linked / "a").symlink_to("b")
    (linked / "b").symlink_to("a")  # a circle of links
    data = load_data(linked)
    assert same_images(data, plain)
    assert "left out: links to folders that are read at another place (3)" in data.notes
    assert any(note.startswith("left out: links that cannot be followed") and "(2)" in note for note in data.notes)


def test_a_link_that_leaves_the_folder_is_refused_unless_asked_for(tmp_path: Path) -> None:
    source = make(tmp_path / "pets", ("cat",))
    make(tmp_path / "more", ("other", "dog"))
    (source / "dog").symlink_to(tmp_path / "more" / "dog", target_is_directory=True)
    refuses(source, "pets/dog: a link to a folder outside", "--follow-links")
    data = load_data(source, follow_links=True)
    assert same_images(data, load_data(make(tmp_path / "plain")))
    (tmp_path / "more" / "dog" / "back").symlink_to(tmp_path, target_is_directory=True)
    again = load_data(source, follow_links=True)  # the link leads above the source, to everything
    assert same_images(again, data)
    assert "left out: links to folders that are read at another place (1)" in again.notes


def test_the_source_and_its_files_may_be_links(tmp_path: Path) -> None:
    real = make(tmp_path / "real")
    for file in real.rglob("*.png"):
        link = tmp_path / "linked" / file.relative_to(real)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(file)
    (tmp_path / "source").symlink_to(tmp_path / "linked", target_is_directory=True)
    refuses(tmp_path / "source", ".png: a link to a file outside", "--follow-links")
    data, plain = load_data(tmp_path / "source", follow_links=True), load_data(real)
    assert (data.fingerprint, data.notes) == (plain.fingerprint, plain.notes)


@pytest.mark.skipif(sys.platform == "win32", reason="no pipes among files there")
def test_broken_links_and_pipes_are_left_out_and_noted(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "cat" / "gone.png").symlink_to("nowhere.png")
    os.mkfifo(tmp_path / "cat" / "pipe.png")  # opening it would wait for ever
    data = load_data(tmp_path)
    assert "left out: broken links (1)" in data.notes
    assert "left out: entries that are neither files nor folders (1)" in data.notes
    os.mkfifo(tmp_path / "pipe")
    refuses(tmp_path / "pipe", "pipe: neither a file nor a folder")


def test_a_tree_is_in_order_and_finds_paths(tmp_path: Path) -> None:
    for name in ("b/2.txt", "b/10.txt", "a/x/1.txt", "0.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    root = read_folder_tree(tmp_path).root
    assert paths(root) == ["0.txt", "a/x/1.txt", "b/10.txt", "b/2.txt"]
    assert [path for path, _ in root.all_folders()] == ["a", "a/x", "b"]
    assert [file.read() for file in map(root.find, ("./b//2.txt", "b\\2.txt")) if file] == [b"b/2.txt"] * 2
    assert [root.find(path) for path in ("../b/2.txt", "b/3.txt", "", "b", "a/1.txt")] == [None] * 5
    digest = root.digest()
    (tmp_path / "c").mkdir()  # an empty folder counts: a class without images is refused
    assert read_folder_tree(tmp_path).root.digest() != digest


def test_a_large_file_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(bytes(100))
    file = file_on_disk(tmp_path / "x")
    assert file.read(100) == bytes(100)
    with pytest.raises(UserError, match="100 bytes, where at most 99 are read"):
        file.read(99)
    assert len(File("x", 3, file.open).read()) == 3  # a file that grew since it was listed


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    size = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    content = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + content + chunk(b"IEND", b"")


@pytest.mark.parametrize(("width", "height"), [(30_000, 30_000), (12_000, 12_000), (1 << 30, 1)])
def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path: Path, width: int, height: int) -> None:
    make(tmp_path)
    (tmp_path / "cat" / "big.png").write_bytes(png_header(width, height))
    refuses(tmp_path, "big.png", "more", "than limbeck opens")


def test_images_that_memory_does_not_hold_are_refused_before_it_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, count=20)
    monkeypatch.setattr(memory, "machine_memory", lambda: 40 * 30 - 1)
    refuses(tmp_path, "40 images of 5x6 pixels need", "pass --resize")
    assert load_data(tmp_path, resize=5).size == (5, 5)


def make_run(folder: Path) -> Path:
    """A run folder as far as readers of data see it: its record, and previews, which are pictures."""
    save_picture(folder / "previews" / "last.png", grey(1, seed=9)[0])
    (folder / "run.json").write_text('{\n  "format": "limbeck-run"\n}')
    return folder


def test_runs_inside_the_data_folder_are_no_class(tmp_path: Path) -> None:
    """`cd photos; limbeck distill .` writes runs/NAME there, and the next command reads the folder again."""
    photos = make(tmp_path / "photos")
    before = load_data(photos)
    make_run(photos / "runs" / "first")
    make_run(photos / "runs" / "second")
    make_run(photos / "out")
    data = load_data(photos)
    assert same_images(data, before)
    assert "left out: runs and stores of limbeck (3)" in data.notes
    (photos / "shop").mkdir()
    (photos / "shop" / "store.json").write_text('{"shop": 1}')  # a record of somebody else
    save_picture(photos / "shop" / "0.png", grey(1)[0])
    assert load_data(photos).classes == ("cat", "dog", "shop")


def test_a_folder_of_runs_is_no_data_set(tmp_path: Path) -> None:
    make_run(tmp_path / "runs" / "first")
    make_run(tmp_path / "runs" / "second")
    sentence = refuses(tmp_path / "runs", "runs: a folder of runs of limbeck", "name one of them")
    assert str(tmp_path / "runs" / "first") in sentence
