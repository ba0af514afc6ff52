"""One mixture of Gaussians by expectation-maximisation, in float64.

Axes: N points, n of them in a block, K clusters, D channels, of which the first G are given, P = 1 + D + D (D + 1) / 2
products. Points are standardised: every channel has mean 0 and deviation 1.

A log-density is a quadratic function of the point, so that those of all points and clusters are one matrix product with
the products of the points' channels, and so are all the sums that the next Gaussians are made of. Blocks of points stay
in the processor's cache, and no array has a number for each point and cluster.

The first G channels are conditioned on: a cluster's density is that of the other channels given these, a Gaussian whose
mean depends on them linearly (a mixture of linear regressions; DeSarbo and Cron, 1988). With G = 0 it is the ordinary
mixture of Gaussians.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
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
BLOCK = 1024
"""Points whose densities are computed at once."""


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
        if points.dtype == torch.float64:
            factors = self.factors()
            return torch.cat([(factors @ block).T for block in products(points)])
        # In single precision the products' differences would be rounded, and those of the points are not.
        columns = [
            offset - 0.5 * ((points - centre) @ matrix.T).square().sum(1)
            for centre, matrix, offset in zip(
                self.centres, self.whitening, self.offsets, strict=True
            )
        ]
        return torch.stack(columns, 1)

    def factors(self) -> Tensor:
        """What `products` are multiplied by in `log_joint`: (K, P)."""
        rows, columns = _pairs(self.centres.shape[1])
        precisions = self.whitening.mT @ self.whitening
        towards = (precisions @ self.centres[:, :, None])[:, :, 0]
        constant = self.offsets - 0.5 * (towards * self.centres).sum(1)
        # Of two unlike channels the product stands for both orders.
        squares = precisions[:, rows, columns] * torch.where(rows == columns, -0.5, -1.0)
        return torch.cat((constant[:, None], towards, squares), 1)

    def beside(self, channels: int) -> Gaussians:
        """The same densities of points that have so many more channels before their own, which make no difference."""
        before = (channels, 0)
        centres, whitening = F.pad(self.centres, before), F.pad(self.whitening, before)
        return Gaussians(centres, whitening, self.offsets, self.shares)


def products(points: Tensor) -> Iterator[Tensor]:
    """Points (N, D) → blocks (P, n): 1, every channel, and the products of all pairs of channels."""
    rows, columns = _pairs(points.shape[1])
    for block in torch.split(points, BLOCK):
        channels = block.T.contiguous()
        pairs = channels[rows].mul_(channels[columns])
        yield torch.cat((torch.ones_like(channels[:1]), channels, pairs))


def _pairs(channels: int) -> tuple[Tensor, Tensor]:
    """Both channels of every product."""
    rows, columns = torch.triu_indices(channels, channels)
    return rows, columns


def _posteriors(joint: Tensor) -> tuple[Tensor, Tensor]:
    """`log_joint` of a block, (K, n) → log-likelihoods (n,) and posteriors (K, n)."""
    highest = joint.amax(0)
    shares = (joint - highest).exp_()
    total = shares.sum(0)
    return highest + total.log(), shares.div_(total)


def expectation(points: Tensor, fit: Gaussians) -> tuple[Tensor, Tensor]:
    """The log-likelihoods (N,) of points, and their posteriors (N, K)."""
    factors = fit.factors()
    parts = [_posteriors(factors @ block) for block in products(points)]
    return torch.cat([evidence for evidence, _ in parts]), torch.cat([part.T for _, part in parts])


def maximisation(points: Tensor, shares: Tensor, given: int = 0) -> Gaussians:
    """Gaussians fitted to points (N, D) with posteriors `shares` (N, K)."""
    parts = zip(torch.split(shares, BLOCK), products(points), strict=True)
    sums = [own.T @ block.T for own, block in parts]
    return _of_moments(torch.stack(sums).sum(0), points.shape[1], given)


def _of_moments(sums: Tensor, channels: int, given: int) -> Gaussians:
    """The Gaussians whose points have such sums of products (K, P), each point weighed by its posterior."""
    counts = sums[:, 0].clamp(min=1.0)
    means = sums[:, 1:] / counts[:, None]
    centres, squares = means[:, :channels], means[:, channels:]
    rows, columns = _pairs(channels)
    # A cluster of less than one point in all has no mean: its sums are of differences from a centre near 0.
    filled = (sums[:, 0] / counts)[:, None]
    centred = squares - (2 - filled) * centres[:, rows] * centres[:, columns]
    covariances = sums.new_empty(len(sums), channels, channels)
    covariances[:, rows, columns] = centred
    covariances[:, columns, rows] = centred
    covariances += RIDGE * torch.eye(channels, dtype=sums.dtype)
    roots = torch.linalg.cholesky(covariances)
    whitening = torch.linalg.solve_triangular(
        roots, torch.eye(channels, dtype=sums.dtype).expand_as(roots), upper=False
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
    blocks = list(products(points))
    for _ in range(ITERATIONS):
        factors, sums, likelihood = fit.factors(), torch.zeros(()), 0.0
        for block in blocks:
            evidence, posteriors = _posteriors(factors @ block)
            likelihood += float(evidence.sum()) / len(points)
            sums = sums + posteriors @ block.T
        if likelihood - before < TOLERANCE:
            break
        fit, before = _of_moments(sums, points.shape[1], given), likelihood
    return fit
