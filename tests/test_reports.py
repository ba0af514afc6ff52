"""The sheet of pictures: where each one lies, and a legend that stays on the sheet."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from densesiam_seg.reports import BACKGROUND, GAP, INK, LINE, comparison

RED, GREEN, BLUE = (200, 0, 0), (0, 200, 0), (0, 0, 200)


def plain(colour: tuple[int, int, int], height: int = 10, width: int = 10) -> NDArray[np.uint8]:
    return np.full((height, width, 3), colour, np.uint8)


def pixels(sheet: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(sheet)


def test_every_picture_has_its_place() -> None:
    rows = [[plain(RED), plain(GREEN)], [plain(BLUE, 7, 90), plain(RED, 50, 3)]]
    sheet = comparison(("one", "two"), rows, side=40)
    assert sheet.mode == "RGB"
    assert sheet.size == (2 * 40 + 3 * GAP, LINE + GAP + 2 * (40 + GAP))
    found = pixels(sheet)
    for row, pictures in enumerate(((RED, GREEN), (BLUE, RED))):
        for column, colour in enumerate(pictures):
            top, left = LINE + GAP + row * (40 + GAP), GAP + column * (40 + GAP)
            assert (found[top : top + 40, left : left + 40] == colour).all()
            assert (found[top : top + 40, left - GAP : left] == BACKGROUND).all()
    assert (found[-GAP:] == BACKGROUND).all()


def test_pictures_keep_their_content() -> None:
    half = plain(RED, 20, 20)
    half[:, 10:] = BLUE
    found = pixels(comparison(("x",), [[half]], side=40))[LINE + GAP :, GAP:]
    assert (found[:40, :18] == RED).all()
    assert (found[:40, 22:40] == BLUE).all()


def test_titles_stand_above_their_columns() -> None:
    blank = comparison(("", ""), [[plain(RED), plain(RED)]], side=60)
    titled = comparison(("", "two"), [[plain(RED), plain(RED)]], side=60)
    changed = np.argwhere((pixels(blank) != pixels(titled)).any(-1))
    assert len(changed) > 10
    assert changed[:, 0].max() < LINE
    assert changed[:, 1].min() >= GAP + 60 + GAP


def test_the_legend_shows_every_colour_with_its_name() -> None:
    legend = [("sky", RED), ("water", GREEN), ("a long name of a class", BLUE)]
    sheet = pixels(comparison(("x",), [[plain((9, 9, 9))]], legend, side=150))
    below = sheet[LINE + GAP + 150 + GAP :]
    assert len(below) == 2 * LINE  # the long name does not fit beside the others
    for _, colour in legend:
        assert (below == colour).all(-1).sum() == 13 * 13
    assert (below == INK).all(-1).sum() > 50


@pytest.mark.parametrize("count", [1, 5, 27, 60])
def test_a_legend_of_any_length_stays_on_the_sheet(count: int) -> None:
    legend = [(f"class {k}", (k + 1, 255 - k, 7)) for k in range(count)]
    sheet = pixels(comparison(("x", "y"), [[plain(RED), plain(RED)]], legend, side=100))
    for _, colour in legend:
        assert (sheet == colour).all(-1).sum() == 13 * 13


def test_a_name_wider_than_the_sheet_has_a_line_of_its_own() -> None:
    legend = [("n" * 300, GREEN), ("sky", BLUE)]
    sheet = pixels(comparison(("x",), [[plain(RED)]], legend, side=50))
    assert sheet.shape[0] == LINE + GAP + 50 + GAP + 2 * LINE
    assert (sheet == BLUE).all(-1).sum() == 13 * 13


def test_without_rows() -> None:
    assert comparison(("x",), [], side=50).size == (50 + 2 * GAP, LINE + GAP)


def test_a_row_with_a_picture_too_few_is_a_mistake() -> None:
    with pytest.raises(AssertionError, match="a picture for every title"):
        comparison(("one", "two"), [[plain(RED)]])
