from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from torch import Tensor

from densesiam_seg.clustering.gaussians import (
    BLOCK,
    RIDGE,
    expectation,
    fit_gaussians,
    joined_by_outliers,
    maximisation,
)
from densesiam_seg.errors import InputError


def a_large_and_two_small() -> tuple[Tensor, Tensor]:
    """Nine tenths of 4,000 points in a wide cloud, two small clumps far from it; with the clump of each."""
    draw = np.random.default_rng(0)
    parts = [
        draw.normal(size=(3600, 2)),
        draw.normal(size=(200, 2)) / 10 + [7, 0],
        draw.normal(size=(200, 2)) / 10 + [0, 7],
    ]
    return torch.from_numpy(np.concatenate(parts)), torch.tensor([0, 1, 2]).repeat_interleave(
        torch.tensor([3600, 200, 200])
    )


def test_halves_find_the_small_beside_the_large() -> None:
    points, clumps = a_large_and_two_small()
    fit = fit_gaussians(points, 4, seed=0, halves=True)
    labels = expectation(points, fit)[1].argmax(1)
    for clump in (1, 2):
        found = labels[clumps == clump].mode().values
        # One cluster has the clump and nothing else to speak of.
        assert float(((labels == found) == (clumps == clump)).float().mean()) > 0.99


def test_evidence_and_shares_by_hand() -> None:
    """A single point on each side of nothing else: half of the weight of either cluster's density."""
    points = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    fit = maximisation(points, torch.eye(2, dtype=torch.float64))
    assert fit.shares.tolist() == [0.5, 0.5]
    torch.testing.assert_close(fit.centres, points)
    evidence, shares = expectation(points, fit)
    # The variance is the ridge alone, 0.1; the other centre is 2 away.
    own, other = (
        0.5 * np.exp(-0.5 * gap**2 / 0.1) / np.sqrt(2 * np.pi * 0.1) for gap in (0.0, 2.0)
    )
    assert evidence.tolist() == pytest.approx([np.log(own + other)] * 2)
    assert float(shares[0, 0]) == pytest.approx(own / (own + other))


def test_new_clusters_start_where_the_others_fit_worst() -> None:
    draw = np.random.default_rng(0)
    cloud, far = draw.normal(size=(950, 3)), draw.normal(size=(50, 3)) / 10 + [9, 0, 0]
    points = torch.from_numpy(np.concatenate((cloud, far)))
    fit = maximisation(points, torch.ones(1000, 1, dtype=torch.float64))
    shares = joined_by_outliers(points, fit, 2, seed=0)
    torch.testing.assert_close(shares.sum(1), torch.ones(1000, dtype=torch.float64))
    new = shares[:, 1:].sum(1) == 1
    assert int(new.sum()) == 100 and bool(new[950:].all())
    assert bool((shares[~new, 0] == 1).all())


def test_what_is_given_against_least_squares_and_scipy() -> None:
    """One cluster under one channel is a linear regression on it, with the ridge on every variance."""
    draw = np.random.default_rng(0)
    given = draw.normal(size=(4000, 1))
    rest = np.hstack((2 * given, -given)) + draw.normal(size=(4000, 2)) * [0.5, 1.0]
    points = torch.from_numpy(np.hstack((given, rest)))
    fit = maximisation(points, torch.ones(4000, 1, dtype=torch.float64), given=1)
    assert fit.whitening.shape == (1, 2, 3)
    covariance = np.cov(points.T.numpy(), bias=True) + RIDGE * np.eye(3)
    mean = points.mean(0).numpy()
    slope = covariance[1:, 0] / covariance[0, 0]
    left = covariance[1:, 1:] - np.outer(slope, covariance[0, 1:])
    expected = [
        multivariate_normal(mean[1:] + slope * (x - mean[0]), left).logpdf(y)
        for x, y in zip(given[:50, 0], rest[:50], strict=True)
    ]
    np.testing.assert_allclose(expectation(points[:50], fit)[0].numpy(), expected, atol=1e-9)


@pytest.mark.parametrize("given", [0, 2])
def test_densities_and_sums_by_products_against_the_points_own(given: int) -> None:
    """More points than a block holds, and a cluster with less than a point in all."""
    draw = torch.Generator().manual_seed(0)
    points = torch.randn(BLOCK + 7, 4, generator=draw, dtype=torch.float64)
    shares = torch.rand(len(points), 3, generator=draw, dtype=torch.float64)
    shares[:, 2] /= 2 * shares[:, 2].sum()
    fit = maximisation(points, shares, given)
    for k in range(3):
        count = max(float(shares[:, k].sum()), 1.0)
        centre = (points * shares[:, k : k + 1]).sum(0) / count
        away = points - centre
        covariance = (away * shares[:, k : k + 1]).T @ away / count + RIDGE * torch.eye(4).double()
        whitening = torch.linalg.inv(torch.linalg.cholesky(covariance))[given:]
        torch.testing.assert_close(fit.centres[k], centre)
        torch.testing.assert_close(fit.whitening[k], whitening)
        distances = (away @ whitening.T).square().sum(1)
        torch.testing.assert_close(
            fit.log_joint(points)[:, k], fit.offsets[k] - 0.5 * distances, rtol=1e-9, atol=1e-9
        )
    evidence, posteriors = expectation(points, fit)
    joint = fit.log_joint(points)
    torch.testing.assert_close(evidence, joint.logsumexp(1))
    torch.testing.assert_close(posteriors, joint.softmax(1))


def test_channels_beside_the_own_make_no_difference() -> None:
    points, _ = a_large_and_two_small()
    fit = fit_gaussians(points, 3, seed=0)
    more = torch.cat((torch.full((len(points), 2), 9.0).double(), points), 1)
    found = fit.beside(2).log_joint(more)
    torch.testing.assert_close(found, fit.log_joint(points), rtol=1e-9, atol=1e-9)


def test_a_given_channel_that_holds_nothing_changes_nothing() -> None:
    points, _ = a_large_and_two_small()
    padded = torch.cat((torch.zeros(len(points), 2, dtype=torch.float64), points), 1)
    plain, fit = (
        fit_gaussians(points, 4, seed=0, halves=True),
        fit_gaussians(padded, 4, seed=0, halves=True, given=2),
    )
    torch.testing.assert_close(fit.offsets, plain.offsets)
    torch.testing.assert_close(fit.whitening[..., 2:], plain.whitening)
    assert not fit.whitening[..., :2].any()
    # Whatever is there later, it moves nothing.
    padded[:, :2] = 9.0
    torch.testing.assert_close(expectation(padded, fit)[1], expectation(points, plain)[1])


@pytest.mark.parametrize("given", [0, 1])
def test_lines_that_cross_are_told_apart_by_what_is_given(given: int) -> None:
    """Two lines over a given channel: regressions find them, Gaussians of what is not given cannot."""
    draw = np.random.default_rng(0)
    x, line = draw.uniform(-2, 2, 4000), draw.integers(0, 2, 4000)
    points = np.stack((x, x + 1.5 * line + draw.normal(size=4000) / 20), 1)[:, 1 - given :]
    fit = fit_gaussians(torch.from_numpy(points), 2, seed=0, given=given)
    found = expectation(torch.from_numpy(points), fit)[1].argmax(1).numpy()
    right = float((found == line).mean())
    assert (max(right, 1 - right) > 0.99) == bool(given)


@pytest.mark.parametrize("halves", [False, True])
def test_fewer_distinct_points_than_clusters(halves: bool) -> None:
    points = torch.zeros(50, 2, dtype=torch.float64)
    points[:3, 0] = torch.arange(3)
    with pytest.raises(InputError, match="3 of them distinct"):
        fit_gaussians(points, 9, seed=0, halves=halves)
