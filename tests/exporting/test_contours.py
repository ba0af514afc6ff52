"""Outlines: filled again they are the mask, to the pixel, however they are filled."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from slow_readers import filled

from densesiam_seg.exporting.contours import INSET, outlines

Bits = NDArray[np.bool_]


def cut_off(places: NDArray[np.float64], height: int, width: int) -> Bits:
    """Pixels inside an outline whose decimals are cut off, and on it, as OpenCV fills it."""
    corners = np.floor(places).astype(int)
    found = filled(corners + 0.5 + 1e-6 * np.array([0.3, 0.7]), height, width)
    for (ax, ay), (bx, by) in zip(corners, np.roll(corners, -1, 0), strict=True):
        assert ax == bx or ay == by, "only straight lines, which have no pixel in doubt"
        found[min(ay, by) : max(ay, by) + 1, min(ax, bx) : max(ax, bx) + 1] = True
    return found


def test_one_pixel() -> None:
    ((value, places),) = outlines(np.array([[7]], np.uint8))
    low, high = INSET, 1 - INSET
    assert value == 7
    np.testing.assert_allclose(places, [(high, low), (high, high), (low, high), (low, low)])


def test_a_ring_has_a_bridge() -> None:
    mask = np.zeros((3, 3), np.uint8)
    mask[1, 1] = 1
    (outer, ring), (inner, hole) = outlines(mask)
    assert (outer, inner) == (0, 1)
    (x, y), (on, down) = ring.T, np.roll(ring, -1, 0).T
    area = 0.5 * abs((x * down - y * on).sum())
    assert area == pytest.approx((3 - 2 * INSET) ** 2 - (1 + 2 * INSET) ** 2)
    assert len(ring) == 4 + 4 + 4 and len(hole) == 4


def test_pixels_that_touch_at_a_corner_are_two_regions() -> None:
    found = outlines(np.array([[1, 0], [0, 1]], np.uint8))
    assert [value for value, _ in found] == [1, 0, 0, 1]


@pytest.mark.parametrize("seed", range(60))
def test_filled_again(seed: int) -> None:
    draw = np.random.default_rng(seed)
    height, width = draw.integers(1, 13, 2)
    mask = draw.integers(-1, seed % 4, (height, width))
    if seed % 3 == 0:
        mask = np.kron(mask, np.ones((3, 2), np.uint8))
    size = mask.shape
    times = np.zeros(size, int)
    for value, places in outlines(mask):
        region = filled(places, *size)
        assert (mask[region] == value).all()
        np.testing.assert_array_equal(cut_off(places, *size), region)
        times += region
    assert (times == 1).all()


def test_an_empty_mask() -> None:
    assert outlines(np.zeros((0, 4), np.uint8)) == []


@pytest.mark.parametrize("most", [4, 12, 40])
def test_regions_of_too_many_corners_are_cut(most: int) -> None:
    mask = np.random.default_rng(1).integers(0, 3, (17, 23))
    times = np.zeros(mask.shape, int)
    for value, places in outlines(mask, most):
        region = filled(places, *mask.shape)
        assert len(places) <= most and (mask[region] == value).all()
        times += region
    assert (times == 1).all()
