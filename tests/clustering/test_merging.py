"""The tree of merges: contacts counted by hand, merges against SciPy's and a slow reference, cuts at any K."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage

from densesiam_seg.clustering import merging
from densesiam_seg.clustering.merging import (
    Contacts,
    Merges,
    contacts,
    cut,
    is_partition,
    is_tree,
    merge_tree,
    overlap_tree,
    random_tree,
    tables,
)


def centres_of(count: int, seed: int = 0) -> NDArray[np.float64]:
    return np.random.default_rng(seed).normal(size=(count, 5))


def nothing(count: int) -> Contacts:
    return Contacts(np.zeros((count, count)), np.zeros((count, count)))


def slow_tree(
    centres: NDArray[np.float64], counts: NDArray[np.int64], touching: Contacts
) -> list[frozenset[frozenset[int]]]:
    """The groups after each merge, every quantity computed anew from the over-clusters."""
    groups = [frozenset([k]) for k in range(len(centres))]
    found = []
    while len(groups) > 1:
        best: tuple[float, frozenset[int], frozenset[int]] | None = None
        for index, one in enumerate(groups):
            for two in groups[index + 1 :]:
                rows, columns = sorted(one), sorted(two)
                n, m = counts[rows].sum(), counts[columns].sum()
                mean_1 = (counts[rows, None] * centres[rows]).sum(0) / n
                mean_2 = (counts[columns, None] * centres[columns]).sum(0) / m
                block = np.ix_(rows, columns)
                lift = (touching.observed[block].sum() + merging.PSEUDO_COUNT) / (
                    touching.expected[block].sum() + merging.PSEUDO_COUNT
                )
                gap = (
                    n * m / (n + m) * ((mean_1 - mean_2) ** 2).sum() * lift**-merging.CONTACT_WEIGHT
                )
                if best is None or gap < best[0]:
                    best = (gap, one, two)
        assert best is not None
        groups = [each for each in groups if each not in best[1:]] + [best[1] | best[2]]
        found.append(frozenset(groups))
    return found


class TestContacts:
    def test_by_hand(self) -> None:
        """0 0 1 / 2 2 1: 0-1 once, 2-1 once, 0-2 twice; borders 3, 2, 3 of 8."""
        found = contacts(np.array([[0, 0, 1], [2, 2, 1]]), 4)
        assert found.observed.tolist() == [[0, 1, 2, 0], [1, 0, 1, 0], [2, 1, 0, 0], [0, 0, 0, 0]]
        borders = np.array([3, 2, 3, 0])
        np.testing.assert_allclose(found.expected, np.outer(borders, borders) / 8)

    def test_clusters_that_share_no_image_are_not_expected_to_touch(self) -> None:
        one, two = contacts(np.array([[0, 1]]), 4), contacts(np.array([[2, 3]]), 4)
        both = one + two
        assert both.expected[0, 2] == both.observed[0, 2] == 0
        assert both.observed[2, 3] == both.observed[0, 1] == 1


class TestMergeTree:
    @pytest.mark.parametrize("seed", range(3))
    def test_without_contacts_it_is_wards(self, seed: int) -> None:
        """SciPy's, for clusters of one size."""
        centres = centres_of(20, seed)
        tree = merge_tree(centres, np.full(20, 7), nothing(20))
        expected = linkage(centres, "ward")
        for clusters in range(1, 21):
            labels = fcluster(expected, clusters, "maxclust")
            groups = {tuple(np.flatnonzero(labels == label).tolist()) for label in set(labels)}
            assert set(cut(tree, clusters)) == groups

    @pytest.mark.parametrize("seed", range(3))
    def test_sizes_and_contacts_are_those_of_the_parts(self, seed: int) -> None:
        draw = np.random.default_rng(seed)
        counts = draw.integers(1, 1000, 12)
        touching = contacts(draw.integers(0, 12, (40, 40)), 12)
        touching = Contacts(touching.observed * draw.integers(1, 9), touching.expected * 4)
        tree = merge_tree(centres_of(12, seed), counts, touching)
        expected = slow_tree(centres_of(12, seed), counts, touching)
        for merged, groups in enumerate(expected, 1):
            assert frozenset(map(frozenset, cut(tree, 12 - merged))) == groups

    def test_those_that_touch_join_first(self) -> None:
        """Three at one distance from another: only the contacts differ."""
        observed = np.zeros((3, 3))
        observed[1, 2] = observed[2, 1] = 1000
        touching = Contacts(observed, np.full((3, 3), 200.0))
        counts = np.array([50, 50, 50])
        assert cut(merge_tree(np.eye(3), counts, touching), 2) == ((0,), (1, 2))

    def test_an_empty_one_joins_its_neighbour(self) -> None:
        centres = np.array([[0.0], [10.0], [9.0], [30.0]])
        tree = merge_tree(centres, np.array([500, 500, 0, 500]), nothing(4))
        assert cut(tree, 3) == ((0,), (1, 2), (3,))

    def test_what_is_given_stays_as_it_is(self) -> None:
        touching = contacts(np.arange(9).reshape(3, 3), 9)
        before = touching.observed.copy()
        merge_tree(centres_of(9), np.ones(9, np.int64), touching)
        np.testing.assert_array_equal(touching.observed, before)

    @pytest.mark.parametrize("count", [1, 2])
    def test_few(self, count: int) -> None:
        tree = merge_tree(centres_of(count), np.ones(count, np.int64), nothing(count))
        assert tree.tolist() == [[0, 1]][: count - 1]
        assert tree.shape == (count - 1, 2)


def overlap_of(count: int, seed: int) -> NDArray[np.float64]:
    """Of the random probabilities of 300 places."""
    likely = np.random.default_rng(seed).dirichlet(np.full(count, 0.3), 300)
    shared: NDArray[np.float64] = likely.T @ likely
    return shared


class TestOverlapTree:
    @pytest.mark.parametrize("seed", range(3))
    def test_the_most_shared_in_comparison_with_chance_join(self, seed: int) -> None:
        """As a slow reference has it, from the parts' own sums."""
        overlap = overlap_of(9, seed)
        groups: list[tuple[int, ...]] = [(k,) for k in range(9)]
        tree, lifts = overlap_tree(overlap, np.zeros(9, bool))
        while len(groups) > 1:

            def lift(pair: tuple[tuple[int, ...], ...]) -> float:
                one, two = map(list, pair)
                together = overlap[np.ix_(one, two)].sum()
                return float(together / overlap[one].sum() / overlap[two].sum())

            best = max(combinations(groups, 2), key=lift)
            assert lifts[9 - len(groups)] == pytest.approx(lift(best) * overlap.sum())
            groups = [each for each in groups if each not in best] + [best[0] + best[1]]
            assert set(cut(tree, len(groups))) == {tuple(sorted(each)) for each in groups}

    def test_empty_ones_join_first(self) -> None:
        """1 joins 2 and 3 joins 0, which share the most with them, though 0 and 2 share more."""
        overlap = np.array([[9, 0, 8, 0.1], [0, 1, 0.2, 0], [8, 0.2, 9, 0], [0.1, 0, 0, 1]])
        tree, _ = overlap_tree(overlap, np.array([False, True, False, True]))
        assert cut(tree, 2) == ((0, 3), (1, 2))
        assert cut(overlap_tree(overlap, np.zeros(4, bool))[0], 3) != cut(tree, 3)

    def test_nothing_shared_and_nothing_there(self) -> None:
        for overlap in (np.eye(4), np.zeros((4, 4))):
            assert is_tree(overlap_tree(overlap, np.zeros(4, bool))[0])
            assert is_tree(overlap_tree(overlap, np.ones(4, bool))[0])

    def test_what_is_given_stays_as_it_is(self) -> None:
        overlap, empty = overlap_of(5, 0), np.array([True, False, False, True, False])
        overlap_tree(overlap, empty)
        np.testing.assert_array_equal(overlap, overlap_of(5, 0))
        assert empty.tolist() == [True, False, False, True, False]

    def test_few(self) -> None:
        assert overlap_tree(np.eye(2), np.zeros(2, bool))[0].tolist() == [[0, 1]]


class TestTables:
    @given(st.integers(2, 12), st.integers(0, 99))
    def test_they_are_the_cuts(self, count: int, seed: int) -> None:
        tree = random_tree(count, np.random.default_rng(seed))
        assert is_tree(tree)
        counts = [*range(1, count + 1)]
        for clusters, group in zip(counts, tables(tree, counts), strict=True):
            groups = {tuple(np.flatnonzero(group == k).tolist()) for k in range(clusters)}
            assert groups == set(cut(tree, clusters))

    def test_random_ones_differ(self) -> None:
        draw = np.random.default_rng(0)
        assert len({random_tree(6, draw).tobytes() for _ in range(20)}) > 15


class TestCut:
    def test_by_hand(self) -> None:
        tree = np.array([[1, 3], [0, 2], [4, 5]])
        assert cut(tree, 4) == ((0,), (1,), (2,), (3,))
        assert cut(tree, 3) == ((0,), (1, 3), (2,))
        assert cut(tree, 2) == ((0, 2), (1, 3))
        assert cut(tree, 1) == ((0, 1, 2, 3),)

    @given(st.integers(2, 12), st.integers(0, 99))
    def test_fewer_clusters_only_join(self, count: int, seed: int) -> None:
        tree = merge_tree(centres_of(count, seed), np.arange(count), nothing(count))
        assert is_tree(tree)
        cuts = [cut(tree, clusters) for clusters in range(count, 0, -1)]
        for groups, fewer in pairwise(cuts):
            assert is_partition(groups)
            assert len(groups) == len(fewer) + 1
            assert all(any(set(group) <= set(more) for more in fewer) for group in groups)


class TestSoundness:
    def test_trees(self) -> None:
        for tree in ([[0, 1]], [[1, 0]], [[1, 2], [3, 0]], [[0, 1], [2, 3], [4, 5]]):
            assert is_tree(np.array(tree))
        assert is_tree(np.empty((0, 2), np.int64))
        for tree in (
            *([[0, 0]], [[0, 2]], [[-1, 0]], [[0, 1], [0, 2]]),
            *([[0, 3], [1, 2]], [[0, 4], [1, 2]], [[5, 1], [0, 2]]),
        ):
            assert not is_tree(np.array(tree))

    def test_partitions(self) -> None:
        assert is_partition([[2, 0], [1]])
        for groups in ([[0], []], [[0], [0]], [[0], [2]], [[1]], [[-1, 0]]):
            assert not is_partition(groups)

    def test_shares_are_of_all_points(self) -> None:
        merges = Merges(np.array([[0, 1], [2, 3]]), np.array([1, 2, 5]))
        assert merges.over_clusters == 3
        assert merges.shares(((0, 1), (2,))) == [3 / 8, 5 / 8]
