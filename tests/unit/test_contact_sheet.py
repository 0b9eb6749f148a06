"""The contact sheet: pixels of small images are kept, large ones are shrunk, and names of any kind are drawn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from limbeck.report import contact_sheet as module
from limbeck.report.contact_sheet import PER_LINE, Pair, Row, contact_sheet

COLUMNS = ("train (1)", "test (1)")


def block(value: int, height: int = 4, width: int = 4, channels: int = 1) -> Any:
    return np.full((channels, height, width), value, np.uint8)


def find(sheet: Image.Image, colour: tuple[int, int, int]) -> tuple[int, int, int, int] | None:
    """The box (left, top, right, bottom) around all pixels of a colour that text does not have."""
    ys, xs = np.nonzero((np.asarray(sheet) == colour).all(2))
    return (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) if len(xs) else None


def coloured(*colour: int, height: int = 4, width: int = 4) -> Any:
    return np.broadcast_to(np.array(colour, np.uint8)[:, None, None], (3, height, width)).copy()


def test_every_pixel_of_a_small_image_becomes_a_square() -> None:
    image = np.arange(16, dtype=np.uint8).reshape(1, 4, 4) * 10 + 50
    sheet = np.asarray(contact_sheet("t", ["train"], [Row("", "", [[image]])]))[..., 0]
    scale = 76 // 4
    left, top = module._MARGIN + module._NAME_WIDTH, module._MARGIN + 3 * module._TITLE
    cell = sheet[top : top + 76, left : left + 76]
    assert (cell == image[0].repeat(scale, 0).repeat(scale, 1)).all()


def test_images_stand_in_the_row_of_their_class_and_the_column_of_their_split() -> None:
    red, green, blue = (coloured(*colour) for colour in ((200, 1, 1), (1, 200, 1), (1, 1, 200)))
    rows = [Row("0 cat", "1 | 1", [[red], [green]]), Row("1 dog", "1 | 0", [[blue], []])]
    sheet = contact_sheet("t", COLUMNS, rows)
    boxes = [find(sheet, colour) for colour in ((200, 1, 1), (1, 200, 1), (1, 1, 200))]
    assert all(boxes)
    (left, top, right, _), (left2, top2, _, _), (left3, top3, _, _) = [box for box in boxes if box]
    assert (top, left) == (top2, left3)
    assert left2 >= right + (PER_LINE - 1) * (right - left)
    assert top3 > top
    assert find(sheet, module._RED) is not None, "'none' for the class without test images"


@pytest.mark.parametrize(
    ("height", "width", "cell"),
    [
        *((8, 8, (80, 80)), (28, 28, (84, 84)), (32, 32, (64, 64)), (64, 64, (64, 64)), (200, 200, (76, 76))),
        *((200, 260, (99, 76)), (100, 1000, (190, 19)), (1000, 10, (1, 76)), (1, 1, (76, 76)), (30, 300, (190, 19))),
    ],
)
def test_cells_are_about_as_large_whatever_the_images(height: int, width: int, cell: tuple[int, int]) -> None:
    sheet = contact_sheet("t", ["train"], [Row("", "", [[coloured(200, 1, 1, height=height, width=width)]])])
    box = find(sheet, (200, 1, 1))
    assert box is not None
    assert (box[2] - box[0], box[3] - box[1]) == cell


def test_more_images_than_a_line_holds_begin_a_new_line() -> None:
    images = [coloured(200, 1, index) for index in range(PER_LINE + 1)]
    sheet = contact_sheet("t", ["train"], [Row("", "", [images]), Row("", "", [[coloured(1, 200, 1)]])])
    first, last, below = find(sheet, (200, 1, 0)), find(sheet, (200, 1, PER_LINE)), find(sheet, (1, 200, 1))
    assert first is not None
    assert last is not None
    assert below is not None
    assert (last[0], last[1] >= first[3], below[1] >= last[3]) == (first[0], True, True)


def test_pairs_stand_below_side_by_side_and_grave_ones_in_red() -> None:
    rows = [Row("cat", "", [[block(99)], [block(99)]])]
    captions = (("train 5", "cat"), ("test 7", "dog"))
    pair = Pair((coloured(200, 1, 1), coloured(1, 200, 1)), captions, "equal")
    sheet = contact_sheet("t", COLUMNS, rows, pairs=[pair] * 9)
    first, second = find(sheet, (200, 1, 1)), find(sheet, (1, 200, 1))
    above = find(sheet, (99, 99, 99))
    assert first is not None
    assert second is not None
    assert above is not None
    assert (first[1] == second[1], first[1] > above[3]) == (True, True)
    assert first[2] <= sheet.width
    assert second[2] <= sheet.width
    assert find(sheet, module._RED) is None
    grave = Pair(pair.images, captions, "equal, other label", True)
    assert find(contact_sheet("t", COLUMNS, rows, pairs=[grave]), module._RED) is not None


NAMES = ["", "猫", "котёнок", "ümläut", "[bold]x[/]", "a\x1b[31m\nb", "\udcff", "x" * 10_000, "שלום", "🙂", "‮abc"]


@pytest.mark.parametrize("name", NAMES)
def test_any_name_can_be_drawn_and_does_not_reach_the_images(name: str) -> None:
    rows = [Row(name, name, [[block(99)]])]
    pairs = [Pair((block(99), block(99)), ((name, name), (name, name)), name)]
    sheet, plain = (contact_sheet(text, ["train"], rows, f"note: {text}", pairs) for text in (name, "plain"))
    assert sheet.size == plain.size
    box = find(sheet, (99, 99, 99))
    assert box is not None
    assert np.asarray(sheet)[:, : module._MARGIN].min() == 255, "nothing in the margins"


def test_letters_beyond_ascii_are_drawn_as_themselves() -> None:
    rows = [[Row(name, "", [[block(99)]])] for name in ("кот", "кит", "ko")]
    first, second, third = (contact_sheet("t", ["train"], row).tobytes() for row in rows)
    assert len({first, second, third}) == 3


def test_a_sheet_without_images_is_refused() -> None:
    with pytest.raises(ValueError, match="no row has an image"):
        contact_sheet("t", ["train"], [Row("cat", "", [[]])])
