from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from densesiam_seg.errors import NumericError
from densesiam_seg.network import description
from densesiam_seg.network.description import TEMPERATURE, Description
from densesiam_seg.peers.group import ALONE

SIZES = ((4, 6), (8, 12))


def images_of(count: int, seed: int = 0) -> list[list[list[Tensor]]]:
    """Images in two sizes, with stages of 5 and 3 channels of unlike scale, of which one never changes."""
    draw = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        sizes = []
        for height, width in SIZES:
            fine = torch.randn(1, 5, height, width, generator=draw)
            coarse = torch.randn(1, 3, height // 2, width // 2, generator=draw)
            fine[:, 1] = 100 * fine[:, 1] + 7
            coarse[:, 2] = 3.0
            sizes.append([fine, coarse])
        found.append(sizes)
    return found


def at(level: Tensor, grid: tuple[int, int]) -> np.ndarray:
    """A map (1, C, h, w) on the grid, as points (N, C)."""
    resized = torch.nn.functional.interpolate(
        level, grid, mode="bilinear", antialias=level.shape[-1] > grid[1]
    )
    points: np.ndarray = resized[0].flatten(1).T.double().numpy()
    return points


def by_hand(images: list[list[list[Tensor]]], channels: int, grid: tuple[int, int]) -> np.ndarray:
    """Points (images, N, C), in double by numpy: standardised, normalised, meaned over sizes, on principal axes, and
    each the mean of all of its image, weighed by their cosines."""
    scales = []
    for level in range(2):
        # Each size counts by its places, those of a coarse stage once for every place of the fine one.
        weights = np.repeat([h * w for h, w in SIZES], len(images))
        every = [sizes[k][level][0].flatten(1).double().numpy() for k in (0, 1) for sizes in images]
        mean = np.average([each.mean(1) for each in every], axis=0, weights=weights)
        square = np.average([(each**2).mean(1) for each in every], axis=0, weights=weights)
        deviation = np.sqrt(np.maximum(square - mean**2, 0))
        scales.append((mean, np.where(deviation > 1e-6, deviation, 1)))
    points = []
    for sizes in images:
        each = []
        for stages in sizes:
            levels = []
            for stage, (mean, deviation) in zip(stages, scales, strict=True):
                values = (stage.double() - torch.from_numpy(mean).view(-1, 1, 1)) / (
                    torch.from_numpy(deviation).view(-1, 1, 1)
                )
                levels.append(at(values / values.norm(dim=1, keepdim=True), grid))
            each.append(np.concatenate(levels, 1))
        points.append(np.mean(each, 0))
    every_place = np.concatenate(points)
    centre = every_place.mean(0)
    axes = np.linalg.svd(every_place - centre, full_matrices=False)[2][:channels]
    axes *= np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(1)])[:, None]
    found = []
    for place in points:
        projected = (place - centre) @ axes.T
        projected /= np.linalg.norm(projected, axis=1, keepdims=True)
        weights = np.exp(projected @ projected.T / TEMPERATURE)
        means = weights @ projected
        found.append(means / np.linalg.norm(means, axis=1, keepdims=True))
    return np.stack(found)


@pytest.mark.parametrize("grid", [(4, 6), (6, 10)])
def test_against_numpy(grid: tuple[int, int]) -> None:
    images = images_of(12)
    description = Description((5, 3), 4)
    description.fit(images, grid)
    found = torch.cat([description(sizes, grid) for sizes in images])
    assert found.shape == (12, 4, *grid)
    points = found.flatten(2).mT.numpy()
    np.testing.assert_allclose(points, by_hand(images, 4, grid), atol=1e-3)


def test_an_image_does_not_depend_on_its_batch() -> None:
    images = images_of(8)
    description = Description((5, 3), 6)
    description.fit(images, (4, 6))
    batch = [
        [torch.cat(stage) for stage in zip(*stages, strict=True)]
        for stages in zip(*images[:2], strict=True)
    ]
    both = description(batch, (8, 12))
    for one, sizes in zip(both, images, strict=False):
        torch.testing.assert_close(one[None], description(sizes, (8, 12)))


def test_more_channels_than_axes_are_zeros() -> None:
    images = images_of(8)
    description = Description((5, 3), 20)
    description.fit(images, (4, 6))
    found = description(images[0], (4, 6))
    assert not found[:, 8:].any() and found[:, :8].any()


def test_very_many_places_are_compared_with_some(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evenly spread ones; of an image with a few kinds of places it makes no difference."""
    kinds = torch.randn(1, 4, 3, generator=torch.Generator().manual_seed(0))
    total = kinds[..., torch.arange(96) % 3].reshape(1, 4, 8, 12)
    described = Description((5, 3), 4)
    whole = described.smoothed(total)
    for step in (2, 3):
        monkeypatch.setattr(description, "PAIRS", 96 * 96 // step)
        torch.testing.assert_close(described.smoothed(total), whole, atol=0.05, rtol=0)


def test_the_order_of_images_and_the_number_of_threads_change_no_bit() -> None:
    images = images_of(7)
    before, found = torch.get_num_threads(), []
    for threads, order in ((1, images), (3, images[::-1])):
        torch.set_num_threads(threads)
        described = Description((5, 3), 4)
        described.fit(order, (4, 6))
        # In double precision, as single would hide a last digit.
        moments = torch.stack(described._moments(order, len(order), ALONE))
        found.append({**described.state_dict(), "moments": moments})
        assert torch.get_num_threads() == threads
    torch.set_num_threads(before)
    assert found[0].keys() == {"mean", "deviation", "axes", "centre", "moments"}
    assert all(torch.equal(found[0][name], value) for name, value in found[1].items())


def test_a_small_channel_beside_a_huge_one_keeps_its_digits() -> None:
    images = images_of(5)
    for stages in (stages for sizes in images for stages in sizes):
        stages[0][:, 0] *= 1e6
        stages[0][:, 2] *= 1e-3
    described = Description((5, 3), 4)
    described.fit(images, (4, 6))
    values = [sizes[k][0][0, 2].flatten() for k in (0, 1) for sizes in images]
    every = torch.cat(values).double()
    torch.testing.assert_close(float(described.mean[2]), float(every.mean()), rtol=1e-5, atol=1e-9)
    deviation = float(every.std(unbiased=False))
    torch.testing.assert_close(float(described.deviation[2]), deviation, rtol=1e-5, atol=0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_stages_that_are_not_finite_are_refused(value: float) -> None:
    images = images_of(3)
    images[1][0][1][0, 0, 0, 0] = value
    with pytest.raises(NumericError, match="not finite"):
        Description((5, 3), 4).fit(images, (4, 6))
