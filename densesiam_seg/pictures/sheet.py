"""Pictures for people: rows of pictures side by side, each under a line of text, and a legend.

Axes: H W picture size.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from densesiam_seg.pictures.masks import Colour

GAP = 6
LINE = 22
SWATCH = 17
"""From the left of a square of colour to the name that it belongs to."""
READABLE = 1200
"""Longer side up to which a picture is looked at in its own size; text grows with larger ones."""
NARROWEST = 120
"""Of a column, so that its titles can be read; less only where pictures of any shape are to be smaller."""
BACKGROUND = (250, 250, 250)
INK = (30, 30, 30)

Legend = Sequence[tuple[str, Colour | None]]
"""Names and the colours of the squares before them."""


@dataclass(frozen=True)
class Tile:
    """One picture (H, W, 3) of a sheet, the line above it, and the colour of a square before that line."""

    picture: NDArray[np.uint8]
    title: str = ""
    colour: Colour | None = None


def comparison(
    titles: Sequence[str],
    rows: Sequence[Sequence[NDArray[np.uint8]]],
    legend: Legend = (),
    *,
    side: int = 192,
) -> Image.Image:
    """A sheet with one column per title, which stands above the first row, and one row per image."""
    first, *others = rows
    top = [Tile(picture, title) for title, picture in zip(titles, first, strict=True)]
    return sheet([top, *([Tile(picture) for picture in row] for row in others)], legend, side=side)


def sheet(rows: Sequence[Sequence[Tile]], legend: Legend = (), *, side: int = 192) -> Image.Image:
    """Rows of pictures, each as large as fits `side` × `side`, and a legend of names and their colours below.

    Rows may differ in length. Columns are as wide as the widest picture; text that finds no room ends in an ellipsis.
    """
    assert rows and all(rows), "a picture in every row"
    sizes = [[fitted(tile.picture.shape[:2], side) for tile in row] for row in rows]
    cell = max([min(side, NARROWEST), *(width for row in sizes for _, width in row)])
    tops, bottom = [], 0
    for row, shapes in zip(rows, sizes, strict=True):
        tops.append(bottom + GAP + (LINE if any(tile.title for tile in row) else 0))
        bottom = tops[-1] + max(height for height, _ in shapes)
    width = max(map(len, rows)) * (cell + GAP) + GAP
    lines = _legend_lines(legend, width)
    page = Image.new("RGB", (width, bottom + GAP + len(lines) * LINE), BACKGROUND)
    draw = ImageDraw.Draw(page)
    for row, shapes, top in zip(rows, sizes, tops, strict=True):
        for column, (tile, (high, wide)) in enumerate(zip(row, shapes, strict=True)):
            left = GAP + column * (cell + GAP)
            _write(draw, left, top - LINE + 4, tile.title, tile.colour, cell)
            small = Image.fromarray(tile.picture).resize((wide, high), Image.Resampling.BILINEAR)
            page.paste(small, (left, top))
    for line, entries in enumerate(lines):
        for left, name, colour in entries:
            _write(draw, left, bottom + GAP + line * LINE, name, colour, width - GAP - left)
    return page


def with_legend(picture: Image.Image, legend: Legend) -> Image.Image:
    """A picture in its own size with names and their colours below it, larger where the picture is."""
    scale = max(round(max(picture.size) / READABLE), 1)
    width = max(picture.width, NARROWEST)
    lines = _legend_lines(legend, width // scale)
    page = Image.new(
        "RGB", (width, picture.height + (2 * GAP + len(lines) * LINE) * scale), BACKGROUND
    )
    page.paste(picture, (0, 0))
    draw = ImageDraw.Draw(page)
    for line, entries in enumerate(lines):
        top = picture.height + (GAP + line * LINE) * scale
        for left, name, colour in entries:
            room = width - (GAP + left) * scale
            _write(draw, left * scale, top, name, colour, room, scale)
    return page


def fitted(size: Sequence[int], side: int) -> tuple[int, int]:
    """H, W of a picture of `size` (H, W) when its longer side becomes `side`."""
    height, width = size
    longer = max(height, width)
    return max(round(side * height / longer), 1), max(round(side * width / longer), 1)


def _write(
    draw: ImageDraw.ImageDraw,
    left: int,
    top: int,
    text: str,
    colour: Colour | None,
    room: int,
    scale: int = 1,
) -> None:
    """One line of at most `room` pixels, after a square of `colour`; everything `scale` times as large."""
    if colour is not None:
        corners = (left, top + 3 * scale, left + 13 * scale - 1, top + 16 * scale - 1)
        draw.rectangle(corners, fill=colour)
        left, room = left + SWATCH * scale, room - SWATCH * scale
    font = ImageFont.load_default(14 * scale)
    whole = shown = _drawable(text)
    while shown and font.getlength(shown) > room:
        whole = whole[:-1]
        shown = whole.rstrip() + "…" if whole else ""
    draw.text((left, top), shown, INK, font)


def _legend_lines(legend: Legend, width: int) -> list[list[tuple[int, str, Colour | None]]]:
    """The entries of each line, each with the place where it begins."""
    font = ImageFont.load_default(14)
    lines: list[list[tuple[int, str, Colour | None]]] = []
    left = width
    for name, colour in legend:
        needed = (SWATCH if colour is not None else 0) + int(font.getlength(_drawable(name))) + 14
        if left + needed > width:
            lines.append([])
            left = GAP
        lines[-1].append((left, name, colour))
        left += needed
    return lines


def _drawable(text: str) -> str:
    """One line; the font knows no accents, and control codes or bytes that are not text have no picture."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in plain)
