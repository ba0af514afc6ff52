"""Random choices of views: replayed exactly, distributed as METHOD says, equal to slow references."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from references import random_images, stacked
from torch import Tensor
from torchvision.transforms import RandomResizedCrop

from densesiam_seg.io.randomness import Stream, generator
from densesiam_seg.views.pair import view_pair
from densesiam_seg.views.parameters import (
    sample_geometry,
    sample_photometry,
    sample_pretraining_photometry,
    sample_windows,
)

MANY = range(4000)
QUICK = settings(deadline=None, max_examples=40)


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
