"""Large images in overlapping tiles, so that small things in them are seen and memory does not grow with them.

An image is shrunk until its shorter side is the model's image size. One that is n times as long as `tile` is shrunk n
times less, as if each part of that length were an image of its own. It then passes the network in windows. What the
network sees near a place, and the log-posteriors of a mixture, are put together to maps of the whole image, with
weights that fall to the borders of windows, so that there are no seams. All that compares places with one another, or
knows where they lie, is done once for the whole: the same clusters are in all windows.

Axes: K clusters, C channels, H W image, H' W' the image as it is shown, h w maps of a window, G F maps of the image.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import pairwise, product

import torch
from torch import Tensor
from torch.nn import functional as F

from densesiam_seg.clustering.appearance import Surroundings
from densesiam_seg.images.decode import load_reduced
from densesiam_seg.images.decoding import Decoding
from densesiam_seg.inference.options import AS_TRAINED, Refinement
from densesiam_seg.inference.refinement import refined
from densesiam_seg.inference.segmenter import DECODE_FACTOR, MAX_ASPECT, Segmenter, working_size

STRIDE = 32
"""Of the coarsest stage: maps of windows that start at its multiples lie on the grid of their neighbours'."""
WINDOW = 3 * 2**20
"""Pixels of a window, about: large ones have few borders, small ones take little memory."""
OVERLAP = 3
"""Neighbours share 1 / OVERLAP of a window, and at least `LEAST` strides: the network sees so far around."""
LEAST = 2
GROWTH = 0.35
"""Of a window by which the others may become longer together to spare it."""
VALUES = 2**26
"""Values of a map that are kept of an image, 256 MB; beyond, it is kept at a lower resolution."""


@dataclass(frozen=True)
class Windows:
    """Windows of `height` × `width` in an image of `size` (H', W'): where they start, down and across."""

    size: tuple[int, int]
    height: int
    width: int
    tops: tuple[int, ...]
    lefts: tuple[int, ...]


def shown_size(segmenter: Segmenter, size: tuple[int, int], tile: int) -> tuple[int, int] | None:
    """H', W' of an image (H, W) in tiles whose longer side is `tile`; None for one that is not larger, and for 0."""
    longer = max(size)
    if not tile or longer <= tile:
        return None
    side = segmenter.shown_side
    scale = min(side / min(size), MAX_ASPECT * side / longer) * longer / tile
    step = STRIDE * segmenter.network.encoder.zoom
    return _multiple(size[0] * scale, step), _multiple(size[1] * scale, step)


def load_large(
    source: str, segmenter: Segmenter, size: tuple[int, int], decoding: Decoding
) -> Tensor:
    """A file's pixels, uint8 (3, h, w): a JPEG is decoded no larger than its `shown_size` needs. Raises ImageError."""
    side = max(DECODE_FACTOR * min(size) // segmenter.network.encoder.zoom, min(size))
    return load_reduced(source, side, decoding)[0]


def tiled_scores(
    segmenter: Segmenter,
    pixels: Tensor,
    size: tuple[int, int],
    refinement: Refinement = AS_TRAINED,
    *,
    lock: AbstractContextManager[object],
) -> Tensor:
    """Pixels (3, h, w) → scores (K, G, F), as `Segmenter.scores` would give them of the image at its `shown_size`."""
    how = refinement.settled(segmenter.card.refine)
    whole = working_size(pixels.shape[-2], pixels.shape[-1], segmenter.shown_side)
    with lock:
        gist = segmenter.gist(_at(pixels[None], whole))
    shown = _at(pixels[None], size)
    zoom = segmenter.network.encoder.zoom

    def logits(shown: Tensor) -> Tensor:
        return _logits(segmenter, shown, gist, lock)

    if how.plain:
        return logits(shown)[0]
    return refined(shown, lambda each: segmenter.soft(logits(each)), how, zoom=zoom)[0]


def _logits(
    segmenter: Segmenter,
    shown: Tensor,
    gist: Tensor | None,
    lock: AbstractContextManager[object],
) -> Tensor:
    """An image, uint8 (1, 3, H', W') → logits (1, K, G, F), by way of windows."""
    step = STRIDE * segmenter.network.encoder.zoom
    size = (_multiple(shown.shape[-2], step), _multiple(shown.shape[-1], step))
    shown = _at(shown, size)
    found = windows(size, step)
    totals: list[Total] = []
    for top, left in product(found.tops, found.lefts):
        part = shown[..., top : top + found.height, left : left + found.width]
        around = None if gist is None else Surroundings(gist, _box(found, top, left))
        with lock:
            maps = segmenter.parts(part, around)
        if not totals:
            totals = [Total(found, each) for each in maps]
        for total, each in zip(totals, maps, strict=True):
            total.add(each[0], top, left)
    with lock:
        return segmenter.joined_logits(*(total.mean()[None] for total in totals))


def windows(size: tuple[int, int], step: int) -> Windows:
    """The windows of an image (H', W') whose sides are multiples of `step`, as theirs are."""
    shrink = min((WINDOW / (size[0] * size[1])) ** 0.5, 1.0)
    (height, tops), (width, lefts) = (_spread(side, side * shrink, step) for side in size)
    return Windows(size, height, width, tops, lefts)


def _spread(whole: int, wanted: float, step: int) -> tuple[int, tuple[int, ...]]:
    """The length of windows, about as `wanted`, and where they start: evenly spread, at multiples of `step`."""
    overlap = max(_multiple(wanted / OVERLAP, step), LEAST * step)
    fresh = max(wanted, 2 * overlap) - overlap
    # A little longer ones are better than one more.
    count = math.floor((whole - overlap) / fresh + 1 - GROWTH)
    if count <= 1:
        return whole, (0,)
    own = step * math.ceil((whole + (count - 1) * overlap) / count / step)
    last = (whole - own) // step
    return own, tuple(step * round(last * index / (count - 1)) for index in range(count))


def _multiple(length: float, step: int) -> int:
    return max(round(length / step), 1) * step


def _box(found: Windows, top: int, left: int) -> tuple[float, float, float, float]:
    """A window's place in the image, from -1 to 1."""
    height, width = found.size
    return (
        2 * top / height - 1,
        2 * left / width - 1,
        2 * (top + found.height) / height - 1,
        2 * (left + found.width) / width - 1,
    )


class Total:
    """Maps of windows, weighted and added on one grid for the whole image."""

    def __init__(self, found: Windows, maps: Tensor) -> None:
        """`maps` (1, C, h, w) are those of any window: they tell the grid, or a coarser one where it is too large."""
        self.windows = found
        _, channels, height, width = maps.shape
        share = found.size[0] * found.size[1] / (found.height * found.width)
        shrink = min((VALUES / (channels * height * width * share)) ** 0.5, 1.0)
        self._cells = (max(int(height * shrink), 1), max(int(width * shrink), 1))
        rows = max(round(found.size[0] * self._cells[0] / found.height), self._cells[0])
        columns = max(round(found.size[1] * self._cells[1] / found.width), self._cells[1])
        # On the processor, whose memory is larger.
        self._sum = torch.zeros(channels, rows, columns)
        self._weights = torch.zeros(rows, columns)

    def add(self, maps: Tensor, top: int, left: int) -> None:
        """Maps (C, h, w) of the window that starts there."""
        found, (rows, columns) = self.windows, self._cells
        maps = maps.cpu().float()
        if maps.shape[-2:] != self._cells:
            maps = _at(maps[None], self._cells)[0]
        row = round(top * self._sum.shape[-2] / found.size[0])
        column = round(left * self._sum.shape[-1] / found.size[1])
        place = (slice(row, row + rows), slice(column, column + columns))
        weights = torch.outer(
            _ramp(rows, found.height, found.tops), _ramp(columns, found.width, found.lefts)
        )
        self._sum[:, place[0], place[1]] += maps * weights
        self._weights[place] += weights

    def mean(self) -> Tensor:
        """The weighted mean (C, G, F)."""
        return self._sum.div_(self._weights)


def _ramp(cells: int, own: int, starts: tuple[int, ...]) -> Tensor:
    """Weights along one side of a window: 1 inside, falling to its borders over what neighbours share.

    The outer half of that has next to none: what the network sees there is cut off.
    """
    if len(starts) == 1:
        return torch.ones(cells)
    shared = own - max(after - before for before, after in pairwise(starts))
    reach = max(cells * shared / own, 1.0)
    place = torch.arange(cells) + 0.5
    inside = torch.minimum(place, cells - place) / reach
    return (2 * inside - 0.5).clamp(1e-3, 1.0)


def _at(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps (B, C, h, w) of any type at another size, bilinearly."""
    if tuple(maps.shape[-2:]) == size:
        return maps
    return F.interpolate(maps, size, mode="bilinear", antialias=True)
