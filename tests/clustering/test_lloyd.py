"""k-means in whole numbers against loops in Python's own, which have no rounding, and for one and several processes."""

from __future__ import annotations

import hashlib
from fractions import Fraction

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from ranks import in_ranks
from torch import Tensor
from torch.nn import functional as F

from densesiam_seg.clustering import lloyd as module
from densesiam_seg.clustering.kmeans import Centroids, kmeans
from densesiam_seg.clustering.lloyd import (
    Part,
    agreed_bound,
    lloyd,
    nearest,
    refine,
    sampled_kmeans,
    step_of,
)
from densesiam_seg.errors import InputError
from densesiam_seg.peers.group import ALONE, Group

Array = NDArray[np.float64]


def units(count: int, channels: int, seed: int = 0) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, channels, generator=source), dim=1)


def whole(values: Tensor, step: float) -> list[list[int]]:
    return [[round(Fraction(value) / Fraction(step)) for value in row] for row in values.tolist()]


def slow_lloyd(
    points: list[list[int]], centres: list[list[int]], rounds: int
) -> tuple[list[list[int]], list[int]]:
    """Of whole numbers; empty clusters take the points farthest from theirs, the larger of equally far ones."""

    def squared(one: list[int], other: list[int]) -> int:
        return sum((a - b) ** 2 for a, b in zip(one, other, strict=True))

    def labels() -> list[int]:
        return [min(range(len(centres)), key=lambda k: squared(x, centres[k])) for x in points]

    for _ in range(rounds):
        owners = labels()
        far = {(squared(x, centres[k]), tuple(x)) for x, k in zip(points, owners, strict=True)}
        farthest = sorted((pair for pair in far if pair[0]), reverse=True)
        moved = []
        for k, centre in enumerate(centres):
            members = [x for x, owner in zip(points, owners, strict=True) if owner == k]
            if members:
                sums = [sum(column) for column in zip(*members, strict=True)]
                moved.append([round(Fraction(value, len(members))) for value in sums])
            else:
                moved.append(list(farthest.pop(0)[1]) if farthest else centre)
        centres = moved
    owners = labels()
    return centres, [owners.count(k) for k in range(len(centres))]


class TestStep:
    @pytest.mark.parametrize("channels", [1, 2, 3, 64, 100, 256, 2048])
    @pytest.mark.parametrize("bound", [1.0, 0.7, 3.0, 1e6])
    def test_no_distance_is_beyond_double_precision(self, channels: int, bound: float) -> None:
        step = Fraction(step_of(bound, channels))
        steps = Fraction(bound) / step
        assert 3 * channels * steps**2 <= 2**53 and steps <= 2**24
        # A finer one would be too fine.
        assert steps > 2**23 / 2 or 4 * channels * (4 * steps) ** 2 > 2**53

    def test_by_hand(self) -> None:
        assert step_of(1.0, 64) == 2.0**-22
        assert step_of(2.0, 64) == step_of(1.5, 64) == 2.0**-21
        assert [agreed_bound(value) for value in (0.0, 1.0, 1.5, 4.0)] == [1, 1, 2, 4]


class TestLloyd:
    @pytest.mark.parametrize("seed", range(3))
    @pytest.mark.parametrize("rounds", [1, 3])
    def test_equals_python(self, seed: int, rounds: int) -> None:
        """Two of the centres are no point's nearest."""
        points, centres = units(80, 5, seed), units(6, 5, 100 + seed)
        centres[4:] = 0.9
        step = step_of(1.0, 5)
        expected, counts = slow_lloyd(whole(points, step), whole(centres, step), rounds)
        found = lloyd(centres, points, rounds=rounds)
        assert whole(found.centres, step) == expected
        assert found.counts.tolist() == counts

    def test_large_numbers_too(self) -> None:
        points, centres = 1e5 * units(60, 3), 1e5 * units(4, 3, 1)
        bound = agreed_bound(float(points.abs().max()))
        step = step_of(bound, 3)
        expected, counts = slow_lloyd(whole(points, step), whole(centres, step), 2)
        found = lloyd(centres, points, rounds=2, bound=bound)
        assert whole(found.centres, step) == expected and found.counts.tolist() == counts

    def test_the_first_of_equally_near_centres(self) -> None:
        points = torch.tensor([[0.0, 4.0], [2.0, 0.0]]).double()
        centres = torch.tensor([[3.0, 4.0], [-3.0, 4.0], [3.0, 4.0]]).double()
        assert nearest(points, centres).tolist() == [0, 0]
        assert nearest(points[:1], centres.flip(0)).tolist() == [0]

    def test_points_that_are_all_alike_leave_empty_clusters_where_they_are(self) -> None:
        centres = torch.tensor([[0.5, 0.0], [-0.5, 0.0], [0.0, -1.0]])
        found = lloyd(centres, torch.full((9, 2), 0.5), rounds=3)
        # The first round moves one of them onto the points, where the first cluster has gone too.
        assert found.counts.tolist() == [9, 0, 0]
        assert found.centres[0].tolist() == [0.5, 0.5] and found.centres[2].tolist() == [0.0, -1.0]


def refined(centres: Array, counts: list[int], points: Array) -> tuple[Array, list[int]]:
    """PiCIE, section 3: centroid_k ← (1 - n_b/n_k) · centroid_k + (n_b/n_k) · mean of the batch's members."""
    members: list[list[Array]] = [[] for _ in counts]
    for point in points:
        distances = [float(((point - centre) ** 2).sum()) for centre in centres]
        members[int(np.argmin(distances))].append(point)
    new_centres, new_counts = centres.copy(), list(counts)
    for k, batch in enumerate(members):
        if batch:
            new_counts[k] += len(batch)
            share = len(batch) / new_counts[k]
            new_centres[k] = (1 - share) * centres[k] + share * sum(batch) / len(batch)
    return new_centres, new_counts


class TestRefine:
    @pytest.mark.parametrize("seed", range(4))
    def test_three_batches_equal_a_slow_loop(self, seed: int) -> None:
        source = torch.Generator().manual_seed(seed)
        centres = torch.randn(6, 4, generator=source)
        centres[5] = 50  # never the nearest
        counts = torch.tensor([0, 1, 10, 100, 1000, 5])
        state = Centroids(centres, counts)
        slow_centres, slow_counts = centres.double().numpy(), counts.tolist()
        for _ in range(3):
            points = torch.randn(40, 4, generator=source)
            state = refine(state, points, bound=64.0)
            slow_centres, slow_counts = refined(slow_centres, slow_counts, points.double().numpy())
            np.testing.assert_allclose(state.centres.numpy(), slow_centres, atol=1e-5)
            assert state.counts.tolist() == slow_counts
        assert state.centres[5].tolist() == [50.0] * 4 and state.counts[5] == 5

    def test_a_batch_without_points_changes_nothing(self) -> None:
        state = lloyd(units(4, 8, 1), units(50, 8), rounds=1)
        again = refine(state, torch.empty(0, 8))
        assert torch.equal(again.centres, state.centres) and torch.equal(again.counts, state.counts)


def test_a_sample_is_clustered_as_by_kmeans_alone() -> None:
    """Up to rounding: the last of the iterations are made in whole numbers."""
    points = units(600, 6)
    found = sampled_kmeans([(7, points[300:]), (2, points[:300])], 5, seed=3)
    expected = kmeans(points, 5, seed=3)
    torch.testing.assert_close(found.centres, expected.centres, atol=1e-5, rtol=0)
    assert torch.equal(found.counts, expected.counts)


POINTS, CLUSTERS = 3000, 7


def digest(*fits: Centroids) -> str:
    total = hashlib.sha256()
    for fit in fits:
        total.update(fit.centres.numpy().tobytes() + fit.counts.numpy().tobytes())
    return total.hexdigest()


def clustered(group: Group, cuts: list[float], shuffled: bool) -> list[str]:
    """A start and rounds, mini-batches, and empty clusters; a process has the points between two of the cuts."""
    points = units(POINTS, 12)
    first, last = (int(POINTS * cuts[group.index + k]) for k in (0, 1))
    parts: list[Part] = [(at, points[at : min(at + 100, last)]) for at in range(first, last, 100)]
    own = points[first:last]
    if shuffled:
        parts = parts[::-1]
        own = own[torch.randperm(len(own), generator=torch.Generator().manual_seed(1))]
    fit = sampled_kmeans(parts, CLUSTERS, seed=5, group=group)
    batches = fit
    for batch in (slice(0, 1700), slice(1700, 3000)):
        mine = range(POINTS)[batch]
        inside = range(max(mine.start, first), max(min(mine.stop, last), mine.start, first))
        batches = refine(batches, points[inside.start : inside.stop], group=group)
    lost = units(CLUSTERS, 12, seed=2)
    lost[2:5] = 0.9
    return [
        digest(fit),
        digest(batches),
        digest(*(lloyd(lost, own, rounds=n, group=group) for n in (1, 4))),
    ]


def in_a_group(group: Group) -> list[list[str]]:
    """Equal and unequal parts, a process without any, and a spoilt start."""
    even = [k / group.count for k in range(group.count + 1)]
    uneven = [0.0, *([0.1] * (group.count - 1)), 1.0]  # also empty parts
    found = [clustered(group, even, False)]
    torch.set_num_threads(2)
    found += [clustered(group, even, True), clustered(group, uneven, False)]
    with pytest.raises(InputError, match="cannot make 9 clusters"):
        sampled_kmeans([(group.index, units(2, 4, group.index))], 9, seed=0, group=group)
    return found


class TestGroups:
    def test_blocks_order_and_threads_do_not_matter(self, monkeypatch: pytest.MonkeyPatch) -> None:
        expected, before = clustered(ALONE, [0.0, 1.0], False), torch.get_num_threads()
        for block, threads in ((17, 1), (1000, 2), (POINTS, 3)):
            monkeypatch.setattr(module, "BLOCK", block)
            torch.set_num_threads(threads)
            assert clustered(ALONE, [0.0, 1.0], True) == expected
        torch.set_num_threads(before)

    @pytest.mark.parametrize("count", [2, 4])
    def test_any_number_of_processes_has_the_same_centroids(self, count: int) -> None:
        expected = clustered(ALONE, [0.0, 1.0], False)
        for found in in_ranks(count, in_a_group):
            assert found == [expected] * 3
