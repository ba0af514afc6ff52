"""Score tables → a chart: one line per row, a dot for each seed, the mean with its standard deviation.

Drawn with Pillow at twice its size and then reduced, which smooths the edges.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from densesiam_seg.pictures.masks import Colour

BACKGROUND = (255, 255, 255)
INK = (30, 30, 30)
GRID = (222, 222, 222)
FAINT = (130, 130, 130)
MEAN = (24, 90, 168)
SEED = (240, 150, 60)

SMOOTH = 2
FONT = 18
LINE = 42
GAP = 28
PANEL = 460
TOP = 40
BOTTOM = 92
RADIUS = 7
SEED_RADIUS = 4
SEED_DROP = 14


@dataclass(frozen=True)
class Panel:
    """One axis: `values` hold a list for every row, with one number per seed, or none where the row has no result."""

    title: str
    unit: str
    values: Sequence[Sequence[float]]


@dataclass(frozen=True)
class Axis:
    """Numbers from `low` to `high` on the pixels from `left` to `right`, with a tick at every one of `ticks`."""

    low: float
    high: float
    left: float
    right: float
    ticks: tuple[float, ...]
    digits: int

    def place(self, value: float) -> float:
        """The pixel of a number."""
        return self.left + (value - self.low) / (self.high - self.low) * (self.right - self.left)


def axis(values: Sequence[float], left: float, right: float) -> Axis:
    """An axis that holds all values, from one round number to another, with ticks 1, 2 or 5 times a power of ten apart.

    Without values, or with equal ones, it is one unit to either side.
    """
    low, high = (min(values), max(values)) if values else (0.0, 0.0)
    if high - low < 1e-9:
        low, high = low - 1.0, high + 1.0
    rough = (high - low) / 5
    power = math.floor(math.log10(rough))
    step = next(f * 10.0**power for f in (1, 2, 5, 10) if f * 10.0**power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(k * step for k in range(first, last + 1))
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return Axis(ticks[0], ticks[-1], left, right, ticks, digits)


def dot_chart(rows: Sequence[str], panels: Sequence[Panel], *, note: str = "") -> Image.Image:
    """A chart whose lines are `rows`, from the top, and whose panels stand side by side; `note` is a line below.

    A large dot is a row's mean, its bar one standard deviation (n - 1) to either side; small dots are the seeds.
    """
    assert rows and panels, "something to draw"
    assert all(len(panel.values) == len(rows) for panel in panels), "values for every row"
    font = ImageFont.load_default(SMOOTH * FONT)
    names = max(font.getlength(name) for name in rows) / SMOOTH
    width = GAP + names + len(panels) * (GAP + PANEL) + GAP
    width = math.ceil(max(width, font.getlength(note) / SMOOTH + 2 * GAP))
    height = TOP + LINE * len(rows) + BOTTOM
    picture = Image.new("RGB", (SMOOTH * width, SMOOTH * height), BACKGROUND)
    pen = _Pen(ImageDraw.Draw(picture), font)
    for index, name in enumerate(rows):
        pen.text((GAP + names, _middle(index)), name, INK, "rm")
    for number, panel in enumerate(panels):
        _draw_panel(pen, panel, GAP + names + GAP + number * (PANEL + GAP), len(rows))
    if note:
        pen.text((GAP, height - 18), note, FAINT, "lm")
    return picture.reduce(SMOOTH)


def _middle(row: int) -> float:
    return TOP + LINE * row + 18.0


def _draw_panel(pen: _Pen, panel: Panel, left: float, rows: int) -> None:
    """Frame, ticks and rows of one panel; the values keep clear of its edges."""
    right, bottom = left + PANEL, TOP + LINE * rows
    reach = [_reach(values) for values in panel.values if values]
    scale = axis([end for ends in reach for end in ends], left + 2 * RADIUS, right - 2 * RADIUS)
    pen.text(((left + right) / 2, TOP / 2), panel.title, INK, "mm")
    for tick in scale.ticks:
        x = scale.place(tick)
        pen.line((x, TOP, x, bottom + 6), GRID, 1)
        pen.text((x, bottom + 20), f"{tick:.{scale.digits}f}", INK, "mm")
    pen.text(((left + right) / 2, bottom + 46), panel.unit, INK, "mm")
    pen.frame((left, TOP, right, bottom), FAINT)
    for row, values in enumerate(panel.values):
        if values:
            _draw_row(pen, scale, values, _middle(row))
        else:
            pen.text(((left + right) / 2, _middle(row)), "no result", FAINT, "mm")


def _draw_row(pen: _Pen, scale: Axis, values: Sequence[float], y: float) -> None:
    """The mean in the middle of the line, and below it the seeds, which it would hide."""
    if len(values) > 1:
        low, high = (scale.place(end) for end in _deviation(values))
        pen.line((low, y, high, y), MEAN, 3)
        for x in (low, high):
            pen.line((x, y - 7, x, y + 7), MEAN, 3)
        for value in values:
            pen.dot((scale.place(value), y + SEED_DROP), SEED_RADIUS, SEED)
    pen.dot((scale.place(statistics.fmean(values)), y), RADIUS, MEAN)


def _deviation(values: Sequence[float]) -> tuple[float, float]:
    mean = statistics.fmean(values)
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return mean - deviation, mean + deviation


def _reach(values: Sequence[float]) -> tuple[float, float]:
    """The least and the largest number that is drawn for a row."""
    low, high = _deviation(values)
    return min(low, *values), max(high, *values)


class _Pen:
    """Draws in the chart's own pixels on the enlarged picture."""

    def __init__(
        self, draw: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont | ImageFont.ImageFont
    ) -> None:
        self.draw = draw
        self.font = font

    def text(self, place: tuple[float, float], text: str, colour: Colour, anchor: str) -> None:
        x, y = place
        self.draw.text((SMOOTH * x, SMOOTH * y), text, colour, self.font, anchor)

    def line(self, ends: tuple[float, float, float, float], colour: Colour, width: int) -> None:
        self.draw.line([SMOOTH * end for end in ends], colour, SMOOTH * width)

    def frame(self, corners: tuple[float, float, float, float], colour: Colour) -> None:
        self.draw.rectangle([SMOOTH * corner for corner in corners], outline=colour, width=SMOOTH)

    def dot(self, centre: tuple[float, float], radius: float, colour: Colour) -> None:
        x, y = centre
        box = (x - radius, y - radius, x + radius, y + radius)
        self.draw.ellipse([SMOOTH * edge for edge in box], fill=colour)
