"""One mixture of Gaussians by expectation-maximisation, in float64.

Axes: N points, K clusters, D channels, of which the first G are given. Points are standardised: every channel has mean
0 and deviation 1.

The first G channels are conditioned on: a cluster's density is that of the other channels given these, a Gaussian whose
mean depends on them linearly (a mixture of linear regressions; DeSarbo and Cron, 1988). With G = 0 it is the ordinary
mixture of Gaussians.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from densesiam_seg.clustering.kmeans import kmeans_labels

ITERATIONS = 30
TOLERANCE = 1e-4
"""The fit ends when an iteration gains less mean log-likelihood per point."""
RIDGE = 0.1
"""Added to the variances, so that a cluster cannot shrink onto a few similar points."""
OUTLIER_SHARE = 0.1
"""The second of two `halves` of the clusters starts from this share of the points: those that the first fits worst."""


@dataclass(frozen=True)
class Gaussians:
    """K Gaussians and their weights."""

    centres: Tensor
    """(K, D)."""
    whitening: Tensor
    """The rows of the channels not given in the inverses W of the covariances' Cholesky factors, (K, D - G, D).

    |W (x - c)|² is the squared Mahalanobis distance of x from the cluster's conditional mean."""
    offsets: Tensor
    """Log of weight times density at the centre (K,)."""
    shares: Tensor
    """The mixture weights (K,)."""

    def log_joint(self, points: Tensor) -> Tensor:
        """log of (weight × density) of each point (N, D) and cluster: (N, K)."""
        columns = [
            offset - 0.5 * ((points - centre) @ matrix.T).square().sum(1)
            for centre, matrix, offset in zip(
                self.centres, self.whitening, self.offsets, strict=True
            )
        ]
        return torch.stack(columns, 1)


def expectation(points: Tensor, fit: Gaussians) -> tuple[Tensor, Tensor]:
    """The log-likelihoods (N,) of points, and their posteriors (N, K)."""
    joint = fit.log_joint(points)
    evidence = joint.logsumexp(1, keepdim=True)
    return evidence[:, 0], (joint - evidence).exp()


def maximisation(points: Tensor, shares: Tensor, given: int = 0) -> Gaussians:
    """Gaussians fitted to points (N, D) with posteriors `shares` (N, K)."""
    clusters, channels = shares.shape[1], points.shape[1]
    counts = shares.sum(0).clamp(min=1.0)
    centres = shares.T @ points / counts[:, None]
    covariances = torch.empty(clusters, channels, channels, dtype=torch.float64)
    for k in range(clusters):
        away = points - centres[k]
        covariances[k] = (away * shares[:, k : k + 1]).T @ away / counts[k]
    covariances += RIDGE * torch.eye(channels, dtype=torch.float64)
    roots = torch.linalg.cholesky(covariances)
    whitening = torch.linalg.solve_triangular(
        roots, torch.eye(channels, dtype=torch.float64).expand_as(roots), upper=False
    )
    # The first rows of a Cholesky factor are the given channels' own: without them the density is the conditional one.
    volumes = roots.diagonal(dim1=-2, dim2=-1)[:, given:].log().sum(-1)
    weights = counts / counts.sum()
    offsets = weights.log() - volumes - 0.5 * (channels - given) * math.log(2 * math.pi)
    return Gaussians(centres, whitening[:, given:], offsets, weights)


def fit_gaussians(
    points: Tensor, clusters: int, *, seed: int, halves: bool = False, given: int = 0
) -> Gaussians:
    """Expectation-maximisation from k-means of the channels not given, with all clusters at once or in two `halves`.

    At once the clusters get about equal weights; in halves, of which the second starts from the outliers of the first,
    they get large and small ones. Raises InputError for fewer distinct points than clusters and NumericError for points
    that are not finite.
    """
    first = -(-clusters // 2) if halves else clusters
    shares = _one_hot(kmeans_labels(points[:, given:], first, seed=seed), first)
    fit = _iterated(points, shares, given)
    if first < clusters:
        shares = joined_by_outliers(points, fit, clusters - first, seed=seed, given=given)
        fit = _iterated(points, shares, given)
    return fit


def joined_by_outliers(
    points: Tensor, fit: Gaussians, more: int, *, seed: int, given: int = 0
) -> Tensor:
    """Posteriors of the clusters of a fit and of `more` new ones, which get the points of lowest likelihood."""
    evidence, shares = expectation(points, fit)
    # k-means needs at least as many distinct points as clusters.
    distinct, place = torch.unique(points[:, given:].float(), dim=0, return_inverse=True)
    of_distinct = torch.empty(len(distinct), dtype=points.dtype)
    of_distinct[place] = evidence
    worst = of_distinct.argsort()[: max(int(OUTLIER_SHARE * len(distinct)), more)]
    labels = torch.full((len(distinct),), more)
    labels[worst] = kmeans_labels(distinct[worst], more, seed=seed)
    new = _one_hot(labels[place], more)
    return torch.cat((shares * (1 - new.sum(1, keepdim=True)), new), 1)


def _one_hot(labels: Tensor, clusters: int) -> Tensor:
    """Posteriors (N, K) of points with one cluster each, or where the label is `clusters` with none."""
    return F.one_hot(labels, clusters + 1)[:, :clusters].double()


def _iterated(points: Tensor, shares: Tensor, given: int) -> Gaussians:
    """Expectation-maximisation from posteriors (N, K)."""
    fit, before = maximisation(points, shares, given), -math.inf
    for _ in range(ITERATIONS):
        evidence, shares = expectation(points, fit)
        likelihood = float(evidence.mean())
        if likelihood - before < TOLERANCE:
            break
        fit, before = maximisation(points, shares, given), likelihood
    return fit
