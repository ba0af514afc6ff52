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

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from densesiam_seg.clustering.agreement import best_pairs
from densesiam_seg.clustering.appearance import GIST, OWN
from densesiam_seg.clustering.gaussians import Gaussians, expectation, fit_gaussians, maximisation
from densesiam_seg.clustering.quality import Sample, agreement, stability
from densesiam_seg.io.randomness import Stream, generator
from densesiam_seg.peers.group import ALONE, Group

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


class Mixture(nn.Module):
    """Log-posteriors of the clusters. Its tensors are buffers: gradients do not train them.

    A point has `gist` channels of its image, then `own` channels of the place. Before it is fitted every cluster is as
    likely as the others everywhere.
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
        whitening = torch.zeros(clusters, own, channels)
        # What `torch.eye` and `repeat` would make; on the meta device these bring torch's compiler along.
        whitening.diagonal(gist, 1, 2).fill_(1.0)
        self.register_buffer("whitening", whitening)
        self.register_buffer("offsets", torch.zeros(clusters))
        self.register_buffer("shares", torch.full((clusters,), 1 / clusters))

    def forward(self, appearance: Tensor) -> Tensor:
        """Appearance (B, D, h, w) → log-posteriors (B, K, h, w), float32."""
        images, channels, height, width = appearance.shape
        points = appearance.float().movedim(1, -1).reshape(-1, channels)
        fit = Gaussians(self.centres, self.whitening, self.offsets, self.shares)
        # Autocast would round differences of large squares.
        with torch.autocast(points.device.type, enabled=False):
            joint = fit.log_joint((points - self.mean) / self.deviation)
        logs = joint.log_softmax(1)
        return logs.view(images, height, width, -1).movedim(-1, 1)

    @property
    def fitted(self) -> bool:
        """Whether any cluster is likelier somewhere than another."""
        return bool(self.centres.any())

    def fit(self, sample: Sample, *, seed: int, search: Search = SEARCH) -> None:
        """Fit the mixture to a sample: the consensus of many fits.

        Raises InputError for fewer distinct points than clusters and NumericError for points that are not finite.
        """
        for _ in self.fitting(sample, seed=seed, search=search):
            pass

    def fitting(
        self, sample: Sample, *, seed: int, search: Search = SEARCH, group: Group = ALONE
    ) -> Generator[float, None, Found]:
        """`fit` in steps, as it may take a minute: yields the fraction of the fits that are done."""
        found = yield from find_gaussians(
            sample, len(self.centres), self.gist, seed=seed, search=search, group=group
        )
        self.adopt(found)
        return found

    def adopt(self, found: Found) -> None:
        """Become what was found."""
        values = {"mean": found.mean, "deviation": found.deviation, **vars(found.fit)}
        for name, value in values.items():
            self.get_buffer(name).copy_(value)


class Found(NamedTuple):
    """Gaussians of standardised points, mean and deviation of their channels (D,), and how stable they are."""

    fit: Gaussians
    mean: Tensor
    deviation: Tensor
    stability: float


def find_gaussians(
    sample: Sample,
    clusters: int,
    gist: int,
    *,
    seed: int,
    search: Search = SEARCH,
    group: Group = ALONE,
) -> Generator[float, None, Found]:
    """The clusters of a sample; yields the fraction of the fits that are done. Raises as `Mixture.fit` does.

    The processes of a group deal out whole fits, as for `find_directions`.
    """
    sample = sample.double()
    ((mean, deviation),) = group.dealt(_moments, [sample.points])
    standard = sample.standardised(mean, deviation)
    enough = gist and len(sample.images.bincount()) >= MIN_IMAGES_PER_CHANNEL * gist
    kinds = search.conditioned if enough else (False,)
    samples = [standard if conditioned else standard.without(gist) for conditioned in kinds]
    given = [gist if conditioned else 0 for conditioned in kinds]
    one_in = search.select_one_in
    most = MAX_BYTES // (8 * len(sample.points) * clusters) * one_in
    count = max(min(search.restarts, most), len(samples))

    def make(number: int) -> tuple[int, RankedFit]:
        turn, kind = divmod(number, len(samples))
        return kind, _ranked_fit(samples[kind], clusters, given[kind], seed, turn)

    fits: list[list[RankedFit]] = [[] for _ in samples]
    with closing(group.dealt(make, range(count))) as results:
        for done, (kind, each) in enumerate(results, 1):
            fits[kind].append(each)
            yield done / count
    pairs = list(zip(fits, samples, strict=True))
    selected = list(group.dealt(lambda pair: _most_stable(*pair, one_in), pairs))
    # The first of equal ones.
    kind = max(range(len(selected)), key=lambda each: selected[each][0])

    def averaged(fits: Sequence[Gaussians]) -> tuple[Gaussians, float]:
        points = samples[kind].points
        shares = [expectation(points, fit)[1] for fit in fits]
        fit = maximisation(points, consensus(shares), given[kind])
        return fit, stability(fit, samples[kind])

    ((fit, stable),) = group.dealt(averaged, [selected[kind][1]])
    return Found(fit.beside(gist - given[kind]), mean, deviation, stable)


def _moments(points: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation (D,) of points (N, D)."""
    mean, deviation = points.mean(0), points.std(0, unbiased=False)
    # Constant channels are not divided by 0.
    return mean, torch.where(deviation > 1e-6, deviation, 1.0)


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


def _ranked_fit(sample: Sample, clusters: int, given: int, seed: int, turn: int) -> RankedFit:
    """A fit to some of the images, drawn by (seed, turn), every other one in halves.

    Of equally stable fits the likelier one ranks first; digits that are rounded off differ by rounding errors.
    """
    draw = generator(seed, Stream.PIXELS, round_=1 + turn)
    size = max(len(sample.points) // SUBSET_DIVISOR, MIN_POINTS_PER_CLUSTER * clusters)
    part = sample.part(size, draw)
    fit = fit_gaussians(part, clusters, seed=seed + turn, halves=turn % 2 == 1, given=given)
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
