from __future__ import annotations

from collections.abc import Generator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from densesiam_seg.clustering import directions
from densesiam_seg.clustering.directions import (
    CONCENTRATIONS,
    ITERATIONS,
    OVER_CLUSTERS,
    Directions,
    find_directions,
    fit_directions,
    joined,
)
from densesiam_seg.clustering.quality import Sample
from densesiam_seg.errors import InputError, NumericError

IMAGES = 20


def bundles(
    counts: tuple[int, ...], spread: float = 1 / 12, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Unit vectors (N, 8) around one axis each, in random order; with the bundle of each."""
    draw = np.random.default_rng(seed)
    groups = draw.permutation(np.repeat(np.arange(len(counts)), counts))
    points = np.eye(8)[groups] + draw.normal(size=(len(groups), 8)) * spread
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    return torch.from_numpy(points), torch.from_numpy(groups)


def sample_of(points: Tensor, noise: float = 0.0) -> Sample:
    """Points of images of equal size; in two other views they are a little elsewhere."""
    draw = torch.Generator().manual_seed(1)
    shape = (2, *points.shape)
    views = points + noise * torch.randn(shape, generator=draw, dtype=points.dtype)
    return Sample(points, views, torch.arange(len(points)) * IMAGES // len(points))


def finished(steps: Generator[float, None, Any]) -> tuple[list[float], Any]:
    """What steps yield, and what they return."""
    done = []
    while True:
        try:
            done.append(next(steps))
        except StopIteration as end:
            return done, end.value


def same_clusters(found: Tensor, groups: Tensor) -> float:
    """The share of points that are in the most frequent group of their cluster, each group having a cluster."""
    table = torch.zeros(int(found.max()) + 1, int(groups.max()) + 1)
    table.index_put_((found, groups), torch.ones(len(found)), accumulate=True)
    assert len(set(table.argmax(1).tolist())) == table.shape[1]
    return float(table.max(1).values.sum()) / len(found)


def test_a_step_against_its_definition() -> None:
    """log π + κ μ·x, π and μ the mean posterior and the direction of the mean, after the last round."""
    points, groups = bundles((300, 200), spread=0.5)
    fit = fit_directions(points, torch.eye(2).double()[groups], 9.0)
    shares = torch.eye(2).double()[groups]
    for _ in range(ITERATIONS + 1):
        weights = shares.mean(0)
        means = shares.T @ points
        axes = 9 * means / means.norm(dim=1, keepdim=True)
        joint = weights.log() + points @ axes.T
        shares = joint.exp() / joint.exp().sum(1, keepdim=True)
    torch.testing.assert_close(fit.axes, axes)
    torch.testing.assert_close(fit.logs, weights.log())
    torch.testing.assert_close(fit.log_joint(points), joint)
    torch.testing.assert_close(fit.posteriors(points), shares)


def test_an_empty_cluster_has_no_infinite_weight() -> None:
    points, _ = bundles((50,))
    fit = fit_directions(points, torch.eye(2).double()[torch.zeros(50, dtype=torch.long)], 5.0)
    assert torch.isfinite(fit.log_joint(points)).all()
    assert (fit.log_joint(points).argmax(1) == 0).all()


def test_over_clusters_are_joined_by_how_far_apart_they_are() -> None:
    """Two draws that split different ones of three bundles, the second in another order."""
    axes = torch.eye(8).double()
    near = torch.nn.functional.normalize(axes + 0.2 * axes.roll(3, 0), dim=1)
    one = Directions(
        10 * torch.stack((axes[0], near[0], axes[1], axes[2])), torch.zeros(4).double()
    )
    two = Directions(
        10 * torch.stack((near[2], axes[2], axes[1], axes[0])), torch.zeros(4).double()
    )
    points, groups = bundles((100, 50, 50))
    posteriors = joined([one, two], points, 3)
    torch.testing.assert_close(posteriors.sum(1), torch.ones(200).double())
    assert same_clusters(posteriors.argmax(1), groups) == 1.0


@pytest.mark.parametrize("counts", [(700, 700, 600), (1600, 200, 200)])
def test_bundles_are_found_whatever_their_size(counts: tuple[int, ...]) -> None:
    points, groups = bundles(counts)
    done, (fit, stable) = finished(find_directions(sample_of(points, 0.02), 3, seed=0))
    assert same_clusters(fit.log_joint(points).argmax(1), groups) > 0.98
    assert done == sorted(done) and done[-1] == 1.0
    assert 0.9 < stable <= 1.0


def test_what_other_views_change_is_less_stable() -> None:
    points, _ = bundles((700, 700, 600))
    stable = [
        finished(find_directions(sample_of(points, noise), 3, seed=0))[1][1] for noise in (0.02, 1)
    ]
    assert stable[1] < 0.5 < stable[0]


def test_fewer_points_than_over_clusters() -> None:
    """There are then as many over-clusters as clusters."""
    points, groups = bundles((4, 4, 4))
    assert len(points) < 4 * round(3 * OVER_CLUSTERS)
    _, (fit, _) = finished(find_directions(sample_of(points), 3, seed=0))
    assert same_clusters(fit.log_joint(points).argmax(1), groups) == 1.0


@pytest.mark.parametrize(
    ("points", "error"),
    [(torch.ones(50, 3), InputError), (torch.full((50, 3), torch.nan), NumericError)],
)
def test_points_that_cannot_be_fitted(points: Tensor, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"k-means"):
        finished(find_directions(sample_of(points), 6, seed=0))


def test_the_number_of_threads_changes_nothing() -> None:
    points, _ = bundles((300, 200, 100), spread=0.4)
    before = torch.get_num_threads()
    found = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        found.append(finished(find_directions(sample_of(points, 0.1), 3, seed=5))[1][0])
        assert torch.get_num_threads() == threads
    torch.set_num_threads(before)
    assert torch.equal(found[0].axes, found[1].axes) and torch.equal(found[0].logs, found[1].logs)


@pytest.mark.parametrize("wanted", CONCENTRATIONS)
def test_the_concentration_with_the_more_stable_over_clusters_is_taken(
    wanted: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every axis is as long as the concentration; in the end stability is that of the wanted clusters."""

    def stability(fit: Directions, _: Sample) -> float:
        if len(fit.logs) == 3:
            return 0.25
        return float(torch.allclose(fit.axes.norm(dim=1), torch.tensor(wanted).double()))

    monkeypatch.setattr(directions, "stability", stability)
    points, _ = bundles((300, 200, 100))
    fit, stable = finished(find_directions(sample_of(points), 3, seed=0))[1]
    torch.testing.assert_close(fit.axes.norm(dim=1), torch.full((3,), wanted).double())
    assert stable == 0.25
