"""Linear maps along an axis against slow references: dense, banded, blurred, antialiased."""

from __future__ import annotations

from dataclasses import astuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from references import blurred, cropped, geometry_of, pillow_resized, random_images
from torch import Tensor
from torch.nn import functional as F

from densesiam_seg.views.geometric import (
    Bands,
    bilinear_matrix,
    blur_matrix,
    blurred_bands,
    crop_matrices,
    enlarged,
    resample,
    resample_read,
    resize_bands,
    warp,
)
from densesiam_seg.views.parameters import Geometry

Array = NDArray[np.float64]

QUICK = settings(deadline=None, max_examples=40)
UNIT = st.floats(0, 1, width=32)
SIDES = st.floats(0.5, 1, width=32)


def grid_sampled(maps: Tensor, geometry: Geometry) -> Tensor:
    """The view's geometry by torch's own sampler, in float64."""
    side = maps.shape[-1]
    centres = (torch.arange(side, dtype=torch.float64) + 0.5) / side
    grids = []
    for top, left, extent, _, flip in torch.stack(astuple(geometry), 1).double().tolist():
        ys = top + extent * centres
        xs = left + extent * (centres.flip(0) if flip else centres)
        grid_y, grid_x = torch.meshgrid(2 * ys - 1, 2 * xs - 1, indexing="ij")
        grids.append(torch.stack((grid_x, grid_y), -1))
    return F.grid_sample(
        maps.double(), torch.stack(grids), padding_mode="border", align_corners=False
    )


class TestBlur:
    @pytest.mark.parametrize("sigma", [0.0, 0.1, 0.7, 2.0])
    def test_equals_the_slow_reference(self, sigma: float) -> None:
        image = random_images(1, 16)[0].double() / 255
        matrix = blur_matrix(torch.tensor([sigma]), 16)
        out = resample(image[None].float(), matrix, matrix)[0]
        expected = torch.from_numpy(blurred(image.numpy(), sigma)).float()
        torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)

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

    def test_warp_of_float32_maps_stays_in_float32_under_autocast(self) -> None:
        maps = torch.randn(1, 2, 8, 8, generator=torch.Generator().manual_seed(0))
        geometry = geometry_of((0.2, 0.1, 0.7, 1))
        with torch.autocast("cpu", torch.bfloat16):
            out = warp(maps, geometry)
        assert out.dtype == torch.float32
        assert torch.equal(out, warp(maps, geometry))

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_warp_of_half_precision_maps_rounds_as_they_do(self, dtype: torch.dtype) -> None:
        """Two products, each with weights and sums rounded once: four roundings of the largest value."""
        maps = torch.randn(3, 5, 8, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
        maps = maps.to(memory_format=torch.channels_last).requires_grad_()
        geometry = geometry_of((0.2, 0.1, 0.7, 1), (0, 0, 1, 0), (0.5, 0.25, 0.5, 0))
        plain = maps.detach().float().requires_grad_()
        out, expected = warp(maps, geometry), warp(plain, geometry)
        assert out.dtype == dtype and out.is_contiguous(memory_format=torch.channels_last)
        bound = 4 * torch.finfo(dtype).eps * maps.detach().float().abs().max()
        assert (out.float() - expected).abs().max() <= bound
        upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
        torch.autograd.backward(out, upstream)
        torch.autograd.backward(expected, upstream.float())
        assert maps.grad is not None and plain.grad is not None
        bound = 8 * torch.finfo(dtype).eps * plain.grad.abs().max()
        assert (maps.grad.float() - plain.grad).abs().max() <= bound


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


def spread(bands: Bands, source: int) -> Tensor:
    """The dense matrices (B, T, S) of what the blocks multiply."""
    images, target, _ = bands.weights.shape
    dense = torch.zeros(images, target, source)
    for image in range(images):
        for here, read, weights in bands.blocks(image):
            dense[image, here, read] = weights
    return dense


class TestBands:
    def test_hand_worked_weights(self) -> None:
        """Four pixels to two without a blur are means of pairs, and read nothing else."""
        no, one = torch.zeros(1), torch.ones(1)
        bands = blurred_bands(no, one, no, no, 4, 2)
        assert spread(bands, 4).tolist() == [[[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]]]
        assert bands.read(0) == slice(0, 4)

    @given(
        windows=st.lists(
            st.tuples(UNIT, UNIT, SIDES, st.sampled_from([0.0, 1.0])), min_size=1, max_size=3
        ),
        sigma=st.sampled_from([0.0, 0.1, 0.7, 2.0]),
        sides=st.tuples(st.integers(8, 90), st.integers(4, 70)),
    )
    @QUICK
    def test_equal_the_dense_matrices(
        self,
        windows: list[tuple[float, float, float, float]],
        sigma: float,
        sides: tuple[int, int],
    ) -> None:
        source, target = sides
        table = [(y * (1 - s), x * (1 - s), s, f) for y, x, s, f in windows]
        sigmas = torch.full((len(table),), sigma)
        geometry, blur = geometry_of(*table), blur_matrix(sigmas, source)
        rows, columns = (blurred_bands(*axis, sigmas, source, target) for axis in geometry.axes())
        dense_rows, dense_columns = (
            matrix @ blur for matrix in crop_matrices(geometry, source, target)
        )
        torch.testing.assert_close(spread(rows, source), dense_rows, atol=3e-6, rtol=0)
        torch.testing.assert_close(spread(columns, source), dense_columns, atol=3e-6, rtol=0)
        images = torch.rand(len(table), 2, source, source)
        expected = resample(images, dense_rows, dense_columns)
        workspace, found = torch.empty(4 * source * target), torch.empty(2, target, target)
        for index, image in enumerate(images):
            part = image[:, rows.read(index), columns.read(index)]
            resample_read(part, rows, columns, index, found, workspace)
            torch.testing.assert_close(found, expected[index], atol=2e-5, rtol=0)

    @given(start=UNIT, extent=st.floats(0.0625, 1, width=32), flip=st.sampled_from([0.0, 1.0]))
    @QUICK
    def test_antialiased_bands_equal_the_dense_matrix(
        self, start: float, extent: float, flip: float
    ) -> None:
        source, target = 150, 70
        begin, side, turn = (
            torch.tensor([value]) for value in (start * (1 - extent), extent, flip)
        )
        bands = resize_bands(begin, side, turn, source, target)
        dense = bilinear_matrix(begin, side, turn, source, target, antialias=True)
        torch.testing.assert_close(spread(bands, source), dense, atol=1e-5, rtol=0)


class TestEnlarged:
    @pytest.mark.parametrize("size", [(14, 10), (13, 25)])
    def test_interpolates_and_so_does_its_gradient(self, size: tuple[int, int]) -> None:
        """Weights of a half are multiples of 1/8 for twice the size, which bfloat16 holds exactly."""
        draw = torch.Generator().manual_seed(0)
        maps = torch.randn(2, 6, 7, 5, generator=draw).to(memory_format=torch.channels_last)
        upstream = torch.randn(2, 6, *size, generator=draw)
        results = []
        for dtype in (torch.float32, torch.bfloat16):
            own = maps.to(dtype).requires_grad_()
            if dtype == torch.float32:
                found = F.interpolate(own, size, mode="bilinear")
            else:
                found = enlarged(own, size)
                assert found.dtype == dtype and found.shape == upstream.shape
                assert found.is_contiguous(memory_format=torch.channels_last)
            (gradient,) = torch.autograd.grad(found, own, upstream.to(dtype))
            results.append((found.float(), gradient.float()))
        for one, two in zip(*results, strict=True):
            torch.testing.assert_close(two, one, atol=0.03, rtol=0.02)
