"""Test-time augmentation and edge filters: scores averaged over passes and sharpened at the image's edges.

Axes: B images, K clusters, H W image as it is shown to the network, h w scores, D dilations.

Both edge filters are linear in the scores and the same for every cluster, so scores that sum to 1 still do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from densesiam_seg.clustering.resizing import resized, scaled
from densesiam_seg.inference.options import Refinement

RADIUS = 10
"""The guided filter's window reaches 1 / RADIUS of the shorter side to each side."""
EPSILON = 1e-3
"""Its regularisation, a variance of colours in [0, 1]."""
ITERATIONS = 10
DILATIONS = (1, 2, 4, 8)
"""PAMR's, less the published 12 and 24, which at 160 pixels reach across things (docs/tried.md has the figures)."""
CONTRAST = 0.1
"""PAMR's scale of colour differences, in local standard deviations."""
MARGIN = 1e-4
"""Part of the largest score by which rounding may not change what a map's extremes are."""
KEPT_PLACES = 2**22
"""Places of neighbours that are kept for the next image of a size, 16 MB."""
VALUES = 2**26
"""Scores that an edge filter may hold of one image, 256 MB; beyond, it works at a lower resolution."""

ScoresOf = Callable[[Tensor], Tensor]
"""uint8 images (B, 3, H, W) → scores (B, K, h, w), float32."""


def refined(
    images: Tensor,
    scores_of: ScoresOf,
    how: Refinement,
    count: int | None = None,
    *,
    zoom: int = 1,
    only_largest: bool = False,
) -> Tensor:
    """uint8 images (B, 3, H, W) → their scores (B, K, h, w) after all passes, the sharpened ones at H/zoom W/zoom.

    Scores are averaged at the size of the largest pass. A mirrored image's are mirrored back. Images beyond `count`
    only fill the batch, and no edges are sharpened for them. With `only_largest` the largest score of each place is
    right, while others may be lower than they are: all that a mask needs.
    """
    found = []
    for scale, mirrored in how.passes:
        size = [max(round(side * scale), 1) for side in images.shape[-2:]]
        shown = resized(images, size, antialias=True)
        found.append(scores_of(shown.flip(-1)).flip(-1) if mirrored else scores_of(shown))
    height, width = (max(scores.shape[axis] for scores in found) for axis in (-2, -1))
    mean = resized(found[0], (height, width))
    if len(found) > 1:
        mean = torch.stack([resized(scores, (height, width)) for scores in found]).mean(0)
    if how.refine in ("auto", "none"):
        return mean
    guides = images[:count]
    if zoom > 1:
        # A network that reads an image larger than its size does so for small things; edges are those of its size.
        size = [scaled(side, 1, zoom) for side in images.shape[-2:]]
        guides = resized(guides, size, antialias=True)
    return sharpened(guides, mean[:count], how.refine, only_largest=only_largest)


def sharpened(images: Tensor, scores: Tensor, refine: str, *, only_largest: bool = False) -> Tensor:
    """Scores (B, K, h, w) upsampled to the images' size H W and filtered with the images as guides, one at a time."""
    height, width = images.shape[-2:]
    layers = max(scores.shape[1], 8 * len(DILATIONS))
    shrink = min((VALUES / (layers * height * width)) ** 0.5, 1.0)
    size = (max(int(height * shrink), 1), max(int(width * shrink), 1))
    results = []
    for image, own in zip(images, scores, strict=True):
        guide = resized(image[None].to(scores.device).float().div_(255.0), size)
        if refine == "guided":
            results.append(guided_filter(guide, own[None]))
            continue
        maps = resized(own[None], size)
        kept = contenders(maps) if only_largest else None
        if kept is None or len(kept) == maps.shape[1]:
            results.append(pamr(guide, maps))
        else:
            drawn = maps.amin().expand_as(maps).clone()
            drawn[:, kept] = pamr(guide, maps[:, kept])
            results.append(drawn)
    return torch.cat(results)


def contenders(maps: Tensor) -> Tensor:
    """Which of the maps (1, K, H, W) can be the largest anywhere once means of their pixels are taken, as PAMR does.

    Such means lie between a map's extremes, and so do those of a sum of maps. The largest of some maps is no less than
    their sum divided by their number: a map that does not reach the least of that anywhere is out.
    """
    highest = maps.amax((0, 2, 3))
    margin = MARGIN * maps.abs().amax()
    kept = torch.ones_like(highest, dtype=torch.bool)
    while True:
        least = maps[:, kept].mean(1).amin()
        still = kept & (highest >= least - margin)
        if torch.equal(still, kept):
            return kept.nonzero()[:, 0]
        kept = still


def guided_filter(
    guide: Tensor,
    maps: Tensor,
    radius: int | None = None,
    epsilon: float = EPSILON,
    *,
    box: Callable[[Tensor, int], Tensor] | None = None,
) -> Tensor:
    """Maps (B, K, h, w) as smooth functions of a colour guide (B, 3, H, W) in [0, 1], at the guide's size.

    He, Sun and Tang, Guided Image Filtering (2013), equations 19 to 21: in each window, of `radius` pixels of the maps
    to each side, a map is a linear function of the colour, a = (Σ + εU)⁻¹ cov(I, p) and b = mean p - a · mean I; a
    pixel's value is that of the mean function of the windows that hold it. All means are box filters. Where the guide
    is larger than the maps, the functions are found at the maps' size and applied at the guide's (He and Sun, Fast
    Guided Filter, 2015). `box` computes the means of windows, by default `box_mean`.
    """
    size = maps.shape[-2:]
    mean = box or box_mean
    radius = radius or window(size)
    guide = guide - guide.mean((-2, -1), keepdim=True)
    small = resized(guide, size, antialias=True)
    colour, own = mean(small, radius), mean(maps, radius)
    products = small[:, :, None] * small[:, None]
    covariance = mean(products.flatten(1, 2), radius).view_as(products)
    covariance = covariance - colour[:, :, None] * colour[:, None]
    ridge = epsilon * torch.eye(3, device=guide.device).view(1, 3, 3, 1, 1)
    inverse = _inverse(covariance + ridge)
    shared = [
        mean(maps * small[:, each, None], radius) - own * colour[:, each, None] for each in range(3)
    ]
    result = own
    filtered = torch.zeros(*maps.shape[:2], *guide.shape[-2:], device=maps.device)
    for row in range(3):
        slope = torch.zeros_like(maps)
        for column in range(3):
            slope.addcmul_(inverse[:, row, column, None], shared[column])
        result = torch.addcmul(result, slope, colour[:, row, None], value=-1)
        filtered.addcmul_(resized(mean(slope, radius), guide.shape[-2:]), guide[:, row, None])
    return filtered.add_(resized(mean(result, radius), guide.shape[-2:]))


def window(size: Sequence[int]) -> int:
    """Radius of the guided filter's windows in maps of that size."""
    return scaled(cast("int", torch.sym_min(*size)), 1, RADIUS)


def box_mean(maps: Tensor, radius: int) -> Tensor:
    """Mean of each pixel's square window, of `radius` to each side, as far as it lies in the map (B, K, H, W)."""
    down, across = (min(radius, side - 1) for side in maps.shape[-2:])
    maps = F.avg_pool2d(maps, (2 * down + 1, 1), 1, (down, 0), count_include_pad=False)
    return F.avg_pool2d(maps, (1, 2 * across + 1), 1, (0, across), count_include_pad=False)


def _inverse(matrices: Tensor) -> Tensor:
    """Of symmetric matrices (B, 3, 3, H, W) by cofactors: a library's inverse of a million small ones is slow."""
    (a, b, c), (_, d, e), (_, _, f) = (row.unbind(1) for row in matrices.unbind(1))
    one, two, three = d * f - e * e, c * e - b * f, b * e - c * d
    determinant = a * one + b * two + c * three
    four, five, six = a * f - c * c, b * c - a * e, a * d - b * b
    rows = ((one, two, three), (two, four, five), (three, five, six))
    return torch.stack([torch.stack(row, 1) for row in rows], 1) / determinant[:, None, None]


def pamr(
    guide: Tensor,
    maps: Tensor,
    iterations: int = ITERATIONS,
    dilations: Sequence[int] = DILATIONS,
) -> Tensor:
    """Maps (B, K, H, W) replaced `iterations` times by the mean of the neighbours whose colour is alike.

    Araslanov and Roth, Single-Stage Semantic Segmentation from Image Labels (CVPR 2020), equations 5 to 7: the
    neighbours of a pixel are the eight around it at each dilation; their weights are the softmax of -|I_i - I_j| / σ_i,
    a mean over the colours of guide (B, 3, H, W), with σ_i a tenth of the deviation of the neighbourhood (the pixel
    itself counted once a dilation). Border pixels are repeated beyond the image.
    """
    weights = affinities(guide, dilations)
    if maps.device.type == "cpu":
        pairs = zip(weights, maps, strict=True)
        return torch.stack([_drawn(each, own, iterations, dilations) for each, own in pairs])
    for _ in range(iterations):
        drawn = torch.zeros_like(maps)
        for weight, moved in zip(weights.unbind(1), _neighbours(maps, dilations), strict=True):
            drawn.addcmul_(moved, weight[:, None])
        maps = drawn
    return maps


def _drawn(weights: Tensor, maps: Tensor, iterations: int, dilations: Sequence[int]) -> Tensor:
    """PAMR of the maps (K, H, W) of one image on a processor, given the weights (8 D, H, W).

    A pixel's scores lie side by side, so that its neighbours' are summed without leaving the processor's registers. The
    sums are those of moved maps, to the bit.
    """
    height, width = maps.shape[-2:]
    places = _places(height, width, tuple(dilations))
    shares = weights.flatten(1).T.contiguous()
    # A copy also of a single map, whose strides would else send torch a way that takes more time and memory.
    table = maps.flatten(1).T.clone(memory_format=torch.contiguous_format)
    for _ in range(iterations):
        table = F.embedding_bag(places, table, mode="sum", per_sample_weights=shares)
    return table.T.reshape(maps.shape)


def _places(height: int, width: int, dilations: tuple[int, ...]) -> Tensor:
    """Places (H W, 8 D) of the neighbours of each pixel in a list of all."""
    if height * width * 8 * len(dilations) <= KEPT_PLACES:
        return _kept_places(height, width, dilations)
    return _new_places(height, width, dilations)


def _new_places(height: int, width: int, dilations: tuple[int, ...]) -> Tensor:
    # Outside of inference mode, as they may be kept for whoever comes next.
    with torch.inference_mode(False):
        own = torch.arange(height * width, dtype=torch.int32).view(1, 1, height, width)
        rows = own[..., :1] // width
        columns = own[..., :1, :]
        moved = [
            (rows + down).clamp(0, height - 1) * width + (columns + right).clamp(0, width - 1)
            for step in dilations
            for down in (-step, 0, step)
            for right in (-step, 0, step)
            if down or right
        ]
        return torch.stack([each.flatten() for each in moved], 1)


_kept_places = lru_cache(maxsize=4)(_new_places)


def affinities(guide: Tensor, dilations: Sequence[int] = DILATIONS) -> Tensor:
    """Weights (B, 8 D, H, W) of the neighbours of each pixel of a guide (B, 3, H, W); they sum to 1."""
    count = 9 * len(dilations)
    mean = len(dilations) * guide
    for moved in _neighbours(guide, dilations):
        mean += moved
    mean /= count
    squares = len(dilations) * (guide - mean).square_()
    away = torch.empty_like(guide)
    for moved in _neighbours(guide, dilations):
        torch.sub(moved, mean, out=away)
        squares.addcmul_(away, away)
    scale = CONTRAST * squares.div_(count - 1).sqrt_() + 1e-8
    factor = -1 / (guide.shape[1] * scale)
    unlike = guide.new_empty(len(guide), 8 * len(dilations), *guide.shape[-2:])
    for place, moved in enumerate(_neighbours(guide, dilations)):
        torch.sub(moved, guide, out=away)
        torch.sum(away.abs_().mul_(factor), 1, out=unlike[:, place])
    # A softmax in place. Not all exponents are small: a neighbour differs by 32 of these scales at most, or another
    # one that differs by less has made them larger.
    weights = unlike.exp_()
    return weights.div_(weights.sum(1, keepdim=True))


def _neighbours(maps: Tensor, dilations: Sequence[int]) -> Iterator[Tensor]:
    """Maps (B, K, H, W) moved by each of the eight steps of each dilation, their borders repeated."""
    reach = max(dilations)
    height, width = maps.shape[-2:]
    padded = F.pad(maps, (reach, reach, reach, reach), mode="replicate")
    for step in dilations:
        for down in (-step, 0, step):
            for right in (-step, 0, step):
                if down or right:
                    top, left = reach + down, reach + right
                    yield padded[..., top : top + height, left : left + width]
