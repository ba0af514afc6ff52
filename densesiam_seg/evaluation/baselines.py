"""Baselines: masks without a trained network.

Axes: N pixels, C channels, H W image, K clusters.

`position_masks` uses labels; nothing else here does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from densesiam_seg.clustering.appearance import GIST
from densesiam_seg.clustering.kmeans import assign
from densesiam_seg.clustering.mixture import SEARCH, Mixture, Search
from densesiam_seg.evaluation.protocol import Mask, MasksOf, one_by_one
from densesiam_seg.inference.centroids import Images, fit_centroids
from densesiam_seg.inference.refinement import sharpened
from densesiam_seg.inference.upsampling import upsample_argmax
from densesiam_seg.methods.mixture_prior import Places, appearance_of

Points = Callable[[Tensor], Tensor]
"""uint8 (3, H, W) → the points that k-means clusters, (H·W, C), in reading order."""


def colour_points(image: Tensor) -> Tensor:
    """uint8 (3, H, W) → points (H·W, 3): red, green, blue, each in [0, 1]."""
    return (image.float() / 255.0).flatten(1).T


def colour_position_points(image: Tensor) -> Tensor:
    """uint8 (3, H, W) → points (H·W, 5): red, green, blue, y, x, each in [0, 1]."""
    return torch.cat((image.float() / 255.0, _position(image))).flatten(1).T


def patch_position_points(image: Tensor) -> Tensor:
    """uint8 (3, H, W) → points (H·W, 8): mean and deviation of each colour in a 5×5 square around the pixel, y, x.

    At the border the square is what of it lies inside the image.
    """
    colours = (image.float() / 255.0)[None]

    def mean(values: Tensor) -> Tensor:
        return F.avg_pool2d(values, 5, 1, 2, count_include_pad=False)[0]

    means = mean(colours)
    variance = mean((colours - 0.5).square()) - (means - 0.5).square()
    maps = torch.cat((means, variance.clamp(min=0).sqrt(), _position(image)))
    return maps.flatten(1).T


def _position(image: Tensor) -> Tensor:
    """(2, H, W): y and x of each pixel's centre, in [0, 1]."""
    axes = ((torch.arange(side) + 0.5) / side for side in image.shape[-2:])
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


def kmeans_masks(
    points_of: Points, images: Images[Tensor], count: int, clusters: int, *, seed: int
) -> MasksOf:
    """Masks by k-means on `points_of` each image, every channel scaled to unit deviation over all `count` of them."""
    deviation = _deviation(map(points_of, images()))

    def scaled(image: Tensor) -> Tensor:
        return points_of(image) / deviation

    centres = fit_centroids(scaled, images, count, clusters, seed=seed).centres

    def mask_of(image: Tensor, height: int, width: int) -> Mask:
        labels = assign(scaled(image), centres).view(image.shape[-2:])
        return _stretched(labels, height, width)

    return one_by_one(mask_of)


def mixture_masks(
    images: Images[Tensor],
    count: int,
    clusters: int,
    *,
    seed: int,
    search: Search = SEARCH,
    refine: str = "none",
) -> MasksOf:
    """Masks by the mixture that `train` starts from, fitted to `count` images, without a network.

    `search` is that of `Mixture.fit`. `refine`: the filter for edges, `none`, `guided` or `pamr`.
    """
    places = Places(count, seed)
    for index, image in enumerate(images()):
        places.add(image[None], index)
    mixture = Mixture(clusters)
    mixture.fit(places.sample(), seed=seed, search=search)

    def mask_of(image: Tensor, height: int, width: int) -> Mask:
        scores: Tensor = mixture(appearance_of(image[None]))
        if refine != "none":
            scores = sharpened(image[None], scores.softmax(1), refine)
        return upsample_argmax(scores[0], height, width).numpy()

    return one_by_one(mask_of)


def appearance_points(image: Tensor) -> Tensor:
    """uint8 (3, H, W) → points (H·W, D): the mixture's own channels of a place, repeated over its pixels."""
    maps = F.interpolate(
        appearance_of(image[None])[:, GIST:], image.shape[-2:], mode="nearest-exact"
    )
    return maps[0].flatten(1).T


def position_masks(labels: Iterable[NDArray[np.uint8]], classes: int) -> MasksOf:
    """Uses labels: everywhere the class most frequent there in `labels` (H, W), all of one size; ids are class ids.

    Where none has a class it is the most frequent one of all. The lower id wins where two are equal.
    """
    ids = np.arange(classes, dtype=np.uint8).reshape(-1, 1, 1)
    counts = np.asarray(sum((label == ids).astype(np.int64) for label in labels))
    best = counts.argmax(0)
    best[~counts.any(0)] = counts.sum((1, 2)).argmax()
    return one_by_one(lambda _, height, width: _stretched(torch.from_numpy(best), height, width))


def _stretched(ids: Tensor, height: int, width: int) -> Mask:
    """Ids (h, w) at another size, each pixel being the one under its centre."""
    if ids.shape != (height, width):
        ids = F.interpolate(ids[None, None].float(), (height, width), mode="nearest-exact")[0, 0]
    return ids.to(torch.int32).numpy()


def _deviation(points: Iterable[Tensor]) -> Tensor:
    """Standard deviation (C,) of each channel over all points (N, C), from exact sums; constant channels count as 1."""
    count = 0
    total, squares = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for part in points:
        values = part.double()
        count += len(values)
        total = total + values.sum(0)
        squares = squares + values.square().sum(0)
    variance = (squares / count - (total / count).square()).clamp(min=0)
    return torch.where(variance > 1e-12, variance.sqrt(), 1.0).float()
