from __future__ import annotations

import numpy as np
import pytest
import torch
from lit import lit_sample
from scipy.stats import multivariate_normal
from torch import Tensor

from densesiam_seg.clustering.mixture import Mixture, Search, consensus
from densesiam_seg.clustering.quality import Sample
from densesiam_seg.errors import InputError, NumericError


def elongated(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Points (N, 3) of a wide thin sheet, a rod across it and a small ball, with who made each (N,)."""
    draw = np.random.default_rng(seed)
    parts = [
        draw.normal(size=(3000, 3)) * [3.0, 3.0, 0.1],
        draw.normal(size=(1500, 3)) * [0.1, 0.1, 1.0] + [0, 0, 5],
        draw.normal(size=(500, 3)) * 0.3 + [6, -6, 5],
    ]
    makers = np.repeat([0, 1, 2], [len(part) for part in parts])
    return torch.from_numpy(np.concatenate(parts)), torch.from_numpy(makers)


def sample_of(points: Tensor) -> Sample:
    """All from one image."""
    return Sample(points, points[None], torch.zeros(len(points), dtype=torch.int64))


def clusters_of(mixture: Mixture, points: Tensor) -> Tensor:
    logs: Tensor = mixture(points.float().T[None, :, None, :])
    return logs[0, :, 0].argmax(0)


def test_shapes_and_shares_are_found() -> None:
    """A channel that never changes does no harm."""
    points, makers = elongated()
    points = torch.cat((points, torch.full((len(points), 1), 7.0)), 1)
    mixture = Mixture(3, 4, 0)
    mixture.fit(sample_of(points), seed=0, search=Search(16))
    found = clusters_of(mixture, points)
    table = torch.zeros(3, 3)
    for maker, cluster in zip(makers, found, strict=True):
        table[maker, cluster] += 1
    assert sorted(table.argmax(1).tolist()) == [0, 1, 2]
    assert float(table.max(1).values.sum()) / len(points) > 0.98


def test_posteriors_against_scipy() -> None:
    points, _ = elongated()
    mixture = Mixture(3, 3, 0)
    mixture.fit(sample_of(points), seed=1, search=Search(8))
    standard = ((points - points.mean(0)) / points.std(0, unbiased=False)).numpy()
    joint = []
    for centre, matrix, offset in zip(
        mixture.centres.double(), mixture.whitening.double(), mixture.offsets.double(), strict=True
    ):
        covariance = torch.linalg.inv(matrix.T @ matrix).numpy()
        density = multivariate_normal(centre.numpy(), covariance)
        share = float(offset) - density.logpdf(centre.numpy())
        joint.append(density.logpdf(standard) + share)
    expected = torch.from_numpy(np.stack(joint)).log_softmax(0)
    found = mixture(points.float().T[None, :, None, :])[0, :, 0]
    torch.testing.assert_close(found.double(), expected, atol=2e-3, rtol=2e-3)
    logs = mixture(torch.full((1, 3, 2, 2), 1e3))
    torch.testing.assert_close(logs.exp().sum(1), torch.ones(1, 2, 2))


def test_the_most_stable_fits_are_selected() -> None:
    """The brightness of places says more than their side, but not in another light."""
    sample = lit_sample(1.6)
    side = sample.points[:, 1] > 0.5
    right = []
    for one_in in (1, 8):
        mixture = Mixture(2, 2, 0)
        mixture.fit(sample, seed=0, search=Search(16, one_in))
        found = clusters_of(mixture, sample.points) == 1
        right.append(
            max(float((found == side).float().mean()), float((found != side).float().mean()))
        )
    assert right[1] >= right[0] and right[1] > 0.95


def under_lights(points: Tensor, gist: int, places: int) -> Sample:
    """Points of images with so many places each; light moves the gist's first channel and the place's first alike."""
    shift = torch.zeros(points.shape[1], dtype=torch.float64)
    shift[[0, gist]] = 0.1
    images = torch.arange(len(points) // places).repeat_interleave(places)
    return Sample(points, torch.stack([points - shift, points + shift]), images)


@pytest.mark.parametrize(
    ("points", "error"),
    [(torch.rand(5, 3), InputError), (torch.full((50, 3), torch.nan), NumericError)],
)
def test_points_that_cannot_be_fitted(points: Tensor, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"k-means"):
        Mixture(6, 3, 0).fit(sample_of(points), seed=0)


@pytest.mark.parametrize("known", [True, False])
def test_conditioned_on_the_gist_a_material_is_one_in_every_light(known: bool) -> None:
    """Light changes appearance as much as the material does; a gist that describes it separates the materials."""
    draw = np.random.default_rng(0)
    light = torch.linspace(-0.5, 0.5, 20, dtype=torch.float64).repeat_interleave(200)
    material = torch.arange(4000) % 2
    noise = torch.from_numpy(draw.normal(size=(4000, 2))) / 10
    gist = light if known else torch.zeros(4000, dtype=torch.float64)
    points = torch.stack((gist, material + light + noise[:, 0], noise[:, 1]), 1)
    mixture = Mixture(2, 2, 1)
    mixture.fit(under_lights(points, 1, 200), seed=0, search=Search(16))
    right = float((clusters_of(mixture, points) == material).float().mean())
    assert (max(right, 1 - right) > 0.99) == known


def test_a_gist_that_separates_the_clusters_is_not_conditioned_on() -> None:
    """Images of one of four things each, and their gist is that thing's look."""
    draw = np.random.default_rng(0)
    thing = torch.arange(40) % 4
    looks = torch.tensor([[-1, -1], [-1, 1], [1, -1], [1, 1]], dtype=torch.float64)[thing]
    gist = looks + torch.from_numpy(draw.normal(size=(40, 2))) / 20
    places = looks.repeat_interleave(100, 0) + torch.from_numpy(draw.normal(size=(4000, 2))) / 5
    points = torch.cat((gist.repeat_interleave(100, 0), places), 1)
    mixture = Mixture(4, 2, 2)
    mixture.fit(under_lights(points, 2, 100), seed=0, search=Search(16))
    assert not mixture.whitening[..., :2].any()
    found = clusters_of(mixture, points).view(40, 100).mode(1).values
    assert len({(int(one), int(other)) for one, other in zip(thing, found, strict=True)}) == 4


@pytest.mark.parametrize("images", [15, 16])
def test_fits_to_few_images_are_never_conditioned_on_the_gist(images: int) -> None:
    draw = np.random.default_rng(0)
    gist = np.repeat(draw.normal(size=(images, 8)), 50, 0)
    points = torch.from_numpy(
        np.hstack((gist, gist[:, :2] + draw.normal(size=(images * 50, 2)) / 9))
    )
    mixture = Mixture(2, 2, 8)
    mixture.fit(under_lights(points, 8, 50), seed=0, search=Search(2, conditioned=(True,)))
    assert bool(mixture.whitening[..., :8].any()) == (images == 16)


def test_consensus_pairs_clusters_whatever_their_order() -> None:
    """Three clusterings of four points: equal up to names, but for one point of the last."""
    one = torch.eye(2, dtype=torch.float64)[[0, 0, 1, 1]]
    other = torch.eye(2, dtype=torch.float64)[[1, 1, 0, 1]]
    found = consensus([one, one.flip(1), other])
    expected = torch.tensor([[1, 0], [1, 0], [0, 1], [1 / 3, 2 / 3]], dtype=torch.float64)
    torch.testing.assert_close(found, expected)


def test_empty_clusters_are_paired_with_each_other() -> None:
    shares = torch.zeros(5, 3, dtype=torch.float64)
    shares[:, 1] = 1
    assert torch.equal(consensus([shares, shares.roll(1, 1)]), shares)


def test_the_number_of_threads_changes_nothing() -> None:
    points, _ = elongated()
    found = []
    before = torch.get_num_threads()
    for threads in (1, 3):
        torch.set_num_threads(threads)
        mixture = Mixture(3, 3, 0)
        mixture.fit(sample_of(points), seed=5, search=Search(8))
        found.append(mixture.state_dict())
        assert torch.get_num_threads() == threads
    torch.set_num_threads(before)
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
