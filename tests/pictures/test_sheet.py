"""The sheet of pictures: where each one lies, whose title it has, and text that stays on the sheet."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from densesiam_seg.pictures.sheet import (
    BACKGROUND,
    GAP,
    INK,
    LINE,
    NARROWEST,
    Tile,
    comparison,
    fitted,
    sheet,
    with_legend,
)

RED, GREEN, BLUE = (200, 0, 0), (0, 200, 0), (0, 0, 200)


def plain(colour: tuple[int, int, int], height: int = 10, width: int = 10) -> NDArray[np.uint8]:
    return np.full((height, width, 3), colour, np.uint8)


def pixels(page: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(page)


def box(page: NDArray[np.uint8], colour: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """Top, left, bottom and right of what has a colour."""
    places = np.argwhere((page == colour).all(-1))
    (top, left), (bottom, right) = places.min(0), places.max(0) + 1
    return int(top), int(left), int(bottom), int(right)


def changes(one: Image.Image, two: Image.Image) -> NDArray[np.intp]:
    """Rows and columns of the pixels in which two sheets differ."""
    return np.argwhere((pixels(one) != pixels(two)).any(-1))


def test_every_picture_has_its_place() -> None:
    rows = [[plain(RED), plain(GREEN)], [plain(BLUE, 7, 7), plain(RED, 90, 90)]]
    page = comparison(("one", "two"), rows, side=40)
    assert page.mode == "RGB"
    assert page.size == (2 * 40 + 3 * GAP, LINE + GAP + 2 * (40 + GAP))
    found = pixels(page)
    for row, pictures in enumerate(((RED, GREEN), (BLUE, RED))):
        for column, colour in enumerate(pictures):
            top, left = LINE + GAP + row * (40 + GAP), GAP + column * (40 + GAP)
            assert (found[top : top + 40, left : left + 40] == colour).all()
            assert (found[top : top + 40, left - GAP : left] == BACKGROUND).all()
    assert (found[-GAP:] == BACKGROUND).all()


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (10, 10, (40, 40)),
        (30, 40, (30, 40)),
        (400, 300, (40, 30)),
        (3, 2, (40, 27)),
        (1, 5000, (1, 40)),
        (5000, 1, (40, 1)),
    ],
)
def test_pictures_keep_their_shape(height: int, width: int, expected: tuple[int, int]) -> None:
    assert fitted((height, width), 40) == expected
    page = sheet([[Tile(plain(RED, height, width))]], side=40)
    top, left, bottom, right = box(pixels(page), RED)
    assert (top, left) == (GAP, GAP)
    assert (bottom - top, right - left) == expected


def test_columns_are_as_wide_as_the_widest_picture_and_rows_as_high_as_their_highest() -> None:
    rows = [
        [Tile(plain(RED, 300, 200)), Tile(plain(GREEN, 100, 200))],
        [Tile(plain(BLUE, 50, 200))],
    ]
    page = pixels(sheet(rows, side=300))
    # Widths are 200, 300 and 300 of 300: the first column is as wide as the others.
    assert page.shape[1] == 2 * 300 + 3 * GAP
    assert page.shape[0] == 300 + 75 + 3 * GAP
    assert box(page, RED) == (GAP, GAP, GAP + 300, GAP + 200)
    assert box(page, GREEN) == (GAP, 2 * GAP + 300, GAP + 150, 2 * GAP + 600)
    assert box(page, BLUE) == (2 * GAP + 300, GAP, 2 * GAP + 375, GAP + 300)


def test_columns_of_upright_pictures_are_narrow_but_leave_room_for_a_title() -> None:
    for height, width in ((200, NARROWEST), (200, 2)):
        page = sheet([[Tile(plain(RED, height, width))] * 3], side=200)
        assert page.width == 3 * NARROWEST + 4 * GAP


class TestTitles:
    def page(self, title: str, colour: tuple[int, int, int] | None = None) -> Image.Image:
        rows = [
            [Tile(plain(BLUE), "first")],
            [Tile(plain(BLUE), title, colour), Tile(plain(GREEN), "beside")],
        ]
        return sheet(rows, side=150)

    def test_each_stands_between_the_picture_above_and_its_own(self) -> None:
        places = changes(self.page(""), self.page("Äjgy_("))
        upper = GAP + LINE + 150
        assert places[:, 0].min() >= upper + GAP
        assert places[:, 0].max() < upper + GAP + LINE
        assert places[:, 1].min() >= GAP

    def test_a_square_of_colour_stands_before_it(self) -> None:
        page = pixels(self.page("name", RED))
        top, left, bottom, right = box(page, RED)
        assert (left, bottom - top, right - left) == (GAP, 13, 13)
        assert (page == RED).all(-1).sum() == 13 * 13
        text = (page[top:bottom, right : GAP + 150] == INK).all(-1)
        assert text.any(0).argmax() >= 3

    @pytest.mark.parametrize("colour", [None, RED])
    def test_a_long_one_ends_in_an_ellipsis_before_the_next_column(
        self, colour: tuple[int, int, int] | None
    ) -> None:
        places = changes(self.page("", colour), self.page("W" * 200, colour))
        assert GAP + 120 < places[:, 1].max() < GAP + 150
        assert not len(changes(self.page("W" * 200, colour), self.page("W" * 300, colour)))

    @pytest.mark.parametrize(
        ("strange", "shown"),
        [("caf\u00e9", "cafe"), ("a\nb", r"a\nb"), ("\udcff", r"\udcff"), ("\x1b[2J", r"\x1b[2J")],
    )
    def test_strange_names_are_one_line_of_what_the_font_has(
        self, strange: str, shown: str
    ) -> None:
        assert not len(changes(self.page(strange), self.page(shown)))


def test_the_legend_shows_every_colour_with_its_name() -> None:
    legend = [("sky", RED), ("water", GREEN), ("a long name of a class", BLUE)]
    page = pixels(comparison(("x",), [[plain((9, 9, 9))]], legend, side=150))
    below = page[LINE + GAP + 150 + GAP :]
    assert len(below) == 2 * LINE  # the long name does not fit beside the others
    for _, colour in legend:
        assert (below == colour).all(-1).sum() == 13 * 13
    assert (below == INK).all(-1).sum() > 50


def test_an_entry_without_a_colour_is_text_alone() -> None:
    picture = [[plain(RED)]]
    places = changes(
        comparison(("x",), picture, [("sky", BLUE), ("", None)], side=150),
        comparison(("x",), picture, [("sky", BLUE), ("and 3 more", None)], side=150),
    )
    assert places[:, 0].min() >= LINE + GAP + 150 + GAP
    colours = {colour for _, colour in comparison(("x",), picture, [("a", None)]).getcolors() or []}
    assert colours >= {RED, BACKGROUND, INK}


class TestLegendBelow:
    ENTRIES = (("sky", (10, 20, 200)), ("road", (200, 30, 30)))

    @pytest.mark.parametrize(("size", "scale"), [((300, 200), 1), ((2400, 1600), 2)])
    def test_the_picture_keeps_its_size(self, size: tuple[int, int], scale: int) -> None:
        """Names are below it, in one line that grows with it."""
        picture = Image.new("RGB", size, (0, 90, 0))
        page = with_legend(picture, self.ENTRIES)
        assert page.width == size[0]
        assert page.height == size[1] + scale * (2 * GAP + LINE)
        assert page.crop((0, 0, *size)).tobytes() == picture.tobytes()
        below = np.asarray(page)[size[1] :]
        for _, colour in self.ENTRIES:
            assert (below == colour).all(2).sum() == (13 * scale) ** 2

    def test_narrow_pictures(self) -> None:
        """There is room for a name, on a line of its own."""
        page = with_legend(Image.new("RGB", (20, 10)), self.ENTRIES)
        assert page.size == (NARROWEST, 10 + 2 * GAP + LINE)
