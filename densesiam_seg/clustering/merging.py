"""Over-clusters → a tree of merges, which gives any smaller number of clusters without the images.

Axes: A over-clusters, C channels, K clusters, n images, h w a map of over-cluster ids.

Two clusters are similar if their centres are near (Ward's distance, weighted by size) and if they touch often: textures
that interleave belong to one surface. Sizes, centres and contacts of a merged cluster follow exactly from its parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Numbers: TypeAlias = NDArray[np.float64]
Ids: TypeAlias = NDArray[np.int64]
Groups: TypeAlias = tuple[tuple[int, ...], ...]
"""Over-clusters of each cluster, each one exactly once, in increasing order."""

CONTACT_WEIGHT = 2.0
"""The exponent of the ratio of observed to expected contacts."""
PSEUDO_COUNT = 100.0
"""Added to observed and to expected contacts, so that few contacts have little weight."""


@dataclass(frozen=True)
class Merges:
    """A tree of merges, as `merge_tree` makes it, and how many points each over-cluster has, (A,)."""

    tree: Ids
    counts: Ids

    @property
    def over_clusters(self) -> int:
        """A."""
        return len(self.counts)

    def shares(self, groups: Groups) -> list[float]:
        """The share of all points that each group has."""
        total = max(int(self.counts.sum()), 1)
        return [int(self.counts[list(group)].sum()) / total for group in groups]


@dataclass(frozen=True)
class Contacts:
    """Neighbouring places of different over-clusters: their observed and their expected number, both (A, A).

    Expected are the contacts within an image if both sides of its borders were independent. Two over-clusters that
    never share an image have 0 observed and 0 expected.
    """

    observed: Numbers
    expected: Numbers

    def __add__(self, other: Contacts) -> Contacts:
        return Contacts(self.observed + other.observed, self.expected + other.expected)


def contacts(ids: NDArray[np.integer], count: int) -> Contacts:
    """The contacts of one image's map (h, w), in four directions, each counted from both sides."""
    pairs = np.zeros(count * count, np.int64)
    numbers = ids.astype(np.int64)
    for one, two in ((numbers[:, :-1], numbers[:, 1:]), (numbers[:-1], numbers[1:])):
        pairs += np.bincount((one * count + two).ravel(), minlength=count * count)
    observed = pairs.reshape(count, count).astype(np.float64)
    observed += observed.T
    np.fill_diagonal(observed, 0)
    borders = observed.sum(1)
    return Contacts(observed, np.outer(borders, borders) / max(borders.sum(), 1))


def merge_tree(centres: NDArray[np.floating], counts: Ids, touching: Contacts) -> Ids:
    """Merges (A - 1, 2) of over-clusters with centres (A, C) and sizes (A,), the most similar first.

    Row t joins two nodes into node A + t; nodes below A are the over-clusters themselves. The two with the least
    n_i n_j / (n_i + n_j) |c_i - c_j|² · ((observed + PSEUDO_COUNT) / (expected + PSEUDO_COUNT))^-CONTACT_WEIGHT join:
    the increase of the variance within clusters (Ward, 1963), lower where they touch more often than expected. An empty
    over-cluster counts as one point, so that it joins its nearest neighbour.
    """
    total = len(centres)
    places = centres.astype(np.float64)
    sizes = np.maximum(counts, 1).astype(np.float64)
    observed, expected = touching.observed.copy(), touching.expected.copy()
    nodes = np.arange(total)
    alive = np.ones(total, bool)

    def distances_of(place: int) -> Numbers:
        """The distances of one cluster to the others, (A,); infinite for itself and for merged ones."""
        own = sizes[place]
        distances: Numbers = np.square(places - places[place]).sum(1) * sizes * own / (sizes + own)
        ratio = (observed[place] + PSEUDO_COUNT) / (expected[place] + PSEUDO_COUNT)
        distances *= ratio**-CONTACT_WEIGHT
        distances[place] = np.inf
        distances[~alive] = np.inf
        return distances

    gaps = np.stack([distances_of(place) for place in range(total)])
    tree = np.empty((total - 1, 2), np.int64)
    for step in range(total - 1):
        keep, drop = sorted(divmod(int(gaps.argmin()), total))
        tree[step] = sorted((nodes[keep], nodes[drop]))
        both = sizes[keep] + sizes[drop]
        places[keep] = (sizes[keep] * places[keep] + sizes[drop] * places[drop]) / both
        sizes[keep] = both
        for table in (observed, expected):
            table[keep] += table[drop]
            table[:, keep] += table[:, drop]
        nodes[keep], alive[drop] = total + step, False
        gaps[drop] = gaps[:, drop] = np.inf
        gaps[keep] = gaps[:, keep] = distances_of(keep)
    return tree


def overlap_tree(overlap: Numbers, empty: NDArray[np.bool_]) -> tuple[Ids, Numbers]:
    """Merges (K - 1, 2) of clusters that share places, the most alike first; rows are as `merge_tree` has them.

    Beside it (K - 1,) how many times as often as by chance the two of each merge share a place.

    `overlap` (K, K) has the sum over all places of the product of each two clusters' probabilities. The two join whose
    sum is largest beside the product of both masses: they are taken for each other most often in comparison with
    chance (average linkage, as all three quantities add up). Clusters that no place belongs to, the `empty` (K,), join
    before any others.
    """
    total = len(overlap)
    shared = overlap.astype(np.float64)
    masses = np.maximum(shared.sum(1), np.finfo(np.float64).tiny)
    nodes, alive, waits = np.arange(total), np.ones(total, bool), empty.copy()
    tree, lifts = np.empty((total - 1, 2), np.int64), np.empty(total - 1)
    for step in range(total - 1):
        lift = shared / masses / masses[:, None]
        if waits.any():
            # Of a pair one at least is empty.
            lift = np.where(waits | waits[:, None], lift, -1.0)
        lift[~alive] = lift[:, ~alive] = -2.0
        np.fill_diagonal(lift, -2.0)
        keep, drop = sorted(divmod(int(lift.argmax()), total))
        tree[step] = sorted((nodes[keep], nodes[drop]))
        lifts[step] = shared[keep, drop] / masses[keep] / masses[drop] * masses.sum(where=alive)
        shared[keep] += shared[drop]
        shared[:, keep] += shared[:, drop]
        masses[keep] += masses[drop]
        nodes[keep], alive[drop] = total + step, False
        waits[keep] &= waits[drop]
        waits[drop] = False
    return tree, lifts


def random_tree(count: int, draw: np.random.Generator) -> Ids:
    """Merges (K - 1, 2) of any two nodes that are left."""
    nodes = list(range(count))
    tree = np.empty((count - 1, 2), np.int64)
    for step in range(count - 1):
        pair = sorted(draw.choice(len(nodes), 2, replace=False).tolist(), reverse=True)
        tree[step] = sorted(nodes.pop(place) for place in pair)
        nodes.append(count + step)
    return tree


def tables(tree: Ids, counts: Sequence[int]) -> Ids:
    """The group of each cluster, 0 to k - 1, where the tree is cut to each of so many: (len(counts), K)."""
    total = len(tree) + 1
    node = np.arange(total)
    found = np.empty((len(counts), total), np.int64)
    for left in range(total, 0, -1):
        for place in np.flatnonzero(np.equal(counts, left)):
            found[place] = np.unique(node, return_inverse=True)[1]
        if left > 1:
            node[np.isin(node, tree[total - left])] = 2 * total - left
    return found


def cut(tree: Ids, clusters: int) -> Groups:
    """The groups that are left where all but the last K - 1 merges are done, by their first over-cluster."""
    total = len(tree) + 1
    assert 1 <= clusters <= total, (clusters, total)
    members: dict[int, tuple[int, ...]] = {node: (node,) for node in range(total)}
    for step, (one, two) in enumerate(tree[: total - clusters].tolist()):
        members[total + step] = tuple(sorted(members.pop(one) + members.pop(two)))
    return tuple(sorted(members.values()))


def is_tree(tree: Ids) -> bool:
    """Whether each row joins two nodes that are there and not joined yet, as `cut` takes for granted."""
    total = len(tree) + 1
    ends = np.arange(total, 2 * total - 1)
    return bool(
        (np.sort(tree.ravel()) == np.arange(2 * total - 2)).all() and (tree < ends[:, None]).all()
    )


def is_partition(groups: Sequence[Sequence[int]]) -> bool:
    """Whether no group is empty and all together hold 0 … A - 1, each once."""
    every = sorted(member for group in groups for member in group)
    return all(groups) and every == list(range(len(every)))
