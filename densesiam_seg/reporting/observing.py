"""What one image says: where each cluster is and how sure, what it is confused with, what the image looks like.

Axes: K clusters, h w map, C channels, P clusters that are present.

Scores are read at a map whose shorter side has at least `SIDE` pixels, so that outlines are those of the masks. Each
image counts the same, whatever its size: all sums are over the share of an image that a pixel has.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from densesiam_seg.inference.confidence import entropy, probabilities
from densesiam_seg.inference.options import AS_TRAINED, Refinement
from densesiam_seg.inference.segmenter import Segmenter

SIDE = 160
"""Least shorter side of the map that is looked at."""
VALUES = 2**26
"""Most probabilities of one map, 256 MB; beyond, it is smaller."""
WINDOWS = (1.0, 0.6, 0.36, 0.22)
"""Sides of the crops, as shares of an image's shorter side."""
STEPS = 8
"""Places of a crop along its own side."""
COVERED = 0.65
"""The share of a crop that its cluster has at best: enough to see it, with something around it."""
LEAST_COVERED = 0.1
"""The share of a crop that its cluster has at least, or there would be nothing to see."""
LEAST = 0.003
"""Share of an image below which a cluster gives no crop."""

Box = tuple[float, float, float, float]
"""Top, left, height and width, as shares of the image's."""


@dataclass(frozen=True)
class Crop:
    """A square part of an image for one cluster, and where the cluster is in it, (n, m)."""

    place: int
    cluster: int
    box: Box
    score: float
    """The higher, the better it shows what it is chosen for."""
    inside: NDArray[np.bool_]


@dataclass(frozen=True)
class Observation:
    """What is kept of an image; nothing in it grows with the image's size."""

    place: int
    shares: NDArray[np.float64]
    """Of the image, (K,)."""
    sureness: NDArray[np.float64]
    """Confidence summed over each cluster's pixels, (K,)."""
    doubts: NDArray[np.float64]
    """Of row a, the probability of the second most probable cluster, summed over a's pixels where that is b, (K, K)."""
    confidence: float
    entropy: float
    description: NDArray[np.float32]
    """The mean of the image's L2-normalised features, (C,)."""
    typical: tuple[Crop, ...]
    doubtful: tuple[Crop, ...]
    """At most one for each cluster, as the typical ones."""


@dataclass(frozen=True)
class Map:
    """An image's mask (h, w), the probabilities (K, h, w), and maps of confidence and entropy (h, w).

    Confidence is the probability of the cluster that the mask shows.
    """

    mask: Tensor
    probabilities: Tensor
    confidence: Tensor
    entropy: Tensor


def map_of(segmenter: Segmenter, scores: Tensor, refinement: Refinement = AS_TRAINED) -> Map:
    """What `Segmenter.scores` gave with a refinement (K, h, w) → a map whose shorter side has `SIDE` pixels or more."""
    height, width = scores.shape[-2:]
    factor = max(SIDE / min(height, width), 1.0)
    factor = min(factor, max((VALUES / scores.numel()) ** 0.5, 1.0))
    size = (round(height * factor), round(width * factor))
    if size != (height, width):
        scores = F.interpolate(scores[None], size, mode="bilinear")[0]
    found = probabilities(segmenter, scores[None], refinement)
    mask = segmenter.mask(scores, *size)
    shown = torch.from_numpy(mask.astype(np.int64))
    sure = found[0].gather(0, shown[None])[0]
    return Map(shown, found[0], sure, entropy(found, len(segmenter.left))[0])


def observe(
    segmenter: Segmenter,
    place: int,
    scores: Tensor,
    description: Tensor,
    refinement: Refinement = AS_TRAINED,
) -> Observation:
    """What the image at `place` says by its scores (K, h, w) and the mean of its features (C,)."""
    found = map_of(segmenter, scores, refinement)
    clusters = len(segmenter.clusters)
    ids = found.mask
    pixels = ids.numel()
    shares = np.bincount(ids.flatten().numpy(), minlength=clusters) / pixels
    sureness = np.bincount(
        ids.flatten().numpy(), found.confidence.flatten().numpy(), minlength=clusters
    )
    typical, doubtful = _crops(place, ids, found.confidence, shares)
    return Observation(
        place,
        shares,
        sureness / pixels,
        doubts_of(ids, found.probabilities) / pixels,
        float(found.confidence.mean()),
        float(found.entropy.mean()),
        description.float().numpy(),
        typical,
        doubtful,
    )


def doubts_of(ids: Tensor, found: Tensor) -> NDArray[np.float64]:
    """Ids (h, w) and probabilities (K, h, w) → the second probability summed over pairs (first, second), (K, K)."""
    clusters = len(found)
    if clusters < 2:
        return np.zeros((clusters, clusters))
    others = found.scatter(0, ids[None], -1.0)
    value, second = others.max(0)
    cells = (ids * clusters + second).flatten().numpy()
    found_at = value.clamp(min=0).double().flatten().numpy()
    sums = np.bincount(cells, found_at, minlength=clusters**2).astype(np.float64)
    return sums.reshape(clusters, clusters)


def _crops(
    place: int, ids: Tensor, sure: Tensor, shares: NDArray[np.float64]
) -> tuple[tuple[Crop, ...], tuple[Crop, ...]]:
    """The crop that shows each cluster at its surest, and the one that shows it at its least sure."""
    present = np.flatnonzero(shares >= LEAST)
    if not len(present):
        return (), ()
    inside = (ids == torch.from_numpy(present)[:, None, None]).float()
    maps = torch.stack([inside, inside * sure], 1)  # (P, 2, h, w)
    best: list[list[Crop | None]] = [[None] * len(present), [None] * len(present)]
    for share in WINDOWS:
        side = max(round(share * min(ids.shape)), 1)
        step = max(side // STEPS, 1)
        means = F.avg_pool2d(maps, side, step)
        cover, sureness = means[:, 0], means[:, 1] / means[:, 0].clamp(min=1e-6)
        # A larger part of the image shows more of what is around.
        framed = (1 - (cover - COVERED).abs()) * share**0.25
        for kind, value in enumerate((sureness, 1 - sureness)):
            rated = torch.where(cover >= LEAST_COVERED, value * framed, -1.0)
            scores, where = rated.flatten(1).max(1)
            for row, (score, index) in enumerate(zip(scores.tolist(), where.tolist(), strict=True)):
                held = best[kind][row]
                if score >= 0 and (held is None or score > held.score):
                    top, left = (int(at) * step for at in divmod(index, cover.shape[-1]))
                    window = inside[row, top : top + side, left : left + side].bool().numpy()
                    box = (top / ids.shape[0], left / ids.shape[1])
                    size = (side / ids.shape[0], side / ids.shape[1])
                    best[kind][row] = Crop(place, int(present[row]), (*box, *size), score, window)
    typical, doubtful = (tuple(crop for crop in found if crop is not None) for found in best)
    return typical, doubtful
