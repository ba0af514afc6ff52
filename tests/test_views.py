"""Views against slow references in float64, torchvision's colour functions and `grid_sample`."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import astuple, fields

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional as tv

from densesiam_seg import views
from densesiam_seg.randomness import Stream, generator
from densesiam_seg.views import (
    Geometry,
    Photometry,
    Window,
    WindowPair,
    adjust_colour,
    bilinear_matrix,
    blur_matrix,
    crop_matrices,
    independent_views,
    normalise,
    resample,
    sample_geometry,
    sample_photometry,
    sample_pretraining_photometry,
    sample_windows,
    view_pair,
    warp,
)

Array = NDArray[np.float64]

MANY = range(4000)
QUICK = settings(deadline=None, max_examples=40)
UNIT = st.floats(0, 1, width=32)
SIDES = st.floats(0.5, 1, width=32)


def geometry_of(*crops: tuple[float, float, float, float]) -> Geometry:
    """(top, left, side, flip) of each image."""
    return Geometry(*torch.tensor(crops, dtype=torch.float32).T)


def photometry_of(*changes: tuple[float, float, float, float, float, float]) -> Photometry:
    return Photometry(*torch.tensor(changes, dtype=torch.float32).T)


def random_images(batch: int, side: int, seed: int = 0) -> Tensor:
    """uint8 (B, 3, S, S): smooth colours, some noise, and patches of grey, black and white."""
    source = torch.Generator().manual_seed(seed)
    coarse = torch.rand(batch, 3, 3, 3, generator=source)
    images = F.interpolate(coarse, (side, side), mode="bicubic").clamp(0, 1)
    images += 0.2 * torch.rand(batch, 3, side, side, generator=source)
    images[:, :, :2, :2] = 0.5
    images[:, :, :2, -2:] = 0.0
    images[:, :, -2:, :2] = 1.0
    return images.clamp(0, 1).mul(255).to(torch.uint8)


def coloured(image: Tensor, change: Sequence[float]) -> Tensor:
    """The five colour changes in METHOD's order by torchvision, on one float image (3, H, W)."""
    brightness, contrast, saturation, hue, grey = change[:5]
    image = tv.adjust_brightness(image, brightness)
    image = tv.adjust_contrast(image, contrast)
    image = tv.adjust_saturation(image, saturation)
    image = tv.adjust_hue(image, hue)
    if grey:
        image = tv.rgb_to_grayscale(image, num_output_channels=3)
    return image


def blurred(image: Array, sigma: float) -> Array:
    """Gaussian blur as one two-dimensional weighted mean per pixel of (3, H, W); 0 is no blur."""
    if sigma == 0:
        return image
    _, height, width = image.shape
    ys, xs = np.mgrid[:height, :width]
    out = np.empty_like(image)
    for y in range(height):
        for x in range(width):
            weights = np.exp(-((ys - y) ** 2 + (xs - x) ** 2) / (2 * sigma**2))
            out[:, y, x] = (image * weights).sum((1, 2)) / weights.sum()
    return out


def cropped(image: Array, crop: Sequence[float], target: int) -> Array:
    """Crop, bilinear resize and flip of one square map (C, S, S), pixel by pixel."""
    top, left, extent, flip = crop
    side = image.shape[-1]
    out = np.empty((len(image), target, target))

    def place(start: float, index: int) -> tuple[int, int, float]:
        position = (start + extent * (index + 0.5) / target) * side - 0.5
        position = min(max(position, 0.0), side - 1.0)
        low = math.floor(position)
        return low, min(low + 1, side - 1), position - low

    for i in range(target):
        y0, y1, dy = place(top, i)
        for j in range(target):
            x0, x1, dx = place(left, j)
            upper = image[:, y0, x0] * (1 - dx) + image[:, y0, x1] * dx
            lower = image[:, y1, x0] * (1 - dx) + image[:, y1, x1] * dx
            out[:, i, target - 1 - j if flip else j] = upper * (1 - dy) + lower * dy
    return out


def grid_sampled(maps: Tensor, geometry: Geometry) -> Tensor:
    """The view's geometry by torch's own sampler, in float64."""
    side = maps.shape[-1]
    centres = (torch.arange(side, dtype=torch.float64) + 0.5) / side
    grids = []
    for top, left, extent, flip in torch.stack(astuple(geometry), 1).double().tolist():
        ys = top + extent * centres
        xs = left + extent * (centres.flip(0) if flip else centres)
        grid_y, grid_x = torch.meshgrid(2 * ys - 1, 2 * xs - 1, indexing="ij")
        grids.append(torch.stack((grid_x, grid_y), -1))
    return F.grid_sample(
        maps.double(), torch.stack(grids), padding_mode="border", align_corners=False
    )


def stacked(parameters: Geometry | Photometry | Window) -> Tensor:
    """One row per image."""
    return torch.stack([getattr(parameters, field.name) for field in fields(parameters)], 1)


class TestReplay:
    """Parameters are a pure function of (seed, round, image, view)."""

    @QUICK
    @given(
        st.integers(0, 2**63 - 1),
        st.integers(0, 10**6),
        st.lists(st.integers(0, 10**9), min_size=1, max_size=6),
        st.randoms(use_true_random=False),
    )
    def test_same_singly_in_any_batch_and_order(
        self, seed: int, round_: int, images: list[int], source: random.Random
    ) -> None:
        order = list(range(len(images)))
        source.shuffle(order)
        shuffled = [images[i] for i in order]
        for view in (0, 1, 2):

            def draw(batch: list[int], view: int = view) -> Tensor:
                if view == 0:
                    return stacked(sample_geometry(seed, round_, batch))
                return stacked(sample_photometry(seed, round_, batch, view))

            whole = draw(images)
            assert torch.equal(whole, torch.cat([draw([image]) for image in images]))
            assert torch.equal(whole[order], draw(shuffled))

    def test_each_argument_changes_them(self) -> None:
        base = stacked(sample_geometry(0, 0, [0]))
        for other in (
            sample_geometry(1, 0, [0]),
            sample_geometry(0, 1, [0]),
            sample_geometry(0, 0, [1]),
        ):
            assert not torch.isclose(base, stacked(other))[0, :3].any()
        rows = [
            stacked(sample_photometry(seed, round_, range(20), view))
            for seed, round_, view in ((0, 0, 1), (1, 0, 1), (0, 1, 1), (0, 0, 2))
        ]
        rows.append(stacked(sample_photometry(0, 0, range(20, 40), 1)))
        for i, one in enumerate(rows):
            for another in rows[:i]:
                assert not torch.equal(one, another)

    def test_view_is_one_or_two(self) -> None:
        for view in (0, 3):
            with pytest.raises(AssertionError):
                sample_photometry(0, 0, [0], view)

    def test_pixels_are_the_same_singly_and_in_a_batch(self) -> None:
        images = random_images(5, 32)
        indices = [7, 3, 11, 0, 5]
        whole = view_pair(images, indices, seed=4, round_=2)
        for i, index in enumerate(indices):
            single = view_pair(images[i : i + 1], [index], seed=4, round_=2)
            assert torch.equal(whole.image_1[i], single.image_1[0])
            assert torch.equal(whole.image_2[i], single.image_2[0])
        assert torch.equal(stacked(whole.geometry), stacked(sample_geometry(4, 2, indices)))

    def test_global_generators_are_untouched(self) -> None:
        def state() -> list[object]:
            numpy_state = np.random.get_state(legacy=False)  # noqa: NPY002
            return [random.getstate(), str(numpy_state), torch.get_rng_state().tolist()]

        with np.printoptions(threshold=10_000):
            before = state()
            view_pair(random_images(2, 16), [0, 1], seed=0, round_=0)
            assert state() == before


class TestDistribution:
    """METHOD's table, row "segmentation"; bounds of about five standard deviations of 4000 draws."""

    def test_geometry(self) -> None:
        top, left, side, flip = stacked(sample_geometry(0, 0, MANY)).double().T
        assert 0.5 <= side.min() < 0.505 and 0.995 < side.max() <= 1
        assert abs(side.mean() - 0.75) < 0.012
        assert abs(side.var() - 0.25 / 12) < 0.0015
        for start in (top, left):
            assert start.min() >= 0
            assert (start + side).max() <= 1 + 1e-6
            share = start / (1 - side).clamp(min=1e-6)
            assert abs(share.mean() - 0.5) < 0.025
            assert abs(share.var() - 1 / 12) < 0.01
        assert set(flip.tolist()) == {0.0, 1.0}
        assert abs(flip.mean() - 0.5) < 0.04

    @pytest.mark.parametrize("view", [1, 2])
    def test_photometry(self, view: int) -> None:
        table = stacked(sample_photometry(0, 0, MANY, view)).double()
        jitters = table[:, :4] != torch.tensor([1.0, 1.0, 1.0, 0.0])
        for column, middle, reach in ((0, 1, 0.3), (1, 1, 0.3), (2, 1, 0.3), (3, 0, 0.1)):
            drawn = table[:, column][jitters[:, column]] - middle
            assert abs(len(drawn) / 4000 - 0.8) < 0.032
            assert 0.99 * reach < drawn.max() <= reach * (1 + 1e-6)
            assert -0.99 * reach > drawn.min() >= -reach * (1 + 1e-6)
            assert abs(drawn.mean()) < 0.055 * reach
            assert abs(drawn.var() - reach**2 / 3) < 0.1 * reach**2 / 3
        # Each change has its own chance: all four together come at 0.8⁴ = 0.41, none at 0.0016.
        assert abs(jitters.all(1).double().mean() - 0.8**4) < 0.04
        grey, sigma = table[:, 4], table[:, 5]
        assert set(grey.tolist()) == {0.0, 1.0}
        assert abs(grey.mean() - 0.2) < 0.032
        drawn = sigma[sigma != 0]
        assert abs(len(drawn) / 4000 - 0.5) < 0.04
        assert 0.1 <= drawn.min() + 1e-6 < 0.11 and 1.99 < drawn.max() <= 2 + 1e-6
        assert abs(drawn.mean() - 1.05) < 0.06

    def test_everything_is_independent(self) -> None:
        """No two columns of geometry, photometry 1 and photometry 2 go together, but for `top`, `left` ~ 1 - side."""
        geometry = stacked(sample_geometry(0, 0, MANY)).double()
        geometry[:, :2] /= (1 - geometry[:, 2:3]).clamp(min=1e-6)
        tables = [geometry] + [
            stacked(sample_photometry(0, 0, MANY, view)).double() for view in (1, 2)
        ]
        changed = []
        for table in tables[1:]:
            changed.append((table[:, :4] != torch.tensor([1.0, 1.0, 1.0, 0.0])).double())
            changed.append((table[:, 5:] != 0).double())
        # A value and its own on/off switch may go together: compare values and switches apart.
        for columns in (torch.cat(tables, 1), torch.cat(changed, 1)):
            correlation = torch.corrcoef(columns.T)
            assert (correlation - torch.eye(len(correlation))).abs().max() < 0.08
        neighbours = torch.corrcoef(torch.stack((geometry[:-1, 2], geometry[1:, 2])))
        assert abs(neighbours[0, 1]) < 0.08


class TestColour:
    def test_hand_worked(self) -> None:
        red = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)
        cases: list[tuple[tuple[float, float, float, float, float], list[float]]] = [
            ((0.5, 1, 1, 0, 0), [0.5, 0, 0]),
            ((1, 1, 1, 1 / 3, 0), [0, 1, 0]),  # a third of the circle: red → green
            ((1, 1, 1, -1 / 3, 0), [0, 0, 1]),
            ((1, 1, 1, 1 / 2, 0), [0, 1, 1]),
            ((1, 1, 1, 0, 1), [0.2989] * 3),
            ((1, 0, 1, 0, 0), [0.2989] * 3),  # contrast 0: the image's mean luma everywhere
            ((1, 1, 0.5, 0, 0), [0.64945, 0.14945, 0.14945]),  # (colour + luma) / 2
            # Hue before grey: the luma is that of green, 0.587.
            ((1, 1, 1, 1 / 3, 1), [0.587] * 3),
        ]
        for change, expected in cases:
            out = adjust_colour(red, photometry_of((*change, 0)))
            torch.testing.assert_close(
                out.flatten(), torch.tensor(expected, dtype=torch.float32), atol=1e-6, rtol=0
            )

    def test_mean_of_contrast_is_per_image(self) -> None:
        images = torch.stack((torch.full((3, 2, 2), 0.2), torch.full((3, 2, 2), 0.8)))
        out = adjust_colour(images, photometry_of((1, 0.7, 1, 0, 0, 0), (1, 0.7, 1, 0, 0, 0)))
        # The three luma weights add up to 0.9999.
        torch.testing.assert_close(out, images, atol=1e-4, rtol=0)

    def test_equals_torchvision_in_one_batch_and_singly(self) -> None:
        images = random_images(64, 8).float() / 255
        photometry = sample_photometry(1, 0, range(64), 1)
        changes = stacked(photometry).tolist()
        # Every branch is met, hue under grey among them.
        assert any(change[3] and change[4] for change in changes)
        expected = torch.stack(
            [coloured(image, change) for image, change in zip(images, changes, strict=True)]
        )
        torch.testing.assert_close(adjust_colour(images, photometry), expected, atol=1e-5, rtol=0)
        for i in range(64):
            single = adjust_colour(images[i : i + 1], photometry[i : i + 1])
            torch.testing.assert_close(single[0], expected[i], atol=1e-5, rtol=0)

    @QUICK
    @given(
        st.tuples(*(st.floats(0.6875, 1.3125, width=32),) * 3),
        st.floats(-0.5, 0.5, width=32),
        st.booleans(),
        st.integers(0, 100),
    )
    def test_equals_torchvision_for_any_change(
        self, factors: tuple[float, float, float], hue: float, grey: bool, seed: int
    ) -> None:
        image = random_images(1, 6, seed).float() / 255
        change = (*factors, hue, float(grey), 0.0)
        out = adjust_colour(image, photometry_of(change))[0]
        torch.testing.assert_close(out, coloured(image[0], change), atol=1e-5, rtol=0)

    def test_input_is_not_changed(self) -> None:
        images = random_images(8, 6).float() / 255
        before = images.clone()
        adjust_colour(images, sample_photometry(0, 0, range(8), 1))
        assert torch.equal(images, before)


class TestBlur:
    @pytest.mark.parametrize("sigma", [0.0, 0.1, 0.7, 2.0])
    def test_equals_the_slow_reference(self, sigma: float) -> None:
        image = random_images(1, 16)[0].double() / 255
        matrix = blur_matrix(torch.tensor([sigma]), 16)
        out = resample(image[None].float(), matrix, matrix)[0]
        expected = torch.from_numpy(blurred(image.numpy(), sigma)).float()
        torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)

    def test_equals_torchvision_away_from_the_border(self) -> None:
        image = random_images(1, 40).float() / 255
        matrix = blur_matrix(torch.tensor([2.0]), 40)
        expected = tv.gaussian_blur(image, [25, 25], [2.0, 2.0])
        inner = slice(12, -12)
        out = resample(image, matrix, matrix)
        torch.testing.assert_close(
            out[..., inner, inner], expected[..., inner, inner], atol=1e-5, rtol=0
        )

    def test_none_is_exactly_the_identity(self) -> None:
        assert torch.equal(blur_matrix(torch.zeros(2), 9), torch.eye(9).expand(2, 9, 9))

    @QUICK
    @given(st.floats(0, 2, width=32), st.integers(1, 20))
    def test_rows_are_shares(self, sigma: float, side: int) -> None:
        matrix = blur_matrix(torch.tensor([sigma]), side)
        assert (matrix >= 0).all()
        torch.testing.assert_close(matrix.sum(-1), torch.ones(1, side))


class TestGeometry:
    def test_hand_worked_row(self) -> None:
        """Four pixels, the right half, two targets: centres at 5/8 and 7/8 → positions 2 and 3."""
        start, extent, no, yes = torch.tensor([[0.5], [0.5], [0.0], [1.0]])
        assert bilinear_matrix(start, extent, no, 4, 2).tolist() == [[[0, 0, 1, 0], [0, 0, 0, 1]]]
        assert bilinear_matrix(start, extent, yes, 4, 2).tolist() == [[[0, 0, 0, 1], [0, 0, 1, 0]]]
        # Whole, to a half: every target is the mean of two pixels.
        assert bilinear_matrix(no, yes, no, 4, 2).tolist() == [[[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]]]
        # Two pixels to four: -¼ and 1¼ are held at the border, ¼ and ¾ lie between.
        assert bilinear_matrix(no, yes, no, 2, 4).tolist() == [
            [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]]
        ]

    @QUICK
    @given(UNIT, UNIT, SIDES, st.booleans(), st.integers(1, 12), st.integers(1, 12))
    def test_rows_are_shares(
        self, y: float, x: float, side: float, flip: bool, source: int, target: int
    ) -> None:
        geometry = geometry_of((y * (1 - side), x * (1 - side), side, float(flip)))
        for matrix in crop_matrices(geometry, source, target):
            assert matrix.shape == (1, target, source)
            assert (matrix >= 0).all()
            torch.testing.assert_close(matrix.sum(-1), torch.ones(1, target))
            assert ((matrix > 0).sum(-1) <= 2).all()

    @QUICK
    @given(UNIT, UNIT, SIDES, st.booleans(), st.sampled_from([(8, 8), (12, 6), (7, 5), (5, 9)]))
    def test_equals_the_slow_reference(
        self, y: float, x: float, side: float, flip: bool, sizes: tuple[int, int]
    ) -> None:
        crop = (y * (1 - side), x * (1 - side), side, float(flip))
        source, target = sizes
        maps = torch.randn(1, 2, source, source, generator=torch.Generator().manual_seed(0))
        out = resample(maps, *crop_matrices(geometry_of(crop), source, target))[0]
        expected = torch.from_numpy(cropped(maps[0].double().numpy(), crop, target)).float()
        torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)

    @QUICK
    @given(st.lists(st.tuples(UNIT, UNIT, SIDES, st.booleans()), min_size=1, max_size=3))
    def test_warp_equals_grid_sample_forward_and_backward(
        self, draws: list[tuple[float, float, float, bool]]
    ) -> None:
        geometry = geometry_of(*((y * (1 - s), x * (1 - s), s, float(f)) for y, x, s, f in draws))
        source = torch.Generator().manual_seed(len(draws))
        maps = torch.randn(len(draws), 3, 8, 8, generator=source, requires_grad=True)
        upstream = torch.randn(len(draws), 3, 8, 8, generator=source)
        out, expected = warp(maps, geometry), grid_sampled(maps, geometry)
        torch.testing.assert_close(out, expected.float(), atol=1e-5, rtol=0)
        (gradient,) = torch.autograd.grad(out, maps, upstream)
        (expected_gradient,) = torch.autograd.grad(expected, maps, upstream.double())
        torch.testing.assert_close(gradient, expected_gradient, atol=1e-5, rtol=0)

    def test_whole_crop_is_the_identity_and_flip_reverses_columns(self) -> None:
        maps = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        out = warp(maps, geometry_of((0, 0, 1, 0), (0, 0, 1, 1)))
        torch.testing.assert_close(out[0], maps[0], atol=1e-6, rtol=0)
        torch.testing.assert_close(out[1], maps[1].flip(-1), atol=1e-6, rtol=0)

    def test_flip_comes_after_the_crop(self) -> None:
        maps = torch.randn(1, 2, 8, 8, generator=torch.Generator().manual_seed(1))
        plain = warp(maps, geometry_of((0.1, 0.3, 0.6, 0)))
        flipped = warp(maps, geometry_of((0.1, 0.3, 0.6, 1)))
        torch.testing.assert_close(flipped, plain.flip(-1), atol=1e-6, rtol=0)

    def test_quarter_crop_takes_its_pixels(self) -> None:
        """The lower left half-side crop of 4x4, sampled at its own resolution, is its 2x2 pixels."""
        maps = torch.arange(16.0).view(1, 1, 4, 4)
        matrices = crop_matrices(geometry_of((0.5, 0, 0.5, 0)), 4, 2)
        assert resample(maps, *matrices)[0, 0].tolist() == [[8, 9], [12, 13]]

    def test_warp_stays_in_float32_under_autocast(self) -> None:
        maps = torch.randn(1, 2, 8, 8, generator=torch.Generator().manual_seed(0))
        geometry = geometry_of((0.2, 0.1, 0.7, 1))
        with torch.autocast("cpu", torch.bfloat16):
            out = warp(maps.bfloat16(), geometry)
        assert out.dtype == torch.float32
        assert torch.equal(out, warp(maps.bfloat16().float(), geometry))


class TestImageAgainstFeatureMap:
    """Cropping the image and pooling it is pooling the image and cropping the feature map."""

    @QUICK
    @given(UNIT, UNIT, SIDES, st.booleans())
    def test_linear_image(self, y: float, x: float, side: float, flip: bool) -> None:
        """Exact for a linear map, but for cells that reach outside the outermost cells' centres.

        There the feature map holds the value of its outermost centre, at most half a cell away.
        """
        stored, view, cells = 64, 32, 8
        slope_y, slope_x = 0.7, -0.4
        centres = (torch.arange(stored, dtype=torch.float64) + 0.5) / stored
        image = (slope_y * centres[:, None] + slope_x * centres[None, :]).float()[None, None]
        crop = geometry_of((y * (1 - side), x * (1 - side), side, float(flip)))
        whole = geometry_of((0, 0, 1, 0))

        first = F.avg_pool2d(resample(image, *crop_matrices(crop, stored, view)), 4)
        pooled = F.avg_pool2d(resample(image, *crop_matrices(whole, stored, view)), 4)
        difference = (first - warp(pooled, crop)).abs()[0, 0]

        half = 0.5 / cells
        middle = (torch.arange(cells) + 0.5) / cells
        rows = y * (1 - side) + side * middle
        columns = x * (1 - side) + side * (middle.flip(0) if flip else middle)
        inside_y, inside_x = ((half <= at) & (at <= 1 - half) for at in (rows, columns))
        exact = inside_y[:, None] & inside_x[None, :]
        assert exact.sum() >= (cells - 2) ** 2
        assert difference[exact].max() < 1e-5
        assert difference.max() <= (abs(slope_y) + abs(slope_x)) * half + 1e-5

    def test_views_without_photometry_correspond(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The same through `view_pair`: what `warp` makes of view 2 lies on view 1."""

        def unchanged(seed: int, round_: int, images: Sequence[int], view: int) -> Photometry:
            return photometry_of(*((1.0, 1.0, 1.0, 0.0, 0.0, 0.0),) * len(images))

        monkeypatch.setattr(views, "sample_photometry", unchanged)
        ramp = torch.arange(64) * 4
        image = torch.stack((ramp[:, None].expand(64, 64), ramp[None, :].expand(64, 64)))
        images = torch.cat((image, image.sum(0, keepdim=True) // 2)).to(torch.uint8)
        pair = view_pair(images.expand(6, 3, 64, 64), range(6), seed=0, round_=0)
        assert {0.0, 1.0} == set(pair.geometry.flip.tolist())
        first = F.avg_pool2d(pair.image_1, 4)
        second = warp(F.avg_pool2d(pair.image_2, 4), pair.geometry)
        inner = slice(1, -1)
        torch.testing.assert_close(
            first[..., inner, inner], second[..., inner, inner], atol=1e-4, rtol=0
        )


class TestViewPair:
    def test_normalise_is_hand_worked(self) -> None:
        out = normalise(torch.tensor([1.0, 0.0, 0.406]).view(3, 1, 1))
        # (1 - 0.485) / 0.229, (0 - 0.456) / 0.224, (0.406 - 0.406) / 0.225
        torch.testing.assert_close(out.flatten(), torch.tensor([2.2489083, -2.0357143, 0.0]))

    def test_equals_the_slow_reference(self) -> None:
        """METHOD, section 2: photometry₁ then G on the image; photometry₂ then the whole image."""
        indices = [40, 41, 42, 43, 44, 45]
        images = random_images(len(indices), 16)
        pair = view_pair(images, indices, seed=9, round_=3)
        crops = stacked(sample_geometry(9, 3, indices)).tolist()
        means = np.array([0.485, 0.456, 0.406]).reshape(3, 1, 1)
        deviations = np.array([0.229, 0.224, 0.225]).reshape(3, 1, 1)
        for view, out in ((1, pair.image_1), (2, pair.image_2)):
            assert out.shape == (6, 3, 8, 8) and out.dtype == torch.float32
            changes = stacked(sample_photometry(9, 3, indices, view)).tolist()
            for i, (crop, change) in enumerate(zip(crops, changes, strict=True)):
                image = coloured(images[i].float() / 255, change).double().numpy()
                place = crop if view == 1 else (0.0, 0.0, 1.0, 0.0)
                expected = (cropped(blurred(image, change[5]), place, 8) - means) / deviations
                np.testing.assert_allclose(out[i].numpy(), expected, atol=2e-5, rtol=0)
        assert torch.equal(stacked(pair.geometry), torch.tensor(crops))

    def test_whole_view_is_the_mean_of_two_by_two_pixels(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(
            views,
            "sample_photometry",
            lambda seed, round_, images, view: photometry_of((1, 1, 1, 0, 0, 0)),
        )
        images = random_images(1, 16)
        pair = view_pair(images, [0], seed=0, round_=0)
        expected = normalise(F.avg_pool2d(images.float() / 255, 2))
        torch.testing.assert_close(pair.image_2, expected, atol=1e-5, rtol=0)

    def test_views_share_geometry_and_differ_in_photometry(self) -> None:
        images = random_images(1, 32).expand(4, 3, 32, 32)
        pair = view_pair(images, range(4), seed=0, round_=0)
        again = view_pair(images, range(4), seed=0, round_=0)
        assert torch.equal(pair.image_1, again.image_1)
        assert torch.equal(pair.image_2, again.image_2)
        one, two = (stacked(sample_photometry(0, 0, range(4), view)) for view in (1, 2))
        assert (one != two).any(1).all()

    def test_stored_images_are_not_changed(self) -> None:
        images = random_images(2, 16)
        before = images.clone()
        view_pair(images, [0, 1], seed=0, round_=0)
        assert torch.equal(images, before)

    def test_parameters_can_be_sliced_and_moved(self) -> None:
        geometry = sample_geometry(0, 0, range(5))
        part = geometry[1:3]
        assert torch.equal(stacked(part), stacked(geometry)[1:3])
        assert part.to("meta").top.device.type == "meta"

    def test_autocast_changes_nothing(self) -> None:
        images = random_images(4, 16)
        plain = view_pair(images, range(4), seed=2, round_=0)
        with torch.autocast("cpu", torch.bfloat16):
            pair = view_pair(images, range(4), seed=2, round_=0)
        assert torch.equal(pair.image_1, plain.image_1)
        assert torch.equal(pair.image_2, plain.image_2)


def resized_crop(
    draw: np.random.Generator, aspect: float, scales: tuple[float, float]
) -> tuple[list[float], int]:
    """torchvision's RandomResizedCrop without its rounding to pixels, then a flip; also which attempt fitted.

    Its rule: an area and an aspect in pixels make a crop, which is taken if it fits into the image; after ten attempts
    (here 11) the largest crop in the middle whose aspect is allowed.
    """
    image_height, image_width = 1000.0, 1000.0 * aspect
    areas = [draw.uniform(*scales) * image_height * image_width for _ in range(10)]
    aspects = [math.exp(draw.uniform(math.log(3 / 4), math.log(4 / 3))) for _ in range(10)]
    attempts = 0
    for area, own in zip(areas, aspects, strict=True):
        attempts += 1
        width, height = math.sqrt(area * own), math.sqrt(area / own)
        if width <= image_width and height <= image_height:
            top = draw.random() * (image_height - height)
            left = draw.random() * (image_width - width)
            break
    else:
        attempts = 11
        width, height = image_width, image_height
        if aspect < 3 / 4:
            height = width / (3 / 4)
        elif aspect > 4 / 3:
            width = height * (4 / 3)
        top, left = (image_height - height) / 2, (image_width - width) / 2
    crop = [top / image_height, left / image_width, height / image_height, width / image_width]
    return [*crop, float(draw.random() < 0.5)], attempts


ASPECTS = st.floats(0.015625, 64, width=32)


class TestWindows:
    """METHOD's table, row "pre-training": RandomResizedCrop and flip, drawn per view."""

    @pytest.mark.parametrize("aspect", [0.3, 0.8, 1.0, 1.5, 3.0])
    @pytest.mark.parametrize("scales", [(0.2, 1.0), (0.7, 0.9), (0.01, 0.02)])
    def test_equal_the_slow_reference(self, aspect: float, scales: tuple[float, float]) -> None:
        for view in (1, 2):
            windows = sample_windows(5, 3, range(60), view, torch.full((60,), aspect), scales)
            own = float(torch.tensor(aspect))
            expected = [
                resized_crop(generator(5, Stream.VIEWS, 3, image, 2 + view), own, scales)[0]
                for image in range(60)
            ]
            torch.testing.assert_close(stacked(windows), torch.tensor(expected), atol=1e-6, rtol=0)

    def test_reference_meets_every_number_of_attempts(self) -> None:
        """The comparison above is of all ten attempts and of what follows them."""
        scales = (0.7, 0.9)
        attempts = {
            resized_crop(generator(5, Stream.VIEWS, 3, image, 3), 1.5, scales)[1]
            for image in range(400)
        }
        assert attempts == set(range(1, 12))
        windows = sample_windows(5, 3, range(400), 1, torch.full((400,), 1.5), scales)
        expected = [
            resized_crop(generator(5, Stream.VIEWS, 3, image, 3), 1.5, scales)[0]
            for image in range(400)
        ]
        torch.testing.assert_close(stacked(windows), torch.tensor(expected), atol=1e-6, rtol=0)

    @pytest.mark.parametrize("aspect", [0.4, 1.0, 2.5])
    def test_are_distributed_as_torchvisions(self, aspect: float) -> None:
        """Means and deviations of 3000 crops each, within about five standard errors and the rounding to pixels."""
        image_height, image_width = 800, round(800 * aspect)
        image = torch.empty(1, image_height, image_width)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            theirs = torch.tensor(
                [
                    RandomResizedCrop.get_params(image, [0.2, 1.0], [3 / 4, 4 / 3])
                    for _ in range(3000)
                ]
            ).double()
        theirs /= torch.tensor([image_height, image_width, image_height, image_width])
        ours = stacked(sample_windows(0, 0, range(3000), 1, torch.full((3000,), aspect)))
        ours = ours[:, :4].double()
        torch.testing.assert_close(ours.mean(0), theirs.mean(0), atol=0.03, rtol=0)
        torch.testing.assert_close(ours.std(0), theirs.std(0), atol=0.02, rtol=0)
        products = [(crops[:, 2] * crops[:, 3]).mean() for crops in (ours, theirs)]
        torch.testing.assert_close(*products, atol=0.025, rtol=0)

    def test_distribution(self) -> None:
        """Of small crops, all of which fit; an image twice as wide as high."""
        windows = sample_windows(0, 0, MANY, 2, torch.full((4000,), 2.0), (0.1, 0.3))
        top, left, height, width, flip = stacked(windows).double().T
        area = height * width
        assert 0.1 <= area.min() + 1e-6 < 0.101 and 0.299 < area.max() <= 0.3 + 1e-6
        assert abs(area.mean() - 0.2) < 0.005
        assert abs(area.var() - 0.2**2 / 12) < 0.0003
        # In the image's own pixels the crop is 2 · width by height.
        shape = (2 * width / height).log() / math.log(4 / 3)
        assert -1 - 1e-5 <= shape.min() < -0.99 and 0.99 < shape.max() <= 1 + 1e-5
        assert abs(shape.mean()) < 0.05
        assert abs(shape.var() - 1 / 3) < 0.03
        places = [top / (1 - height), left / (1 - width)]
        for place in places:
            assert 0 <= place.min() < 0.005 and 0.995 < place.max() <= 1 + 1e-5
            assert abs(place.mean() - 0.5) < 0.025
            assert abs(place.var() - 1 / 12) < 0.01
        assert set(flip.tolist()) == {0.0, 1.0}
        assert abs(flip.mean() - 0.5) < 0.04
        correlation = torch.corrcoef(torch.stack((area, shape, *places, flip)))
        assert (correlation - torch.eye(5)).abs().max() < 0.08

    def test_views_are_drawn_for_themselves(self) -> None:
        """No two columns of two windows and two photometries go together, but for chance."""
        columns = []
        for view in (1, 2):
            window = sample_windows(0, 0, MANY, view, torch.ones(4000), (0.2, 0.5))
            top, left, height, width, flip = stacked(window).double().T
            columns += [height * width, width / height, top / (1 - height), left / (1 - width)]
            columns.append(flip)
            photometry = stacked(sample_pretraining_photometry(0, 0, MANY, view)).double()
            columns += [*photometry.T, photometry[:, 0] != 1, photometry[:, 5] != 0]
        stack = torch.stack([column.double() for column in columns])
        correlation = torch.corrcoef(stack) - torch.eye(len(columns))
        # But for the blur's width, which is 0 without one.
        for view in (0, 13):
            correlation[view + 10, view + 12] = correlation[view + 12, view + 10] = 0
        assert correlation.abs().max() < 0.08

    @pytest.mark.parametrize(
        ("aspect", "expected"),
        [
            (4.0, [0.0, 1 / 3, 1.0, 1 / 3]),  # 400 × 100 pixels: 133⅓ × 100 in the middle
            (0.25, [1 / 3, 0.0, 1 / 3, 1.0]),
            (1.2, [0.0, 0.0, 1.0, 1.0]),  # an allowed aspect: the whole image
            (4 / 3, [0.0, 0.0, 1.0, 1.0]),
        ],
    )
    def test_nothing_fits(self, aspect: float, expected: list[float]) -> None:
        """A crop of the whole area that does not have the image's very own aspect never fits."""
        windows = sample_windows(0, 0, range(30), 1, torch.full((30,), aspect), (1.0, 1.0))
        rows = stacked(windows)
        torch.testing.assert_close(rows[:, :4], torch.tensor(expected).expand(30, 4))
        assert set(rows[:, 4].tolist()) == {0.0, 1.0}

    @QUICK
    @given(
        st.integers(0, 2**63 - 1),
        st.lists(ASPECTS, min_size=1, max_size=8),
        st.tuples(st.floats(1e-4, 1), st.floats(1e-4, 1)).map(sorted),
    )
    def test_lie_in_the_image_and_have_an_allowed_aspect(
        self, seed: int, aspects: list[float], scales: list[float]
    ) -> None:
        own = torch.tensor(aspects)
        windows = sample_windows(seed, 0, range(len(aspects)), 1, own, (scales[0], scales[1]))
        top, left, height, width, flip = stacked(windows).double().T
        assert (top >= 0).all() and (left >= 0).all()
        assert (height > 0).all() and (width > 0).all()
        assert (top + height).max() <= 1 + 1e-6 and (left + width).max() <= 1 + 1e-6
        assert (flip * (1 - flip) == 0).all()
        shape = own * width / height
        assert shape.min() >= 3 / 4 - 1e-5 and shape.max() <= 4 / 3 + 1e-5
        assert (
            (height * width <= scales[1] * (1 + 1e-5))
            .logical_or((height == 1) | (width == 1))
            .all()
        )

    @QUICK
    @given(
        st.integers(0, 2**63 - 1),
        st.integers(0, 10**6),
        st.lists(st.tuples(st.integers(0, 10**9), ASPECTS), min_size=1, max_size=6),
        st.randoms(use_true_random=False),
    )
    def test_same_singly_in_any_batch_and_order(
        self, seed: int, round_: int, images: list[tuple[int, float]], source: random.Random
    ) -> None:
        order = list(range(len(images)))
        source.shuffle(order)
        for view in (1, 2):

            def draw(batch: list[tuple[int, float]], view: int = view) -> Tensor:
                indices, aspects = zip(*batch, strict=True)
                windows = sample_windows(seed, round_, indices, view, torch.tensor(aspects))
                photometry = sample_pretraining_photometry(seed, round_, indices, view)
                return torch.cat((stacked(windows), stacked(photometry)), 1)

            whole = draw(images)
            assert torch.equal(whole, torch.cat([draw([image]) for image in images]))
            assert torch.equal(whole[order], draw([images[i] for i in order]))

    def test_each_argument_changes_them(self) -> None:
        def draw(seed: int, round_: int, first: int, view: int) -> Tensor:
            images = range(first, first + 20)
            window = sample_windows(seed, round_, images, view, torch.ones(20))
            photometry = sample_pretraining_photometry(seed, round_, images, view)
            return torch.cat((stacked(window), stacked(photometry)), 1)

        names = [(0, 0, 0, 1), (1, 0, 0, 1), (0, 1, 0, 1), (0, 0, 20, 1), (0, 0, 0, 2)]
        rows = [draw(*name) for name in names]
        for i, one in enumerate(rows):
            for another in rows[:i]:
                assert not torch.isclose(one[:, :4], another[:, :4]).any()
                assert not torch.equal(one[:, 5:], another[:, 5:])


class TestPretrainingPhotometry:
    @pytest.mark.parametrize("view", [1, 2])
    def test_distribution(self, view: int) -> None:
        """ColorJitter(0.4, 0.4, 0.4, 0.1) with p 0.8, grey p 0.2, blur σ ∈ [0.1, 2] with p 0.5."""
        table = stacked(sample_pretraining_photometry(0, 0, MANY, view)).double()
        jitters = table[:, :4] != torch.tensor([1.0, 1.0, 1.0, 0.0])
        # One chance for the four changes: an image has all of them or none.
        assert torch.equal(jitters.all(1), jitters.any(1))
        assert abs(jitters[:, 0].double().mean() - 0.8) < 0.032
        for column, middle, reach in ((0, 1, 0.4), (1, 1, 0.4), (2, 1, 0.4), (3, 0, 0.1)):
            drawn = table[jitters[:, 0], column] - middle
            assert 0.99 * reach < drawn.max() <= reach * (1 + 1e-6)
            assert -0.99 * reach > drawn.min() >= -reach * (1 + 1e-6)
            assert abs(drawn.mean()) < 0.055 * reach
            assert abs(drawn.var() - reach**2 / 3) < 0.1 * reach**2 / 3
        grey, sigma = table[:, 4], table[:, 5]
        assert set(grey.tolist()) == {0.0, 1.0}
        assert abs(grey.mean() - 0.2) < 0.032
        drawn = sigma[sigma != 0]
        assert abs(len(drawn) / 4000 - 0.5) < 0.04
        assert 0.1 <= drawn.min() + 1e-6 < 0.11 and 1.99 < drawn.max() <= 2 + 1e-6
        assert abs(drawn.mean() - 1.05) < 0.06


def pillow_resized(
    plane: Array, box: tuple[float, float, float, float], height: int, width: int
) -> Array:
    """One plane (H, W) by Pillow's antialiased bilinear filter in floating point; `box` is left, top, right, bottom."""
    image = Image.fromarray(plane.astype(np.float32))
    out: Array = np.asarray(
        image.resize((width, height), Image.Resampling.BILINEAR, box=box), np.float64
    )
    return out


class TestAntialias:
    def test_hand_worked_rows(self) -> None:
        """Four pixels to two: triangles two pixels wide each way around ½ and 2½."""
        no, one = torch.zeros(1), torch.ones(1)
        matrix = bilinear_matrix(no, one, no, 4, 2, antialias=True)
        expected = torch.tensor([[[3.0, 3, 1, 0], [0, 1, 3, 3]]]) / 7
        torch.testing.assert_close(matrix, expected)
        flipped = bilinear_matrix(no, one, one, 4, 2, antialias=True)
        torch.testing.assert_close(flipped, expected.flip(1))
        # A window of a quarter: neighbours outside it count, as they do for Pillow's box.
        matrix = bilinear_matrix(no + 0.5, one / 4, no, 4, 1, antialias=True)
        torch.testing.assert_close(matrix, torch.tensor([[[0.0, 0, 1, 0]]]))
        matrix = bilinear_matrix(no + 0.25, one / 2, no, 4, 1, antialias=True)
        torch.testing.assert_close(matrix, torch.tensor([[[1.0, 3, 3, 1]]]) / 8)

    @QUICK
    @given(UNIT, st.floats(0.0625, 1, width=32), st.integers(1, 24), st.integers(1, 12))
    def test_equals_pillow(self, place: float, extent: float, source: int, target: int) -> None:
        start = np.float32(place * (1 - extent))
        box = (float(start) * source, 0.0, min((float(start) + extent) * source, source), source)
        # Each row of the identity is a line of pixels of which one is lit.
        expected = pillow_resized(np.eye(source), box, source, target).T
        matrix = bilinear_matrix(
            torch.tensor([start]),
            torch.tensor([extent]),
            torch.zeros(1),
            source,
            target,
            antialias=True,
        )[0]
        np.testing.assert_allclose(matrix.numpy(), expected, atol=2e-4, rtol=0)

    @QUICK
    @given(UNIT, st.floats(0.0078125, 1, width=32), st.booleans(), *[st.integers(1, 20)] * 2)
    def test_rows_are_shares_and_flip_reverses_them(
        self, place: float, extent: float, flip: bool, source: int, target: int
    ) -> None:
        window = torch.tensor([place * (1 - extent)]), torch.tensor([extent])
        matrix, mirrored = (
            bilinear_matrix(*window, torch.tensor([float(f)]), source, target, antialias=True)
            for f in (flip, not flip)
        )
        assert (matrix >= 0).all()
        torch.testing.assert_close(matrix.sum(-1), torch.ones(1, target))
        torch.testing.assert_close(matrix, mirrored.flip(1), atol=1e-4, rtol=0)

    @QUICK
    @given(UNIT, UNIT, SIDES, st.booleans(), st.integers(1, 9))
    def test_is_the_plain_matrix_where_a_window_is_enlarged(
        self, y: float, x: float, side: float, flip: bool, source: int
    ) -> None:
        start, extent = torch.tensor([y * (1 - side)]), torch.tensor([side])
        turned = torch.tensor([float(flip)])
        plain, smooth = (
            bilinear_matrix(start, extent, turned, source, source + 3, antialias=antialias)
            for antialias in (False, True)
        )
        torch.testing.assert_close(smooth, plain, atol=1e-5, rtol=0)


def shown(plane: Tensor, window: list[float], change: list[float], side: int) -> Array:
    """One pre-training view, step by step: crop and resize, colours, blur, flip, normalise; (3, R, R) float64.

    `plane` is uint8 (3, S, S). SimSiam's order, in which the blur is of the view and the colours follow METHOD's order.
    """
    top, left, height, width, flip = window
    source = plane.shape[-1]
    box = (
        left * source,
        top * source,
        min((left + width) * source, source),
        min((top + height) * source, source),
    )
    small = np.stack([pillow_resized(one.numpy() / 255, box, side, side) for one in plane])
    image = coloured(torch.from_numpy(small), change).numpy()
    image = blurred(image, change[5])
    if flip:
        image = image[..., ::-1]
    means = np.array([0.485, 0.456, 0.406]).reshape(3, 1, 1)
    deviations = np.array([0.229, 0.224, 0.225]).reshape(3, 1, 1)
    normalised: Array = (image - means) / deviations
    return normalised


def plain_photometry(seed: int, round_: int, images: Sequence[int], view: int) -> Photometry:
    """No change at all."""
    return photometry_of(*((1.0, 1.0, 1.0, 0.0, 0.0, 0.0),) * len(images))


class TestIndependentViews:
    INDICES = (40, 41, 42, 43, 44, 45, 46, 47)

    def views(self, scales: tuple[float, float] = (0.2, 1.0), side: int = 16) -> WindowPair:
        return independent_views(
            random_images(8, side),
            self.INDICES,
            torch.linspace(0.5, 2, 8),
            seed=9,
            round_=3,
            scales=scales,
        )

    @pytest.mark.parametrize("scales", [(0.2, 1.0), (0.02, 0.1)])
    def test_equal_the_slow_reference(self, scales: tuple[float, float]) -> None:
        images, aspects = random_images(8, 16), torch.linspace(0.5, 2, 8)
        pair = self.views(scales)
        met = []
        for view, out, window in (
            (1, pair.image_1, pair.window_1),
            (2, pair.image_2, pair.window_2),
        ):
            assert out.shape == (8, 3, 8, 8) and out.dtype == torch.float32
            expected = sample_windows(9, 3, self.INDICES, view, aspects, scales)
            assert torch.equal(stacked(window), stacked(expected))
            changes = stacked(sample_pretraining_photometry(9, 3, self.INDICES, view)).tolist()
            for i, (crop, change) in enumerate(zip(stacked(window).tolist(), changes, strict=True)):
                met.append((crop[4], change[0] != 1, change[4], change[5] != 0))
                np.testing.assert_allclose(
                    out[i].numpy(), shown(images[i], crop, change, 8), atol=2e-4, rtol=0
                )
        # Flipped and not, jittered and not, grey and not, blurred and not.
        assert all(set(column) == {0, 1} for column in zip(*met, strict=True))

    @pytest.mark.parametrize(
        "crop", [(0, 0, 16, 16), (3, 5, 8, 8), (2, 0, 12, 9), (6, 9, 3, 5), (15, 15, 1, 1)]
    )
    def test_crops_of_whole_pixels(
        self, crop: tuple[int, int, int, int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Without colours the view is Pillow's resize of the box; away from its border, of the pixels cut out."""
        top, left, height, width = crop
        window = Window(*torch.tensor([*crop, 0.0]).div(16).view(5, 1))
        monkeypatch.setattr(views, "sample_windows", lambda *rest: window)
        monkeypatch.setattr(views, "sample_pretraining_photometry", plain_photometry)
        images = random_images(1, 16)
        out = independent_views(images, [0], torch.ones(1), seed=0, round_=0).image_1
        box = (left, top, left + width, top + height)
        planes = images[0].numpy() / 255
        expected = torch.from_numpy(np.stack([pillow_resized(p, box, 8, 8) for p in planes]))
        torch.testing.assert_close(out[0].double(), normalise(expected), atol=1e-5, rtol=0)
        if min(height, width) >= 8:
            part = planes[:, top : top + height, left : left + width]
            whole = (0, 0, width, height)
            cut = torch.from_numpy(np.stack([pillow_resized(p, whole, 8, 8) for p in part]))
            inner = (..., slice(2, -2), slice(2, -2))
            torch.testing.assert_close(
                out[0][inner].double(), normalise(cut)[inner], atol=1e-5, rtol=0
            )

    def test_small_windows_equal_grid_sample(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A point (Y, X) of the image is seen at ((Y - top) / height, (X - left) / width), mirrored where flipped."""
        monkeypatch.setattr(views, "sample_pretraining_photometry", plain_photometry)
        images = random_images(20, 16)
        pair = independent_views(
            images, range(20), torch.ones(20), seed=1, round_=0, scales=(0.02, 0.18)
        )
        for out, window in ((pair.image_1, pair.window_1), (pair.image_2, pair.window_2)):
            assert set(window.flip.tolist()) == {0.0, 1.0}
            centres = (torch.arange(8, dtype=torch.float64) + 0.5) / 8
            grids = []
            for top, left, height, width, flip in stacked(window).double().tolist():
                ys = top + height * centres
                xs = left + width * (1 - centres if flip else centres)
                y, x = torch.meshgrid(2 * ys - 1, 2 * xs - 1, indexing="ij")
                grids.append(torch.stack((x, y), -1))
            expected = F.grid_sample(
                images.double() / 255,
                torch.stack(grids),
                padding_mode="border",
                align_corners=False,
            )
            torch.testing.assert_close(out.double(), normalise(expected), atol=5e-5, rtol=0)

    def test_pixels_are_the_same_singly_and_in_a_batch(self) -> None:
        images, aspects = random_images(5, 16), torch.tensor([0.5, 1, 2, 1.5, 0.7])
        indices = [7, 3, 11, 0, 5]
        whole = independent_views(images, indices, aspects, seed=4, round_=2)
        for i, index in enumerate(indices):
            part = slice(i, i + 1)
            single = independent_views(images[part], [index], aspects[part], seed=4, round_=2)
            assert torch.equal(whole.image_1[i], single.image_1[0])
            assert torch.equal(whole.image_2[i], single.image_2[0])

    def test_autocast_changes_nothing(self) -> None:
        plain = self.views()
        with torch.autocast("cpu", torch.bfloat16):
            pair = self.views()
        assert torch.equal(pair.image_1, plain.image_1)
        assert torch.equal(pair.image_2, plain.image_2)

    def test_neither_images_nor_global_generators_are_touched(self) -> None:
        images = random_images(2, 16)
        before = images.clone()
        numpy_state = str(np.random.get_state(legacy=False))  # noqa: NPY002
        states = random.getstate(), torch.get_rng_state()
        independent_views(images, [0, 1], torch.ones(2), seed=0, round_=0)
        assert torch.equal(images, before)
        assert str(np.random.get_state(legacy=False)) == numpy_state  # noqa: NPY002
        assert random.getstate() == states[0] and torch.equal(torch.get_rng_state(), states[1])
