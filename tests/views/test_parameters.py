"""Random choices of views: replayed exactly, distributed as in DenseSiam's supplement, equal to slow references."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from references import stacked
from torch import Tensor
from torchvision.transforms import RandomResizedCrop

from densesiam_seg.io.randomness import Stream, generator
from densesiam_seg.views import parameters
from densesiam_seg.views.parameters import (
    sample_geometry,
    sample_photometry,
    sample_pretraining_geometry,
)

MANY = range(4000)
QUICK = settings(deadline=None, max_examples=40)
NEUTRAL = torch.tensor([1.0, 1.0, 1.0, 0.0])
ASPECTS = st.floats(0.015625, 64, width=32)
PAIRS = st.tuples(st.integers(0, 10**9), ASPECTS)


def drawn(seed: int, round_: int, images: Sequence[int], view: int, aspects: Tensor) -> Tensor:
    """All that is drawn for a view of each image, a row per image."""
    values = (
        sample_geometry(seed, round_, images),
        sample_photometry(seed, round_, images, view),
        sample_pretraining_geometry(seed, round_, images, view, aspects),
        sample_photometry(seed, round_, images, view, pretraining=True),
    )
    return torch.cat([stacked(each) for each in values], 1)


def crops_of(seed: int, images: Sequence[int], aspect: float, view: int = 1) -> Tensor:
    aspects = torch.full((len(images),), aspect)
    return stacked(sample_pretraining_geometry(seed, 3, images, view, aspects))


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


class TestReplay:
    """Parameters are a pure function of (seed, round, image, view)."""

    @QUICK
    @given(
        st.integers(0, 2**63 - 1),
        st.integers(0, 10**6),
        st.lists(PAIRS, min_size=1, max_size=6),
        st.sampled_from([1, 2]),
        st.randoms(use_true_random=False),
    )
    def test_same_singly_in_any_batch_and_order(
        self,
        seed: int,
        round_: int,
        images: list[tuple[int, float]],
        view: int,
        source: random.Random,
    ) -> None:
        def draw(batch: list[tuple[int, float]]) -> Tensor:
            indices, aspects = zip(*batch, strict=True)
            return drawn(seed, round_, indices, view, torch.tensor(aspects))

        order = list(range(len(images)))
        source.shuffle(order)
        whole = draw(images)
        assert torch.equal(whole, torch.cat([draw([image]) for image in images]))
        assert torch.equal(whole[order], draw([images[i] for i in order]))

    def test_each_argument_changes_them(self) -> None:
        names = [(0, 0, 0, 1), (1, 0, 0, 1), (0, 1, 0, 1), (0, 0, 20, 1), (0, 0, 0, 2)]
        rows = [
            drawn(seed, round_, range(first, first + 20), view, torch.ones(20))
            for seed, round_, first, view in names
        ]
        for i, one in enumerate(rows):
            for another in rows[:i]:
                # Training's two views share their crop; all else differs.
                if (i, another is rows[0]) != (4, True):
                    assert not torch.isclose(one[:, :3], another[:, :3]).any()
                assert not torch.equal(one[:, 5:11], another[:, 5:11])
                assert not torch.isclose(one[:, 11:15], another[:, 11:15]).any()
                assert not torch.equal(one[:, 16:], another[:, 16:])


class TestDistribution:
    """The supplement's ranges; bounds of about five standard deviations of 4000 draws."""

    def test_geometry(self) -> None:
        top, left, side, width, flip = stacked(sample_geometry(0, 0, MANY)).double().T
        assert torch.equal(side, width)
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
    @pytest.mark.parametrize(
        ("pretraining", "factor", "all_four"), [(False, 0.3, 0.8**4), (True, 0.4, 0.8)]
    )
    def test_photometry(self, pretraining: bool, factor: float, all_four: float, view: int) -> None:
        """Training's four changes have a chance each; those of pre-training come together or not at all."""
        table = stacked(sample_photometry(0, 0, MANY, view, pretraining=pretraining)).double()
        jitters = table[:, :4] != NEUTRAL
        for column, middle, reach in ((0, 1, factor), (1, 1, factor), (2, 1, factor), (3, 0, 0.1)):
            values = table[:, column][jitters[:, column]] - middle
            assert abs(len(values) / 4000 - 0.8) < 0.032
            assert 0.99 * reach < values.max() <= reach * (1 + 1e-6)
            assert -0.99 * reach > values.min() >= -reach * (1 + 1e-6)
            assert abs(values.mean()) < 0.055 * reach
            assert abs(values.var() - reach**2 / 3) < 0.1 * reach**2 / 3
        assert abs(jitters.all(1).double().mean() - all_four) < 0.04
        if pretraining:
            assert torch.equal(jitters.all(1), jitters.any(1))
        grey, sigma = table[:, 4], table[:, 5]
        assert set(grey.tolist()) == {0.0, 1.0}
        assert abs(grey.mean() - 0.2) < 0.032
        blurs = sigma[sigma != 0]
        assert abs(len(blurs) / 4000 - 0.5) < 0.04
        assert 0.1 <= blurs.min() + 1e-6 < 0.11 and 1.99 < blurs.max() <= 2 + 1e-6
        assert abs(blurs.mean() - 1.05) < 0.06

    def test_everything_is_independent(self) -> None:
        """No two columns of geometry, photometry 1 and photometry 2 go together, but for `top`, `left` ~ 1 - side."""
        geometry = stacked(sample_geometry(0, 0, MANY)).double()[:, [0, 1, 2, 4]]
        geometry[:, :2] /= (1 - geometry[:, 2:3]).clamp(min=1e-6)
        tables = [stacked(sample_photometry(0, 0, MANY, view)).double() for view in (1, 2)]
        changed = [torch.cat((t[:, :4] != NEUTRAL, t[:, 5:] != 0), 1).double() for t in tables]
        # A value and its own on/off switch may go together: compare values and switches apart.
        for columns in (torch.cat([geometry, *tables], 1), torch.cat(changed, 1)):
            correlation = torch.corrcoef(columns.T)
            assert (correlation - torch.eye(len(correlation))).abs().max() < 0.08
        neighbours = torch.corrcoef(torch.stack((geometry[:-1, 2], geometry[1:, 2])))
        assert abs(neighbours[0, 1]) < 0.08


class TestPretrainingGeometry:
    @pytest.mark.parametrize("aspect", [0.3, 0.8, 1.0, 1.5, 3.0])
    @pytest.mark.parametrize("scales", [(0.2, 1.0), (0.7, 0.9), (0.01, 0.02)])
    def test_equals_the_slow_reference(
        self, aspect: float, scales: tuple[float, float], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(parameters, "SCALES", scales)
        # With these every number of attempts is met, and what follows ten of them.
        count = 400 if (aspect, scales) == (1.5, (0.7, 0.9)) else 60
        for view in (1, 2):
            own = float(torch.tensor(aspect))
            crops, attempts = zip(
                *(
                    resized_crop(generator(5, Stream.VIEWS, 3, image, 2 + view), own, scales)
                    for image in range(count)
                ),
                strict=True,
            )
            found = crops_of(5, range(count), aspect, view)
            torch.testing.assert_close(found, torch.tensor(crops), atol=1e-6, rtol=0)
            assert count == 60 or set(attempts) == set(range(1, 12))

    @pytest.mark.parametrize(
        ("aspect", "expected"),
        [
            (4.0, [0.0, 1 / 3, 1.0, 1 / 3]),  # 400 × 100 pixels: 133⅓ × 100 in the middle
            (0.25, [1 / 3, 0.0, 1 / 3, 1.0]),
            (1.2, [0.0, 0.0, 1.0, 1.0]),  # an allowed aspect: the whole image
            (4 / 3, [0.0, 0.0, 1.0, 1.0]),
        ],
    )
    def test_nothing_fits(
        self, aspect: float, expected: list[float], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A crop of the whole area that does not have the image's very own aspect never fits."""
        monkeypatch.setattr(parameters, "SCALES", (1.0, 1.0))
        rows = crops_of(0, range(30), aspect)
        torch.testing.assert_close(rows[:, :4], torch.tensor(expected).expand(30, 4))
        assert set(rows[:, 4].tolist()) == {0.0, 1.0}

    @QUICK
    @given(st.integers(0, 2**63 - 1), st.lists(ASPECTS, min_size=1, max_size=8))
    def test_lies_in_the_image_and_has_an_allowed_aspect(
        self, seed: int, aspects: list[float]
    ) -> None:
        own = torch.tensor(aspects)
        crops = sample_pretraining_geometry(seed, 0, range(len(aspects)), 1, own)
        top, left, height, width, flip = stacked(crops).double().T
        assert (top >= 0).all() and (left >= 0).all()
        assert (height > 0).all() and (width > 0).all()
        assert (top + height).max() <= 1 + 1e-6 and (left + width).max() <= 1 + 1e-6
        assert (flip * (1 - flip) == 0).all()
        shape = own * width / height
        assert shape.min() >= 3 / 4 - 1e-5 and shape.max() <= 4 / 3 + 1e-5


@pytest.mark.parametrize("aspect", [0.4, 1.0, 2.5])
def test_crops_of_pre_training_are_distributed_as_torchvisions(aspect: float) -> None:
    """Means and deviations of 3000 crops each, within about five standard errors and the rounding to pixels."""
    size = torch.tensor([800, round(800 * aspect)] * 2)
    image = torch.empty(1, *size[:2])
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        boxes = [RandomResizedCrop.get_params(image, [0.2, 1.0], [3 / 4, 4 / 3]) for _ in MANY]
    theirs = torch.tensor(boxes).double() / size
    ours = crops_of(0, MANY, aspect)[:, :4].double()
    torch.testing.assert_close(ours.mean(0), theirs.mean(0), atol=0.03, rtol=0)
    torch.testing.assert_close(ours.std(0), theirs.std(0), atol=0.02, rtol=0)
    areas = [(crops[:, 2] * crops[:, 3]).mean() for crops in (ours, theirs)]
    torch.testing.assert_close(*areas, atol=0.025, rtol=0)
