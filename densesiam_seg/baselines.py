"""What a learned segmentation must beat: k-means on colour and position.

Axes: N pixels, H W image, K clusters.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from densesiam_seg.centroids import Images, fit_centroids
from densesiam_seg.clustering import assign
from densesiam_seg.evaluation import Mask, Masker, Protocol


def colour_position_points(image: Tensor) -> Tensor:
    """uint8 (3, H, W) → points (H·W, 5): red, green, blue, y, x, each in [0, 1]."""
    _, height, width = image.shape
    y = ((torch.arange(height) + 0.5) / height).view(-1, 1).expand(height, width)
    x = ((torch.arange(width) + 0.5) / width).view(1, -1).expand(height, width)
    return torch.cat((image.float() / 255.0, y[None], x[None])).flatten(1).T


def colour_position_masks(images: Images, count: int, clusters: int, *, seed: int) -> Masker:
    """Masks by k-means on colour and position, every channel scaled to unit deviation over `images`."""
    deviation = _deviation(images())

    def points_of(image: Tensor) -> Tensor:
        return colour_position_points(image) / deviation

    centres = fit_centroids(points_of, images, count, clusters, seed=seed).centres

    def mask_of(image: Tensor, protocol: Protocol, height: int, width: int) -> Mask:
        labels = assign(points_of(image), centres).view(image.shape[-2:])
        if labels.shape != (height, width):
            whole = labels[None, None].float()
            labels = torch.nn.functional.interpolate(whole, (height, width), mode="nearest-exact")[
                0, 0
            ]
        return labels.to(torch.int32).numpy()

    return mask_of


def _deviation(images: Iterable[Tensor]) -> Tensor:
    """Standard deviation (5,) of each channel over all pixels, from exact sums; constant channels count as 1."""
    count, total, squares = (
        0,
        torch.zeros(5, dtype=torch.float64),
        torch.zeros(5, dtype=torch.float64),
    )
    for image in images:
        points = colour_position_points(image).double()
        count += len(points)
        total += points.sum(0)
        squares += points.square().sum(0)
    variance = (squares / count - (total / count).square()).clamp(min=0)
    return torch.where(variance > 1e-12, variance.sqrt(), 1.0).float()
