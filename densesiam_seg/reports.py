"""Pictures for people: rows of image, clusters and truth side by side.

Axes: H W picture size.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from densesiam_seg.masks import Colour

GAP = 6
LINE = 22
BACKGROUND = (250, 250, 250)
INK = (30, 30, 30)


def comparison(
    titles: Sequence[str],
    rows: Sequence[Sequence[NDArray[np.uint8]]],
    legend: Sequence[tuple[str, Colour]] = (),
    *,
    side: int = 192,
) -> Image.Image:
    """A sheet with one column per title and one row per image, each picture `side` pixels wide, and a legend below."""
    columns = len(titles)
    assert all(len(row) == columns for row in rows), "a picture for every title"
    width = columns * side + (columns + 1) * GAP
    lines = _legend_lines(legend, width)
    height = LINE + GAP + len(rows) * (side + GAP) + len(lines) * LINE
    sheet = Image.new("RGB", (width, height), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(14)
    for column, title in enumerate(titles):
        draw.text((GAP + column * (side + GAP), 4), title, INK, font)
    for row, pictures in enumerate(rows):
        for column, picture in enumerate(pictures):
            small = Image.fromarray(picture).resize((side, side), Image.Resampling.BILINEAR)
            sheet.paste(small, (GAP + column * (side + GAP), LINE + GAP + row * (side + GAP)))
    for line, entries in enumerate(lines):
        top = height - (len(lines) - line) * LINE
        for left, name, colour in entries:
            draw.rectangle((left, top + 3, left + 12, top + 15), fill=colour)
            draw.text((left + 17, top), name, INK, font)
    return sheet


def _legend_lines(
    legend: Sequence[tuple[str, Colour]], width: int
) -> list[list[tuple[int, str, Colour]]]:
    font = ImageFont.load_default(14)
    lines: list[list[tuple[int, str, Colour]]] = []
    left = width
    for name, colour in legend:
        needed = 17 + int(font.getlength(name)) + 14
        if left + needed > width:
            lines.append([])
            left = GAP
        lines[-1].append((left, name, colour))
        left += needed
    return lines
