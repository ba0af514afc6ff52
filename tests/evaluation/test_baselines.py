"""Masks without training: k-means on colour, position, patches and untrained features; one mask; frequent labels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from densesiam_seg.clustering.appearance import GIST, appearance
from densesiam_seg.clustering.kmeans import assign
from densesiam_seg.datasets.scenes import scene
from densesiam_seg.errors import InputError
from densesiam_seg.evaluation import baselines
from densesiam_seg.evaluation.baselines import (
    Points,
    appearance_points,
    colour_points,
    colour_position_points,
    kmeans_masks,
    mixture_masks,
    patch_position_points,
    position_masks,
)
from densesiam_seg.evaluation.protocol import PROTOCOLS, Mask, MasksOf


def mask_of(masks_of: MasksOf, image: Tensor, height: int, width: int) -> Mask:
    """The mask of one image."""
    return masks_of(image[None], PROTOCOLS["picie"], [(height, width)])[0][0]


def scenes(count: int, side: int = 24) -> list[Tensor]:
    return [torch.from_numpy(scene(0, k, side)[0]).permute(2, 0, 1) for k in range(count)]


def halves(left: tuple[int, int, int], right: tuple[int, int, int], side: int = 8) -> Tensor:
    """Two plain halves with a little noise, uint8 (3, side, side)."""
    image = torch.empty(3, side, side)
    image[:, :, : side // 2] = torch.tensor(left).view(3, 1, 1)
    image[:, :, side // 2 :] = torch.tensor(right).view(3, 1, 1)
    noise = torch.randint(0, 4, image.shape, generator=torch.Generator().manual_seed(0))
    return (image + noise).to(torch.uint8)


def test_colour_and_position_of_two_pixels_by_hand() -> None:
    """Red at x = ¼ and cyan at x = ¾, both at y = ½."""
    image = torch.tensor([[[255, 0]], [[0, 255]], [[0, 255]]], dtype=torch.uint8)
    points = colour_position_points(image)
    assert points.tolist() == [[1, 0, 0, 0.5, 0.25], [0, 1, 1, 0.5, 0.75]]


def test_patches_against_plain_loops() -> None:
    """Squares are cut at the border, and position stands behind the six statistics."""
    image = scenes(3)[2][:, :13, :17].contiguous()
    points = patch_position_points(image).view(13, 17, 8)
    colours = image.double().numpy() / 255
    for row, column in ((0, 0), (0, 8), (6, 8), (12, 16), (11, 1), (2, 15)):
        rows = slice(max(row - 2, 0), row + 3)
        columns = slice(max(column - 2, 0), column + 3)
        patch = colours[:, rows, columns].reshape(3, -1)
        expected = [*patch.mean(1), *patch.std(1), (row + 0.5) / 13, (column + 0.5) / 17]
        np.testing.assert_allclose(points[row, column].numpy(), expected, atol=2e-4)


class TestKmeansMasks:
    @pytest.mark.parametrize("points", [colour_points, colour_position_points])
    def test_two_colours_in_two_halves(self, points: Points) -> None:
        """Without position a colour is one cluster wherever it lies."""
        images = [halves((250, 10, 10), (10, 10, 240)), halves((10, 10, 240), (250, 10, 10))]
        masks_of = kmeans_masks(
            points, lambda: images[: 1 + (points is colour_points)], 2, 2, seed=0
        )
        mask = mask_of(masks_of, images[0], 8, 8)
        assert (mask.shape, mask.dtype) == ((8, 8), np.dtype(np.int32))
        assert len(np.unique(mask[:, :4])) == len(np.unique(mask[:, 4:])) == 1
        assert mask[0, 0] != mask[0, 4]
        if points is colour_points:
            np.testing.assert_array_equal(mask_of(masks_of, images[1], 8, 8), mask[:, ::-1])

    def test_every_channel_counts_in_units_of_its_deviation(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Deviations over all pixels of all images, by numpy; a constant channel is not divided by nothing."""
        images = [image.clone() for image in scenes(3)]
        for image in images:
            image[2] = 77
        every = torch.cat([colour_position_points(image) for image in images]).double().numpy()
        deviation = every.std(0)
        deviation[2] = 1
        seen: list[Tensor] = []

        def spy(points: Tensor, centres: Tensor) -> Tensor:
            seen.append(points)
            return assign(points, centres)

        monkeypatch.setattr(baselines, "assign", spy)
        masks_of = kmeans_masks(colour_position_points, lambda: images, 3, 3, seed=0)
        mask_of(masks_of, images[0], 24, 24)
        np.testing.assert_allclose(seen[0].numpy(), every[: 24 * 24] / deviation, atol=1e-5)

    def test_equal_for_a_seed_and_stretched_to_a_label_of_another_size(self) -> None:
        """Each pixel of a larger mask is the one under its centre."""
        images = scenes(2)
        first, again = (
            kmeans_masks(colour_position_points, lambda: images, 2, 4, seed=5) for _ in range(2)
        )
        own = mask_of(first, images[1], 24, 24)
        np.testing.assert_array_equal(own, mask_of(again, images[1], 24, 24))
        large = own.repeat(2, axis=0).repeat(3, axis=1)
        np.testing.assert_array_equal(mask_of(first, images[1], 48, 72), large)

    def test_more_clusters_than_pixels(self) -> None:
        with pytest.raises(InputError, match="cannot make 100 clusters"):
            kmeans_masks(colour_points, lambda: [halves((1, 2, 3), (4, 5, 6))], 1, 100, seed=0)


def test_frequent_labels_of_each_position_by_hand() -> None:
    """Majority, a tie, an ignored vote, and a place that is ignored in all: there the commonest class of all."""
    labels = [
        np.array([[0, 2, 1], [255, 1, 2]], np.uint8),
        np.array([[0, 1, 1], [255, 255, 2]], np.uint8),
        np.array([[1, 255, 0], [255, 1, 2]], np.uint8),
    ]
    masks_of = position_masks(iter(labels), 3)
    image = torch.zeros(3, 2, 3, dtype=torch.uint8)
    mask = mask_of(masks_of, image, 2, 3)
    assert mask.tolist() == [[0, 1, 1], [1, 1, 2]]
    assert mask.dtype == np.int32
    assert mask_of(masks_of, image, 2, 6)[0].tolist() == [0, 0, 1, 1, 1, 1]


class TestMixture:
    def test_halves_are_told_apart(self) -> None:
        plain = halves((190, 60, 40), (40, 60, 190), 32)
        images = [(plain * light).to(torch.uint8) for light in (0.5, 0.75, 1.0, 1.3)]
        mask = mask_of(mixture_masks(lambda: images, 4, 2, seed=0), images[0], 64, 64)
        assert mask.shape == (64, 64)
        assert len(np.unique(mask[:, :28])) == len(np.unique(mask[:, 36:])) == 1
        assert mask[0, 0] != mask[0, -1]

    def test_edges_are_sharpened_where_it_is_asked(self) -> None:
        """A border between two cells of the appearance is found to the pixel."""
        image = halves((200, 60, 40), (40, 60, 200), 32)
        image[:, :, 14:18] = image[:, :, 31:]
        mask = {
            refine: mask_of(
                mixture_masks(lambda: [image] * 3, 3, 2, seed=0, refine=refine), image, 32, 32
            )
            for refine in ("none", "pamr")
        }
        truth = (torch.arange(32) >= 14).expand(32, 32).numpy()
        wrong = {name: min((m != truth).mean(), (m == truth).mean()) for name, m in mask.items()}
        assert wrong["pamr"] < wrong["none"]

    def test_each_place_is_repeated_over_its_pixels(self) -> None:
        image = scenes(2, 32)[1]
        points = appearance_points(image).view(8, 4, 8, 4, -1)
        assert torch.equal(points, points[:, :1, :, :1].expand_as(points))
        places = appearance(image[None] / 255, (8, 8))[0, GIST:].permute(1, 2, 0)
        assert torch.equal(points[:, 0, :, 0], places)
