"""Every strategy worked out by hand, against slow loops, and on an image coloured by its own coordinates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple
from typing import Any

import pytest
import torch
from crops import Crop, cells, geometry_of, seen_at, shared
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from densesiam_seg.config import PretrainConfig
from densesiam_seg.methods.correspondence import (
    STRATEGIES,
    Correspondence,
    overlap,
    to_image,
    to_view,
)
from densesiam_seg.methods.sampling import cell_centres, grid_draws, pool
from densesiam_seg.views.geometric import crop_matrices, resample
from densesiam_seg.views.parameters import Geometry

QUICK = settings(deadline=None, max_examples=60)
CASES = [
    *((name, "regular") for name in STRATEGIES),
    ("location", "uniform"),
    ("location", "biased"),
]
"""Every strategy with every sampling that has a meaning for it."""
SIDE = 24


WHOLE = Crop(0.0, 0.0, 1.0, 1.0)


@st.composite
def crops(draw: st.DrawFn) -> Crop:
    """Any crop of at least an eighth of each side, flipped or not."""
    height, width = draw(st.floats(0.125, 1, width=32)), draw(st.floats(0.125, 1, width=32))
    top, left = draw(st.floats(0, 1)) * (1 - height), draw(st.floats(0, 1)) * (1 - width)
    return Crop(top, left, height, width, float(draw(st.booleans())))


def random_features(batch: int, channels: int = 3, side: int = 5, seed: int = 0) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    return torch.randn(batch, channels, side, side, generator=source)


def found(
    name: str,
    crops_1: list[Crop],
    crops_2: list[Crop],
    size: int = 7,
    features: tuple[Tensor, Tensor] | None = None,
    *,
    sampling: Any = "regular",
    seed: int = 0,
    images: Sequence[int] = range(9),
) -> Correspondence:
    """The strategy's answer, on random features where none are given."""
    batch = len(crops_1)
    maps = features or (random_features(batch, seed=seed), random_features(batch, seed=seed + 1))
    config = PretrainConfig(sampling=sampling, grid=size, seed=seed)
    draws = grid_draws(config, 0, images[:batch], "cpu")
    return STRATEGIES[name]((geometry_of(*crops_1), geometry_of(*crops_2)), maps, config, draws)


class TestGeometry:
    """Overlaps, and positions of a view in the image and back."""

    def test_overlap_by_hand(self) -> None:
        first = geometry_of(Crop(0.0, 0.25, 0.5, 0.5), WHOLE, Crop(0.5, 0.0, 0.5, 0.25, 1))
        second = geometry_of(Crop(0.25, 0.5, 0.75, 0.5), Crop(0.5, 0.0, 0.25, 0.5, 1), WHOLE)
        common, overlapping = overlap(first, second)
        rectangles = torch.stack(astuple(common), 1).tolist()
        assert rectangles[0] == [0.25, 0.5, 0.25, 0.25, 0]
        assert rectangles[1] == [0.5, 0, 0.25, 0.5, 0]
        assert rectangles[2] == [0.5, 0, 0.5, 0.25, 0]
        assert overlapping.tolist() == [True, True, True]

    @pytest.mark.parametrize(
        ("other", "expected"),
        [
            (Crop(0.6, 0.0, 0.4, 1.0), False),  # touches along an edge
            (Crop(0.0, 0.6, 1.0, 0.4), False),
            (Crop(0.6, 0.6, 0.4, 0.4), False),  # touches in a corner
            (Crop(0.7, 0.0, 0.3, 0.3), False),  # apart along one axis only
            (Crop(0.6 - 5e-7, 0.0, 0.4, 1.0), False),  # thinner than rounding
            (Crop(0.6 - 1e-5, 0.0, 0.4, 1.0), True),
        ],
    )
    def test_area_is_needed(self, other: Crop, expected: bool) -> None:
        first, second = geometry_of(Crop(0.0, 0.0, 0.6, 0.6)), geometry_of(other)
        assert overlap(first, second)[1].tolist() == [expected]
        assert overlap(second, first)[1].tolist() == [expected]

    def test_positions_by_hand(self) -> None:
        windows = geometry_of(Crop(0.5, 0.25, 0.25, 0.5), Crop(0.5, 0.25, 0.25, 0.5, 1))
        positions = torch.tensor([[0.5, 0.25], [0.0, 1.0]]).expand(2, -1, -1)
        expected = [[[0.625, 0.375], [0.5, 0.75]], [[0.625, 0.625], [0.5, 0.25]]]
        assert to_image(positions, windows).tolist() == expected
        assert to_view(torch.tensor(expected), windows).tolist() == positions.tolist()
        outside = to_view(torch.tensor([[[0.0, 0.0]]]), windows[:1])
        assert outside.tolist() == [[[-2.0, -0.5]]]

    @QUICK
    @given(crops(), st.floats(0, 1), st.floats(0, 1))
    def test_there_and_back(self, crop: Crop, y: float, x: float) -> None:
        window, position = geometry_of(crop), torch.tensor([[[y, x]]], dtype=torch.float32)
        in_image = to_image(position, window)
        expected = torch.tensor([[seen_at(crop, (y, x))]], dtype=torch.float32)
        torch.testing.assert_close(in_image, expected, rtol=0, atol=1e-6)
        torch.testing.assert_close(to_view(in_image, window), position, rtol=0, atol=2e-6)


def coordinate_image() -> Tensor:
    """(1, 2, S, S): channel 0 is the Y of a pixel's centre, channel 1 its X."""
    centres = (torch.arange(SIDE) + 0.5) / SIDE
    return torch.stack(torch.meshgrid(centres, centres, indexing="ij"))[None]


def cut(image: Tensor, crop: Crop, side: int) -> Tensor:
    """The view's map (1, C, side, side): the image sampled bilinearly at the view's pixel centres."""
    return resample(image, *crop_matrices(geometry_of(crop), SIDE, side))


class TestCoordinates:
    """On an image coloured by its own coordinates, a value tells where it was taken.

    Let c(Y) = clamp(Y, ½/S, 1 - ½/S), the image's own bilinear sample at Y: it never grows faster than Y. The view's
    feature i is c(Yᵢ), the Yᵢ being d = (crop's height) / h apart. Between two of them the sample is the straight line
    from c(Yᵢ) to c(Yᵢ₊₁) in place of c, whose slope changes there by 1 at most once (h > 1): at most d/4 off, where
    the bend is half-way. In the outer half cell of a view the sample stays at the border feature, at most d/2 from Y.
    So no value is off by more than d/2, half a feature cell, and none at all where c is straight and the view goes on.
    """

    @QUICK
    @given(
        crops(),
        crops(),
        st.integers(2, 9),
        st.integers(1, 5),
        st.sampled_from(["regular", "uniform", "biased"]),
        st.integers(0, 1000),
    )
    def test_same_place_of_the_image(
        self, crop_1: Crop, crop_2: Crop, side: int, size: int, sampling: str, seed: int
    ) -> None:
        image = coordinate_image()
        maps = (cut(image, crop_1, side), cut(image, crop_2, side))
        pairs = found("location", [crop_1], [crop_2], size, maps, sampling=sampling, seed=seed)
        top, left, bottom, right = shared(crop_1, crop_2)
        assume(bottom - top > 1e-5 and right - left > 1e-5)
        assert pairs.weight[0].equal(torch.eye(size**2))
        where = to_image(pairs.places_1[:, :, 0], geometry_of(crop_1))
        assert (where[0] >= torch.tensor([top, left]) - 1e-6).all()
        assert (where[0] <= torch.tensor([bottom, right]) + 1e-6).all()
        plain = pool(image, where.unsqueeze(2))[0]
        values, bounds = [], []
        for crop, features, places in zip(
            (crop_1, crop_2), maps, (pairs.places_1, pairs.places_2), strict=True
        ):
            cell = torch.tensor([crop.height, crop.width]) / side
            inner = (places[0, :, 0] - 0.5).abs() <= 0.5 - 0.5 / side
            straight = (where[0] - 0.5).abs() + cell <= 0.5 - 0.5 / SIDE
            bounds.append(torch.where(inner & straight, 0.0, cell / 2))
            values.append(pool(features, places)[0])
            assert ((values[-1] - plain).abs() <= bounds[-1] + 1e-5).all()
        assert ((values[0] - values[1]).abs() <= sum(bounds) + 1e-5).all()


class TestLocation:
    """The sampler's positions of the overlap."""

    def test_by_hand(self) -> None:
        # The lower right quarter: centres at 5/8 and 7/8 of the image, at ¼ and ¾ of the flipped view.
        pairs = found("location", [WHOLE], [Crop(0.5, 0.5, 0.5, 0.5, 1)], 2)
        centres = cell_centres(2, "cpu")
        assert pairs.places_1[0, :, 0].equal(0.5 + 0.5 * centres)
        assert pairs.places_2[0, :, 0].equal(centres[[1, 0, 3, 2]])
        assert pairs.weight[0].equal(torch.eye(4))

    @QUICK
    @given(crops(), crops(), st.integers(1, 4), st.integers(0, 1000))
    def test_biased_keeps_the_places_that_differ_most(
        self, crop_1: Crop, crop_2: Crop, size: int, seed: int
    ) -> None:
        top, left, bottom, right = shared(crop_1, crop_2)
        assume(bottom - top > 1e-3 and right - left > 1e-3)
        features = random_features(1, seed=seed), random_features(1, seed=seed + 1)
        pairs = found("location", [crop_1], [crop_2], size, features, sampling="biased", seed=seed)
        config = PretrainConfig(sampling="biased", grid=size, seed=seed)
        draws = grid_draws(config, 0, [0], "cpu")[0].double()
        candidates = torch.tensor([top, left]) + draws * torch.tensor([bottom - top, right - left])
        cosines = []
        for place in candidates[: 3 * size**2]:
            values = []
            for crop, maps in zip((crop_1, crop_2), features, strict=True):
                position = to_view(place.view(1, 1, 2), geometry_of(crop))
                grid_position = (2 * position.flip(-1) - 1).view(1, 1, 1, 2)
                sampled = F.grid_sample(
                    maps.double(), grid_position, padding_mode="border", align_corners=False
                )
                values.append(sampled.flatten())
            cosines.append(F.cosine_similarity(values[0], values[1], dim=0).item())
        ranked = sorted(range(len(cosines)), key=cosines.__getitem__)
        kept = math.floor(0.75 * size**2)
        # A difference of rounding size between the last chosen and the first left out decides nothing.
        assume(cosines[ranked[kept]] - cosines[ranked[kept - 1]] > 1e-4 if kept else True)
        in_image = to_image(pairs.places_1[:, :, 0], geometry_of(crop_1))[0].double()
        chosen = {(in_image[n] - candidates).norm(dim=1).argmin().item() for n in range(kept)}
        assert chosen == set(ranked[:kept])
        torch.testing.assert_close(
            in_image[kept:], candidates[3 * size**2 :], rtol=0, atol=1e-6, check_dtype=False
        )


class TestFeatureSimilarity:
    """Links to the most similar cell."""

    def test_by_hand(self) -> None:
        a, b, c, d = torch.eye(4)
        # View 1 shows a b / c a+b; view 2 shows b c / 2a d: the cells' centres are the pixels themselves.
        features_1 = torch.stack((a, b, c, a + 0.5 * b), 1).view(1, 4, 2, 2)
        features_2 = torch.stack((b, c, 2 * a, d + 0.1 * c), 1).view(1, 4, 2, 2)
        pairs = found("feature-similarity", [WHOLE], [WHOLE], 2, (features_1, features_2))
        # View 1 chooses 2, 0, 1, 2; view 2 chooses 1, 2, 0, 2.
        assert pairs.weight[0].tolist() == [
            [0, 0, 2, 0],
            [2, 0, 0, 0],
            [0, 2, 0, 1],
            [0, 0, 1, 0],
        ]
        assert pairs.places_1[0, :, 0].equal(cell_centres(2, "cpu"))
        assert pairs.places_2.equal(pairs.places_1)

    @QUICK
    @given(st.integers(1, 4), st.integers(0, 1000))
    def test_against_a_loop(self, size: int, seed: int) -> None:
        features = random_features(2, seed=seed), random_features(2, seed=seed + 1)
        pairs = found("feature-similarity", [WHOLE] * 2, [WHOLE] * 2, size, features)
        count = size**2
        for image in range(2):
            values_1, values_2 = (
                pool(maps[image : image + 1].double(), places[image : image + 1])[0]
                for maps, places in zip(features, (pairs.places_1, pairs.places_2), strict=True)
            )
            expected = torch.zeros(count, count)
            for i in range(count):
                expected[i, F.cosine_similarity(values_1[i : i + 1], values_2).argmax()] += 1
                expected[F.cosine_similarity(values_1, values_2[i : i + 1]).argmax(), i] += 1
            assert pairs.weight[image].equal(expected)

    def test_cosines_keep_full_precision_under_autocast(self) -> None:
        features = random_features(2, 16, 7), random_features(2, 16, 7, seed=1)
        plain = found("feature-similarity", [WHOLE] * 2, [WHOLE] * 2, 7, features)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = found("feature-similarity", [WHOLE] * 2, [WHOLE] * 2, 7, features)
        assert mixed.weight.equal(plain.weight)


class TestPixelDistance:
    """Links of cells that lie close together in the image."""

    def test_by_hand(self) -> None:
        # View 2 is the right half, its centres at x = 5/8 and 7/8. The larger diagonal is √½ = 0.707, so cells less
        # than 0.495 apart are linked: 3/8 and 1/8 are, 5/8 and √(½² + ⅛²) = 0.515 are not.
        pairs = found("pixel-distance", [WHOLE], [Crop(0, 0.5, 1, 0.5)], 2)
        assert pairs.weight[0].tolist() == [
            [1, 0, 0, 0],
            [1, 1, 0, 0],
            [0, 0, 1, 0],
            [0, 0, 1, 1],
        ]
        flipped = found("pixel-distance", [WHOLE], [Crop(0, 0.5, 1, 0.5, 1)], 2)
        assert flipped.weight[0].equal(pairs.weight[0][:, [1, 0, 3, 2]])

    @QUICK
    @given(crops(), crops(), st.integers(1, 4))
    def test_against_a_loop(self, crop_1: Crop, crop_2: Crop, size: int) -> None:
        top, left, bottom, right = shared(crop_1, crop_2)
        assume(bottom - top > 1e-5 and right - left > 1e-5)
        weight = found("pixel-distance", [crop_1], [crop_2], size).weight[0]
        diagonal = max(math.hypot(crop.height, crop.width) for crop in (crop_1, crop_2)) / size
        for i, cell_1 in enumerate(cells(size)):
            for j, cell_2 in enumerate(cells(size)):
                apart = math.dist(seen_at(crop_1, cell_1), seen_at(crop_2, cell_2)) / diagonal
                if abs(apart - 0.7) > 1e-5:
                    assert weight[i, j] == (apart < 0.7)


class TestCandidateRegions:
    """Sliding windows over the overlap."""

    def test_by_hand(self) -> None:
        # The overlap is the upper half; its second window covers rows 0 to ¼ and columns ½ to 1 of the image.
        pairs = found("candidate-regions", [WHOLE], [Crop(0, 0, 0.5, 1, 1)], 2)
        assert pairs.places_1.shape == (1, 4, 9, 2)
        rows, columns = pairs.places_1[0, 1].view(3, 3, 2).unbind(-1)
        torch.testing.assert_close(rows[:, 0], torch.tensor([1.0, 3.0, 5.0]) / 24)
        torch.testing.assert_close(columns[0], torch.tensor([7.0, 9.0, 11.0]) / 12)
        torch.testing.assert_close(pairs.places_2[..., 0], 2 * pairs.places_1[..., 0])
        torch.testing.assert_close(pairs.places_2[..., 1], 1 - pairs.places_1[..., 1])
        assert pairs.weight[0].equal(torch.eye(4))


@pytest.mark.parametrize("corner", [0.0, 1.0])
def test_rounding_leaves_no_view(corner: float) -> None:
    source = torch.Generator().manual_seed(0)
    starts, lengths, flips = torch.rand(3, 2, 2000, 2, generator=source)
    lengths = 0.125 + 0.875 * lengths
    starts = starts * (1 - lengths)
    one, two = (
        Geometry(*torch.cat((starts[view], lengths[view], flips[view].round()), 1).T[:5])
        for view in range(2)
    )
    maps, config = torch.ones(2000, 1, 2, 2), PretrainConfig(sampling="uniform", grid=1)
    draws = torch.full((2000, 1, 2), corner)
    answer = STRATEGIES["location"]((one, two), (maps, maps), config, draws)
    for places in (answer.places_1, answer.places_2):
        assert ((places >= 0) & (places <= 1)).all()


@pytest.mark.parametrize(("name", "sampling"), CASES)
class TestEveryStrategy:
    """What the losses rely on."""

    @settings(deadline=None, max_examples=20)
    @given(
        pairs=st.lists(st.tuples(crops(), crops()), min_size=1, max_size=3), size=st.integers(1, 4)
    )
    def test_places_lie_in_the_views(
        self, name: str, sampling: str, pairs: list[tuple[Crop, Crop]], size: int
    ) -> None:
        crops_1, crops_2 = [crop for crop, _ in pairs], [crop for _, crop in pairs]
        overlapping = overlap(geometry_of(*crops_1), geometry_of(*crops_2))[1]
        answer = found(name, crops_1, crops_2, size, sampling=sampling)
        batch, count, _, _ = answer.places_1.shape
        assert (batch, count) == (len(pairs), size**2)
        assert answer.weight.shape == (batch, count, count)
        assert answer.weight.dtype == torch.float32
        assert (answer.weight >= 0).all()
        for places in (answer.places_1, answer.places_2):
            assert ((places >= 0) & (places <= 1)).all()
        assert not (answer.linked & ~overlapping).any()
        if name != "pixel-distance":
            assert answer.linked.equal(overlapping)

    @pytest.mark.parametrize("flip", [0.0, 1.0])
    def test_nothing_for_disjoint_crops(self, name: str, sampling: str, flip: float) -> None:
        # Neighbours whose nearest cells are close together, a pair that touches in a corner, and one that overlaps.
        crops_1 = [Crop(0, 0, 0.5, 1, flip), Crop(0, 0, 0.5, 0.5), WHOLE]
        crops_2 = [Crop(0.5, 0, 0.5, 1), Crop(0.5, 0.5, 0.5, 0.5, flip), WHOLE]
        answer = found(name, crops_1, crops_2, 3, sampling=sampling)
        assert answer.linked.tolist() == [False, False, True]
        assert answer.weight[:2].sum() == 0
        assert answer.used.any(1).tolist() == [False, False, True] * 2

    def test_batch_does_not_matter(self, name: str, sampling: str) -> None:
        crops_1 = [Crop(0.1, 0.2, 0.5, 0.6), Crop(0.0, 0.3, 0.9, 0.4, 1), Crop(0.0, 0.0, 0.2, 0.2)]
        crops_2 = [Crop(0.3, 0.0, 0.5, 0.9, 1), WHOLE, Crop(0.5, 0.5, 0.4, 0.4)]
        maps = random_features(3), random_features(3, seed=1)
        images = [17, 4, 99]
        together = found(name, crops_1, crops_2, 3, maps, sampling=sampling, images=images)
        for row in range(3):
            part = slice(row, row + 1)
            alone = found(
                name,
                crops_1[part],
                crops_2[part],
                3,
                (maps[0][part], maps[1][part]),
                sampling=sampling,
                images=images[part],
            )
            for one, two in zip(astuple(together), astuple(alone), strict=True):
                assert one[part].equal(two)

    @settings(deadline=None, max_examples=20)
    @given(crop_1=crops(), crop_2=crops())
    def test_neither_view_is_the_first(
        self, name: str, sampling: str, crop_1: Crop, crop_2: Crop
    ) -> None:
        maps = random_features(1), random_features(1, seed=1)
        answer = found(name, [crop_1], [crop_2], 3, maps, sampling=sampling)
        swapped = found(name, [crop_2], [crop_1], 3, maps[::-1], sampling=sampling)
        assert swapped.places_1.equal(answer.places_2)
        assert swapped.places_2.equal(answer.places_1)
        assert swapped.weight.equal(answer.weight.mT)


def test_used_places_have_a_link() -> None:
    weight = torch.tensor([[[0.0, 2.0], [0.0, 0.5]], [[0.0, 0.0], [0.0, 1.0]]])
    places = torch.zeros(2, 2, 1, 2)
    used = Correspondence(places, places, weight).used
    assert used.int().tolist() == [[1, 1], [0, 1], [0, 1], [0, 1]]
