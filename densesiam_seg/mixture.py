"""A mixture of K Gaussians over appearance: the clusters that training starts from.

Axes: N points, K clusters, D channels, B images, h w map size.

k-means cuts space into cells of like size and shape, so it divides a road, which is wide in position and narrow in
colour, into several clusters. A Gaussian with a full covariance takes the road's shape, and its weight the road's
share of the pixels (Carson et al., "Blobworld", 2002, cluster single images so).

Expectation-maximisation ends in another optimum from every start, and the likeliest is not the best segmentation
(docs/recipe.md). So there are many fits, from two kinds of start: all clusters at once, which come out about equally
large, or half of them, and the others where those fit worst, which come out large and small. Kept are those whose
clusters are found again best in darker and brighter images. They are joined: their clusters are paired, their shares of
each point averaged (Strehl and Ghosh, "Cluster ensembles", 2002), and one mixture is fitted to that. What single fits
divide by chance comes together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from numpy.random import Generator
from torch import Tensor, nn

from densesiam_seg.appearance import CHANNELS
from densesiam_seg.clustering import assign, kmeans
from densesiam_seg.metrics import best_pairs, shared_information
from densesiam_seg.randomness import Stream, generator

RESTARTS = 40
"""Fits, of both kinds of start in turn."""
KEPT = 4
"""One in so many of them is kept."""
HELD = 1 << 28
"""Bytes of shares that may be held at once; of very many clusters fewer fits are kept."""
OUTLYING = 0.1
"""The part of the points, those that half of the clusters fit worst, where the other half starts."""
ITERATIONS = 30
RIDGE = 0.1
"""Added to the variances of standardised channels: a cluster cannot shrink onto a few like points."""
PART = 2
"""Each fit sees one in so many of the images, and all of their places."""
LEAST = 50
"""Points per cluster that a fit sees at least, where there are so many."""
ROUNDS = 3
"""Times that all fits are paired with their mean."""
ADAPTATIONS = 5
SMOOTHING = 0.01
"""How much of the usual shares is mixed into an image's own, so that no cluster is ruled out."""
SETTLED = 1e-4
"""Mean log-likelihood per point that an iteration must gain, or the fit is done."""


@dataclass(frozen=True)
class Sample:
    """Points (N, D), the same places in each of L other lights (L, N, D), and which image each is of (N,), from 0."""

    points: Tensor
    relit: Tensor
    images: Tensor

    def part(self, count: int, draw: Generator) -> Tensor:
        """The points of so many images, drawn at random, that they are at least `count`, or all points."""
        sizes = self.images.bincount()
        order = torch.from_numpy(draw.permutation(len(sizes)))
        before = sizes[order].cumsum(0) - sizes[order]
        chosen = torch.zeros(len(sizes), dtype=torch.bool)
        chosen[order[before < count]] = True
        return self.points[chosen[self.images]]


class Mixture(nn.Module):
    """Log-posteriors of the clusters. Its tensors are buffers: nothing of it is trained by gradients."""

    def __init__(self, clusters: int, channels: int = CHANNELS) -> None:
        super().__init__()
        self.mean: Tensor
        self.deviation: Tensor
        self.centres: Tensor
        self.whitening: Tensor
        self.offsets: Tensor
        self.shares: Tensor
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("deviation", torch.ones(channels))
        self.register_buffer("centres", torch.zeros(clusters, channels))
        self.register_buffer("whitening", torch.eye(channels).repeat(clusters, 1, 1))
        self.register_buffer("offsets", torch.zeros(clusters))
        self.register_buffer("shares", torch.full((clusters,), 1 / clusters))

    def forward(self, appearance: Tensor) -> Tensor:
        """Appearance (B, D, h, w) → log-posteriors (B, K, h, w), float32."""
        images, channels, height, width = appearance.shape
        points = appearance.float().movedim(1, -1).reshape(-1, channels)
        # Autocast would round differences of large squares.
        with torch.autocast(points.device.type, enabled=False):
            joint = _log_joint((points - self.mean) / self.deviation, self)
        logs = joint.log_softmax(1)
        return logs.view(images, height, width, -1).movedim(-1, 1)

    def adapted(self, scores: Tensor) -> Tensor:
        """Scores (B, K, h, w) whose softmax are posteriors → log-posteriors under each image's own shares of clusters.

        A fit over all images expects every cluster everywhere; a night scene has no daylight sky. Expectation-
        maximisation of the shares alone, each image by itself (Saerens et al., "Adjusting the outputs of a classifier
        to new a priori probabilities", 2002, section 2.2).
        """
        images, clusters, height, width = scores.shape
        logs = scores.log_softmax(1).movedim(1, -1).reshape(-1, clusters)
        image = torch.arange(images, device=scores.device).repeat_interleave(height * width)
        found = _under_own_shares(logs, image, self.shares)
        return found.view(images, height, width, clusters).movedim(-1, 1)

    @torch.no_grad()
    def fit(
        self, sample: Sample, *, seed: int, restarts: int = RESTARTS, kept: int = KEPT
    ) -> float:
        """Take over the joint mixture of many fits to a sample; returns its mean log-likelihood per point.

        Of `restarts` fits one in `kept` is taken, the steadiest ones, and at least one.

        Raises InputError for fewer distinct points than clusters and NumericError for points that are not finite.
        """
        points = sample.points.detach().cpu().double()
        mean, deviation = points.mean(0), points.std(0, unbiased=False)
        # A channel that never changes says nothing; it must not divide by zero.
        deviation = torch.where(deviation > 1e-6, deviation, 1.0)
        relit = (sample.relit.detach().cpu().double() - mean) / deviation
        standard = Sample((points - mean) / deviation, relit, sample.images.cpu())
        clusters = len(self.centres)
        fits = [_fit(standard, clusters, seed, turn) for turn in range(max(restarts, 1))]
        # The first names the clusters that the others are paired with.
        fits.sort(key=lambda each: _rank(each, standard), reverse=True)
        room = HELD // (8 * len(points) * clusters)
        best = fits[: max(min(restarts // kept, room), 1)]
        shares = [_judged(standard.points, each).shares for each in best]
        fit = _maximised(standard.points, consensus(shares))
        for name, value in (("mean", mean), ("deviation", deviation), *fit.tensors().items()):
            getattr(self, name).copy_(value)
        return _judged(standard.points, fit).likelihood


def consensus(shares: Sequence[Tensor]) -> Tensor:
    """The mean of several soft clusterings (N, K), the clusters of each paired with those of the mean.

    They are paired by the overlap over the union of their shares, starting from the first clustering.
    """
    mean = shares[0]
    for _ in range(ROUNDS):
        total = torch.zeros_like(mean)
        for each in shares:
            overlap = mean.T @ each
            union = mean.sum(0)[:, None] + each.sum(0) - overlap
            # Clusters that hold nothing in either have no overlap, and no union to divide it by.
            ratio = overlap / union.clamp(min=1e-12)
            total += each[:, torch.from_numpy(best_pairs(ratio.numpy()))]
        mean = total / len(shares)
    return mean


@dataclass(frozen=True)
class Fit:
    """Parameters in float64."""

    centres: Tensor
    whitening: Tensor
    offsets: Tensor
    shares: Tensor

    def tensors(self) -> dict[str, Tensor]:
        names = ("centres", "whitening", "offsets", "shares")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class _Judged:
    """Log-likelihoods (N,) of points under a fit, and their shares of its clusters (N, K)."""

    evidence: Tensor
    shares: Tensor

    @property
    def likelihood(self) -> float:
        return float(self.evidence.mean())


def _judged(points: Tensor, fit: Fit) -> _Judged:
    joint = _log_joint(points, fit)
    evidence = joint.logsumexp(1, keepdim=True)
    return _Judged(evidence[:, 0], (joint - evidence).exp())


def steadiness(fit: Fit, sample: Sample) -> float:
    """How much the clusters of places tell of those of the same places in other light, 0 to 1, mean of all lights."""
    clusters = len(fit.shares)

    def found(points: Tensor) -> Tensor:
        logs = _log_joint(points, fit).log_softmax(1)
        return _under_own_shares(logs, sample.images, fit.shares).argmax(1)

    first = found(sample.points) * clusters
    joints = [(first + found(relit)).bincount(minlength=clusters**2) for relit in sample.relit]
    scores = [shared_information(joint.view(clusters, clusters).numpy()) for joint in joints]
    return sum(scores) / len(scores)


def _rank(fit: Fit, sample: Sample) -> tuple[float, float]:
    """Of equally steady fits the likelier one comes first; beyond these digits it is rounding that differs."""
    return round(steadiness(fit, sample), 6), _judged(sample.points, fit).likelihood


def _under_own_shares(logs: Tensor, images: Tensor, usual: Tensor) -> Tensor:
    """Log-posteriors (N, K) of points of `images` (N,), from those under the usual shares (K,)."""
    sizes = images.bincount().view(-1, 1).to(logs)
    found = logs
    for _ in range(ADAPTATIONS):
        own = torch.zeros(len(sizes), len(usual), dtype=logs.dtype, device=logs.device)
        own = own.index_add_(0, images, found.exp()) / sizes.clamp(min=1)
        own = (own + SMOOTHING * usual) / (1 + SMOOTHING)
        found = (logs + (own / usual).log()[images]).log_softmax(1)
    return found


def _fit(sample: Sample, clusters: int, seed: int, turn: int) -> Fit:
    """Expectation-maximisation from k-means on some of the images, by (seed, turn); every other turn in two stages."""
    draw = generator(seed, Stream.PIXELS, round_=1 + turn)
    part = sample.part(max(len(sample.points) // PART, LEAST * clusters), draw)
    first = -(-clusters // 2) if turn % 2 else clusters
    fit = _settled(part, _belonging(_grouped(part, first, seed + turn), first))
    if first < clusters:
        fit = _settled(part, _joined_by_outliers(part, fit, clusters - first, seed + turn))
    return fit


def _grouped(points: Tensor, clusters: int, seed: int) -> Tensor:
    """The cluster of each point (N,) by k-means."""
    single = points.float()
    return assign(single, kmeans(single, clusters, seed=seed).centres)


def _belonging(labels: Tensor, clusters: int) -> Tensor:
    """Shares (N, K) of points that belong to one cluster alone, or where the label is `clusters` to none."""
    return nn.functional.one_hot(labels, clusters + 1)[:, :clusters].double()


def _joined_by_outliers(points: Tensor, fit: Fit, more: int, seed: int) -> Tensor:
    """Shares of the clusters of a fit and of `more` new ones, which take the points that it explains worst."""
    found = _judged(points, fit)
    # k-means takes no fewer distinct points than clusters.
    distinct, place = torch.unique(points.float(), dim=0, return_inverse=True)
    evidence = torch.empty(len(distinct), dtype=points.dtype)
    evidence[place] = found.evidence
    worst = evidence.argsort()[: max(int(OUTLYING * len(distinct)), more)]
    labels = torch.full((len(distinct),), more)
    labels[worst] = _grouped(distinct[worst], more, seed)
    new = _belonging(labels[place], more)
    return torch.cat((found.shares * (1 - new.sum(1, keepdim=True)), new), 1)


def _settled(points: Tensor, shares: Tensor) -> Fit:
    """Expectation-maximisation from shares (N, K)."""
    fit, before = _maximised(points, shares), -math.inf
    for _ in range(ITERATIONS):
        found = _judged(points, fit)
        if found.likelihood - before < SETTLED:
            break
        fit, before = _maximised(points, found.shares), found.likelihood
    return fit


def _maximised(points: Tensor, shares: Tensor) -> Fit:
    """The Gaussians that fit best to points (N, D) that belong to clusters by `shares` (N, K)."""
    clusters, channels = shares.shape[1], points.shape[1]
    counts = shares.sum(0).clamp(min=1.0)
    centres = shares.T @ points / counts[:, None]
    covariances = torch.empty(clusters, channels, channels, dtype=torch.float64)
    for k in range(clusters):
        away = points - centres[k]
        covariances[k] = (away * shares[:, k : k + 1]).T @ away / counts[k]
    covariances += RIDGE * torch.eye(channels, dtype=torch.float64)
    # x has squared distance |W (x - c)|² in units of deviations, W being the inverse of the covariance's lower root.
    roots = torch.linalg.cholesky(covariances)
    whitening = torch.linalg.solve_triangular(
        roots, torch.eye(channels, dtype=torch.float64).expand_as(roots), upper=False
    )
    volumes = roots.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    weights = counts / counts.sum()
    offsets = weights.log() - volumes - 0.5 * channels * math.log(2 * math.pi)
    return Fit(centres, whitening, offsets, weights)


def _log_joint(points: Tensor, fit: Fit | Mixture) -> Tensor:
    """log of (weight × density) of each standardised point (N, D) and cluster: (N, K)."""
    columns = [
        offset - 0.5 * ((points - centre) @ matrix.T).square().sum(1)
        for centre, matrix, offset in zip(fit.centres, fit.whitening, fit.offsets, strict=True)
    ]
    return torch.stack(columns, 1)
