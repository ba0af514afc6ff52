"""A mixture of K Gaussians over appearance: the clusters that training starts from.

Axes: N points, K clusters, D channels, B images, h w map size.

k-means makes clusters of similar size and shape, so it splits a road, which is wide in position and narrow in colour.
A Gaussian with a full covariance fits the road's shape, and its weight the road's share of the pixels (Carson et al.,
"Blobworld", 2002, cluster single images so).

Expectation-maximisation ends in another optimum from every start, and the likeliest is not the best segmentation
(docs/recipe.md). So many fits are made, half of them in two halves (`fit_gaussians`), and half conditioned on the
image's gist: this helps where the gist describes light, and harms where it describes what the clusters should separate.
The fits are selected whose clusters change least in darker and brighter images, of the kind (with or without the gist)
with the higher stability and agreement. Their clusters are paired, their posteriors averaged (Strehl and Ghosh,
"Cluster ensembles", 2002), and one mixture is fitted to the mean.
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

from densesiam_seg.clustering.agreement import best_pairs, normalised_mutual_information
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
MIN_IMAGES_PER_CHANNEL = 2
"""Of the gist: with fewer images it identifies each of them, and no fit is conditioned on it."""
MAX_BYTES = 1 << 27
"""Of the posteriors of the selected fits; with very many clusters there are fewer fits."""
SUBSET_DIVISOR = 2
"""Each fit uses 1 / SUBSET_DIVISOR of the images, drawn at random, with all of their places."""
MIN_POINTS_PER_CLUSTER = 50
"""In the subset of a fit, if the sample has as many."""
PAIRING_ROUNDS = 3
"""Times that the clusters of all fits are paired with those of their mean."""
ADAPTATIONS = 5
"""Iterations of expectation-maximisation of an image's own shares."""
SMOOTHING = 0.01
"""Weight of the mixture's shares that is added to others, so that no share is 0."""


@dataclass(frozen=True)
class Search:
    """Which fits are made, and how many of them are averaged."""

    restarts: int = RESTARTS
    select_one_in: int = 8
    """The most stable fits are selected: one in so many of its kind, and at least one."""
    conditioned: Sequence[bool] = (True, False)
    """The kinds of fits, made in turn: whether they are conditioned on the image's gist."""


SEARCH = Search()


@dataclass(frozen=True)
class Sample:
    """Points (N, D), the same at each of L other brightnesses (L, N, D), and the number of each point's image (N,)."""

    points: Tensor
    relit: Tensor
    images: Tensor

    def without(self, channels: int) -> Sample:
        """The same points with zeros in the first channels."""
        points, relit = self.points.clone(), self.relit.clone()
        points[:, :channels] = relit[..., :channels] = 0
        return replace(self, points=points, relit=relit)

    def part(self, count: int, draw: np.random.Generator) -> Tensor:
        """The points of randomly drawn images, as many as give at least `count` points, or all points."""
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
    """Log-posteriors of the clusters. Its tensors are buffers: gradients do not train them.

    A point has `gist` channels of its image, then `own` channels of the place.
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
        """Scores (B, K, h, w) whose softmax are posteriors → log-posteriors with each image's own shares as the prior.

        The mixture's shares are those of all images, but a night scene has no daylight sky. Expectation-maximisation
        of the shares alone, for each image by itself (Saerens et al., "Adjusting the outputs of a classifier
        to new a priori probabilities", 2002, section 2.2).
        """
        return _adapted(
            scores.log_softmax(1),
            self.shares.view(-1, 1, 1),
            lambda shares: shares.mean((-2, -1), keepdim=True),
        )

    def fit(self, sample: Sample, *, seed: int, search: Search = SEARCH) -> None:
        """Fit the mixture to a sample: the consensus of many fits.

        Raises InputError for fewer distinct points than clusters and NumericError for points that are not finite.
        """
        for _ in self.fitting(sample, seed=seed, search=search):
            pass

    def fitting(self, sample: Sample, *, seed: int, search: Search = SEARCH) -> Iterator[float]:
        """`fit` in steps, as it may take a minute: yields the fraction of the fits that are done."""
        points = sample.points.detach().cpu().double()
        mean, deviation = points.mean(0), points.std(0, unbiased=False)
        # Constant channels are not divided by 0.
        deviation = torch.where(deviation > 1e-6, deviation, 1.0)
        relit = (sample.relit.detach().cpu().double() - mean) / deviation
        standard = Sample((points - mean) / deviation, relit, sample.images.cpu())
        # Channels of zeros have no effect on the conditional means.
        blind = standard.without(self.gist)
        enough = self.gist and len(sample.images.bincount()) >= MIN_IMAGES_PER_CHANNEL * self.gist
        kinds = search.conditioned if enough else (False,)
        samples = [standard if conditioned else blind for conditioned in kinds]
        clusters, one_in = len(self.centres), search.select_one_in
        most = MAX_BYTES // (8 * len(points) * clusters) * one_in
        count = max(min(search.restarts, most), len(samples))

        def make(number: int) -> tuple[int, RankedFit]:
            turn, kind = divmod(number, len(samples))
            return kind, _ranked_fit(samples[kind], clusters, self.gist, seed, turn)

        fits: list[list[RankedFit]] = [[] for _ in samples]
        with closing(on_own_cores(make, range(count))) as results:
            for done, (kind, each) in enumerate(results, 1):
                fits[kind].append(each)
                yield done / count
        selected = [_most_stable(*each, one_in) for each in zip(fits, samples, strict=True)]
        # The first of equal ones.
        kind = max(range(len(selected)), key=lambda each: selected[each][0])
        points = samples[kind].points
        shares = [expectation(points, fit)[1] for fit in selected[kind][1]]
        fit = maximisation(points, consensus(shares), self.gist)
        for name, value in {"mean": mean, "deviation": deviation, **vars(fit)}.items():
            self.get_buffer(name).copy_(value)


class RankedFit(NamedTuple):
    """A fit, and the values it is ranked by."""

    stability: float
    likelihood: float
    fit: Gaussians


def consensus(shares: Sequence[Tensor]) -> Tensor:
    """The mean of several soft clusterings (N, K), the clusters of each paired with those of the mean.

    They are paired by the overlap over the union of their shares, starting from the first clustering.
    """
    mean = shares[0]
    for _ in range(PAIRING_ROUNDS):
        total = torch.zeros_like(mean)
        for each in shares:
            overlap = mean.T @ each
            union = mean.sum(0)[:, None] + each.sum(0) - overlap
            # Clusters that are empty in both have no union to divide by.
            ratio = overlap / union.clamp(min=1e-12)
            total += each[:, torch.from_numpy(best_pairs(ratio.numpy()))]
        mean = total / len(shares)
    return mean


def smoothed(shares: Tensor, overall: Tensor) -> Tensor:
    """Shares of clusters with `SMOOTHING` of the overall ones, so that none is 0."""
    return (shares + SMOOTHING * overall) / (1 + SMOOTHING)


def stability(fit: Gaussians, sample: Sample) -> float:
    """Normalised mutual information of a fit's clusters with those of the same places relit, mean of all lights."""
    first = _labels(fit, sample, sample.points)
    scores = [_label_nmi(first, _labels(fit, sample, relit)) for relit in sample.relit]
    return sum(scores) / len(scores)


def agreement(fits: Sequence[Gaussians], sample: Sample) -> float:
    """Normalised mutual information of the clusters of two fits, mean of all pairs; 0 without any."""
    labels = [_labels(fit, sample, sample.points) for fit in fits]
    scores = [_label_nmi(one, other) for one, other in combinations(labels, 2)]
    return sum(scores) / max(len(scores), 1)


def _labels(fit: Gaussians, sample: Sample, points: Tensor) -> Tensor:
    """The cluster (N,) of each of a sample's points, original or relit, with its image's own shares as the prior."""
    logs = log_joint(points, fit).log_softmax(1)
    return _adapted(logs, fit.shares, sample.means).argmax(1)


def _label_nmi(one: Tensor, other: Tensor) -> float:
    """Normalised mutual information of two clusterings (N,)."""
    clusters = 1 + int(max(one.max(), other.max()))
    joint = (one * clusters + other).bincount(minlength=clusters**2)
    return normalised_mutual_information(joint.view(clusters, clusters).numpy())


def _ranked_fit(sample: Sample, clusters: int, gist: int, seed: int, turn: int) -> RankedFit:
    """A fit to some of the images, drawn by (seed, turn), every other one in halves.

    Of equally stable fits the likelier one ranks first; digits that are rounded off differ by rounding errors.
    """
    draw = generator(seed, Stream.PIXELS, round_=1 + turn)
    size = max(len(sample.points) // SUBSET_DIVISOR, MIN_POINTS_PER_CLUSTER * clusters)
    part = sample.part(size, draw)
    fit = fit_gaussians(part, clusters, seed=seed + turn, halves=turn % 2 == 1, given=gist)
    evidence, _ = expectation(sample.points, fit)
    return RankedFit(round(stability(fit, sample), 6), float(evidence.mean()), fit)


def _most_stable(
    fits: Sequence[RankedFit], sample: Sample, one_in: int
) -> tuple[float, list[Gaussians]]:
    """The most stable fits, one in `one_in` and at least one; first the sum of their stability and agreement."""
    order = sorted(fits, key=lambda each: each[:2], reverse=True)
    count = max(len(fits) // one_in, 1)
    stable = sum(each.stability for each in order[:count]) / count
    best = [each.fit for each in order]
    # A single fit has no other to agree with.
    return stable + agreement(best[: max(count, 2)], sample), best[:count]


def _adapted(logs: Tensor, shares: Tensor, image_means: Callable[[Tensor], Tensor]) -> Tensor:
    """Log-posteriors with images' own shares as the prior, from those with `shares`; clusters in dimension 1."""
    adapted = logs
    for _ in range(ADAPTATIONS):
        own = smoothed(image_means(adapted.exp()), shares)
        adapted = (logs + (own / shares).log()).log_softmax(1)
    return adapted
