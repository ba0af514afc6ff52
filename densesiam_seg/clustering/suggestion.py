"""How many clusters? Every cut of a tree of merges is scored without labels, and one is recommended.

Axes: K learned clusters, N sampled points, C channels, k groups of a cut.

The learned clusters are the over-clustering. Those join that share places (`merging.overlap_tree`), so that no cut needs
the images again. Of every cut are told:

- stability: whether two halves of the images merge to the same clusters, in comparison with chance (`_stability`);
- silhouette: whether places lie nearer to the features of their own cluster than to those of the next (`_silhouettes`);
- elbow: whether features vary much less than with fewer clusters, and hardly more than with more (`_elbow`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from operator import add
from typing import Any

import numpy as np
from numpy.typing import NDArray

from densesiam_seg.clustering.agreement import entropy
from densesiam_seg.clustering.merging import Ids, Numbers, cut, is_tree, overlap_tree

MOST = 64
"""Clusters of the largest cut that is scored; nobody looks at more."""
SPLITS = 20
"""Times that the images are halved, each time in another way."""
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

    def tree(self) -> Ids:
        """The tree of merges that these images speak for."""
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
    scores: Mapping[str, tuple[float, ...]]
    """stability, silhouette and elbow; in each more is better."""
    chosen: int
    tree: tuple[tuple[int, int], ...]

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
    tree = whole.tree()
    used = int(np.count_nonzero(whole.pixels))
    counts = list(range(2, max(min(used, MOST), 2) + 1))
    counts = [count for count in counts if count <= len(whole.pixels)]
    tables = [table(tree, count) for count in counts]
    silhouettes, within = _silhouettes(whole, points, tables)
    scores = {
        "stability": _stability(parts, whole, counts, seed),
        "silhouette": silhouettes,
        "elbow": _elbow(within),
    }
    rounded = {name: tuple(round(value, 4) for value in each) for name, each in scores.items()}
    pairs = tuple((one, two) for one, two in tree.tolist())
    return Suggestion(tuple(counts), rounded, _choice(counts, scores), pairs)


def table(tree: Ids, count: int) -> Ids:
    """The group (K,) of each cluster where the tree is cut to so many."""
    found = np.empty(len(tree) + 1, np.int64)
    for group, members in enumerate(cut(tree, count)):
        found[list(members)] = group
    return found
