from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from densesiam_seg.network.description import Description


def stages_of(images: int, seed: int = 0) -> list[list[Tensor]]:
    """Stages of 5 channels (4 x 6) and 3 channels (2 x 3), with channels of unlike scale and one that never changes."""
    draw = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(images):
        fine, coarse = torch.randn(5, 4, 6, generator=draw), torch.randn(3, 2, 3, generator=draw)
        fine[1] = 100 * fine[1] + 7
        coarse[2] = 3.0
        found.append([fine, coarse])
    return found


def by_hand(images: list[list[Tensor]], channels: int) -> np.ndarray:
    """Points (N, C): stages of one size standardised, normalised and put on principal axes by numpy, in double."""
    levels = []
    for level in range(len(images[0])):
        values = np.concatenate([each[level].flatten(1).double().numpy() for each in images], 1)
        deviation = values.std(1, keepdims=True)
        values = (values - values.mean(1, keepdims=True)) / np.where(deviation > 1e-6, deviation, 1)
        levels.append(values / np.maximum(np.linalg.norm(values, axis=0), 1e-12))
    points = np.concatenate(levels).T
    points = points - points.mean(0)
    axes = np.linalg.svd(points, full_matrices=False)[2][:channels]
    axes *= np.sign(axes[np.arange(channels), np.abs(axes).argmax(1)])[:, None]
    projected = points @ axes.T
    found: np.ndarray = projected / np.linalg.norm(projected, axis=1, keepdims=True)
    return found


def test_against_numpy() -> None:
    images = [[fine, fine.flip(0)[:3] ** 2] for fine, _ in stages_of(12)]
    description = Description((5, 3), 4)
    description.fit(images, (4, 6))
    found = torch.cat([description([stage[None] for stage in each], (4, 6)) for each in images])
    points = found.permute(0, 2, 3, 1).flatten(0, 2)
    np.testing.assert_allclose(points.numpy(), by_hand(images, 4), atol=2e-4)


def test_stages_of_unlike_size_meet_on_the_grid() -> None:
    images = stages_of(8)
    description = Description((5, 3), 6)
    description.fit(images, (4, 6))
    found = description([stage[None] for stage in images[0]], (8, 12))
    assert found.shape == (1, 6, 8, 12)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(1, 8, 12))
    assert torch.isfinite(torch.stack(list(description.state_dict()["axes"]))).all()


def test_more_channels_than_axes_are_zeros() -> None:
    images = stages_of(8)
    description = Description((5, 3), 20)
    description.fit(images, (4, 6))
    found = description([stage[None] for stage in images[0]], (4, 6))
    assert not found[:, 8:].any() and found[:, :8].any()
