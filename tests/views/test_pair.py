"""Views: both of them against slow references, and exact mode against the fast one."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from references import (
    blurred,
    coloured,
    cropped,
    geometry_of,
    pillow_resized,
    random_images,
    stacked,
)
from torch import Tensor
from torch.nn import functional as F

from densesiam_seg.views import parameters
from densesiam_seg.views.geometric import crop_matrices, resample, warp
from densesiam_seg.views.pair import _halved_views, first_view, independent_views, view_pair
from densesiam_seg.views.parameters import (
    sample_geometry,
    sample_photometry,
    sample_pretraining_geometry,
)
from densesiam_seg.views.photometric import STD, changed, normalise_

Array = NDArray[np.float64]

QUICK = settings(deadline=None, max_examples=40)
UNIT = st.floats(0, 1, width=32)
SIDES = st.floats(0.5, 1, width=32)
MEANS = np.array([0.485, 0.456, 0.406]).reshape(3, 1, 1)
DEVIATIONS = np.array([0.229, 0.224, 0.225]).reshape(3, 1, 1)


def shown(plane: Tensor, crop: list[float], change: list[float], side: int) -> Array:
    """One pre-training view, step by step: crop and resize, colours, blur, flip, normalise; (3, R, R) float64.

    `plane` is uint8 (3, S, S). SimSiam's order, in which the blur is of the view and the colours have PiCIE's order.
    """
    top, left, height, width, flip = crop
    source = plane.shape[-1]
    right, bottom = min((left + width) * source, source), min((top + height) * source, source)
    box = (left * source, top * source, right, bottom)
    small = np.stack([pillow_resized(one.numpy() / 255, box, side, side) for one in plane])
    image = blurred(coloured(torch.from_numpy(small), change).numpy(), change[5])
    normalised: Array = ((image[..., ::-1] if flip else image) - MEANS) / DEVIATIONS
    return normalised


def both(
    images: Tensor, indices: Sequence[int], exact: bool, *, pretraining: bool
) -> tuple[Tensor, ...]:
    """Both views, and all that tells where they lie."""
    if pretraining:
        aspects = torch.tensor([0.4 + 0.1 * index for index in indices])
        pair = independent_views(images, indices, aspects, seed=2, round_=1, exact=exact)
        places = stacked(pair.geometry_1), stacked(pair.geometry_2)
        return pair.image_1, pair.image_2, *places
    two = view_pair(images, indices, seed=2, round_=1, exact=exact)
    return two.image_1, two.image_2, stacked(two.geometry)


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


class TestViewPair:
    def test_equals_the_slow_reference(self) -> None:
        """DenseSiam, section 3: photometry₁ then G on the image; photometry₂ then the whole image."""
        indices = [40, 41, 42, 43, 44, 45]
        images = random_images(len(indices), 16)
        pair = view_pair(images, indices, seed=9, round_=3)
        geometry = stacked(sample_geometry(9, 3, indices))
        assert torch.equal(stacked(pair.geometry), geometry)
        crops = geometry[:, [0, 1, 2, 4]].tolist()
        for view, out in ((1, pair.image_1), (2, pair.image_2)):
            assert out.shape == (6, 3, 8, 8) and out.dtype == torch.float32
            changes = stacked(sample_photometry(9, 3, indices, view)).tolist()
            for i, (crop, change) in enumerate(zip(crops, changes, strict=True)):
                image = coloured(images[i].float() / 255, change).double().numpy()
                place = crop if view == 1 else (0.0, 0.0, 1.0, 0.0)
                expected = (cropped(blurred(image, change[5]), place, 8) - MEANS) / DEVIATIONS
                np.testing.assert_allclose(out[i].numpy(), expected, atol=2e-5, rtol=0)

    def test_parameters_can_be_sliced_and_moved(self) -> None:
        geometry = sample_geometry(0, 0, range(5))
        part = geometry[1:3]
        assert torch.equal(stacked(part), stacked(geometry)[1:3])
        assert part.to("meta").top.device.type == "meta"

    def test_a_gpu_s_halves_differ_by_their_rounding(self) -> None:
        """Sums of weights that add up to one, of numbers up to one, are off by 2⁻¹¹ a product at most."""
        images, indices = random_images(6, 64), range(6)
        geometry, photometry = sample_geometry(1, 0, indices), sample_photometry(1, 0, indices, 1)
        found = normalise_(_halved_views(images, photometry, geometry, changed))
        expected = view_pair(images, indices, seed=1, round_=0).image_1
        assert found.dtype == torch.float32
        assert found.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(found, expected, atol=4 * 2**-11 / min(STD), rtol=0)


class TestIndependentViews:
    INDICES = (40, 41, 42, 43, 44, 45, 46, 47)

    @pytest.mark.parametrize("scales", [(0.2, 1.0), (0.02, 0.1)])
    def test_equal_the_slow_reference(
        self, scales: tuple[float, float], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(parameters, "SCALES", scales)
        images, aspects = random_images(8, 16), torch.linspace(0.5, 2, 8)
        pair = independent_views(images, self.INDICES, aspects, seed=9, round_=3)
        met = []
        for view, out, geometry in (
            (1, pair.image_1, pair.geometry_1),
            (2, pair.image_2, pair.geometry_2),
        ):
            assert out.shape == (8, 3, 8, 8) and out.dtype == torch.float32
            expected = sample_pretraining_geometry(9, 3, self.INDICES, view, aspects)
            assert torch.equal(stacked(geometry), stacked(expected))
            colours = sample_photometry(9, 3, self.INDICES, view, pretraining=True)
            changes = stacked(colours).tolist()
            crops = stacked(geometry).tolist()
            for i, (crop, change) in enumerate(zip(crops, changes, strict=True)):
                met.append((crop[4], change[0] != 1, change[4], change[5] != 0))
                wanted = shown(images[i], crop, change, 8)
                np.testing.assert_allclose(out[i].numpy(), wanted, atol=2e-4, rtol=0)
        # Flipped and not, jittered and not, grey and not, blurred and not.
        assert all(set(column) == {0, 1} for column in zip(*met, strict=True))


@pytest.mark.parametrize("pretraining", [False, True])
class TestBothKinds:
    @pytest.mark.parametrize("exact", [True, False])
    def test_an_image_does_not_depend_on_its_neighbours(
        self, exact: bool, pretraining: bool
    ) -> None:
        images, indices = random_images(20, 32), [*range(7, 27)]
        whole = both(images, indices, exact, pretraining=pretraining)
        for i in (0, 3, 17):
            one = both(images[i : i + 1], indices[i : i + 1], exact, pretraining=pretraining)
            assert all(torch.equal(a[0], b[i]) for a, b in zip(one, whole, strict=True))

    @pytest.mark.parametrize("exact", [True, False])
    def test_images_generators_and_autocast_play_no_part(
        self, exact: bool, pretraining: bool
    ) -> None:
        def state() -> list[object]:
            numpy_state = np.random.get_state(legacy=False)  # noqa: NPY002
            return [random.getstate(), str(numpy_state), torch.get_rng_state().tolist()]

        images = random_images(4, 16)
        before, states = images.clone(), state()
        plain = both(images, range(4), exact, pretraining=pretraining)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = both(images, range(4), exact, pretraining=pretraining)
        assert all(torch.equal(a, b) for a, b in zip(mixed, plain, strict=True))
        assert torch.equal(images, before) and state() == states

    @pytest.mark.parametrize("side", [16, 60, 130])
    def test_fast_mode_differs_by_rounding_alone(self, side: int, pretraining: bool) -> None:
        """By a hundred thousandth of a deviation."""
        images, indices = random_images(20, side), range(3, 23)
        exact, fast = (both(images, indices, way, pretraining=pretraining) for way in (True, False))
        for one, two in zip(fast, exact, strict=True):
            torch.testing.assert_close(one, two, atol=1e-4, rtol=0)
        if not pretraining:
            first = first_view(images, indices, seed=2, round_=1, exact=False)
            assert torch.equal(first, fast[0])
