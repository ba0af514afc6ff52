"""A mixture of K Gaussians over appearance: the clusters that training starts from.

Axes: N points, K clusters, D channels, B images, h w map size.

k-means cuts space into cells of like size and shape, so it divides a road, which is wide in position and narrow in
colour, into several clusters. A Gaussian with a full covariance takes the road's shape, and its weight the road's
share of the pixels (Carson et al., "Blobworld", 2002, cluster single images so).

Expectation-maximisation ends in another optimum from every start, and the likeliest is not the best segmentation
(docs/recipe.md). So there are many fits, half of them to all clusters at once and half in two halves, and half of them
under their image's gist: a road looks different at noon and at dusk, but where every image shows something else its
gist tells what divides the clusters. Kept are the fits whose clusters are found again best in darker and brighter
images and by fits to other images. Their clusters are paired, their shares of each point averaged (Strehl and Ghosh,
"Cluster ensembles", 2002), and one mixture is fitted to that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import combinations
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from densesiam_seg.clustering.agreement import best_pairs, shared_information
from densesiam_seg.clustering.appearance import GIST, OWN
from densesiam_seg.clustering.gaussians import (
    Gaussians,
    expectation,
    fit_gaussians,
    log_joint,
    maximisation,
)
from densesiam_seg.io.parallel import on_own_cores
from densesiam_seg.io.randomness import Stream, generator

RESTARTS = 80
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
    """Which fits there are, and how many of them are joined."""

    restarts: int = RESTARTS
    kept: int = 8
    """Of the kind that is found again best one fit in so many is kept, the steadiest ones, and at least one."""
    kinds: Sequence[bool] = (True, False)
    """Whether fits are under their image's gist, in turn."""


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

    mean: Tensor
    deviation: Tensor
    centres: Tensor
    whitening: Tensor
    offsets: Tensor
    shares: Tensor

    def __init__(self, clusters: int, own: int = OWN, gist: int = GIST) -> None:
        super().__init__()
        self.gist = gist
        channels = gist + own
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
        gaussians = Gaussians(self.centres, self.whitening, self.offsets, self.shares)
        # Autocast would round differences of large squares.
        with torch.autocast(points.device.type, enabled=False):
            joint = log_joint((points - self.mean) / self.deviation, gaussians)
        logs = joint.log_softmax(1)
        return logs.view(images, height, width, -1).movedim(-1, 1)

    def adapted(self, scores: Tensor) -> Tensor:
        """Scores (B, K, h, w) whose softmax are posteriors → log-posteriors under each image's own shares of clusters.

        A fit over all images expects every cluster everywhere; a night scene has no daylight sky. Expectation-
        maximisation of the shares alone, each image by itself (Saerens et al., "Adjusting the outputs of a classifier
        to new a priori probabilities", 2002, section 2.2).
        """
        return _under_own_shares(
            scores.log_softmax(1),
            self.shares.view(-1, 1, 1),
            lambda shares: shares.mean((-2, -1), keepdim=True),
        )

    def fit(self, sample: Sample, *, seed: int, search: Search = SEARCH) -> None:
        """Take over the joint mixture of many fits to a sample.

        Raises InputError for fewer distinct points than clusters and NumericError for points that are not finite.
        """
        for _ in self.fitting(sample, seed=seed, search=search):
            pass

    def fitting(self, sample: Sample, *, seed: int, search: Search = SEARCH) -> Iterator[float]:
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
            return kind, _ranked(samples[kind], clusters, self.gist, seed, number)

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
        points = samples[kind].points
        shares = [expectation(points, fit)[1] for fit in best[kind][1]]
        fit = maximisation(points, consensus(shares), self.gist)
        for name, value in {"mean": mean, "deviation": deviation, **vars(fit)}.items():
            self.get_buffer(name).copy_(value)


class Ranked(NamedTuple):
    """A fit, and what decides whether it is kept."""

    steadiness: float
    likelihood: float
    fit: Gaussians


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


def steadiness(fit: Gaussians, sample: Sample) -> float:
    """How much the clusters of places tell of those of the same places in other light, 0 to 1, mean of all lights."""
    first = _labels(fit, sample, sample.points)
    scores = [_told(first, _labels(fit, sample, relit)) for relit in sample.relit]
    return sum(scores) / len(scores)


def agreement(fits: Sequence[Gaussians], sample: Sample) -> float:
    """How much the clusters of places by one fit tell of those by another, 0 to 1, mean of all pairs; 0 without any."""
    labels = [_labels(fit, sample, sample.points) for fit in fits]
    scores = [_told(one, other) for one, other in combinations(labels, 2)]
    return sum(scores) / max(len(scores), 1)


def _labels(fit: Gaussians, sample: Sample, points: Tensor) -> Tensor:
    """The cluster (N,) of each of a sample's points, which may be in another light, under its image's own shares."""
    logs = log_joint(points, fit).log_softmax(1)
    return _under_own_shares(logs, fit.shares, sample.means).argmax(1)


def _told(one: Tensor, other: Tensor) -> float:
    """Normalised mutual information of two clusterings (N,)."""
    clusters = 1 + int(max(one.max(), other.max()))
    joint = (one * clusters + other).bincount(minlength=clusters**2)
    return shared_information(joint.view(clusters, clusters).numpy())


def _ranked(sample: Sample, clusters: int, gist: int, seed: int, turn: int) -> Ranked:
    """A fit to some of the images, by (seed, turn), every other one in halves.

    Of equally steady fits the likelier one comes first; beyond these digits it is rounding that differs.
    """
    draw = generator(seed, Stream.PIXELS, round_=1 + turn)
    part = sample.part(max(len(sample.points) // PART, LEAST * clusters), draw)
    fit = fit_gaussians(part, clusters, seed=seed + turn, halves=turn % 2 == 1, given=gist)
    evidence, _ = expectation(sample.points, fit)
    return Ranked(round(steadiness(fit, sample), 6), float(evidence.mean()), fit)


def _steadiest(fits: Sequence[Ranked], sample: Sample, kept: int) -> tuple[float, list[Gaussians]]:
    """The steadiest one in `kept` of the fits, at least one, the steadiest first, and how well they are found again."""
    order = sorted(fits, key=lambda each: each[:2], reverse=True)
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
