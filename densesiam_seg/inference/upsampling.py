"""Masks out of logits: the argmax of bilinearly upsampled logits, without upsampling all of them.

Axes: K clusters, h w logits, H W mask; n blocks of pixels that lie between the same four places, C of the clusters.

A bilinear value is a weighted mean of four logits of a cluster. Where the four places have the same largest cluster, it
is therefore the largest everywhere between them. On a processor only pixels with a disagreement around them are
interpolated, and only the clusters that can win there: one whose largest logit at the four places is less than another
one's smallest is not the largest between them.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

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
MARGIN = 1e-5
"""Part of the largest logit by which rounding may not move an interpolated one."""
LARGE = 2**13
"""Places from which on clusters without a chance anywhere are left out first."""
LONGEST = 64
"""Pixels along an axis that are interpolated at once between two places."""
FEW = (2, 4, 8)
"""Numbers of clusters that can win between four places for which all such blocks are done together."""


def upsample_argmax(logits: Tensor, height: int, width: int) -> Tensor:
    """Cluster of each pixel, (H, W) uint8 (int32 above 255 clusters), of logits (K, h, w) upsampled bilinearly.

    Works through parts of the image, so beside the mask memory does not grow with it.
    """
    logits = logits.detach().float().contiguous()
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
    if logits[0].numel() < LARGE:
        return _sparse_of(logits, height, width)
    chance = _with_a_chance(logits)
    if len(chance) == len(logits):
        return _sparse_of(logits, height, width)
    found = _sparse_of(logits[chance], height, width).numpy()
    return torch.from_numpy(chance.numpy().astype(_type(len(logits))).take(found))


def _with_a_chance(logits: Tensor) -> Tensor:
    """Clusters that may win somewhere, by the extremes of their logits alone.

    The nearest of a pixel's four places has a weight of a quarter at least. So the winner's value is, above the least
    logit, no less than a quarter of the largest logit of the place where that is least.
    """
    highest, least = logits.amax((1, 2)), logits.amin()
    bound = least + (logits.amax(0).amin() - least) / 4
    return torch.nonzero(~(highest < bound - MARGIN * highest.abs().amax()))[:, 0]


def _sparse_of(logits: Tensor, height: int, width: int) -> Tensor:
    largest = _largest_everywhere(logits)
    if largest.shape == (height, width):
        return torch.from_numpy(largest)
    down, across = _runs(logits.shape[1], height), _runs(logits.shape[2], width)
    mask = largest.take(down.place_of, 0).take(across.place_of, 1)
    mixed = _disagreements(largest).take(down.low, 0).take(across.low, 1)
    blocks = np.nonzero(mixed)
    at_once = max(PIECE // (4 * len(logits)), 1)
    for start in range(0, len(blocks[0]), at_once):
        these = slice(start, start + at_once)
        _interpolate(mask, logits, down, across, blocks[0][these], blocks[1][these])
    return torch.from_numpy(mask)


class _Runs(NamedTuple):
    """Runs of pixels along an axis that lie between the same two places."""

    low: NDArray[np.int64]
    high: NDArray[np.int64]
    """The places (R,)."""
    pixels: NDArray[np.int64]
    """Of each run (R, n); the last one again in runs that are shorter."""
    fractions: NDArray[np.float32]
    """Of the pixels, (R, n)."""
    place_of: NDArray[np.int64]
    """The lower place of every pixel of the axis."""


@lru_cache(maxsize=32)
def _runs(source: int, target: int) -> _Runs:
    """The runs of an axis; none is much longer than others, nor longer than `LONGEST`. Not to be written to."""
    low, high, fraction = (each.numpy() for each in places(source, target))
    longest = min(-(-len(low) // source), LONGEST)
    new = np.diff(low, prepend=-1) != 0
    # How far each pixel is behind the beginning of its run.
    behind = np.arange(len(low)) - np.maximum.accumulate(np.where(new, np.arange(len(low)), 0))
    starts = np.flatnonzero(behind % longest == 0)
    ends = np.append(starts[1:], len(low))
    pixels = np.minimum(starts[:, None] + np.arange(longest), ends[:, None] - 1)
    return _Runs(low[starts], high[starts], pixels, fraction[pixels], low)


def _interpolate(
    mask: Ids,
    logits: Tensor,
    down: _Runs,
    across: _Runs,
    rows: NDArray[np.int64],
    columns: NDArray[np.int64],
) -> None:
    """Fill the blocks of a mask (H, W) where these runs (n,) of both axes meet."""
    clusters, _, width = logits.shape
    corners = np.stack(
        [
            i.take(rows) * width + j.take(columns)
            for i in (down.low, down.high)
            for j in (across.low, across.high)
        ]
    )
    around = logits.flatten(1).index_select(1, torch.from_numpy(corners.ravel()))
    around = around.view(clusters, 4, -1)
    able = _contenders(around)
    counts = able.sum(0)
    fewer = 0
    for most in sorted({*(each for each in FEW if each < clusters), clusters}):
        chosen = np.flatnonzero((counts > fewer) & (counts <= most))
        fewer = most
        at_once = max(PIECE // (most * down.pixels.shape[1] * across.pixels.shape[1]), 1)
        for start in range(0, len(chosen), at_once):
            these = chosen[start : start + at_once]
            ids = _first(able[:, these], most)
            own = around[torch.from_numpy(ids), :, torch.from_numpy(these)[:, None]]
            i, j = rows[these], columns[these]
            fractions = [
                torch.from_numpy(each) for each in (down.fractions[i], across.fractions[j])
            ]
            found = _largest(_between(own, *fractions)).astype(np.intp)
            winners = np.take_along_axis(ids, found, 1)
            lines, dots = down.pixels[i][:, :, None], across.pixels[j][:, None]
            mask[lines, dots] = winners.reshape(len(these), lines.shape[1], -1)


def _contenders(around: Tensor) -> NDArray[np.bool_]:
    """Which clusters can win between four places, (K, n), given their logits there (K, 4, n)."""
    one, two, three, four = around.unbind(1)
    least = torch.minimum(torch.minimum(one, two), torch.minimum(three, four))
    most = torch.maximum(torch.maximum(one, two), torch.maximum(three, four))
    bound = least.amax(0) - MARGIN * around.abs().amax()
    able: NDArray[np.bool_] = (~(most < bound)).numpy()
    return able


def _first(able: NDArray[np.bool_], most: int) -> NDArray[np.int64]:
    """The ids (n, most) of the clusters that are able (K, n), in order; where they are fewer the last one again."""
    _, ids = np.nonzero(able.T)
    counts = able.sum(0)
    ends = np.cumsum(counts)
    numbers = np.minimum((ends - counts)[:, None] + np.arange(most), ends[:, None] - 1)
    found: NDArray[np.int64] = ids[numbers]
    return found


def _between(around: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """Logits at four places (n, C, 4), upper ones first, and fractions (n, p), (n, q) → those between (n, C, p q)."""
    blocks, clusters, _ = around.shape
    pairs = around.view(blocks, clusters, 2, 2, 1)
    stretched = torch.lerp(pairs[..., 0, :], pairs[..., 1, :], across[:, None, None])
    upper, lower = stretched[:, :, :1], stretched[:, :, 1:]
    return torch.lerp(upper, lower, down[:, None, :, None]).flatten(2)


def _type(clusters: int) -> type[np.integer]:
    return np.uint8 if clusters <= LARGEST_8_BIT else np.int32


def _disagreements(largest: Ids) -> NDArray[np.bool_]:
    """Of each place (h, w): whether it, the next one and the two below them have not all the same cluster."""
    mixed = np.zeros(largest.shape, bool)
    across = largest[:, 1:] != largest[:, :-1]
    mixed[:, :-1] |= across
    mixed[:-1, :-1] |= across[1:]
    mixed[:-1] |= largest[1:] != largest[:-1]
    return mixed


def _largest_everywhere(logits: Tensor) -> Ids:
    """The largest cluster of each place (h, w), uint8 (int32 above 255 clusters)."""
    clusters, height, width = logits.shape
    largest = np.empty(height * width, _type(clusters))
    at_once = max(PIECE // clusters, 1)
    for start in range(0, len(largest), at_once):
        these = slice(start, start + at_once)
        largest[these] = _largest(logits.flatten(1)[None, :, these])[0]
    return largest.reshape(height, width)


def _largest(values: Tensor) -> Ids:
    """First index of the largest of values (n, K, m) along K: their argmax, but in vector instructions."""
    clusters = values.shape[1]
    number = np.uint8 if clusters <= LARGEST_8_BIT else np.uint16
    is_largest = np.equal(values.numpy(), values.amax(1, keepdim=True).numpy())
    ranks = is_largest.view(np.uint8) * np.arange(clusters, 0, -1, dtype=number)[:, None]
    # Nothing equals NaN: without the 1, logits of a network that has diverged would give an id that no cluster has.
    index: Ids = number(clusters) - ranks.max(1, initial=1)
    return index
