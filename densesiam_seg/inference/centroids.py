"""Images → centroids of their dense features: the read-outs by k-means and by merged over-clusters.

Axes: N pixels, C channels, K clusters, h w features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from itertools import islice
from typing import NoReturn, TypeVar

import numpy as np
import torch
from torch import Tensor

from densesiam_seg.clustering.kmeans import Centroids, require_bounded, unit_features
from densesiam_seg.clustering.lloyd import Part, agreed_bound, refine, sampled_kmeans
from densesiam_seg.clustering.merging import Contacts, Merges, contacts, merge_tree
from densesiam_seg.errors import ImageError, InputError
from densesiam_seg.inference.segmenter import ImageLike, Segmenter
from densesiam_seg.io.devices import free_memory
from densesiam_seg.io.parallel import device_lock, on_own_cores
from densesiam_seg.io.randomness import Stream, generator
from densesiam_seg.peers.group import ALONE, Group

SAMPLE = 200_000
"""Pixels in the sample of the initial k-means, spread evenly over the images."""
LARGEST_SAMPLE = 4_000_000
"""Pixels that it is bounded by where images are so many that a pixel of each for every cluster makes more; it is then
drawn from some of them, evenly spread."""
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
    group: Group = ALONE,
) -> Segmenter:
    """The segmenter read out by k-means of its own features over `count` images, for any number of clusters.

    Unreadable files are skipped; the rest is as in `fit_centroids`.
    """
    points_of = _points_of(segmenter)
    return segmenter.with_centroids(
        fit_centroids(points_of, images, count, clusters, seed=seed, restarts=restarts, group=group)
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


def own_places(count: int, group: Group) -> range:
    """The places, among `count` images, of those that this process computes features of.

    They come in turn, so that all processes are about as far when centroids are refined image by image.
    """
    return range(group.index, count, group.count)


def fit_centroids(
    points_of: Callable[[Item], Tensor | None],
    images: Images[Item],
    count: int,
    clusters: int,
    *,
    seed: int,
    restarts: int = 1,
    group: Group = ALONE,
) -> Centroids:
    """k-means on a sample of every image's points, then one mini-batch update per image with all of them.

    Of `restarts` runs of k-means the one with the least sum of squared distances is used. `points_of` maps an image to
    points (N, C), or None to skip it, in several threads at once. Pixels are drawn by (seed, place of the image).
    Points that fit into memory are stored for the updates; else `images` makes a second pass.

    In a group `images` are this process's own ones, those at `own_places` of all; all processes get the same bits, for
    any number of them. Raises InputError for too few points and NumericError for points that are not finite.
    """

    def all_points() -> Iterator[Tensor | None]:
        return on_own_cores(points_of, images(), max_waiting=MAX_WAITING)

    share = max(SAMPLE // max(count, 1), clusters)
    every = -(-count * share // LARGEST_SAMPLE) or 1
    memory_left, largest = MEMORY_SHARE * free_memory(), 0.0
    sample: list[Part] = []
    stored: list[Tensor | None] = []
    for place, points in enumerate(all_points()):
        if points is not None:
            require_bounded(points)
            largest = max(largest, float(points.abs().max()) if len(points) else 0.0)
            memory_left -= points.nbytes
            number = group.index + place * group.count
            if number % every == 0:
                draw = generator(seed, Stream.PIXELS, 0, number)
                chosen = draw.permutation(len(points))[:share]
                sample.append((number, points[torch.from_numpy(chosen)]))
        if memory_left >= 0:
            stored.append(points)
        else:
            stored.clear()
    if not any(group.largest([len(sample)])):
        group.by_first(_refuse)
    bound = agreed_bound(largest, group)
    centroids = sampled_kmeans(
        sample, clusters, seed=seed, restarts=restarts, bound=bound, group=group
    )
    none = centroids.centres.new_empty(0, centroids.centres.shape[1])
    for points in _in_turn(stored if memory_left >= 0 else all_points(), count, group):
        centroids = refine(centroids, none if points is None else points, bound=bound, group=group)
    return centroids


def _refuse() -> NoReturn:
    raise InputError("k-means: none of the images can be read; give others")


def _in_turn(own: Iterable[Tensor | None], count: int, group: Group) -> Iterator[Tensor | None]:
    """The points of each of `count` images where it is this process's, else None."""
    mine = iter(own)
    if group.alone:
        yield from mine
        return
    for number in range(count):
        yield next(mine, None) if number % group.count == group.index else None
