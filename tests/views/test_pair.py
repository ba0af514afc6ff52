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
    photometry_of,
    pillow_resized,
    random_images,
    stacked,
)
from torch import Tensor
from torch.nn import functional as F

from densesiam_seg.views import pair as views
from densesiam_seg.views.geometric import resample
from densesiam_seg.views.pair import (
    WindowPair,
    crop_matrices,
    first_view,
    independent_views,
    view_pair,
    warp,
)
from densesiam_seg.views.parameters import (
    Photometry,
    Window,
    sample_geometry,
    sample_photometry,
    sample_pretraining_photometry,
    sample_windows,
)
from densesiam_seg.views.photometric import normalise

Array = NDArray[np.float64]

QUICK = settings(deadline=None, max_examples=40)
UNIT = st.floats(0, 1, width=32)
SIDES = st.floats(0.5, 1, width=32)


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


class TestFastMode:
    """The same views as exact mode's, to a hundred thousandth of a deviation."""

    @pytest.mark.parametrize("side", [16, 60, 130])
    @pytest.mark.parametrize("round_", [0, 1])
    def test_of_training(self, side: int, round_: int) -> None:
        images, indices = random_images(20, side), range(3, 23)
        exact = view_pair(images, indices, seed=2, round_=round_, exact=True)
        fast = view_pair(images, indices, seed=2, round_=round_, exact=False)
        torch.testing.assert_close(fast.image_1, exact.image_1, atol=1e-4, rtol=0)
        torch.testing.assert_close(fast.image_2, exact.image_2, atol=1e-4, rtol=0)
        assert torch.equal(stacked(fast.geometry), stacked(exact.geometry))
        first = first_view(images, indices, seed=2, round_=round_, exact=False)
        assert torch.equal(first, fast.image_1)

    @pytest.mark.parametrize("side", [16, 60, 130])
    def test_of_pre_training(self, side: int) -> None:
        images, indices = random_images(20, side), range(20)
        aspects = torch.linspace(0.4, 2.5, 20)
        exact = independent_views(images, indices, aspects, seed=2, round_=1, exact=True)
        fast = independent_views(images, indices, aspects, seed=2, round_=1, exact=False)
        torch.testing.assert_close(fast.image_1, exact.image_1, atol=1e-4, rtol=0)
        torch.testing.assert_close(fast.image_2, exact.image_2, atol=1e-4, rtol=0)
        assert torch.equal(stacked(fast.window_1), stacked(exact.window_1))

    def test_an_image_does_not_depend_on_its_neighbours(self) -> None:
        images = random_images(20, 40)
        both = view_pair(images, range(20), seed=0, round_=0, exact=False)
        one = view_pair(images[17:18], [17], seed=0, round_=0, exact=False)
        assert torch.equal(one.image_1[0], both.image_1[17])
        assert torch.equal(one.image_2[0], both.image_2[17])

    def test_stored_images_are_left_alone(self) -> None:
        images = random_images(2, 40)
        before = images.clone()
        view_pair(images, range(2), seed=0, round_=0, exact=False)
        assert torch.equal(images, before)
