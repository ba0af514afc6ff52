"""k-means in whole numbers: the same centres for any number of processes and threads, in any order and any blocks.

Axes: N points of this process, C channels, K clusters.

Points and centres are rounded to whole multiples of a power of two, so few of them that every product, every distance
and every sum is a whole number below 2⁵³: double precision holds it without an error, whoever adds up in whatever
order. So a point is assigned to the same centre everywhere (the first of equally near ones), and what processes add
up, K · (C + 1) whole numbers a round, has the same bits. For 64 channels of unit vectors a step is 2⁻²², about what
single precision rounds to; the centres fit in single precision as they are.

FAISS makes the start from a sample of bounded size, which the first process alone does; the others get the result.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from densesiam_seg.clustering.kmeans import ITERATIONS, Centroids, kmeans
from densesiam_seg.peers.group import ALONE, Group

BLOCK = 4096
"""Points whose distances are computed at once: they stay in the processor's cache."""
ROUNDS = 2
"""Of the iterations of k-means, the last ones, which all processes share. A round takes one process longer than FAISS,
which computes in single precision."""
_SQUARES, _FLOAT = 51, 24
"""Bits of a sum of C squares, of which 2 c·f - |c|² has three, and of single precision."""

Part = tuple[int, Tensor]
"""Points (n, C) of a sample, and their place among the parts of all processes."""


def step_of(bound: float, channels: int) -> float:
    """The step, a power of two, of whole numbers for vectors of so many channels, none of which is beyond ± bound."""
    bits = min((_SQUARES - math.ceil(math.log2(channels))) // 2, _FLOAT)
    return math.ldexp(1.0, _exponent(bound) - bits)


def agreed_bound(largest: float, group: Group = ALONE) -> float:
    """A power of two that no process's largest magnitude exceeds."""
    (exponent,) = group.largest([_exponent(largest)])
    return math.ldexp(1.0, exponent)


def _exponent(value: float) -> int:
    """Of the smallest power of two that is not below the value."""
    fraction, exponent = math.frexp(value)
    return exponent - (fraction == 0.5)


def sampled_kmeans(
    own: Sequence[Part],
    clusters: int,
    *,
    seed: int,
    restarts: int = 1,
    bound: float = 1.0,
    group: Group = ALONE,
) -> Centroids:
    """k-means of a sample whose parts lie in several processes. Raises as `kmeans` does, in all of them.

    No number of it is beyond ± bound.
    """
    every = sorted((part for each in group.gathered(list(own)) for part in each), key=_place)
    start = group.by_first(
        lambda: kmeans(
            torch.cat([points for _, points in every]),
            clusters,
            seed=seed,
            restarts=restarts,
            iterations=ITERATIONS - ROUNDS,
        )
    )
    channels = start.centres.shape[1]
    points = torch.cat([start.centres.new_empty(0, channels), *(points.cpu() for _, points in own)])
    return lloyd(start.centres, points, rounds=ROUNDS, bound=bound, group=group)


def lloyd(
    centres: Tensor, points: Tensor, *, rounds: int, bound: float = 1.0, group: Group = ALONE
) -> Centroids:
    """Every centre (K, C) becomes the mean of the points (N, C) of all processes that it is the nearest to, repeatedly.

    A cluster without any is moved to the point that lies farthest from its centre. The counts are those of the last
    centres.
    """
    step = step_of(bound, centres.shape[1])
    moved = _whole(centres, step)
    for _ in range(rounds):
        before = moved
        sums, counts = _totals(points, before, step, group)
        moved = torch.where(counts[:, None] > 0, _quotient(sums, counts), before)
        empty = (counts == 0).nonzero()[:, 0].tolist()
        if empty:
            far = _farthest(points, before, step, len(empty), group)
            for cluster, point in zip(empty, far, strict=False):
                moved[cluster] = moved.new_tensor(point)
        if torch.equal(moved, before):
            break
    _, counts = _totals(points, moved, step, group)
    return Centroids((moved * step).float(), counts)


def refine(
    centroids: Centroids, points: Tensor, *, bound: float = 1.0, group: Group = ALONE
) -> Centroids:
    """One mini-batch update with the points (N, C) of all processes, no number of which is beyond ± bound.

    c_k ← (1 - n_b/n_k) c_k + (n_b/n_k) mean of the batch's members, n_k the running count: the mean of all members
    ever, in whole numbers.
    """
    step = step_of(bound, centroids.centres.shape[1])
    centres = _whole(centroids.centres, step)
    sums, batch = _totals(points, centres, step, group)
    counts = centroids.counts + batch
    # The mean and its distance from the centre, so that no product is beyond an int64.
    away = sums - batch[:, None] * centres.long()
    moved = centres + _quotient(away, counts)
    return Centroids((moved * step).float(), counts)


def nearest(points: Tensor, centres: Tensor) -> Tensor:
    """Index (N,) of the nearest centre, the first of equally near ones; both in whole numbers."""
    bias = -centres.square().sum(1)
    # The first of equal ones is what `argmax` promises.
    return torch.addmm(bias, points, centres.T, alpha=2.0).argmax(1)


def _place(part: Part) -> int:
    return part[0]


def _whole(values: Tensor, step: float) -> Tensor:
    """Values in steps, as whole numbers in double precision."""
    # The inverse of a power of two is one.
    return torch.mul(values.double(), 1 / step).round_()


def _blocks(points: Tensor, step: float) -> Iterator[Tensor]:
    return (_whole(block, step) for block in torch.split(points, BLOCK) if len(block))


def _totals(points: Tensor, centres: Tensor, step: float, group: Group) -> tuple[Tensor, Tensor]:
    """Sums (K, C) of each centre's points in all processes and their numbers (K,), int64."""
    clusters, channels = centres.shape
    sums = torch.zeros(clusters, channels + 1, dtype=torch.int64, device=centres.device)
    for block in _blocks(points, step):
        labels = nearest(block, centres)
        # A block's sums are whole numbers below 2⁵³ in any order.
        own = torch.zeros_like(centres).index_add_(0, labels, block)
        sums[:, :-1] += own.long()
        sums[:, -1] += labels.bincount(minlength=clusters)
    sums = group.total(sums)
    return sums[:, :-1], sums[:, -1]


def _quotient(sums: Tensor, counts: Tensor) -> Tensor:
    """The whole numbers nearest to sums (K, C) over counts (K,)."""
    # A sum and a quotient are each rounded as IEEE 754 says, on every processor.
    return (sums.double() / counts.clamp(min=1)[:, None].double()).round()


def _farthest(
    points: Tensor, centres: Tensor, step: float, count: int, group: Group
) -> list[list[float]]:
    """The points of all processes that lie farthest from their centres, at most `count`, no two of them alike.

    Of equally far ones the largest by its channels in turn comes first, so that it does not matter who has which.
    """
    own: set[tuple[float, ...]] = set()
    for block in _blocks(points, step):
        away = (block - centres[nearest(block, centres)]).square().sum(1)
        # As far as the last of as many, and all that are as far.
        least = away.unique().flip(0)[:count][-1]  # type: ignore[no-untyped-call]
        chosen = (away >= least) & (away > 0)
        rows = torch.cat((away[chosen, None], block[chosen]), 1).tolist()
        own = set(sorted({*own, *map(tuple, rows)}, reverse=True)[:count])
    every = {row for each in group.gathered(sorted(own)) for row in each}
    return [list(row[1:]) for row in sorted(every, reverse=True)[:count]]
