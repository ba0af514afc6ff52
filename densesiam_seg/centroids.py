"""One pass over images → centroids of their dense features: the k-means read-out (METHOD, section 3).

Axes: N pixels, C channels, K clusters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from densesiam_seg.clustering import Centroids, kmeans, refine, unit_features
from densesiam_seg.errors import InputError
from densesiam_seg.randomness import Stream, generator
from densesiam_seg.segmenter import Segmenter

SAMPLE = 200_000
"""Pixels that the initial k-means sees, spread evenly over the images."""

Images = Callable[[], Iterable[Tensor]]
"""Makes one pass over images, each uint8 (3, H, W)."""


def fit_readout(
    segmenter: Segmenter, images: Images, count: int, clusters: int, *, seed: int
) -> Segmenter:
    """The segmenter read out by k-means of its own features over `count` images, for any number of clusters."""
    return segmenter.with_centroids(
        fit_centroids(
            lambda image: dense_points(segmenter, image), images, count, clusters, seed=seed
        )
    )


def dense_points(segmenter: Segmenter, image: Tensor) -> Tensor:
    """L2-normalised features of an image as points (N, C) on the processor."""
    features = unit_features(segmenter.features(segmenter.prepare(image)))
    return features[0].flatten(1).T.cpu()


def fit_centroids(
    points_of: Callable[[Tensor], Tensor], images: Images, count: int, clusters: int, *, seed: int
) -> Centroids:
    """k-means on a sample of every image's points, then one mini-batch update per image with all of them.

    `points_of` maps an image to points (N, C). Pixels are drawn by (seed, image), so the result does not depend on
    anything else. Raises InputError for too few points and NumericError for points that are not finite.
    """
    sample = list(_sampled(points_of, images(), max(SAMPLE // max(count, 1), clusters), seed))
    if not sample:
        raise InputError("k-means: none of the images can be read; give others")
    centroids = kmeans(torch.cat(sample), clusters, seed=seed)
    for image in images():
        centroids = refine(centroids, points_of(image))
    return centroids


def _sampled(
    points_of: Callable[[Tensor], Tensor], images: Iterable[Tensor], share: int, seed: int
) -> Iterator[Tensor]:
    for index, image in enumerate(images):
        points = points_of(image)
        draw = generator(seed, Stream.PIXELS, 0, index)
        chosen = draw.permutation(len(points))[:share]
        yield points[torch.from_numpy(chosen)]
