"""One mixture of Gaussians by expectation-maximisation, in float64.

Axes: N points, K clusters, D channels, of which the first G are given. Points are standardised: every channel has mean
0 and deviation 1.

What is given is not explained but explains: a cluster's density is that of the other channels under the given ones, a
Gaussian whose centre moves with them linearly (a mixture of linear regressions; DeSarbo and Cron, 1988). With G = 0 it
is the usual mixture.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from densesiam_seg.clustering.kmeans import assign, kmeans

ITERATIONS = 30
SETTLED = 1e-4
"""Mean log-likelihood per point that an iteration must gain, or the fit is done."""
RIDGE = 0.1
"""Added to the variances: a cluster cannot shrink onto a few like points."""
OUTLYING = 0.1
"""The part of the points, those that the first half of the clusters fits worst, where the other half starts."""


@dataclass(frozen=True)
class Gaussians:
    """K Gaussians and their weights."""

    centres: Tensor
    """(K, D)."""
    whitening: Tensor
    """The rows of what is not given in the inverses W of the covariances' lower roots, (K, D - G, D).

    |W (x - c)|² is x's squared distance in deviations from where the cluster lies under what is given."""
    offsets: Tensor
    """Log of weight times density at the centre (K,)."""
    shares: Tensor
    """The weights: the part of the points that each cluster has (K,)."""


def log_joint(points: Tensor, fit: Gaussians) -> Tensor:
    """log of (weight × density) of each point (N, D) and cluster: (N, K)."""
    columns = [
        offset - 0.5 * ((points - centre) @ matrix.T).square().sum(1)
        for centre, matrix, offset in zip(fit.centres, fit.whitening, fit.offsets, strict=True)
    ]
    return torch.stack(columns, 1)


def expectation(points: Tensor, fit: Gaussians) -> tuple[Tensor, Tensor]:
    """The log-likelihoods (N,) of points, and their shares of the clusters (N, K)."""
    joint = log_joint(points, fit)
    evidence = joint.logsumexp(1, keepdim=True)
    return evidence[:, 0], (joint - evidence).exp()


def maximisation(points: Tensor, shares: Tensor, given: int = 0) -> Gaussians:
    """Gaussians fitted to points (N, D) that belong to clusters by `shares` (N, K)."""
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
    # The first rows of a lower root are the given channels' own: without them the joint density is the conditional one.
    volumes = roots.diagonal(dim1=-2, dim2=-1)[:, given:].log().sum(-1)
    weights = counts / counts.sum()
    offsets = weights.log() - volumes - 0.5 * (channels - given) * math.log(2 * math.pi)
    return Gaussians(centres, whitening[:, given:], offsets, weights)


def fit_gaussians(
    points: Tensor, clusters: int, *, seed: int, halves: bool = False, given: int = 0
) -> Gaussians:
    """Expectation-maximisation from k-means of what is not given, with all clusters at once or in two `halves`.

    All at once they come out about equally large. In halves the second starts where the first fits worst, and they come
    out large and small. Raises InputError for fewer distinct points than clusters and NumericError for points that are
    not finite.
    """
    first = -(-clusters // 2) if halves else clusters
    shares = _one_hot(_kmeans_labels(points[:, given:], first, seed), first)
    fit = _iterated(points, shares, given)
    if first < clusters:
        shares = joined_by_outliers(points, fit, clusters - first, seed=seed, given=given)
        fit = _iterated(points, shares, given)
    return fit


def joined_by_outliers(
    points: Tensor, fit: Gaussians, more: int, *, seed: int, given: int = 0
) -> Tensor:
    """Shares of the clusters of a fit and of `more` new ones, which take the points that it explains worst."""
    evidence, shares = expectation(points, fit)
    # k-means takes no fewer distinct points than clusters.
    distinct, place = torch.unique(points[:, given:].float(), dim=0, return_inverse=True)
    of_distinct = torch.empty(len(distinct), dtype=points.dtype)
    of_distinct[place] = evidence
    worst = of_distinct.argsort()[: max(int(OUTLYING * len(distinct)), more)]
    labels = torch.full((len(distinct),), more)
    labels[worst] = _kmeans_labels(distinct[worst], more, seed)
    new = _one_hot(labels[place], more)
    return torch.cat((shares * (1 - new.sum(1, keepdim=True)), new), 1)


def _kmeans_labels(points: Tensor, clusters: int, seed: int) -> Tensor:
    """The cluster of each point (N,) by k-means."""
    single = points.float()
    return assign(single, kmeans(single, clusters, seed=seed).centres)


def _one_hot(labels: Tensor, clusters: int) -> Tensor:
    """Shares (N, K) of points that belong to one cluster alone, or where the label is `clusters` to none."""
    return F.one_hot(labels, clusters + 1)[:, :clusters].double()


def _iterated(points: Tensor, shares: Tensor, given: int) -> Gaussians:
    """Expectation-maximisation from shares (N, K)."""
    fit, before = maximisation(points, shares, given), -math.inf
    for _ in range(ITERATIONS):
        evidence, shares = expectation(points, fit)
        likelihood = float(evidence.mean())
        if likelihood - before < SETTLED:
            break
        fit, before = maximisation(points, shares, given), likelihood
    return fit
