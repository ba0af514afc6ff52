from __future__ import annotations

import numpy as np
import pytest
import torch
from lit import lit_sample

from densesiam_seg.clustering.gaussians import Gaussians
from densesiam_seg.clustering.quality import Sample, agreement, stability


def test_a_part_is_of_whole_images() -> None:
    images = torch.tensor([0, 0, 2, 0, 2, 3, 3, 3, 3, 3])
    points = torch.arange(10.0)[:, None]
    sample = Sample(points, points[None], images)
    for seed in range(20):
        part = sample.part(4, np.random.default_rng(seed))
        kept = torch.tensor(sorted(set(images[part[:, 0].long()].tolist())))
        assert torch.equal(part[:, 0], torch.isin(images, kept).nonzero()[:, 0].float())
        sizes = [int((images == image).sum()) for image in kept.tolist()]
        assert len(part) >= 4 > sum(sizes) - max(sizes)
    assert len(sample.part(11, np.random.default_rng(0))) == 10


def split_at(channel: int, border: float) -> Gaussians:
    """Two equal round clusters to both sides of a border."""
    centres = torch.zeros(2, 2, dtype=torch.float64)
    centres[:, channel] = torch.tensor([border - 1.0, border + 1.0])
    eye = torch.eye(2, dtype=torch.float64).repeat(2, 1, 1)
    return Gaussians(centres, eye * 3, torch.zeros(2).double(), torch.full((2,), 0.5).double())


def test_clusters_that_light_does_not_change_are_stable() -> None:
    sample = lit_sample(0.5)
    assert stability(split_at(1, 0.5), sample) == pytest.approx(1.0)
    assert stability(split_at(0, 0.25), sample) < 0.1
    assert stability(split_at(0, 2.0), lit_sample(4.0)) == pytest.approx(1.0, abs=1e-6)


def test_light_and_size_count_alike() -> None:
    """Sides, which light does not change, are told wrongly of half of the enlarged places: nothing is left of them."""
    lit = lit_sample(0.5)
    swapped = torch.stack((lit.points[:, 0], (torch.arange(2000) // 2 % 2).double()), 1)
    sample = Sample(lit.points, lit.relit, lit.images, enlarged=swapped)
    assert stability(split_at(1, 0.5), sample) == pytest.approx(0.5, abs=0.01)


def test_every_view_is_standardised_and_blinded() -> None:
    points = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
    sample = Sample(points, points[None] + 2, torch.tensor([0, 1]), points * 3)
    mean, deviation = torch.tensor([1.0, 2.0]), torch.tensor([2.0, 4.0])
    standard = sample.standardised(mean, deviation).without(1)
    assert standard.points.tolist() == [[0], [1]]
    assert standard.relit.tolist() == [[[0.5], [1.5]]]
    assert standard.enlarged is not None
    assert standard.enlarged.tolist() == [[1], [4]]


def test_agreement_is_of_all_pairs() -> None:
    sample = lit_sample(4.0)
    side, brightness = split_at(1, 0.5), split_at(0, 2.0)
    assert agreement([side, side, side], sample) == pytest.approx(1.0)
    assert agreement([side, brightness], sample) == pytest.approx(0.0, abs=0.01)
    assert agreement([side, side, brightness], sample) == pytest.approx(1 / 3, abs=0.01)
    assert agreement([side], sample) == 0.0
