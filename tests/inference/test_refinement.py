"""Passes averaged and edges sharpened: against slow references that go pixel by pixel, and facts worked out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from densesiam_seg.inference import refinement
from densesiam_seg.inference.options import Refinement
from densesiam_seg.inference.refinement import (
    DILATIONS,
    affinities,
    box_mean,
    guided_filter,
    pamr,
    refined,
    sharpened,
)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def pictures(*shape: int, seed: int = 0) -> Tensor:
    return (255 * noise(*shape, seed=seed)).to(torch.uint8)


def window(height: int, width: int, row: int, column: int, radius: int) -> list[tuple[int, int]]:
    """Pixels of the window around one, as far as the picture goes."""
    return [
        (i, j)
        for i in range(max(row - radius, 0), min(row + radius + 1, height))
        for j in range(max(column - radius, 0), min(column + radius + 1, width))
    ]


def slow_guided(guide: Tensor, maps: Tensor, radius: int, epsilon: float) -> Tensor:
    """Equations 19 to 21 of He et al. (2013) with a linear system for each window; guide (3, H, W), maps (K, H, W)."""
    guide, maps = guide.double(), maps.double()
    height, width = guide.shape[-2:]
    places = [(i, j) for i in range(height) for j in range(width)]
    functions = {}
    for place in places:
        inside = window(height, width, *place, radius)
        colours = torch.stack([guide[:, i, j] for i, j in inside])
        values = torch.stack([maps[:, i, j] for i, j in inside])
        centred = colours - colours.mean(0)
        covariance = centred.T @ centred / len(inside) + epsilon * torch.eye(3).double()
        shared = centred.T @ (values - values.mean(0)) / len(inside)
        slope = torch.linalg.solve(covariance, shared)
        functions[place] = (slope, values.mean(0) - colours.mean(0) @ slope)
    result = torch.empty_like(maps)
    for i, j in places:
        inside = window(height, width, i, j, radius)
        slope = torch.stack([functions[each][0] for each in inside]).mean(0)
        offset = torch.stack([functions[each][1] for each in inside]).mean(0)
        result[:, i, j] = guide[:, i, j] @ slope + offset
    return result


def slow_pamr(guide: Tensor, maps: Tensor, iterations: int, dilations: list[int]) -> Tensor:
    """Equations 5 to 7 of Araslanov and Roth (2020), one pixel after the other."""
    guide, maps = guide.double(), maps.double()
    height, width = guide.shape[-2:]

    def around(i: int, j: int, centre: bool) -> list[tuple[int, int]]:
        return [
            (min(max(i + d * a, 0), height - 1), min(max(j + d * b, 0), width - 1))
            for d in dilations
            for a in (-1, 0, 1)
            for b in (-1, 0, 1)
            if centre or a or b
        ]

    for _ in range(iterations):
        drawn = torch.empty_like(maps)
        for i in range(height):
            for j in range(width):
                area = torch.stack([guide[:, y, x] for y, x in around(i, j, True)])
                scale = 0.1 * area.std(0) + 1e-8
                near = around(i, j, False)
                unlike = torch.stack([(guide[:, y, x] - guide[:, i, j]).abs() for y, x in near])
                weights = (-unlike / scale).mean(1).softmax(0)
                values = torch.stack([maps[:, y, x] for y, x in near])
                drawn[:, i, j] = weights @ values
        maps = drawn
    return maps


class TestBoxMean:
    @pytest.mark.parametrize("radius", [1, 2, 9])
    def test_is_the_mean_of_what_lies_in_the_map(self, radius: int) -> None:
        maps = noise(2, 3, 5, 4)
        found = box_mean(maps, radius)
        for i in range(5):
            for j in range(4):
                inside = window(5, 4, i, j, radius)
                expected = torch.stack([maps[:, :, y, x] for y, x in inside]).mean(0)
                torch.testing.assert_close(found[:, :, i, j], expected)


class TestGuidedFilter:
    @pytest.mark.parametrize(("radius", "epsilon"), [(1, 1e-2), (2, 1e-3), (8, 1e-2)])
    def test_is_the_slow_one(self, radius: int, epsilon: float) -> None:
        guide, maps = noise(2, 3, 6, 7), noise(2, 4, 6, 7, seed=1)
        found = guided_filter(guide, maps, radius, epsilon)
        for image, own, each in zip(guide, maps, found, strict=True):
            expected = slow_guided(image, own, radius, epsilon)
            torch.testing.assert_close(each.double(), expected, atol=1e-3, rtol=0)

    def test_a_constant_map_stays_under_a_larger_guide(self) -> None:
        flat = torch.full((1, 2, 6, 6), 0.3)
        found = guided_filter(noise(1, 3, 24, 24), flat)
        torch.testing.assert_close(found, torch.full((1, 2, 24, 24), 0.3))

    def test_what_sums_to_1_goes_on_to_do_so(self) -> None:
        maps = noise(1, 5, 8, 8).softmax(1)
        found = guided_filter(noise(1, 3, 32, 32, seed=1), maps)
        torch.testing.assert_close(found.sum(1), torch.ones(1, 32, 32))

    def test_an_edge_comes_back(self) -> None:
        """A blurred step between two colours: the scores change where the colour does."""
        guide = torch.zeros(1, 3, 40, 40)
        guide[..., 22:] = 0.8
        step = torch.linspace(0, 1, 10).view(1, 1, 1, 10).expand(1, 1, 10, 10)
        maps = torch.cat((1 - step, step), 1)
        found = guided_filter(guide, maps, 4).argmax(1)[0]
        assert torch.equal(found, (guide[0, 0] > 0).long())


class TestPamr:
    @pytest.mark.parametrize(("iterations", "dilations"), [(1, [1]), (3, [1, 2]), (2, [1, 4, 9])])
    def test_is_the_slow_one(self, iterations: int, dilations: list[int]) -> None:
        guide, maps = noise(2, 3, 5, 6), noise(2, 3, 5, 6, seed=1)
        found = pamr(guide, maps, iterations, dilations)
        for image, own, each in zip(guide, maps, found, strict=True):
            expected = slow_pamr(image, own, iterations, dilations)
            torch.testing.assert_close(each.double(), expected, atol=1e-5, rtol=0)

    def test_weights_sum_to_1(self) -> None:
        found = affinities(noise(1, 3, 4, 5))
        assert found.shape == (1, 8 * len(DILATIONS), 4, 5)
        torch.testing.assert_close(found.sum(1), torch.ones(1, 4, 5))

    def test_one_colour_has_neither_edges_nor_nan(self) -> None:
        found = affinities(torch.full((1, 3, 4, 4), 0.5), (1,))
        torch.testing.assert_close(found, torch.full((1, 8, 4, 4), 1 / 8))

    def test_an_edge_comes_back(self) -> None:
        guide = torch.zeros(1, 3, 24, 24)
        guide[..., 14:] = 0.8
        guide += 0.01 * noise(1, 3, 24, 24)
        maps = torch.zeros(1, 2, 24, 24)
        maps[:, 0, :, :11] = maps[:, 1, :, 11:] = 1
        found = pamr(guide, maps, dilations=(1, 2, 4, 8)).argmax(1)[0]
        wrong = (found != (guide[0, 0] > 0.4)).double().mean()
        assert wrong < 0.02 < 3 / 24


class TestRefined:
    """Scores here are the image itself, at a quarter of its size."""

    @staticmethod
    def scores_of(images: Tensor) -> Tensor:
        size = [-(-side // 4) for side in images.shape[-2:]]
        return F.interpolate(images.float(), size, mode="bilinear", antialias=True)

    def test_a_mirrored_pass_is_mirrored_back(self) -> None:
        """What depends on the side of the image is averaged away: left + right is the same everywhere."""

        def side(images: Tensor) -> Tensor:
            return torch.arange(8.0).expand(len(images), 1, 8, 8)

        found = refined(pictures(2, 3, 32, 32), side, Refinement(flip=True))
        torch.testing.assert_close(found, torch.full((2, 1, 8, 8), 3.5))

    @pytest.mark.parametrize("scales", [(0.5, 1.0), (1.0, 0.5), (2.0, 1.0, 0.5)])
    def test_scales_meet_at_the_largest(self, scales: tuple[float, ...]) -> None:
        images = pictures(1, 3, 32, 44)
        found = refined(images, self.scores_of, Refinement(scales=scales))
        large = (8, 11) if max(scales) == 1 else (16, 22)
        expected = []
        for scale in scales:
            size = (int(32 * scale), int(44 * scale))
            shown = F.interpolate(images, size, mode="bilinear", antialias=True)
            expected.append(F.interpolate(self.scores_of(shown), large, mode="bilinear"))
        torch.testing.assert_close(found, torch.stack(expected).mean(0))

    @pytest.mark.parametrize("refine", ["guided", "pamr"])
    def test_edges_have_the_images_size(self, refine: str) -> None:
        images = pictures(2, 3, 33, 50)
        how = Refinement(refine=refine)
        found = refined(images, self.scores_of, how)
        assert found.shape == (2, 3, 33, 50)
        alone = [refined(image[None], self.scores_of, how)[0] for image in images]
        torch.testing.assert_close(found, torch.stack(alone))
        smallest = Refinement(True, (0.25, 1.0), refine)
        assert refined(pictures(1, 3, 1, 9), self.scores_of, smallest).shape == (1, 3, 1, 9)


class TestSharpened:
    @pytest.mark.parametrize("refine", ["guided", "pamr"])
    def test_many_clusters_lower_the_resolution(
        self, monkeypatch: pytest.MonkeyPatch, refine: str
    ) -> None:
        """A quarter of the values that 100 clusters on 40x60 pixels have: half the sides."""
        monkeypatch.setattr(refinement, "VALUES", 100 * 40 * 60 // 4)
        found = sharpened(pictures(1, 3, 40, 60), noise(1, 100, 10, 15), refine)
        assert found.shape == (1, 100, 20, 30)

    def test_each_filter_is_the_one_named(self) -> None:
        images, scores = pictures(1, 3, 24, 24), noise(1, 4, 6, 6)
        guide, full = images / 255, F.interpolate(scores, (24, 24), mode="bilinear")
        torch.testing.assert_close(
            sharpened(images, scores, "guided"), guided_filter(guide, scores)
        )
        torch.testing.assert_close(sharpened(images, scores, "pamr"), pamr(guide, full))


@pytest.mark.parametrize("clusters", [1, 2])
def test_scores_of_a_pixel_lie_side_by_side(clusters: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch sums other rows of a table by copying them all first, 8 D times the maps."""
    strides = []
    summed = F.embedding_bag

    def spy(places: Tensor, table: Tensor, **options: object) -> Tensor:
        strides.append(table.stride())
        return summed(places, table, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(F, "embedding_bag", spy)
    pamr(noise(1, 3, 5, 6), noise(1, clusters, 5, 6), 2, [1])
    assert strides == [(clusters, 1)] * 2


class TestOnlyLargest:
    """What a mask needs: the largest score of each place, with the others left out where they cannot be it."""

    @pytest.mark.parametrize("seed", range(4))
    def test_the_largest_is_that_of_all_maps(self, seed: int) -> None:
        scores = (6 * noise(1, 12, 6, 7, seed=seed)).softmax(1)
        images = pictures(1, 3, 18, 21, seed=seed)
        whole = sharpened(images, scores, "pamr")
        some = sharpened(images, scores, "pamr", only_largest=True)
        assert torch.equal(some.argmax(1), whole.argmax(1))
        assert torch.equal(some.amax(1), whole.amax(1))
        assert (some <= whole + 1e-6).all()

    def test_a_map_below_the_others_is_out(self) -> None:
        maps = torch.tensor([0.5, 0.4, 0.05, 0.05]).view(1, 4, 1, 1).repeat(1, 1, 3, 3)
        maps[0, 3, 1, 1] = 0.45
        # 0.45 reaches half of 0.5 + 0.4, and the mean of all four; 0.05 does neither.
        assert refinement.contenders(maps).tolist() == [0, 1, 3]

    def test_equal_maps_all_stay(self) -> None:
        assert len(refinement.contenders(torch.full((1, 5, 2, 2), 0.2))) == 5
        assert len(refinement.contenders(-torch.ones(1, 3, 2, 2))) == 3
