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

A road looks different at noon and at dusk, so half of the fits are under their image's gist: centres move with it.
Where every image shows something else its gist tells what it shows, and taking that away would take what divides the
clusters. The half is taken whose clusters are found again better, in other light and by fits to other images.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import torch
from torch import Tensor, nn

from densesiam_seg.clustering.agreement import best_pairs, shared_information
from densesiam_seg.clustering.appearance import GIST, OWN
from densesiam_seg.clustering.gaussians import Fit, fitted, judged, log_joint, maximised
from densesiam_seg.io.parallel import on_own_cores
from densesiam_seg.io.randomness import Stream, generator

RESTARTS = 80
"""Fits, with and without the gist and of both kinds of start in turn."""
KEPT = 8
"""One in so many of those with or without the gist is kept."""
KINDS = (True, False)
"""Whether fits are under their image's gist."""
FEWEST = 2
"""Images to a channel of the gist, below which it would tell every image from every other: no fit is under it then."""
HELD = 1 << 27
"""Bytes of the shares of the fits that are kept; of very many clusters there are fewer fits."""
PART = 2
"""Each fit sees one in so many of the images, and all of their places."""
LEAST = 50
"""Points per cluster that a fit sees at least, where there are so many."""
ROUNDS = 3
"""Times that all fits are paired with their mean."""
ADAPTATIONS = 5
SMOOTHING = 0.01
"""How much of the usual shares is mixed into others, so that no cluster is ruled out."""


@dataclass(frozen=True)
class Search:
    """Which fits there are, and how many of them are joined.

    Of `restarts` fits some are under the gist and some are not, as `kinds` says in turn. Of the kind that is found
    again best one fit in `kept` is taken, the steadiest ones, and at least one.
    """

    restarts: int = RESTARTS
    kept: int = KEPT
    kinds: Sequence[bool] = KINDS


SEARCH = Search()


@dataclass(frozen=True)
class Sample:
    """Points (N, D), the same places in each of L other lights (L, N, D), and which image each is of (N,), from 0."""

    points: Tensor
    relit: Tensor
    images: Tensor

    def without(self, channels: int) -> Sample:
        """The same points with nothing in the first channels."""
        points, relit = self.points.clone(), self.relit.clone()
        points[:, :channels] = relit[..., :channels] = 0
        return replace(self, points=points, relit=relit)

    def part(self, count: int, draw: np.random.Generator) -> Tensor:
        """The points of so many images, drawn at random, that they are at least `count`, or all points."""
        sizes = self.images.bincount()
        order = torch.from_numpy(draw.permutation(len(sizes)))
        before = sizes[order].cumsum(0) - sizes[order]
        chosen = torch.zeros(len(sizes), dtype=torch.bool)
        chosen[order[before < count]] = True
        return self.points[chosen[self.images]]

    def means(self, values: Tensor) -> Tensor:
        """Values of all points (N, K) → at each point the mean of its image, (N, K)."""
        sizes = self.images.bincount().view(-1, 1)
        sums = torch.zeros(len(sizes), values.shape[1], dtype=values.dtype)
        return (sums.index_add_(0, self.images, values) / sizes)[self.images]


class Mixture(nn.Module):
    """Log-posteriors of the clusters. Its tensors are buffers: nothing of it is trained by gradients.

    Of a point's channels the first `gist` are its image's, and the `own` that follow the place's.
    """

    def __init__(self, clusters: int, own: int = OWN, gist: int = GIST) -> None:
        super().__init__()
        self.gist = gist
        channels = gist + own
        self.mean: Tensor
        self.deviation: Tensor
        self.centres: Tensor
        self.whitening: Tensor
        self.offsets: Tensor
        self.shares: Tensor
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("deviation", torch.ones(channels))
        self.register_buffer("centres", torch.zeros(clusters, channels))
        self.register_buffer("whitening", torch.eye(channels)[gist:].repeat(clusters, 1, 1))
        self.register_buffer("offsets", torch.zeros(clusters))
        self.register_buffer("shares", torch.full((clusters,), 1 / clusters))

    def forward(self, appearance: Tensor) -> Tensor:
        """Appearance (B, D, h, w) → log-posteriors (B, K, h, w), float32."""
        images, channels, height, width = appearance.shape
        points = appearance.float().movedim(1, -1).reshape(-1, channels)
        # Autocast would round differences of large squares.
        with torch.autocast(points.device.type, enabled=False):
            joint = log_joint((points - self.mean) / self.deviation, self)
        logs = joint.log_softmax(1)
        return logs.view(images, height, width, -1).movedim(-1, 1)

    def adapted(self, scores: Tensor) -> Tensor:
        """Scores (B, K, h, w) whose softmax are posteriors → log-posteriors under each image's own shares of clusters.

        A fit over all images expects every cluster everywhere; a night scene has no daylight sky. Expectation-
        maximisation of the shares alone, each image by itself (Saerens et al., "Adjusting the outputs of a classifier
        to new a priori probabilities", 2002, section 2.2).
        """

        def own(shares: Tensor) -> Tensor:
            return shares.mean((-2, -1), keepdim=True)

        return _under_own_shares(scores.log_softmax(1), self.shares.view(-1, 1, 1), own)

    def fit(self, sample: Sample, *, seed: int, search: Search = SEARCH) -> float:
        """Take over the joint mixture of many fits to a sample; returns its mean log-likelihood per point.

        Raises InputError for fewer distinct points than clusters and NumericError for points that are not finite.
        """
        steps = self.fitting(sample, seed=seed, search=search)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                return float(end.value)

    def fitting(
        self, sample: Sample, *, seed: int, search: Search = SEARCH
    ) -> Generator[float, None, float]:
        """`fit` in steps, since all of them may take a minute: yields the part of the fits that are done."""
        points = sample.points.detach().cpu().double()
        mean, deviation = points.mean(0), points.std(0, unbiased=False)
        # A channel that never changes says nothing; it must not divide by zero.
        deviation = torch.where(deviation > 1e-6, deviation, 1.0)
        relit = (sample.relit.detach().cpu().double() - mean) / deviation
        standard = Sample((points - mean) / deviation, relit, sample.images.cpu())
        # Channels that hold nothing move no centres.
        blind = standard.without(self.gist)
        enough = self.gist and len(sample.images.bincount()) >= FEWEST * self.gist
        samples = [standard if under else blind for under in (search.kinds if enough else (False,))]
        clusters = len(self.centres)
        room = HELD // (8 * len(points) * clusters)
        turns = max(min(search.restarts, room * search.kept), len(samples))

        def ranked(turn: int) -> tuple[int, Ranked]:
            number, kind = divmod(turn, len(samples))
            fit = _fit(samples[kind], clusters, self.gist, seed, number)
            return kind, _ranked(fit, samples[kind])

        found: list[list[Ranked]] = [[] for _ in samples]
        with closing(on_own_cores(ranked, range(turns))) as done:
            for number, (kind, each) in enumerate(done, 1):
                found[kind].append(each)
                yield number / turns
        best = [
            _steadiest(fits, sample, search.kept)
            for fits, sample in zip(found, samples, strict=True)
        ]
        # Where both are found again as well it is the first.
        kind = max(range(len(best)), key=lambda each: best[each][0])
        chosen, sample = best[kind][1], samples[kind]
        shares = [judged(sample.points, each).shares for each in chosen]
        fit = maximised(sample.points, consensus(shares), self.gist)
        for name, value in (("mean", mean), ("deviation", deviation), *fit.tensors().items()):
            getattr(self, name).copy_(value)
        return judged(sample.points, fit).likelihood


@dataclass(frozen=True)
class Ranked:
    """A fit, and what decides whether it is kept."""

    fit: Fit
    steadiness: float
    likelihood: float


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


def smoothed(shares: Tensor, usual: Tensor) -> Tensor:
    """Shares of clusters with a little of the usual ones, so that none is nothing."""
    return (shares + SMOOTHING * usual) / (1 + SMOOTHING)


def steadiness(fit: Fit, sample: Sample) -> float:
    """How much the clusters of places tell of those of the same places in other light, 0 to 1, mean of all lights."""
    first = _found(fit, sample, sample.points)
    scores = [_told(first, _found(fit, sample, relit)) for relit in sample.relit]
    return sum(scores) / len(scores)


def agreement(fits: Sequence[Fit], sample: Sample) -> float:
    """How much the clusters of places by one fit tell of those by another, 0 to 1, mean of all pairs; 0 without any."""
    found = [_found(fit, sample, sample.points) for fit in fits]
    scores = [_told(one, other) for one, other in combinations(found, 2)]
    return sum(scores) / max(len(scores), 1)


def _found(fit: Fit, sample: Sample, points: Tensor) -> Tensor:
    """The cluster (N,) of each of a sample's points, which may be in another light, under its image's own shares."""
    logs = log_joint(points, fit).log_softmax(1)
    return _under_own_shares(logs, fit.shares, sample.means).argmax(1)


def _told(one: Tensor, other: Tensor) -> float:
    """Normalised mutual information of two clusterings (N,)."""
    clusters = 1 + int(max(one.max(), other.max()))
    joint = (one * clusters + other).bincount(minlength=clusters**2)
    return shared_information(joint.view(clusters, clusters).numpy())


def _ranked(fit: Fit, sample: Sample) -> Ranked:
    """Of equally steady fits the likelier one comes first; beyond these digits it is rounding that differs."""
    return Ranked(fit, round(steadiness(fit, sample), 6), judged(sample.points, fit).likelihood)


def _steadiest(fits: Sequence[Ranked], sample: Sample, kept: int) -> tuple[float, list[Fit]]:
    """The steadiest one in `kept` of the fits, at least one, the steadiest first, and how well they are found again."""
    order = sorted(fits, key=lambda each: (each.steadiness, each.likelihood), reverse=True)
    count = max(len(fits) // kept, 1)
    steady = sum(each.steadiness for each in order[:count]) / count
    best = [each.fit for each in order]
    # One alone cannot be found again by another.
    return steady + agreement(best[: max(count, 2)], sample), best[:count]


def _under_own_shares(logs: Tensor, usual: Tensor, own_of: Callable[[Tensor], Tensor]) -> Tensor:
    """Log-posteriors, clusters in dimension 1, from those under the usual shares; `own_of` means them over images."""
    found = logs
    for _ in range(ADAPTATIONS):
        own = smoothed(own_of(found.exp()), usual)
        found = (logs + (own / usual).log()).log_softmax(1)
    return found


def _fit(sample: Sample, clusters: int, gist: int, seed: int, turn: int) -> Fit:
    """A fit to some of the images, by (seed, turn); every other one in halves."""
    draw = generator(seed, Stream.PIXELS, round_=1 + turn)
    part = sample.part(max(len(sample.points) // PART, LEAST * clusters), draw)
    return fitted(part, clusters, seed=seed + turn, halves=turn % 2 == 1, given=gist)
