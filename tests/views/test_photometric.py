"""Colour changes against torchvision's own, in a batch and in place."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from references import coloured, photometry_of, random_images, stacked

from densesiam_seg.views import photometric
from densesiam_seg.views.parameters import sample_photometry
from densesiam_seg.views.photometric import (
    LUMA,
    adjust_colour,
    brightened_luma,
    changed,
    denormalise,
    normalise,
    recolour,
)

QUICK = settings(deadline=None, max_examples=40)


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

    def test_equals_torchvision_in_one_batch_and_singly(self) -> None:
        images = random_images(64, 8).float() / 255
        before = images.clone()
        photometry = sample_photometry(1, 0, range(64), 1)
        changes = stacked(photometry).tolist()
        # Every branch is met, hue under grey among them.
        assert any(change[3] and change[4] for change in changes)
        expected = torch.stack(
            [coloured(image, change) for image, change in zip(images, changes, strict=True)]
        )
        torch.testing.assert_close(adjust_colour(images, photometry), expected, atol=1e-5, rtol=0)
        assert torch.equal(images, before)
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

    def test_without_branches_up_to_the_rounding_of_halves(self) -> None:
        """0.5 rounded to 11 binary digits is off by at most 2⁻¹²; a level of the image is 16 times that."""
        images = random_images(64, 8)
        photometry = sample_photometry(1, 0, range(64), 1)
        found = changed(images, photometry.colours())
        expected = adjust_colour(images.float() / 255, photometry)
        assert found.dtype == torch.float16
        torch.testing.assert_close(found.float(), expected, atol=2**-12 + 1e-5, rtol=0)


class TestInPlace:
    """`recolour` of one image against `adjust_colour`, which the tests above compare with torchvision."""

    @given(
        st.tuples(st.floats(0.25, 2.0, width=32), st.floats(0.25, 2.0, width=32)),
        st.floats(0.0, 2.0, width=32),
        st.floats(-0.5, 0.5, width=32),
        st.sampled_from([0.0, 1.0]),
    )
    @QUICK
    def test_equals_the_batch(
        self, factors: tuple[float, float], saturation: float, hue: float, grey: float
    ) -> None:
        images = random_images(1, 24).float()
        photometry = photometry_of((*factors, saturation, hue, grey, 0.0))
        found = images[0].clone()
        recolour(found, photometry.colours()[0].tolist())
        expected = adjust_colour(images / 255, photometry)[0]
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)

    def test_strips_change_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        found = []
        for strip in (7, 2**16):
            monkeypatch.setattr(photometric, "STRIP", strip)
            found.append(random_images(1, 24)[0].float())
            recolour(found[-1], (1.2, 0.8, 1.3, 0.07, 0.0))
        torch.testing.assert_close(found[0], found[1], atol=1e-6, rtol=0)

    def test_contrast_keeps_the_mean_it_is_given(self) -> None:
        """Half the contrast around a luma of 0.8: 0.2 becomes 0.5."""
        image = torch.full((3, 2, 2), 0.2 * 255)
        recolour(image, (1.0, 0.5, 1.0, 0.0, 0.0), 0.8)
        torch.testing.assert_close(image, torch.full((3, 2, 2), 0.5))

    @pytest.mark.parametrize("brightness", [0.5, 1.0, 1.4])
    def test_luma_of_a_brightened_image(self, brightness: float) -> None:
        image = random_images(1, 16)[0]
        bright = (image.double() / 255 * brightness).clamp(max=1)
        expected = float((bright.mean((-2, -1)) * torch.tensor(LUMA)).sum())
        found = brightened_luma(image, brightness, torch.empty(1000))
        assert found == pytest.approx(expected, abs=1e-5)


def test_normalisation_by_hand() -> None:
    pixels = torch.tensor([1.0, 0.0, 0.406]).view(3, 1, 1)
    out = normalise(pixels)
    # (1 - 0.485) / 0.229, (0 - 0.456) / 0.224, (0.406 - 0.406) / 0.225
    torch.testing.assert_close(out.flatten(), torch.tensor([2.2489083, -2.0357143, 0.0]))
    torch.testing.assert_close(denormalise(out), pixels)
