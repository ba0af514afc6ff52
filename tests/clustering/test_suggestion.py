"""How many clusters: each score on clusters whose groups are known, and what is chosen by them."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from densesiam_seg.clustering import suggestion
from densesiam_seg.clustering.agreement import normalised_mutual_information
from densesiam_seg.clustering.merging import is_tree
from densesiam_seg.clustering.suggestion import Points, Suggestion, Tally, suggest, tree_of

GROUPS = np.array([0, 0, 0, 1, 1, 2, 2, 2, 3, 3, 4, 4])
"""Twelve clusters of five things."""


def made(
    groups: NDArray[np.int64] = GROUPS, *, seed: int = 0, parts: int = 10, blur: float = 0.3
) -> tuple[list[Tally], Points]:
    """Parts of images in which clusters of one thing share places and features."""
    draw = np.random.default_rng(seed)
    count, things = len(groups), int(groups.max()) + 1
    centres = 4 * np.eye(things, 8)[groups] + draw.normal(0, 0.2, (count, 8))
    tallies, features, clusters = [], [], []
    for _ in range(parts):
        ids = draw.integers(0, count, 600)
        likely = np.full((600, count), 1e-3)
        likely += blur * (groups == groups[ids][:, None]) * draw.random((600, count))
        likely[np.arange(600), ids] += 1
        likely /= likely.sum(1, keepdims=True)
        places = centres[ids] + draw.normal(0, 0.5, (600, 8))
        sums = np.zeros((count, 8))
        np.add.at(sums, ids, places)
        tallies.append(Tally(np.bincount(ids, minlength=count), sums, likely.T @ likely))
        features.append(places.astype(np.float32))
        clusters.append(ids)
    return tallies, Points(np.concatenate(features), np.concatenate(clusters))


def without(points: Points, *clusters: int) -> Points:
    kept = ~np.isin(points.clusters, clusters)
    return Points(points.features[kept], points.clusters[kept])


def value(found: Suggestion, score: str, count: int) -> float:
    known = found.scores[score][found.counts.index(count)]
    assert known is not None
    return known


def test_the_number_of_things_is_recommended() -> None:
    """Clusters of one thing are confused, those of two are not."""
    found = suggest(*made(), seed=0)
    assert found.counts == tuple(range(2, 13))
    assert is_tree(np.array(found.tree))
    for name in ("stability", "silhouette", "elbow"):
        known = [each for each in found.scores[name] if each is not None]
        assert max(known) == value(found, name, 5)
    assert found.scores["stability"][-1] is None, "twelve are not merged"
    assert value(found, "stability", 5) == 1.0 > value(found, "stability", 9)
    assert value(found, "confusion", 5) < 1 < suggestion.ALIKE < value(found, "confusion", 6)
    assert found.chosen == 5


def test_the_tree_joins_things_first() -> None:
    tree = np.array(suggest(*made(), seed=0).tree)
    first = {frozenset(pair) for pair in tree.tolist() if max(pair) < 12}
    assert all(GROUPS[one] == GROUPS[two] for one, two in map(sorted, first))


def test_the_same_seed_gives_the_same() -> None:
    parts, points = made()
    assert suggest(parts, points, seed=3) == suggest(parts, points, seed=3)


def test_scores_by_hand() -> None:
    """Three clusters at 0, 1 and 10 on a line, one point at each; 0 and 1 are taken for each other."""
    features = np.array([[0.0], [1.0], [10.0]], np.float32)
    overlap = np.array([[0.9, 0.1, 0], [0.1, 0.9, 0], [0, 0, 1]])
    tally = Tally(np.array([1, 1, 1]), features.astype(np.float64), overlap)
    found = suggest([tally], Points(features, np.array([0, 1, 2])), seed=0)
    # Of two clusters: means 0.5 and 10; silhouettes 1 - 0.5/10, 1 - 0.5/9 and 1.
    two = ((1 - 0.05 + 1 - 0.5 / 9) / 2 + 1) / 2
    assert found.scores["silhouette"] == pytest.approx((two, 1.0), abs=1e-4)
    assert found.tree == ((0, 1), (2, 3))
    # Confused are 0 and 1 (sum 0.1, masses 1 and 1 of 3), then nothing with 2.
    assert found.scores["confusion"] == (0.0, 0.3)
    assert found.chosen == 3
    # There are no halves of one part, and no elbow between two numbers.
    assert found.scores["stability"] == (None, None)
    assert found.scores["elbow"] == (0.0, 0.0)


def test_chance_is_taken_off() -> None:
    """Where nothing is shared but noise, halves agree as random merges do."""
    groups = np.arange(12)
    parts, points = made(groups, blur=0.0)
    draw = np.random.default_rng(1)
    for tally in parts:
        tally.overlap[:] += 1e3 * draw.random((12, 12))
    found = suggest(parts, points, seed=0)
    assert abs(value(found, "stability", 6)) < 0.3


def test_empty_clusters_are_not_counted() -> None:
    parts, points = made()
    for tally in parts:
        tally.pixels[[2, 7]] = 0
    found = suggest(parts, without(points, 2, 7), seed=0)
    assert found.counts == tuple(range(2, 11))
    assert found.chosen == 5


@pytest.mark.parametrize("used", [1, 2])
def test_few_clusters_in_use(used: int) -> None:
    """Two are recommended, as there are no fewer."""
    parts, points = made(np.array([0, 1]))
    for tally in parts:
        tally.pixels[used:] = 0
    found = suggest(parts, without(points, *range(used, 2)), seed=0)
    assert (found.counts, found.chosen, found.tree) == ((2,), 2, ((0, 1),))
    assert all(
        each is None or np.isfinite(each) for values in found.scores.values() for each in values
    )


class TestTreeOf:
    def test_what_was_written_is_read(self) -> None:
        found = suggest(*made(), seed=0)
        tree = tree_of(found.to_dict(), 12)
        assert tree is not None and tree.tolist() == [list(pair) for pair in found.tree]

    @pytest.mark.parametrize(
        "tree", [None, [], "tree", [[0, 1]], [[0, 1], [1, 2]], [[0, 2], [1, 1e300]], [[0], [1, 2]], [[0, "x"], [1, 2]]]
    )  # fmt: skip
    def test_no_tree_of_three(self, tree: object) -> None:
        assert tree_of({"tree": tree}, 3) is None
        assert tree_of(None, 3) is None


def test_agreement_is_normalised_mutual_information() -> None:
    """The measure itself is `agreement`'s: the same groupings have 1."""
    assert normalised_mutual_information(np.diag([3, 4])) == pytest.approx(1.0)
