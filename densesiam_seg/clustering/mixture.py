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

from collections.abc import Iterator, Sequence
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
    Form,
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
TEMPER = 0.25
"""Of appearance beside learned features."""
SMOOTHING = 0.01
"""Weight of the mixture's shares that is added to others, so that no share is 0."""


@dataclass(frozen=True)
class Search:
    """Which fits are made, and how many of them are averaged."""

    restarts: int = RESTARTS
    select_one_in: int = 8
    """The most stable fits are selected: one in so many of its kind, and at least one."""
    conditioned: Sequence[bool] = (True, False)
    """Kinds of fits to appearance alone: whether they are conditioned on the image's gist."""
    concentrations: Sequence[float] = ()
    """Further kinds: κ of fits to learned features and tempered appearance."""


SEARCH = Search()
LEARNED_SEARCH = Search(60, 4, concentrations=(7.0, 14.0, 20.0))
"""Of points with learned features: fewer fits of each kind, as these differ less."""


@dataclass(frozen=True)
class Sample:
    """Points (N, D + C), the same at each of L other brightnesses (L, N, D + C), and each point's image (N,)."""

    points: Tensor
    relit: Tensor
    images: Tensor

    def without(self, channels: int) -> Sample:
        """The same points with zeros in the first channels."""
        points, relit = self.points.clone(), self.relit.clone()
        points[:, :channels] = relit[..., :channels] = 0
        return replace(self, points=points, relit=relit)

    def first(self, channels: int) -> Sample:
        """The same points without further channels."""
        return replace(self, points=self.points[:, :channels], relit=self.relit[..., :channels])

    def part(self, count: int, draw: np.random.Generator) -> Tensor:
        """The points of randomly drawn images, as many as give at least `count` points, or all points."""
        sizes = self.images.bincount()
        order = torch.from_numpy(draw.permutation(len(sizes)))
        before = sizes[order].cumsum(0) - sizes[order]
        chosen = torch.zeros(len(sizes), dtype=torch.bool)
        chosen[order[before < count]] = True
        return self.points[chosen[self.images]]


class Mixture(nn.Module):
    """Log-posteriors of the clusters by appearance. Its tensors are buffers: gradients do not train them.

    A point has `gist` channels of its image, then `own` channels of the place, then `learned` ones, a unit vector. What
    the mixture says of the learned ones are its `directions`, which are added to the log-posteriors by appearance; they
    are zeros where appearance alone was found better.
    """

    mean: Tensor
    deviation: Tensor
    centres: Tensor
    whitening: Tensor
    offsets: Tensor
    shares: Tensor
    directions: Tensor

    def __init__(self, clusters: int, own: int = OWN, gist: int = GIST, learned: int = 0) -> None:
        super().__init__()
        self.gist = gist
        channels = gist + own
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("deviation", torch.ones(channels))
        self.register_buffer("centres", torch.zeros(clusters, channels))
        self.register_buffer("whitening", torch.eye(channels)[gist:].repeat(clusters, 1, 1))
        self.register_buffer("offsets", torch.zeros(clusters))
        self.register_buffer("shares", torch.full((clusters,), 1 / clusters))
        # A mixture of appearance alone is saved as before there were others.
        self.register_buffer("directions", torch.zeros(clusters, learned), persistent=learned > 0)

    def forward(self, appearance: Tensor) -> Tensor:
        """Appearance (B, D, h, w) → log-posteriors (B, K, h, w), float32."""
        images, channels, height, width = appearance.shape
        points = appearance.float().movedim(1, -1).reshape(-1, channels)
        fit = Gaussians(self.centres, self.whitening, self.offsets, self.shares, self.directions)
        # Autocast would round differences of large squares.
        with torch.autocast(points.device.type, enabled=False):
            joint = log_joint((points - self.mean) / self.deviation, fit)
        logs = joint.log_softmax(1)
        return logs.view(images, height, width, -1).movedim(-1, 1)

    def fit(self, sample: Sample, *, seed: int, search: Search = SEARCH) -> None:
        """Fit the mixture to a sample: the consensus of many fits.

        Raises InputError for fewer distinct points than clusters and NumericError for points that are not finite.
        """
        for _ in self.fitting(sample, seed=seed, search=search):
            pass

    def fitting(self, sample: Sample, *, seed: int, search: Search = SEARCH) -> Iterator[float]:
        """`fit` in steps, as it may take a minute: yields the fraction of the fits that are done."""
        standard, mean, deviation = self._standardised(sample)
        kinds = list(self._kinds(standard, search))
        one_in, posteriors = search.select_one_in, 8 * len(sample.points) * len(self.centres)
        each = max(min(search.restarts, MAX_BYTES // posteriors * one_in) // len(kinds), 1)
        fits: list[list[RankedFit]] = [[] for _ in kinds]

        def make(number: int) -> tuple[int, RankedFit]:
            turn, kind = divmod(number, len(kinds))
            form, part = kinds[kind]
            return kind, _ranked_fit(part, len(self.centres), form, seed, turn)

        count = each * len(kinds)
        with closing(on_own_cores(make, range(count))) as results:
            for done, (kind, found) in enumerate(results, 1):
                fits[kind].append(found)
                yield done / count
        selected = [
            _most_stable(found, part, one_in) for found, (_, part) in zip(fits, kinds, strict=True)
        ]
        # The first of equal ones.
        best = max(range(len(selected)), key=lambda kind: selected[kind][0])
        form, part = kinds[best]
        shares = [expectation(part.points, fit)[1] for fit in selected[best][1]]
        fit = maximisation(part.points, consensus(shares), form)
        values = {"mean": mean, "deviation": deviation, **vars(fit)}
        if not form.learned:
            values["directions"] = torch.zeros_like(self.directions)
        for name, value in values.items():
            self.get_buffer(name).copy_(value)

    def _standardised(self, sample: Sample) -> tuple[Sample, Tensor, Tensor]:
        """The sample in float64 with standardised appearance, and the mean and deviation of each of its channels."""
        points, relit = sample.points.detach().cpu().double(), sample.relit.detach().cpu().double()
        channels = len(self.mean)
        own = points[:, :channels]
        mean, deviation = own.mean(0), own.std(0, unbiased=False)
        # Constant channels are not divided by 0.
        deviation = torch.where(deviation > 1e-6, deviation, 1.0)

        def standard(values: Tensor) -> Tensor:
            own = (values[..., :channels] - mean) / deviation
            return torch.cat((own, values[..., channels:]), -1)

        return Sample(standard(points), standard(relit), sample.images.cpu()), mean, deviation

    def _kinds(self, sample: Sample, search: Search) -> Iterator[tuple[Form, Sample]]:
        """The kinds of fits that a search makes to a sample, each with what it reads of it."""
        enough = self.gist and len(sample.images.bincount()) >= MIN_IMAGES_PER_CHANNEL * self.gist
        # Channels of zeros have no effect on the conditional means.
        blind = sample.without(self.gist)
        for conditioned in search.conditioned if enough else (False,):
            part = sample if conditioned else blind
            yield Form(self.gist), part.first(len(self.mean))
        learned = self.directions.shape[1]
        for concentration in search.concentrations if learned else ():
            form = Form(self.gist, concentration, TEMPER, learned)
            yield form, sample if enough else blind


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
    first = _labels(fit, sample.points)
    scores = [_label_nmi(first, _labels(fit, relit)) for relit in sample.relit]
    return sum(scores) / len(scores)


def agreement(fits: Sequence[Gaussians], sample: Sample) -> float:
    """Normalised mutual information of the clusters of two fits, mean of all pairs; 0 without any."""
    labels = [_labels(fit, sample.points) for fit in fits]
    scores = [_label_nmi(one, other) for one, other in combinations(labels, 2)]
    return sum(scores) / max(len(scores), 1)


def _labels(fit: Gaussians, points: Tensor) -> Tensor:
    """The cluster (N,) of each of a sample's points, original or relit."""
    return log_joint(points, fit).argmax(1)


def _label_nmi(one: Tensor, other: Tensor) -> float:
    """Normalised mutual information of two clusterings (N,)."""
    clusters = 1 + int(max(one.max(), other.max()))
    joint = (one * clusters + other).bincount(minlength=clusters**2)
    return normalised_mutual_information(joint.view(clusters, clusters).numpy())


def _ranked_fit(sample: Sample, clusters: int, form: Form, seed: int, turn: int) -> RankedFit:
    """A fit to some of the images, drawn by (seed, turn), every other one of appearance alone in halves.

    Of equally stable fits the likelier one ranks first; digits that are rounded off differ by rounding errors.
    """
    draw = generator(seed, Stream.PIXELS, round_=1 + turn)
    size = max(len(sample.points) // SUBSET_DIVISOR, MIN_POINTS_PER_CLUSTER * clusters)
    part = sample.part(size, draw)
    halves = turn % 2 == 1 and not form.learned
    fit = fit_gaussians(part, clusters, seed=seed + turn, halves=halves, form=form)
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
