"""Masks out of logits: the argmax of bilinearly upsampled logits, without upsampling all of them.

Axes: K clusters, h w logits, H W mask; of a band of the mask n rows and m columns, from s rows of logits.

A bilinear value is a weighted mean of four logits of a cluster. Where the four places have the same largest cluster, it
is therefore the largest everywhere between them. On a processor only columns with a disagreement are interpolated.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise, starmap

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from densesiam_seg.pictures.masks import LARGEST_8_BIT

Ids = NDArray[np.integer]
Places = tuple[Tensor, Tensor, Tensor]
"""Where pixels of a resized axis lie in its source: between low and high, by fraction."""

TILE = 2**22
"""Upsampled logits that an accelerator holds at once: 16 MB in float32, whatever the image's size."""
PIECE = 2**19
"""Upsampled logits that a processor holds at once: 2 MB, which fit in its caches."""
BAND = 2**15
"""Pixels of a processor's band, about: a higher band has more columns with a disagreement."""
MOSTLY = 0.8
"""Above this share of needed columns it is faster to interpolate all of them."""
LANES = 32
"""Columns are done in multiples of this, as vector instructions want them."""


def upsample_argmax(logits: Tensor, height: int, width: int) -> Tensor:
    """Cluster of each pixel, (H, W) uint8 (int32 above 255 clusters), of logits (K, h, w) upsampled bilinearly.

    Works through bands of rows, so beside the mask memory does not grow with the image.
    """
    logits = logits.detach().float()
    return (_sparse if logits.device.type == "cpu" else _dense)(logits, height, width)


def places(source: int, target: int, device: torch.device | None = None) -> Places:
    """Places of `target` pixels among `source` ones, as `F.interpolate` has them without aligned corners.

    They are computed on the device, since a copy to it would wait for its work.
    """
    pixels = torch.arange(target, dtype=torch.float32, device=device)
    position = ((pixels + 0.5) * (source / target) - 0.5).clamp(0, source - 1)
    low = position.long()
    return low, (low + 1).clamp(max=source - 1), position - low


def bands(scores: Tensor, height: int, width: int) -> Iterator[tuple[slice, Tensor]]:
    """Bands of rows of an image, and scores (K, h, w) upsampled there, (K, n, W): all of them at once would not fit."""
    clusters, source, _ = scores.shape
    low, high, fraction = places(source, height, scores.device)
    at_once = max(TILE // (clusters * width), 1)
    for top in range(0, height, at_once):
        rows = slice(top, min(top + at_once, height))
        stretched = torch.lerp(scores[:, low[rows]], scores[:, high[rows]], fraction[rows, None])
        yield rows, F.interpolate(stretched[None], (stretched.shape[1], width), mode="bilinear")[0]


def _dense(logits: Tensor, height: int, width: int) -> Tensor:
    """On an accelerator: every pixel is interpolated, and nothing waits for the processor."""
    dtype = torch.uint8 if len(logits) <= LARGEST_8_BIT else torch.int32
    mask = torch.empty((height, width), dtype=dtype, device=logits.device)
    for rows, full in bands(logits, height, width):
        mask[rows] = full.argmax(0)
    return mask


def _sparse(logits: Tensor, height: int, width: int) -> Tensor:
    """On a processor: each pixel begins as the cluster above and left of it; then comes what must be interpolated."""
    largest = _largest_everywhere(logits)
    if largest.shape == (height, width):
        return torch.from_numpy(largest)
    low, high, fraction = places(logits.shape[1], height)
    columns = places(logits.shape[2], width)
    left = columns[0].numpy()
    mixed = _disagreements(largest)
    mask = largest.take(low.numpy(), 0).take(left, 1)
    for rows in _cuts(low.numpy(), logits.shape, width):
        first, last = int(low[rows][0]), int(high[rows][-1])
        chosen = np.flatnonzero(mixed[low[rows].numpy()].any(axis=0).take(left))
        if len(chosen) > MOSTLY * width:
            chosen = np.arange(width)
        part = logits[:, first : last + 1]
        down = (low[rows] - first, high[rows] - first, fraction[rows])
        at_once = max(PIECE // part[..., 0].numel() // LANES, 1) * LANES
        for start in range(0, len(chosen), at_once):
            _interpolate(mask[rows], part, down, columns, chosen[start : start + at_once])
    return torch.from_numpy(mask)


def _cuts(low: NDArray[np.int64], shape: tuple[int, ...], width: int) -> Iterator[slice]:
    """Rows of each band. Bands begin at rows of logits, so that each needs few of them."""
    clusters, source, _ = shape
    gaps = min(BAND * source // (width * len(low)), PIECE // (clusters * width) - 1)
    starts = np.searchsorted(low, np.arange(0, source, max(gaps, 1)))
    return starmap(slice, pairwise(np.unique([*starts, len(low)]).tolist()))


def _disagreements(largest: Ids) -> NDArray[np.bool_]:
    """Of each place (h, w): whether it, the next one and the two below them have not all the same cluster."""
    mixed = np.zeros(largest.shape, bool)
    across = largest[:, 1:] != largest[:, :-1]
    mixed[:, :-1] |= across
    mixed[:-1, :-1] |= across[1:]
    mixed[:-1] |= largest[1:] != largest[:-1]
    return mixed


def _interpolate(
    band: Ids, logits: Tensor, rows: Places, columns: Places, chosen: NDArray[np.intp]
) -> None:
    """Fill the chosen columns of a band (n, W) from its rows of logits (K, s, w)."""
    clusters, source, _ = logits.shape
    across = torch.from_numpy(np.pad(chosen, (0, -len(chosen) % LANES), mode="edge"))
    low, high, fraction = (each[across] for each in columns)
    stretched = _between(logits.permute(2, 1, 0).flatten(1), low, high, fraction)  # (m, s·K)
    stretched = stretched.T.contiguous().view(source, -1)
    at_once = max(PIECE // stretched.shape[1], 1)
    for top in range(0, len(band), at_once):
        these = slice(top, top + at_once)
        values = _between(stretched, *(each[these] for each in rows))
        found = _largest(values.view(len(values), clusters, -1))[:, : len(chosen)]
        if len(chosen) == band.shape[1]:
            band[these] = found
        else:
            band[these, chosen] = found


def _between(table: Tensor, low: Tensor, high: Tensor, fraction: Tensor) -> Tensor:
    """Means of the rows of a table that lie beside each place. Whole rows are much faster than single columns."""
    return table.index_select(0, low).lerp_(table.index_select(0, high), fraction[:, None])


def _largest_everywhere(logits: Tensor) -> Ids:
    """The largest cluster of each place (h, w), uint8 (int32 above 255 clusters)."""
    clusters, height, width = logits.shape
    largest = np.empty((height, width), np.uint8 if clusters <= LARGEST_8_BIT else np.int32)
    at_once = max(PIECE // (clusters * width), 1)
    for top in range(0, height, at_once):
        rows = slice(top, top + at_once)
        largest[rows] = _largest(logits[:, rows].transpose(0, 1).contiguous())
    return largest


def _largest(values: Tensor) -> Ids:
    """First index of the largest of values (n, K, m) along K: their argmax, but in vector instructions."""
    clusters = values.shape[1]
    number = np.uint8 if clusters <= LARGEST_8_BIT else np.uint16
    is_largest = np.equal(values.numpy(), values.amax(1, keepdim=True).numpy())
    ranks = is_largest.view(np.uint8) * np.arange(clusters, 0, -1, dtype=number)[:, None]
    # Nothing equals NaN: without the 1, logits of a network that has diverged would give an id that no cluster has.
    index: Ids = number(clusters) - ranks.max(1, initial=1)
    return index
