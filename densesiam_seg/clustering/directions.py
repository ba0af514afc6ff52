"""Mixtures of directions: the clusters of learned features that training starts from.

Axes: N points, which are unit vectors of C channels; K clusters, A over-clusters.

A cluster's density is that of von Mises and Fisher, ∝ exp(κ μ·x), with one concentration κ for all (Banerjee et al.,
"Clustering on the unit hypersphere", 2005): k-means with soft borders and unequal shares.

One run of k-means depends on its start and its images. So there are many, each on half of the images and with more
clusters than are wanted. Ward's rule joins the over-clusters of all (Leisch, "Bagged clustering", 1999) to as many as
one run has, and from their mean posteriors a mixture of over-clusters is fitted. A low κ makes clusters of unlike size,
as in streets, a high one of like size: that is taken whose over-clusters are more stable in other views (`quality.py`),
which tells them better apart than the few clusters that are wanted. Ward's rule joins the over-clusters once more, and
from these the mixture of K directions is fitted.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from densesiam_seg.clustering.kmeans import kmeans_labels
from densesiam_seg.clustering.merging import Contacts, cut, merge_tree
from densesiam_seg.clustering.quality import Sample, stability
from densesiam_seg.io.randomness import Stream, generator
from densesiam_seg.peers.group import ALONE, Group

DRAWS = 12
OVER_CLUSTERS = 2.5
"""Of each draw, for one cluster."""
MAX_OVER_CLUSTERS = 3000
"""Of all draws together, as joining takes the square of their memory; with very many clusters there are fewer draws."""
OVER_CONCENTRATION = 10.0
CONCENTRATIONS = (7.0, 20.0)
ITERATIONS = 40
"""So many that hardly anything changes any more."""


@dataclass(frozen=True)
class Directions:
    """K directions and their weights."""

    axes: Tensor
    """κ μ, (K, C)."""
    logs: Tensor
    """Logarithms of the mixture weights (K,)."""

    def log_joint(self, points: Tensor) -> Tensor:
        """log of (weight × density) of each point (N, C) and cluster, up to a constant: (N, K)."""
        return points @ self.axes.T + self.logs

    def posteriors(self, points: Tensor) -> Tensor:
        """Of each point (N, C) and cluster: (N, K)."""
        return self.log_joint(points).softmax(1)


def fit_directions(points: Tensor, posteriors: Tensor, concentration: float) -> Directions:
    """Expectation-maximisation from posteriors (N, K), at one concentration κ."""
    for _ in range(ITERATIONS):
        fit = _maximised(points, posteriors, concentration)
        posteriors = fit.posteriors(points)
    return _maximised(points, posteriors, concentration)


def find_directions(
    sample: Sample, clusters: int, *, seed: int, group: Group = ALONE
) -> Generator[float, None, tuple[Directions, float]]:
    """The clusters of a sample of unit vectors, and their stability.

    The processes of a group, all of which have the sample, deal out whole draws and fits and send each other the
    results. Within a fit they send nothing, and every number is computed by one of them, on one core: so all get the
    same bits, for any number of them, as by sums that they would add up in every iteration.

    Yields the fraction that is done. Raises InputError for fewer distinct points than clusters and NumericError for
    points that are not finite.
    """
    sample = sample.double()
    points = sample.points
    count = min(round(OVER_CLUSTERS * clusters), len(points) // 4, MAX_OVER_CLUSTERS)
    count = max(count, clusters)
    draws = max(min(DRAWS, MAX_OVER_CLUSTERS // count), 1)

    def draw_one(turn: int) -> Directions:
        draw = generator(seed, Stream.PIXELS, round_=1 + turn)
        part = sample.part(max(len(points) // 2, count), draw)
        labels = kmeans_labels(part, count, seed=seed + turn)
        # From here expectation-maximisation finds nothing better for what is joined (docs/tried.md).
        return _maximised(part, _one_hot(labels, count), OVER_CONCENTRATION)

    steps = draws + len(CONCENTRATIONS) + 1
    found: list[Directions] = []
    with closing(group.dealt(draw_one, range(draws))) as drawn:
        for draw in drawn:
            found.append(draw)
            yield len(found) / steps

    def over_clustered(concentration: float) -> tuple[float, float, Directions]:
        # Each joins for itself: the posteriors would be a long message.
        fit = fit_directions(points, joined(found, points, count), concentration)
        return stability(fit, sample), concentration, fit

    tried: list[tuple[float, float, Directions]] = []
    with closing(group.dealt(over_clustered, CONCENTRATIONS)) as fits:
        for each in fits:
            tried.append(each)
            yield (draws + len(tried)) / steps
    _, best, over = max(tried, key=lambda each: each[0])

    def clustered(concentration: float) -> tuple[Directions, float]:
        fit = fit_directions(points, joined([over], points, clusters), concentration)
        return fit, stability(fit, sample)

    # Dealt out, though it is one: all get it, and it is computed on one core.
    with closing(group.dealt(clustered, (best,))) as last:
        (result,) = last
    yield 1.0
    return result


def joined(draws: Sequence[Directions], points: Tensor, clusters: int) -> Tensor:
    """The posteriors (N, K) of points, mean of all draws, whose over-clusters are joined to K clusters."""
    axes = torch.cat([F.normalize(each.axes, dim=1) for each in draws])
    # Each counts as much as any other, so that the tree follows how far they are apart, not how large they are.
    alike, untouched = np.ones(len(axes), np.int64), np.zeros((len(axes), len(axes)))
    tree = merge_tree(axes.numpy(), alike, Contacts(untouched, untouched))
    cluster_of = torch.empty(len(axes), dtype=torch.long)
    for cluster, members in enumerate(cut(tree, clusters)):
        cluster_of[list(members)] = cluster
    parts = torch.split(_one_hot(cluster_of, clusters), [len(each.logs) for each in draws])
    total = torch.zeros(len(points), clusters, dtype=torch.float64)
    for each, own in zip(draws, parts, strict=True):
        total += each.posteriors(points) @ own
    return total / len(draws)


def _maximised(points: Tensor, posteriors: Tensor, concentration: float) -> Directions:
    # The weight of an empty cluster is not 0, whose logarithm would be infinite.
    weights = posteriors.mean(0).clamp(min=1e-12)
    axes = concentration * F.normalize(posteriors.T @ points, dim=1)
    return Directions(axes, weights.log())


def _one_hot(labels: Tensor, clusters: int) -> Tensor:
    return F.one_hot(labels, clusters).double()
