"""Pictures of strangers: what a header claims is refused before memory is taken, in every format."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from image_files import make_class_folders, refuses, save_picture
from PIL import Image

from limbeck.data import load_data, memory

SIDE = 30_000


def patch(kind: str, offset: int, content: bytes, after: bytes = b"") -> bytes:
    """A picture of 8x8 pixels in which `content` replaces what stands at `offset` from the bytes `after`."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, kind)
    picture = bytearray(buffer.getvalue())
    start = picture.index(after) + offset
    picture[start : start + len(content)] = content
    return bytes(picture)


def tiff(width: int, height: int, compression: int) -> bytes:
    tags = [(256, width), (257, height), (258, 8), (259, compression), (262, 1), (273, 8), (278, height), (279, 4)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<I", 12) + b"abcd" + struct.pack("<H", len(tags)) + entries + bytes(4)


def png(*chunks: tuple[bytes, bytes], width: int = 5, height: int = 6) -> bytes:
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)), *chunks]
    parts += [(b"IDAT", zlib.compress(bytes(36))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in parts
    )


CLAIMS = {
    "PNG": png(width=SIDE, height=SIDE),
    "PNG that could be opened": png(width=11_000, height=11_000),
    "TIFF": tiff(SIDE, SIDE, 1),
    "TIFF of LZW": tiff(11_000, 11_000, 5),
    "TIFF of 4 G": tiff(2**32 - 1, 2**32 - 1, 1),
    "BMP": patch("BMP", 18, struct.pack("<ii", SIDE, SIDE)),
    "PPM": b"P6 30000 30000 255\n123",
    "GIF": patch("GIF", 6, struct.pack("<HH", SIDE, SIDE)),
    "JPEG": patch("JPEG", 5, struct.pack(">HH", SIDE, SIDE), b"\xff\xc0"),
    "QOI": b"qoif" + struct.pack(">II", SIDE, SIDE) + b"\3\0" + bytes(20),
    "SGI": patch("SGI", 6, struct.pack(">HH", SIDE, SIDE)),
    "JPEG 2000": patch("JPEG2000", 4, struct.pack(">II", SIDE, SIDE), b"ihdr"),
}


@pytest.mark.parametrize("kind", CLAIMS)
@pytest.mark.parametrize("suffix", [".png", ""])
def test_a_claim_of_many_pixels_takes_no_memory(tmp_path: Path, kind: str, suffix: str) -> None:
    folder = make_class_folders(tmp_path / "pets")
    (folder / "a" / f"big{suffix}").write_bytes(CLAIMS[kind])
    tracemalloc.start()
    refuses(folder, f"big{suffix}: ", "more", "than limbeck opens", "scale it down")
    assert tracemalloc.get_traced_memory()[1] < 5e6
    tracemalloc.stop()


BOMB = b"x\0\0" + zlib.compress(bytes(100_000_000), 9)


@pytest.mark.parametrize("chunk", [b"iCCP", b"zTXt"])
def test_bombs_beside_the_pixels_are_not_unpacked(tmp_path: Path, chunk: bytes) -> None:
    folder = make_class_folders(tmp_path / "pets")
    (folder / "a" / "bomb.png").write_bytes(png((chunk, BOMB)))
    tracemalloc.start()
    refuses(folder, "bomb.png: not an image that opens")
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("pixels", "needed"), [(np.zeros((6, 5, 3), np.uint8), 4), (np.full((6, 5), 40_000, np.uint16), 3)]
)
def test_the_first_image_in_colour_or_of_16_bits_is_refused_where_memory_does_not_hold_the_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pixels: np.ndarray, needed: int
) -> None:
    monkeypatch.setenv("LIMBECK_CACHE_GB", "0")
    folder = make_class_folders(tmp_path / "pets")
    save_picture(folder / "b" / "z.png", pixels)
    monkeypatch.setattr(memory, "machine_memory", lambda: needed * 11 * 30 - 1)
    refuses(folder, "11 images of 5x6 pixels need", "pass --resize")
    monkeypatch.setattr(memory, "machine_memory", lambda: needed * 11 * 30)
    assert load_data(folder).size == (6, 5)
