"""k-means against plain Lloyd iterations, mini-batches against PiCIE's formula, and input that FAISS cannot take."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from densesiam_seg.clustering import kmeans as module
from densesiam_seg.clustering.kmeans import Centroids, assign, kmeans, unit_features
from densesiam_seg.errors import InputError, NumericError

Array = NDArray[np.float64]

QUICK = settings(deadline=None, max_examples=40)


def blobs(clusters: int, spread: float, seed: int, each: int = 60, channels: int = 5) -> Tensor:
    """`each` points around every one of `clusters` centres, in turn."""
    source = np.random.default_rng(seed)
    centres = 4 * source.normal(size=(clusters, channels))
    noise = spread * source.normal(size=(each, clusters, channels))
    return torch.from_numpy((centres + noise).reshape(-1, channels).astype(np.float32))


def distances(points: Tensor, centres: Tensor) -> Array:
    """Squared distances (N, K), differences first."""
    out: Array = ((points.double().numpy()[:, None] - centres.double().numpy()[None]) ** 2).sum(-1)
    return out


def inertia(points: Tensor, centres: Tensor) -> float:
    return float(distances(points, centres).min(1).sum())


def lloyd_step(points: Array, centres: Array) -> Array:
    """Every centre becomes the mean of the points that it is nearest to."""
    labels = [min(range(len(centres)), key=lambda k: sum((x - centres[k]) ** 2)) for x in points]
    moved = centres.copy()
    for k in range(len(centres)):
        members = [x for x, label in zip(points, labels, strict=True) if label == k]
        if members:
            moved[k] = sum(members) / len(members)
    return moved


class TestKmeans:
    @pytest.mark.parametrize("seed", range(3))
    def test_steps_are_lloyds(self, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """From the centres after n steps, one plain step leads to the centres after n + 1."""
        points = blobs(4, spread=3.0, seed=seed, each=30)
        after = []
        for count in (1, 2, 3):
            monkeypatch.setattr(module, "ITERATIONS", count)
            after.append(kmeans(points, 4, seed=seed).centres)
        for one, two in itertools.pairwise(after):
            expected = lloyd_step(points.double().numpy(), one.double().numpy())
            np.testing.assert_allclose(two.numpy(), expected, atol=1e-5)
            assert (two - one).abs().max() > 1e-3  # not at rest yet

    def test_more_starts_are_never_worse_and_a_seed_is_repeatable(self) -> None:
        data = torch.randn(400, 5, generator=torch.Generator().manual_seed(3))
        runs = [kmeans(data, 12, seed=2**63 - 1, restarts=restarts) for restarts in (1, 1, 2, 8)]
        assert torch.equal(runs[0].centres, runs[1].centres)
        found = [inertia(data, run.centres) for run in runs]
        assert found == sorted(found, reverse=True)
        assert found[-1] < found[0]

    def test_uses_every_point(self) -> None:
        """FAISS by itself keeps 256 points per cluster, whose mean is another."""
        points = torch.zeros(5000, 2)
        points[:, 0] = torch.arange(5000.0) / 5000
        points[::7, 1] = 1
        found = kmeans(points, 1, seed=0)
        torch.testing.assert_close(found.centres[0], points.mean(0), atol=1e-4, rtol=0)
        assert found.counts.tolist() == [5000]


class TestRefusals:
    """FAISS would abort the whole process on some of these; each test's end shows that it lives."""

    @pytest.mark.parametrize(("count", "clusters"), [(0, 5), (4, 5), (5, 0)])
    def test_too_few_points_or_no_clusters(self, count: int, clusters: int) -> None:
        with pytest.raises(InputError, match=f"{count} points cannot make {clusters} clusters"):
            kmeans(blobs(1, 1.0, 0, each=5)[:count], clusters, seed=0)

    @pytest.mark.parametrize("copies", [2, 30, 2000])
    def test_too_few_distinct_points(self, copies: int) -> None:
        points = blobs(4, 0.0, 0, each=1).repeat(copies, 1)
        with pytest.raises(InputError, match="4 of them distinct, cannot make 5 clusters"):
            kmeans(points, 5, seed=0)
        assert len(kmeans(points, 4, seed=0).counts) == 4

    def test_distinct_points_may_come_last(self) -> None:
        points = torch.zeros(1000, 2)
        points[-2:] = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        assert kmeans(points, 3, seed=0).counts.sum() == 1000

    @pytest.mark.parametrize(
        "value", [math.nan, math.inf, -math.inf, 1e7, -1e7, 3e18, -3e18, 3e38, 1e300]
    )
    def test_not_finite_or_too_large(self, value: float) -> None:
        points = blobs(2, 1.0, 0).double()
        points[17, 3] = value
        with pytest.raises(NumericError, match="not finite or exceed 1e6"):
            kmeans(points, 2, seed=0)

    def test_the_largest_allowed_is_clustered(self) -> None:
        points = blobs(2, 0.1, 0)
        points *= 1e6 / points.abs().max()
        assert kmeans(points, 2, seed=0).counts.tolist() == [60, 60]


class TestAssign:
    @QUICK
    @given(st.integers(1, 7), st.integers(1, 4), st.integers(0, 30), st.integers(0, 10**6))
    def test_nearest_by_brute_force(
        self, clusters: int, channels: int, count: int, seed: int
    ) -> None:
        """Small whole numbers: distances are exact, and a tie may fall to either side."""
        source = torch.Generator().manual_seed(seed)
        points = torch.randint(-9, 10, (count, channels), generator=source).float()
        centres = torch.randint(-9, 10, (clusters, channels), generator=source).float()
        labels = assign(points, centres)
        assert labels.shape == (count,) and labels.dtype == torch.int64
        table = distances(points, centres)
        chosen = table[np.arange(count), labels.numpy()]
        assert chosen.tolist() == table.min(1, initial=math.inf).tolist()

    def test_blocks_do_not_matter(self, monkeypatch: pytest.MonkeyPatch) -> None:
        points, centres = blobs(4, 3.0, 0), blobs(4, 3.0, 1, each=1)
        whole = assign(points, centres)
        for block in (1, 7, 240):
            monkeypatch.setattr(module, "BLOCK", block)
            assert torch.equal(assign(points, centres), whole)

    def test_equals_the_convolution(self) -> None:
        """PiCIE: assignment by negative squared distance is a 1x1 convolution plus a bias."""
        source = torch.Generator().manual_seed(2)
        features = torch.randn(2, 6, 5, 4, generator=source)
        state = Centroids(torch.randn(7, 6, generator=source), torch.zeros(7, dtype=torch.int64))
        weight, bias = state.classifier()
        assert weight.shape == (7, 6, 1, 1) and bias.shape == (7,)
        scores = F.conv2d(features, weight, bias)
        rows = features.permute(0, 2, 3, 1).reshape(-1, 6)
        assert scores.argmax(1).flatten().tolist() == assign(rows, state.centres).tolist()
        # The scores are the negative squared distances but for |f|², the same for every centre.
        expected = -distances(rows, state.centres) + (rows.double().numpy() ** 2).sum(1)[:, None]
        np.testing.assert_allclose(
            scores.permute(0, 2, 3, 1).reshape(-1, 7).numpy(), expected, atol=1e-5
        )


class TestUnitFeatures:
    def test_by_hand(self) -> None:
        features = torch.tensor([[3.0, 0.0], [4.0, 0.0]]).view(1, 2, 1, 2)
        out = unit_features(features)
        # (3, 4) / 5; a pixel without any feature stays 0, not NaN.
        torch.testing.assert_close(out, torch.tensor([[0.6, 0.0], [0.8, 0.0]]).view(1, 2, 1, 2))
