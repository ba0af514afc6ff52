"""Outlines of the regions of a mask as polygons, exactly: traced along the borders of pixels.

Axes: H W mask. A place is (x, y); pixel (row, column) covers [column, column + 1] x [row, row + 1].

A region is connected over the sides of its pixels. Its polygon is one closed line: a hole is joined to what is left of
it by a bridge, a line that is walked there and back. The line runs `INSET` inside the border, so that a reader that
cuts off decimals finds pixels of the region, and one that asks for the centres of pixels finds the region alone.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

INSET = 0.1
"""Distance from the border, in pixels."""
BRIDGE = 0.25
"""Height of a bridge in its row of pixels, so that no centre of a pixel lies on it."""

Polygon = NDArray[np.float64]
"""Places (n, 2) of a closed line; the last one is joined to the first."""

# Sides of a pixel, each walked with the pixel on the right: above to the right, right down, below to the left, left up.
_ABOVE, _RIGHT, _BELOW, _LEFT = range(4)
_STEPS = np.array([(1, 0), (0, 1), (-1, 0), (0, -1)])
"""The direction (x, y) in which each side is walked."""
_STARTS = np.array([(0, 0), (1, 0), (1, 1), (0, 1)])
"""Where each side begins, from the pixel's upper left corner."""
_INWARD = np.array([(0, 1), (-1, 0), (0, -1), (1, 0)])
"""The direction from each side into the pixel."""


def outlines(mask: NDArray[np.integer], most: int | None = None) -> list[tuple[int, Polygon]]:
    """The value and the polygon of each region of a mask (H, W), in the order of their uppermost, leftmost pixels.

    A region whose polygon would have more than `most` corners is cut into halves, as often as it takes.
    """
    if mask.size == 0:
        return []
    sides = _Sides(mask)
    lines = _Lines(sides)
    found = []
    for start in lines.outer:
        value, walked = int(mask.ravel()[sides.pixel[start]]), lines.walk(start)
        places = _places(sides, walked)
        if most is None or len(places) <= most:
            found.append((value, places))
        else:
            found += [(value, part) for part in _halves(*_region(sides, walked), most)]
    return found


def _region(sides: _Sides, walked: list[int]) -> tuple[NDArray[np.bool_], int, int]:
    """The pixels of a region by the sides of its line, in the box around it; the box's upper row and left column."""
    order = np.array([side for side in walked if side >= 0])
    starts, ends = (np.unique(sides.pixel[order[sides.side[order] == k]]) for k in (_LEFT, _RIGHT))
    rows, first = np.divmod(starts, sides.width)
    last = ends % sides.width
    top, left = int(rows.min()), int(first.min())
    pixels = np.zeros((int(rows.max()) - top + 1, int(last.max()) - left + 1), bool)
    for row, begin, end in zip(rows - top, first - left, last - left, strict=True):
        pixels[row, begin : end + 1] = True
    return pixels, top, left


def _halves(pixels: NDArray[np.bool_], top: int, left: int, most: int) -> list[Polygon]:
    """The polygons of both halves of a region, which is cut across its longer side."""
    height, width = pixels.shape
    down, right = (height // 2, width) if height >= width else (height, width // 2)
    parts = [(0, 0, pixels[:down, :right])]
    parts.append((down, 0, pixels[down:]) if right == width else (0, right, pixels[:, right:]))
    return [
        places + np.array([left + column, top + row])
        for row, column, part in parts
        for value, places in outlines(part.astype(np.int8), most)
        if value
    ]


class _Sides:
    """The sides of pixels that lie on borders, numbered; `following` is the next one along the same border."""

    def __init__(self, mask: NDArray[np.integer]) -> None:
        height, self.width = mask.shape
        framed = np.full((height + 2, self.width + 2), np.iinfo(np.int32).min, np.int32)
        framed[1:-1, 1:-1] = mask
        own = framed[1:-1, 1:-1]
        beside = (framed[:-2, 1:-1], framed[1:-1, 2:], framed[2:, 1:-1], framed[1:-1, :-2])
        self.mask = own
        self.known = np.flatnonzero(np.stack([own != each for each in beside], -1))
        """4 · pixel + side of each, in ascending order."""
        self.pixel, self.side = np.divmod(self.known, 4)
        rows, columns = np.divmod(self.pixel, self.width)
        value = own[rows, columns]

        def alike(steps: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
            """Whether the pixel at a step from each side's is of the same value, and which it is."""
            down, right = steps[self.side].T
            found = framed[rows + 1 + down, columns + 1 + right] == value
            return found, self.pixel + down * self.width + right

        straight, on = alike(np.array([(0, 1), (1, 0), (0, -1), (-1, 0)]))
        turned, over = alike(np.array([(-1, 1), (1, 1), (1, -1), (-1, -1)]))
        following = np.where(
            ~straight,
            4 * self.pixel + (self.side + 1) % 4,
            np.where(turned, 4 * over + (self.side + 3) % 4, 4 * on + self.side),
        )
        self.following: NDArray[np.int64] = np.searchsorted(self.known, following)

    def number(self, pixel: int, side: int) -> int:
        """Of a side that lies on a border."""
        return int(np.searchsorted(self.known, 4 * pixel + side))


class _Lines:
    """Closed lines along the borders: outer ones, and those of holes, each joined to another line by a bridge."""

    def __init__(self, sides: _Sides) -> None:
        self.sides = sides
        self.following: list[int] = sides.following.tolist()
        self.outer: list[int] = []
        """The first side of each outer line, which lies above a pixel."""
        self.bridges: dict[int, int] = {}
        """From a side of a line to the side of a hole's line that a bridge leads to."""
        kinds, seen = sides.side.tolist(), bytearray(len(self.following))
        for start in range(len(seen)):
            if seen[start]:
                continue
            side = start
            while not seen[side]:
                seen[side] = 1
                side = self.following[side]
            if kinds[start] == _ABOVE:
                self.outer.append(start)
            else:
                self._join(start)

    def _join(self, start: int) -> None:
        """Find the bridge of the hole whose line has `start` as its first side, which lies below a pixel."""
        width = self.sides.width
        hole = int(self.sides.pixel[start]) + width  # its uppermost, leftmost pixel
        row, column = divmod(hole, width)
        # To the left of the hole is a run of the region; what lies beyond its beginning is no part of this hole.
        before = self.sides.mask[row, :column]
        others = np.flatnonzero(before != before[-1])
        first = int(others[-1]) + 1 if len(others) else 0
        target = self.sides.number(row * width + first, _LEFT)
        self.bridges[target] = self.sides.number(hole - 1, _RIGHT)

    def walk(self, start: int) -> list[int]:
        """The sides of an outer line in their order; at a bridge -1, the hole's line, and -1 again.

        The sides at both ends of a bridge are there twice, since it cuts them into two.
        """
        found: list[int] = []
        waiting: list[tuple[int, int]] = []
        side, end = start, start
        while True:
            found.append(side)
            hole = self.bridges.get(side)
            if hole is not None:
                found.append(-1)
                waiting.append((side, end))
                side = end = hole
                found.append(side)
                side = self.following[side]
                continue
            side = self.following[side]
            while side == end and waiting:
                found += [side, -1]
                side, end = waiting.pop()
                found.append(side)
                side = self.following[side]
            if side == end:
                return found


def _places(sides: _Sides, walked: list[int]) -> Polygon:
    """The corners of a line, moved into the region."""
    order = np.array(walked)
    bridge = order < 0
    side = np.where(bridge, 0, sides.side[order])
    pixel = np.where(bridge, 0, sides.pixel[order])
    row, column = np.divmod(pixel, sides.width)
    corners = np.stack([column, row], 1) + _STARTS[side] + _STEPS[side]
    after = np.roll(np.arange(len(order)), -1)
    inward = INSET * (_INWARD[side] + _INWARD[side[after]])
    places = corners + inward
    # A side at a bridge ends in the middle of itself, where the bridge begins or ends.
    at_bridge = bridge[after] & ~bridge
    middles = np.stack([column, row], 1) + _STARTS[side] * [1, 0] + INSET * _INWARD[side]
    middles[:, 1] += BRIDGE
    places[at_bridge] = middles[at_bridge]
    starts_at_bridge = np.roll(bridge, 1) & ~bridge
    keep = ~bridge & (side != side[after]) & ~at_bridge
    found: list[NDArray[np.float64]] = []
    for index in np.flatnonzero(keep | at_bridge | starts_at_bridge).tolist():
        if starts_at_bridge[index]:
            found.append(middles[index])
        if keep[index] or at_bridge[index]:
            found.append(places[index])
    return np.array(found)
