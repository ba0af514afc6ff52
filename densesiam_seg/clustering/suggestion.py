"""How many clusters? Every cut of a tree of merges is scored without labels, and one is recommended.

Axes: K learned clusters, N sampled points, C channels, k groups of a cut.

The learned clusters are the over-clustering. Those join that share places (`merging.overlap_tree`), and no cut needs
the images again. Of every cut are told:

- stability: whether two halves of the images merge to the same clusters, in comparison with chance (`_stability`);
- silhouette: whether places lie nearer to the features of their own cluster than to those of the next (`_spread`);
- elbow: whether features vary much less than with fewer clusters, and hardly more than with more (`_elbow`);
- confusion: how many times as often as by chance the two clusters share a place that would be merged next.

Clusters are merged while they are confused `ALIKE` times as often as by chance or more, which decides; the others are
told. This number hardly depends on how many clusters were learned, as the others do (docs/clusters.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from operator import add
from typing import Any

import numpy as np
from numpy.typing import NDArray

from densesiam_seg.clustering.agreement import normalised_mutual_information
from densesiam_seg.clustering.merging import (
    Ids,
    Numbers,
    is_tree,
    overlap_tree,
    random_tree,
    tables,
)
from densesiam_seg.io.randomness import Stream, generator

MOST = 64
"""Clusters of the largest cut that is scored; nobody looks at more."""
SPLITS = 20
"""Times that the images are halved, each time in another way."""
ALIKE = 1.5
"""Times that two clusters share a place as often as by chance where they are one; docs/clusters.md has others."""
PARTS = 10
"""Of the images, which are halved by taking five of them."""


@dataclass(frozen=True)
class Tally:
    """What is known of K clusters in some images."""

    pixels: Ids
    """Of each cluster, (K,)."""
    sums: Numbers
    """Of the unit features of its pixels, (K, C)."""
    overlap: Numbers
    """Sums of the products of each two clusters' probabilities, (K, K)."""

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.pixels + other.pixels, self.sums + other.sums, self.overlap + other.overlap
        )

    def merges(self) -> tuple[Ids, Numbers]:
        """The tree of merges that these images speak for, and how alike the two of each merge are."""
        return overlap_tree(self.overlap, self.pixels == 0)


@dataclass(frozen=True)
class Points:
    """A sample of places: unit features (N, C) and the cluster of each (N,)."""

    features: NDArray[np.float32]
    clusters: Ids


@dataclass(frozen=True)
class Suggestion:
    """Scores of every cut from two clusters on, the one that is recommended, and the tree of merges (K - 1, 2)."""

    counts: tuple[int, ...]
    scores: Mapping[str, tuple[float | None, ...]]
    """More is better, but of confusion, where less is; None: nothing to compare."""
    chosen: int
    tree: tuple[tuple[int, int], ...]

    @property
    def learned(self) -> int:
        """K."""
        return len(self.tree) + 1

    def to_dict(self) -> dict[str, Any]:
        """A JSON object."""
        return asdict(self)


def tree_of(found: Mapping[str, Any] | None, clusters: int) -> Ids | None:
    """The tree of a suggestion as `clusters.json` has it, where it is one of K clusters; else None."""
    try:
        tree = np.array((found or {}).get("tree"), np.int64)
    except (TypeError, ValueError, OverflowError):
        return None
    if tree.shape != (clusters - 1, 2) or not is_tree(tree):
        return None
    return tree


def suggest(parts: Sequence[Tally], points: Points, *, seed: int) -> Suggestion:
    """Score the cuts of the tree that all parts of the images speak for together; one part has no halves to compare."""
    whole = reduce(add, parts)
    tree, lifts = whole.merges()
    used = int(np.count_nonzero(whole.pixels))
    counts = list(range(2, max(min(used, MOST), 2) + 1))
    counts = [count for count in counts if count <= len(whole.pixels)]
    silhouettes, within = _spread(whole, points, tables(tree, counts))
    confusion = [float(lifts[-count + 1]) for count in counts]
    scores: dict[str, Sequence[float | None]] = {
        "stability": _stability(parts, whole, counts, seed),
        "silhouette": silhouettes,
        "elbow": _elbow(within),
        "confusion": confusion,
    }
    rounded = {
        name: tuple(None if value is None else round(value, 4) for value in each)
        for name, each in scores.items()
    }
    pairs = tuple((one, two) for one, two in tree.tolist())
    return Suggestion(tuple(counts), rounded, _choice(counts, confusion), pairs)


def _choice(counts: Sequence[int], confusion: Sequence[float]) -> int:
    """The largest number whose clusters are all apart; the least there is where none are."""
    apart = [count for count, value in zip(counts, confusion, strict=True) if value < ALIKE]
    return max(apart, default=min(counts))


def _stability(
    parts: Sequence[Tally], whole: Tally, counts: Sequence[int], seed: int
) -> list[float | None]:
    """How well the cuts of two halves of the images agree: 1 where always, 0 as random merges do.

    Agreement is the normalised mutual information over all pixels. It rises with the number of clusters, also of
    random merges, whose mean is therefore taken off: (agreement - chance) / (1 - chance), each a mean over `SPLITS`.
    """
    some = whole.pixels > 0
    weights = whole.pixels[some]
    if len(parts) < 2 or len(weights) < 2:
        return [None] * len(counts)
    draw = generator(seed, Stream.PIXELS)
    found, chance = np.zeros((2, len(counts)))
    for _ in range(SPLITS):
        order = draw.permutation(len(parts)).tolist()
        half = len(parts) // 2
        trees = [
            reduce(add, (parts[place] for place in places)).merges()[0]
            for places in (order[:half], order[half:])
        ]
        one, two = (tables(tree, counts)[:, some] for tree in trees)
        found += [_agreement(*pair, weights) for pair in zip(one, two, strict=True)]
        one, two = (tables(random_tree(len(weights), draw), counts) for _ in range(2))
        chance += [_agreement(*pair, weights) for pair in zip(one, two, strict=True)]
    found, chance = found / SPLITS, chance / SPLITS
    pairs = zip(found.tolist(), chance.tolist(), strict=True)
    # Where nothing is merged even chance agrees.
    return [(one - other) / (1 - other) if other < 0.999 else None for one, other in pairs]


def _agreement(one: Ids, other: Ids, weights: Ids) -> float:
    """Normalised mutual information of two groupings (K,) of clusters that have so many pixels each."""
    joint = np.zeros((one.max() + 1, other.max() + 1), np.int64)
    np.add.at(joint, (one, other), weights)
    return normalised_mutual_information(joint)


def _spread(whole: Tally, points: Points, groups: Ids) -> tuple[list[float], list[float]]:
    """For the groups (len(counts), K) of each cut its silhouette, and the mean squared distance within clusters.

    The silhouette of a point is (b - a) / max(a, b), with a its distance to the mean of its own cluster and b to the
    nearest other mean (the simplified one of Hruschka et al., 2004). A cluster's is the mean over its points, and a
    cut's that over its clusters, so that a large one does not count for all.
    """
    features = points.features.astype(np.float64)
    squares = np.square(features).sum(1)
    rows = np.arange(len(features))
    silhouettes, within = [], []
    for group in groups:
        count = int(group.max()) + 1
        sums, pixels = np.zeros((count, features.shape[1])), np.zeros(count)
        np.add.at(sums, group, whole.sums)
        np.add.at(pixels, group, whole.pixels)
        means = sums / np.maximum(pixels, 1)[:, None]
        distances = squares[:, None] - 2 * features @ means.T + np.square(means).sum(1)
        distances = np.sqrt(np.maximum(distances, 0))
        # A cluster without pixels has no mean.
        distances[:, pixels == 0] = np.inf
        own = group[points.clusters]
        near = distances[rows, own]
        distances[rows, own] = np.inf
        next_one = distances.min(1)
        # Where there is no other cluster there is nothing to be nearer to.
        next_one = np.where(np.isfinite(next_one), next_one, near)
        found = (next_one - near) / np.maximum(np.maximum(near, next_one), 1e-12)
        members = np.bincount(own, minlength=count)
        each = np.bincount(own, found, count)[members > 0] / members[members > 0]
        silhouettes.append(float(each.mean()))
        within.append(float(np.square(near).mean()))
    return silhouettes, within


def _elbow(within: Sequence[float]) -> list[float]:
    """How far each variance lies below the line from the first to the last, over the height of that line.

    The elbow is where that is most (Satopaa et al., "Finding a kneedle in a haystack", 2011).
    """
    line = np.linspace(within[0], within[-1], len(within))
    height = max(abs(within[0] - within[-1]), 1e-12)
    below: list[float] = ((line - np.array(within)) / height).tolist()
    return below
