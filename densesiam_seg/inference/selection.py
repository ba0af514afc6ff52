"""Cluster quality without labels: whether an image and an augmented view of it get the same clusters.

Axes: B images, C channels, K clusters, H W image at its working size, h w scores.

An image is segmented as it is and as a training view, cropped, mirrored and recoloured. The clusters of corresponding
places make one joint histogram (K, K) over the set: rows for the image, columns for the view. The score is its
normalised mutual information. Clusters that change with the view lower it; a constant prediction scores 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from densesiam_seg.clustering.agreement import entropy, normalised_mutual_information
from densesiam_seg.errors import ImageError, InputError
from densesiam_seg.inference.segmenter import ImageLike, Segmenter
from densesiam_seg.io.parallel import device_lock, on_own_cores
from densesiam_seg.views.geometric import bilinear_matrix, blur_matrix, resample
from densesiam_seg.views.parameters import Geometry, Photometry, sample_geometry, sample_photometry
from densesiam_seg.views.photometric import adjust_colour, normalise

Joint = NDArray[np.int64]

MAX_IMAGES = 64
"""Images that are compared with their views, spread evenly."""
VIEW_ROUND = 2**31
"""Round of the views' random draws: above any epoch, so no model was trained on these views."""


@dataclass(frozen=True)
class Quality:
    """Measures of a joint histogram."""

    score: float
    """Normalised mutual information of the clusters of image and view, 0 to 1."""
    agreement: float
    """Share of places with the same cluster in both; 1 for a constant prediction."""
    balance: float
    """Entropy of the clusters' shares of the images over that of equal shares, 0 to 1."""
    in_use: int
    """Clusters that occur in the images."""
    clusters: int
    """K."""


@dataclass(frozen=True)
class Candidate:
    """A read-out and its quality."""

    segmenter: Segmenter
    quality: Quality

    def __str__(self) -> str:
        found = self.quality
        return (
            f"{self.segmenter.readout}, {found.clusters} clusters: score {found.score:.4f}, "
            f"views agree {100 * found.agreement:.1f} %, balance {found.balance:.2f}, "
            f"in use {found.in_use}"
        )


@dataclass(frozen=True)
class Choice:
    """Candidates in the order they were given, at least one."""

    candidates: tuple[Candidate, ...]

    @property
    def chosen(self) -> Candidate:
        """The one with the highest score, the first of equal ones."""
        return max(self.candidates, key=lambda candidate: candidate.quality.score)

    @property
    def lines(self) -> list[str]:
        """Lines for the user: every candidate, then the one that is used."""
        lines = [f"candidate {candidate}" for candidate in self.candidates]
        return [*lines, f"chosen without labels: {self.chosen}"]


def sampled_indices(count: int) -> range:
    """Indices of at most `MAX_IMAGES` of `count` images, evenly spread."""
    return range(0, count, -(-count // MAX_IMAGES) or 1)


def quality_of(joint: Joint) -> Quality:
    """The quality of the clusters in a joint histogram (K, K): rows for the image, columns for the view."""
    clusters, total = len(joint), int(joint.sum())
    assert joint.shape == (clusters, clusters) and total > 0, joint.shape
    image = joint.sum(1) / total
    return Quality(
        score=normalised_mutual_information(joint),
        agreement=float(np.trace(joint)) / total,
        balance=entropy(image) / float(np.log(clusters)) if clusters > 1 else 0.0,
        in_use=int(np.count_nonzero(image)),
        clusters=clusters,
    )


def choose(
    segmenters: Sequence[Segmenter], images: Sequence[ImageLike], *, seed: int = 0
) -> Choice:
    """Compare several read-outs of one network, which processes each image and its view once.

    At most `MAX_IMAGES` images are used, spread evenly. A view is drawn by (seed, image's index). Unreadable files are
    skipped; raises InputError if all are unreadable.
    """
    first = segmenters[0]
    assert all(each.network is first.network for each in segmenters)
    lock = device_lock(first.device)

    def compare(index: int) -> list[NDArray[np.int64]] | None:
        """For each read-out the cells of its joint histogram that the places belong to."""
        try:
            pixels, _ = first.read(images[index])
        except ImageError:
            return None
        geometry = sample_geometry(seed, VIEW_ROUND, [index])
        view = augmented(pixels, geometry, sample_photometry(seed, VIEW_ROUND, [index], 1))
        with lock:
            of_image = first.features(first.normalised(pixels))
            of_view = first.features(normalise(view.to(first.device)))
            return [_cells(each, of_image, of_view, geometry) for each in segmenters]

    joints = [np.zeros((each.card.clusters, each.card.clusters), np.int64) for each in segmenters]
    with closing(on_own_cores(compare, sampled_indices(len(images)))) as results:
        for cells in results:
            for joint, more in zip(joints, cells or (), strict=cells is not None):
                joint += np.bincount(more, minlength=joint.size).reshape(joint.shape)
    if not joints[0].any():
        raise InputError("selection: none of the images can be read; give others")
    return Choice(tuple(map(Candidate, segmenters, map(quality_of, joints))))


def augmented(pixels: Tensor, geometry: Geometry, photometry: Photometry) -> Tensor:
    """uint8 (B, 3, H, W) → a view in [0, 1] of the same size: recoloured, blurred, cropped and mirrored."""
    height, width = pixels.shape[-2:]
    rows, columns = _matrices(geometry, height, width)
    # The blur is drawn in pixels of a stored image, which has twice the side.
    sigma = photometry.sigma / 2
    return resample(
        adjust_colour(pixels.float().div(255.0), photometry),
        rows @ blur_matrix(sigma, height),
        columns @ blur_matrix(sigma, width),
    )


def warped(scores: Tensor, geometry: Geometry) -> Tensor:
    """Scores of images (B, K, h, w) at the places of their views, (B, K, h, w)."""
    rows, columns = _matrices(geometry, *scores.shape[-2:])
    return resample(scores, rows.to(scores.device), columns.to(scores.device))


def _matrices(geometry: Geometry, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Crop, resize to the size before the crop, and flip: (B, height, height) and (B, width, width)."""
    y, x = geometry.axes()
    return bilinear_matrix(*y, height, height), bilinear_matrix(*x, width, width)


def _cells(
    segmenter: Segmenter, of_image: Tensor, of_view: Tensor, geometry: Geometry
) -> NDArray[np.int64]:
    """Features of an image and of its view, (1, C, h, w) each → row × K + column of each place, (h w,)."""
    rows = warped(segmenter.read_out(of_image), geometry).argmax(1)
    columns = segmenter.read_out(of_view).argmax(1)
    cells: NDArray[np.int64] = (rows * segmenter.card.clusters + columns).flatten().cpu().numpy()
    return cells
