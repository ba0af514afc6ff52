"""Images → centroids of their dense features: the read-outs by k-means and by merged over-clusters.

Axes: N pixels, C channels, K clusters, h w features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from itertools import islice
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from densesiam_seg.clustering.kmeans import (
    Centroids,
    kmeans,
    refine,
    require_bounded,
    unit_features,
)
from densesiam_seg.clustering.merging import Contacts, Merges, contacts, merge_tree
from densesiam_seg.errors import ImageError, InputError
from densesiam_seg.inference.segmenter import ImageLike, Segmenter
from densesiam_seg.io.devices import free_memory
from densesiam_seg.io.parallel import device_lock, on_own_cores
from densesiam_seg.io.randomness import Stream, generator

SAMPLE = 200_000
"""Pixels in the sample of the initial k-means, spread evenly over the images."""
MEMORY_SHARE = 0.25
"""Share of the machine's free memory that points may take before the images are read a second time."""
CONTACT_IMAGES = 1000
"""Images, spread evenly, in which contacts of over-clusters are counted."""
MAX_WAITING = 2
"""Images per core whose points may wait; those of one image take megabytes."""

Item = TypeVar("Item")
Images = Callable[[], Iterable[Item]]
"""Makes one pass over images."""


def fit_readout(
    segmenter: Segmenter,
    images: Images[ImageLike],
    count: int,
    clusters: int,
    *,
    seed: int,
    restarts: int = 1,
) -> Segmenter:
    """The segmenter read out by k-means of its own features over `count` images, for any number of clusters.

    Unreadable files are skipped; the rest is as in `fit_centroids`.
    """
    points_of = _points_of(segmenter)
    return segmenter.with_centroids(
        fit_centroids(points_of, images, count, clusters, seed=seed, restarts=restarts)
    )


def fit_merged(
    segmenter: Segmenter, images: Images[ImageLike], count: int, over_clusters: int, *, seed: int
) -> Segmenter:
    """The segmenter read out by k-means with many `over_clusters`, all merged to one by distance and contacts.

    `Segmenter.with_clusters` gives any other number. The images are read as in `fit_readout`, and once more to count
    contacts.
    """
    fine = fit_centroids(_points_of(segmenter), images, count, over_clusters, seed=seed)
    touching = touches(segmenter.with_centroids(fine), images, count)
    tree = merge_tree(fine.centres.numpy(), fine.counts.numpy(), touching)
    return segmenter.with_merges(fine.centres, Merges(tree, fine.counts.numpy()), 1)


def touches(segmenter: Segmenter, images: Images[ImageLike], count: int) -> Contacts:
    """The contacts of a segmenter's clusters in at most `CONTACT_IMAGES` of `count` images."""
    clusters = segmenter.card.clusters

    def contacts_of(pixels: Tensor) -> Contacts:
        # Unrefined: a filter over hundreds of over-clusters would take far longer than the forward pass.
        ids = segmenter.logits(segmenter.normalised(pixels))[0].argmax(0).cpu()
        return contacts(ids.numpy(), clusters)

    total = Contacts(np.zeros((clusters, clusters)), np.zeros((clusters, clusters)))
    sample = islice(images(), 0, None, -(-count // CONTACT_IMAGES) or 1)
    work = _of_each(segmenter, contacts_of)
    with closing(on_own_cores(work, sample, max_waiting=MAX_WAITING)) as results:
        for each in results:
            if each is not None:
                total += each
    return total


def _points_of(segmenter: Segmenter) -> Callable[[ImageLike], Tensor | None]:
    """An image's L2-normalised features as points (N, C) on the processor, for `fit_centroids`."""

    def points_of(pixels: Tensor) -> Tensor:
        features = segmenter.learned(segmenter.features(segmenter.normalised(pixels)))
        require_bounded(features)
        return unit_features(features)[0].flatten(1).T.cpu()

    return _of_each(segmenter, points_of)


def _of_each(
    segmenter: Segmenter, work: Callable[[Tensor], Item]
) -> Callable[[ImageLike], Item | None]:
    """`work` of an image as `Segmenter.read` gives it, for several threads; None for a file that cannot be read."""
    lock = device_lock(segmenter.device)

    def safe(image: ImageLike) -> Item | None:
        try:
            pixels, _ = segmenter.read(image)
        except ImageError:
            return None
        with lock:
            return work(pixels)

    return safe


def fit_centroids(
    points_of: Callable[[Item], Tensor | None],
    images: Images[Item],
    count: int,
    clusters: int,
    *,
    seed: int,
    restarts: int = 1,
) -> Centroids:
    """k-means on a sample of every image's points, then one mini-batch update per image with all of them.

    Of `restarts` runs of k-means the one with the least sum of squared distances is used. `points_of` maps an image to
    points (N, C), or None to skip it, in several threads at once. Pixels are drawn by (seed, image). Points that fit
    into memory are stored for the updates; else `images` makes a second pass. Raises InputError for too few points and
    NumericError for points that are not finite.
    """

    def all_points() -> Iterator[Tensor]:
        results = on_own_cores(points_of, images(), max_waiting=MAX_WAITING)
        return (points for points in results if points is not None)

    share = max(SAMPLE // max(count, 1), clusters)
    memory_left = MEMORY_SHARE * free_memory()
    sample: list[Tensor] = []
    stored: list[Tensor] = []
    for index, points in enumerate(all_points()):
        draw = generator(seed, Stream.PIXELS, 0, index)
        chosen = draw.permutation(len(points))[:share]
        sample.append(points[torch.from_numpy(chosen)])
        memory_left -= points.nbytes
        if memory_left >= 0:
            stored.append(points)
        else:
            stored.clear()
    if not sample:
        raise InputError("k-means: none of the images can be read; give others")
    centroids = kmeans(torch.cat(sample), clusters, seed=seed, restarts=restarts)
    for points in stored if memory_left >= 0 else all_points():
        centroids = refine(centroids, points)
    return centroids
