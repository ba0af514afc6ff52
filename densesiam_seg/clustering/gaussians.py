"""One mixture by expectation-maximisation, in float64: Gaussians over appearance, and directions of learned features.

Axes: N points, K clusters, D channels of appearance, of which the first G are given, C channels of learned features
behind them. Appearance is standardised: every channel has mean 0 and deviation 1. Learned features are unit vectors.

The first G channels are conditioned on: a cluster's density is that of the other channels given these, a Gaussian whose
mean depends on them linearly (a mixture of linear regressions; DeSarbo and Cron, 1988). With G = 0 it is the ordinary
mixture of Gaussians.

A cluster's density of learned features is that of von Mises and Fisher, ∝ exp(κ μ·x) with one concentration κ for all
(Banerjee et al., "Clustering on the unit hypersphere", 2005): k-means with soft borders and unequal shares. Given the
cluster the two descriptions are independent, so their log-densities are added, appearance's times a temper:
neighbouring places repeat each other, so that many channels would make every place certain.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from densesiam_seg.clustering.kmeans import assign, kmeans

ITERATIONS = 30
TOLERANCE = 1e-4
"""The fit ends when an iteration gains less mean log-likelihood per point."""
RIDGE = 0.1
"""Added to the variances, so that a cluster cannot shrink onto a few similar points."""
OUTLIER_SHARE = 0.1
"""The second of two `halves` of the clusters starts from this share of the points: those that the first fits worst."""


@dataclass(frozen=True)
class Form:
    """What a mixture reads of a point, and how much each of its two descriptions counts."""

    given: int = 0
    """G: so many first channels are conditioned on."""
    concentration: float = 0.0
    """κ of the learned features; 0: they do not count."""
    temper: float = 1.0
    """Factor on the log-density of appearance."""
    learned: int = 0
    """C: so many last channels are learned features."""


PLAIN = Form()


@dataclass(frozen=True)
class Gaussians:
    """K Gaussians, the directions of learned features that belong to them, and their weights."""

    centres: Tensor
    """(K, D)."""
    whitening: Tensor
    """The rows of the channels not given in the inverses W of the covariances' Cholesky factors, (K, D - G, D).

    |W (x - c)|² is the temper times the squared Mahalanobis distance of x from the cluster's conditional mean."""
    offsets: Tensor
    """Log of weight times (tempered) density at the centre (K,)."""
    shares: Tensor
    """The mixture weights (K,)."""
    directions: Tensor
    """κ μ, (K, C)."""


def log_joint(points: Tensor, fit: Gaussians) -> Tensor:
    """log of (weight × density) of each point (N, D + C) and cluster, up to a constant where C > 0: (N, K)."""
    channels = fit.centres.shape[1]
    appearance, learned = points[:, :channels], points[:, channels:]
    columns = [
        offset - 0.5 * ((appearance - centre) @ matrix.T).square().sum(1)
        for centre, matrix, offset in zip(fit.centres, fit.whitening, fit.offsets, strict=True)
    ]
    joint = torch.stack(columns, 1)
    return joint + learned @ fit.directions.T if learned.shape[1] else joint


def expectation(points: Tensor, fit: Gaussians) -> tuple[Tensor, Tensor]:
    """The log-likelihoods (N,) of points, and their posteriors (N, K)."""
    joint = log_joint(points, fit)
    evidence = joint.logsumexp(1, keepdim=True)
    return evidence[:, 0], (joint - evidence).exp()


def maximisation(points: Tensor, shares: Tensor, form: Form = PLAIN) -> Gaussians:
    """A mixture fitted to points (N, D + C) with posteriors `shares` (N, K)."""
    given, clusters = form.given, shares.shape[1]
    channels = points.shape[1] - form.learned
    points, learned = points[:, :channels], points[:, channels:]
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
    constant = 0.5 * (channels - given) * math.log(2 * math.pi)
    offsets = weights.log() - form.temper * (volumes + constant)
    directions = form.concentration * F.normalize(shares.T @ learned, dim=1)
    tempered = whitening[:, given:] * math.sqrt(form.temper)
    return Gaussians(centres, tempered, offsets, weights, directions)


def fit_gaussians(
    points: Tensor, clusters: int, *, seed: int, halves: bool = False, form: Form = PLAIN
) -> Gaussians:
    """Expectation-maximisation from k-means of the learned channels, or where none count of those of appearance.

    All clusters start at once, or in two `halves`. At once the clusters get about equal weights; in halves, of which
    the second starts from the outliers of the first, they get large and small ones. Channels that are given are not
    clustered. Raises InputError for fewer distinct points than clusters and NumericError for points that are not
    finite.
    """
    first = -(-clusters // 2) if halves else clusters
    clustered = points[:, -form.learned :] if form.learned else points[:, form.given :]
    shares = _one_hot(_kmeans_labels(clustered, first, seed), first)
    fit = _iterated(points, shares, form)
    if first < clusters:
        shares = joined_by_outliers(points, fit, clusters - first, seed=seed, given=form.given)
        fit = _iterated(points, shares, form)
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
    labels[worst] = _kmeans_labels(distinct[worst], more, seed)
    new = _one_hot(labels[place], more)
    return torch.cat((shares * (1 - new.sum(1, keepdim=True)), new), 1)


def _kmeans_labels(points: Tensor, clusters: int, seed: int) -> Tensor:
    """The cluster of each point (N,) by k-means."""
    single = points.float()
    return assign(single, kmeans(single, clusters, seed=seed).centres)


def _one_hot(labels: Tensor, clusters: int) -> Tensor:
    """Posteriors (N, K) of points with one cluster each, or where the label is `clusters` with none."""
    return F.one_hot(labels, clusters + 1)[:, :clusters].double()


def _iterated(points: Tensor, shares: Tensor, form: Form) -> Gaussians:
    """Expectation-maximisation from posteriors (N, K)."""
    fit, before = maximisation(points, shares, form), -math.inf
    for _ in range(ITERATIONS):
        evidence, shares = expectation(points, fit)
        likelihood = float(evidence.mean())
        if likelihood - before < TOLERANCE:
            break
        fit, before = maximisation(points, shares, form), likelihood
    return fit
