"""Every strategy worked out by hand, against slow loops, and on an image coloured by its own coordinates."""

from __future__ import annotations

import math
from dataclasses import astuple
from typing import NamedTuple

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from densesiam_seg.methods.correspondence import (
    STRATEGIES,
    Correspondence,
    overlap,
    to_image,
    to_view,
    used,
)
from densesiam_seg.methods.sampling import Grid, Sampling, cell_centres, grid_draws, pool
from densesiam_seg.views.geometric import bilinear_matrix, resample
from densesiam_seg.views.parameters import Window

QUICK = settings(deadline=None, max_examples=60)
SAMPLINGS: list[Sampling] = ["regular", "uniform", "biased"]
SIDE = 24


class Crop(NamedTuple):
    top: float
    left: float
    height: float
    width: float
    flip: float = 0.0


WHOLE = Crop(0.0, 0.0, 1.0, 1.0)


def window_of(*crops: Crop) -> Window:
    return Window(*torch.tensor(crops, dtype=torch.float32).T)


@st.composite
def crops(draw: st.DrawFn) -> Crop:
    """Any crop of at least an eighth of each side, flipped or not."""
    height, width = draw(st.floats(0.125, 1, width=32)), draw(st.floats(0.125, 1, width=32))
    top, left = draw(st.floats(0, 1)) * (1 - height), draw(st.floats(0, 1)) * (1 - width)
    return Crop(top, left, height, width, float(draw(st.booleans())))


def shared(crop_1: Crop, crop_2: Crop) -> tuple[float, float, float, float]:
    """Top, left, bottom and right of what both crops show."""
    return (
        max(crop_1.top, crop_2.top),
        max(crop_1.left, crop_2.left),
        min(crop_1.top + crop_1.height, crop_2.top + crop_2.height),
        min(crop_1.left + crop_1.width, crop_2.left + crop_2.width),
    )


def seen_at(crop: Crop, position: tuple[float, float]) -> tuple[float, float]:
    """Where in the image a position of the view lies."""
    y, x = position
    return crop.top + crop.height * y, crop.left + crop.width * (1 - x if crop.flip else x)


def random_features(batch: int, channels: int = 3, side: int = 5, seed: int = 0) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    return torch.randn(batch, channels, side, side, generator=source)


def found(
    name: str,
    crops_1: list[Crop],
    crops_2: list[Crop],
    grid: Grid,
    features: tuple[Tensor, Tensor] | None = None,
    seed: int = 0,
) -> Correspondence:
    """The strategy's answer, on random features where none are given."""
    batch = len(crops_1)
    features_1, features_2 = features or (
        random_features(batch, seed=seed),
        random_features(batch, seed=seed + 1),
    )
    draws = grid_draws(grid, seed, 0, range(batch), "cpu")
    return STRATEGIES[name](
        window_of(*crops_1), window_of(*crops_2), features_1, features_2, grid, draws
    )


def grids(name: str, size: int) -> list[Grid]:
    """Every grid that has a meaning for the strategy."""
    samplings = SAMPLINGS if name == "location" else SAMPLINGS[:1]
    return [Grid(sampling, size) for sampling in samplings]


class TestGeometry:
    """Overlaps, and positions of a view in the image and back."""

    def test_overlap_by_hand(self) -> None:
        first = window_of(Crop(0.0, 0.25, 0.5, 0.5), WHOLE, Crop(0.5, 0.0, 0.5, 0.25, 1))
        second = window_of(Crop(0.25, 0.5, 0.75, 0.5), Crop(0.5, 0.0, 0.25, 0.5, 1), WHOLE)
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
        first, second = window_of(Crop(0.0, 0.0, 0.6, 0.6)), window_of(other)
        assert overlap(first, second)[1].tolist() == [expected]
        assert overlap(second, first)[1].tolist() == [expected]

    def test_positions_by_hand(self) -> None:
        windows = window_of(Crop(0.5, 0.25, 0.25, 0.5), Crop(0.5, 0.25, 0.25, 0.5, 1))
        positions = torch.tensor([[0.5, 0.25], [0.0, 1.0]]).expand(2, -1, -1)
        expected = [[[0.625, 0.375], [0.5, 0.75]], [[0.625, 0.625], [0.5, 0.25]]]
        assert to_image(positions, windows).tolist() == expected
        assert to_view(torch.tensor(expected), windows).tolist() == positions.tolist()
        outside = to_view(torch.tensor([[[0.0, 0.0]]]), windows[:1])
        assert outside.tolist() == [[[-2.0, -0.5]]]

    @QUICK
    @given(crops(), st.floats(0, 1), st.floats(0, 1))
    def test_there_and_back(self, crop: Crop, y: float, x: float) -> None:
        window, position = window_of(crop), torch.tensor([[[y, x]]], dtype=torch.float32)
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
    window, never = window_of(crop), torch.zeros(1)
    rows = bilinear_matrix(window.top, window.height, never, SIDE, side)
    columns = bilinear_matrix(window.left, window.width, window.flip, SIDE, side)
    return resample(image, rows, columns)


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
        st.sampled_from(SAMPLINGS),
        st.integers(0, 1000),
    )
    def test_same_place_of_the_image(
        self, crop_1: Crop, crop_2: Crop, side: int, size: int, sampling: Sampling, seed: int
    ) -> None:
        image, grid = coordinate_image(), Grid(sampling, size)
        maps = (cut(image, crop_1, side), cut(image, crop_2, side))
        pairs = found("location", [crop_1], [crop_2], grid, maps, seed)
        top, left, bottom, right = shared(crop_1, crop_2)
        assume(bottom - top > 1e-5 and right - left > 1e-5)
        assert pairs.weight[0].equal(torch.eye(size**2))
        where = to_image(pairs.places_1[:, :, 0], window_of(crop_1))
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

    def test_regular_grid_spans_the_overlap(self) -> None:
        crop_1, crop_2 = Crop(0.125, 0.25, 0.75, 0.5, 1), Crop(0.25, 0.0, 0.5, 0.75)
        pairs = found("location", [crop_1], [crop_2], Grid(size=3))
        in_overlap = torch.tensor([0.25, 0.25]) + torch.tensor([0.5, 0.5]) * cell_centres(3, "cpu")
        for crop, places in ((crop_1, pairs.places_1), (crop_2, pairs.places_2)):
            torch.testing.assert_close(to_image(places[:, :, 0], window_of(crop))[0], in_overlap)

    @QUICK
    @given(crops(), crops(), st.integers(1, 4))
    def test_regions_lie_around_the_same_place(self, crop_1: Crop, crop_2: Crop, size: int) -> None:
        image = coordinate_image()
        top, left, bottom, right = shared(crop_1, crop_2)
        assume(bottom - top > 1e-5 and right - left > 1e-5)
        maps = (cut(image, crop_1, 8), cut(image, crop_2, 8))
        pairs = found("candidate-regions", [crop_1], [crop_2], Grid(size=size), maps)
        middles = torch.linspace(0.25, 0.75, size) if size > 1 else torch.tensor([0.5])
        unit = torch.cartesian_prod(middles, middles)
        expected = torch.tensor([top, left]) + torch.tensor([bottom - top, right - left]) * unit
        for crop, features, places in zip(
            (crop_1, crop_2), maps, (pairs.places_1, pairs.places_2), strict=True
        ):
            # The mean of nine values, each at most half a cell off, plus the image's own border of half a pixel.
            bound = torch.tensor([crop.height, crop.width]) / 16 + 0.5 / SIDE + 1e-5
            assert ((pool(features, places)[0] - expected).abs() <= bound).all()


class TestLocation:
    """The sampler's positions of the overlap."""

    def test_by_hand(self) -> None:
        # The lower right quarter: centres at 5/8 and 7/8 of the image, at ¼ and ¾ of the flipped view.
        pairs = found("location", [WHOLE], [Crop(0.5, 0.5, 0.5, 0.5, 1)], Grid(size=2))
        low, high = 0.625, 0.875
        assert pairs.places_1[0, :, 0].tolist() == [
            [low, low],
            [low, high],
            [high, low],
            [high, high],
        ]
        assert pairs.places_2[0, :, 0].tolist() == [
            [0.25, 0.75],
            [0.25, 0.25],
            [0.75, 0.75],
            [0.75, 0.25],
        ]
        assert pairs.weight[0].equal(torch.eye(4))

    def test_uniform_positions_are_the_draws(self) -> None:
        grid = Grid("uniform", 3)
        pairs = found("location", [WHOLE], [Crop(0.0, 0.0, 0.5, 1.0)], grid, seed=3)
        draws = grid_draws(grid, 3, 0, [0], "cpu")
        torch.testing.assert_close(pairs.places_2[:, :, 0], draws)
        torch.testing.assert_close(pairs.places_1[:, :, 0], draws * torch.tensor([0.5, 1.0]))

    def test_rounding_leaves_no_view(self) -> None:
        source = torch.Generator().manual_seed(0)
        starts, lengths, flips = torch.rand(3, 2, 2000, 2, generator=source)
        lengths = 0.125 + 0.875 * lengths
        starts = starts * (1 - lengths)
        windows = [
            Window(*torch.cat((starts[view], lengths[view], flips[view].round()), 1).T[:5])
            for view in range(2)
        ]
        features, grid = torch.ones(2000, 1, 2, 2), Grid("uniform", 1)
        for corner in (0.0, 1.0):
            draws = torch.full((2000, 1, 2), corner)
            answer = STRATEGIES["location"](windows[0], windows[1], features, features, grid, draws)
            for places in (answer.places_1, answer.places_2):
                assert ((places >= 0) & (places <= 1)).all()

    @QUICK
    @given(crops(), crops(), st.integers(1, 4), st.integers(0, 1000))
    def test_biased_keeps_the_places_that_differ_most(
        self, crop_1: Crop, crop_2: Crop, size: int, seed: int
    ) -> None:
        top, left, bottom, right = shared(crop_1, crop_2)
        assume(bottom - top > 1e-3 and right - left > 1e-3)
        grid = Grid("biased", size)
        features = random_features(1, seed=seed), random_features(1, seed=seed + 1)
        pairs = found("location", [crop_1], [crop_2], grid, features, seed)
        draws = grid_draws(grid, seed, 0, [0], "cpu")[0].double()
        candidates = torch.tensor([top, left]) + draws * torch.tensor([bottom - top, right - left])
        cosines = []
        for place in candidates[: 3 * size**2]:
            values = []
            for crop, maps in zip((crop_1, crop_2), features, strict=True):
                position = to_view(place.view(1, 1, 2), window_of(crop))
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
        in_image = to_image(pairs.places_1[:, :, 0], window_of(crop_1))[0].double()
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
        pairs = found(
            "feature-similarity", [WHOLE], [WHOLE], Grid(size=2), (features_1, features_2)
        )
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
        pairs = found("feature-similarity", [WHOLE] * 2, [WHOLE] * 2, Grid(size=size), features)
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
        plain = found("feature-similarity", [WHOLE] * 2, [WHOLE] * 2, Grid(), features)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = found("feature-similarity", [WHOLE] * 2, [WHOLE] * 2, Grid(), features)
        assert mixed.weight.equal(plain.weight)


class TestPixelDistance:
    """Links of cells that lie close together in the image."""

    def test_by_hand(self) -> None:
        # View 2 is the right half, its centres at x = 5/8 and 7/8. The larger diagonal is √½ = 0.707, so cells less
        # than 0.495 apart are linked: 3/8 and 1/8 are, 5/8 and √(½² + ⅛²) = 0.515 are not.
        pairs = found("pixel-distance", [WHOLE], [Crop(0, 0.5, 1, 0.5)], Grid(size=2))
        assert pairs.weight[0].tolist() == [
            [1, 0, 0, 0],
            [1, 1, 0, 0],
            [0, 0, 1, 0],
            [0, 0, 1, 1],
        ]
        flipped = found("pixel-distance", [WHOLE], [Crop(0, 0.5, 1, 0.5, 1)], Grid(size=2))
        assert flipped.weight[0].equal(pairs.weight[0][:, [1, 0, 3, 2]])

    def test_same_view_is_linked_with_itself_only(self) -> None:
        # In a square grid the next cell is 0.707 diagonals away, just beyond the threshold.
        pairs = found("pixel-distance", [WHOLE], [WHOLE], Grid())
        assert pairs.weight[0].equal(torch.eye(49))
        wider = found("pixel-distance", [WHOLE], [WHOLE], Grid(size=2, distance_threshold=0.71))
        assert wider.weight[0].equal(1 - torch.eye(4).flip(0))

    @QUICK
    @given(crops(), crops(), st.integers(1, 4), st.floats(0.1, 2))
    def test_against_a_loop(self, crop_1: Crop, crop_2: Crop, size: int, threshold: float) -> None:
        top, left, bottom, right = shared(crop_1, crop_2)
        assume(bottom - top > 1e-5 and right - left > 1e-5)
        grid = Grid(size=size, distance_threshold=threshold)
        weight = found("pixel-distance", [crop_1], [crop_2], grid).weight[0]
        diagonal = max(math.hypot(crop.height, crop.width) for crop in (crop_1, crop_2)) / size
        cells = [((i + 0.5) / size, (j + 0.5) / size) for i in range(size) for j in range(size)]
        for i, cell_1 in enumerate(cells):
            for j, cell_2 in enumerate(cells):
                apart = math.dist(seen_at(crop_1, cell_1), seen_at(crop_2, cell_2)) / diagonal
                if abs(apart - threshold) > 1e-5:
                    assert weight[i, j] == (apart < threshold)

    def test_overlap_without_close_cells(self) -> None:
        # One cell each, and a sliver in common: the centres are 0.99 of a diagonal apart.
        crop_1, crop_2 = Crop(0, 0, 0.5, 0.5), Crop(0.495, 0.495, 0.5, 0.5)
        pairs = found("pixel-distance", [crop_1], [crop_2], Grid(size=1))
        assert not pairs.linked.any()


class TestCandidateRegions:
    """Sliding windows over the overlap."""

    def test_by_hand(self) -> None:
        # The overlap is the upper half; its second window covers rows 0 to ¼ and columns ½ to 1 of the image.
        pairs = found("candidate-regions", [WHOLE], [Crop(0, 0, 0.5, 1, 1)], Grid(size=2))
        assert pairs.places_1.shape == (1, 4, 9, 2)
        rows, columns = pairs.places_1[0, 1].view(3, 3, 2).unbind(-1)
        torch.testing.assert_close(rows[:, 0], torch.tensor([1.0, 3.0, 5.0]) / 24)
        torch.testing.assert_close(columns[0], torch.tensor([7.0, 9.0, 11.0]) / 12)
        torch.testing.assert_close(pairs.places_2[..., 0], 2 * pairs.places_1[..., 0])
        torch.testing.assert_close(pairs.places_2[..., 1], 1 - pairs.places_1[..., 1])
        assert pairs.weight[0].equal(torch.eye(4))

    def test_region_holds_the_mean_of_its_positions(self) -> None:
        maps = torch.arange(36.0).view(1, 1, 6, 6)
        pairs = found("candidate-regions", [WHOLE], [WHOLE], Grid(size=2), (maps, maps))
        # The nine positions of the first window are the centres of the first 3 × 3 pixels, whose middle one is 7.
        expected = torch.tensor([7.0, 10.0, 25.0, 28.0])
        torch.testing.assert_close(pool(maps, pairs.places_1)[0, :, 0], expected)


class TestNone:
    """Image level only."""

    def test_no_places_and_no_links(self) -> None:
        pairs = found("none", [WHOLE] * 2, [WHOLE] * 2, Grid())
        assert pairs.places_1.shape == pairs.places_2.shape == (2, 0, 1, 2)
        assert pairs.weight.shape == (2, 0, 0)
        assert pairs.linked.tolist() == [False, False]
        assert [places.shape for places in used(pairs)] == [(2, 0), (2, 0)]


@pytest.mark.parametrize("name", STRATEGIES)
class TestEveryStrategy:
    """What the losses rely on."""

    @settings(deadline=None, max_examples=25)
    @given(
        pairs=st.lists(st.tuples(crops(), crops()), min_size=1, max_size=3), size=st.integers(1, 4)
    )
    def test_places_lie_in_the_views(
        self, name: str, pairs: list[tuple[Crop, Crop]], size: int
    ) -> None:
        crops_1, crops_2 = [crop for crop, _ in pairs], [crop for _, crop in pairs]
        overlapping = overlap(window_of(*crops_1), window_of(*crops_2))[1]
        for grid in grids(name, size):
            answer = found(name, crops_1, crops_2, grid)
            batch, count, _, _ = answer.places_1.shape
            assert (batch, count) == (len(pairs), 0 if name == "none" else size**2)
            assert answer.weight.shape == (batch, count, answer.places_2.shape[1])
            assert answer.weight.dtype == torch.float32
            assert (answer.weight >= 0).all()
            for places in (answer.places_1, answer.places_2):
                assert ((places >= 0) & (places <= 1)).all()
            assert not (answer.linked & ~overlapping).any()
            if name not in ("none", "pixel-distance"):
                assert answer.linked.equal(overlapping)

    @pytest.mark.parametrize("flip", [0.0, 1.0])
    def test_nothing_for_disjoint_crops(self, name: str, flip: float) -> None:
        # Neighbours whose nearest cells are close together, a pair that touches in a corner, and one that overlaps.
        crops_1 = [Crop(0, 0, 0.5, 1, flip), Crop(0, 0, 0.5, 0.5), WHOLE]
        crops_2 = [Crop(0.5, 0, 0.5, 1), Crop(0.5, 0.5, 0.5, 0.5, flip), WHOLE]
        for grid in grids(name, 3):
            answer = found(name, crops_1, crops_2, grid)
            assert answer.linked.tolist() == [False, False, name != "none"]
            assert answer.weight[:2].sum() == 0
            for side in used(answer):
                assert not side[:2].any()

    def test_batch_does_not_matter(self, name: str) -> None:
        crops_1 = [Crop(0.1, 0.2, 0.5, 0.6), Crop(0.0, 0.3, 0.9, 0.4, 1), Crop(0.0, 0.0, 0.2, 0.2)]
        crops_2 = [Crop(0.3, 0.0, 0.5, 0.9, 1), WHOLE, Crop(0.5, 0.5, 0.4, 0.4)]
        features_1, features_2 = random_features(3), random_features(3, seed=1)
        first, second = window_of(*crops_1), window_of(*crops_2)
        images = [17, 4, 99]
        for grid in grids(name, 3):
            together = STRATEGIES[name](
                first, second, features_1, features_2, grid, grid_draws(grid, 5, 2, images, "cpu")
            )
            for row, image in enumerate(images):
                part = slice(row, row + 1)
                draws = grid_draws(grid, 5, 2, [image], "cpu")
                alone = STRATEGIES[name](
                    first[part], second[part], features_1[part], features_2[part], grid, draws
                )
                assert together.places_1[part].equal(alone.places_1)
                assert together.places_2[part].equal(alone.places_2)
                assert together.weight[part].equal(alone.weight)

    @settings(deadline=None, max_examples=25)
    @given(crop_1=crops(), crop_2=crops())
    def test_neither_view_is_the_first(self, name: str, crop_1: Crop, crop_2: Crop) -> None:
        features = random_features(1), random_features(1, seed=1)
        for grid in grids(name, 3):
            answer = found(name, [crop_1], [crop_2], grid, features)
            swapped = found(name, [crop_2], [crop_1], grid, features[::-1])
            assert swapped.places_1.equal(answer.places_2)
            assert swapped.places_2.equal(answer.places_1)
            assert swapped.weight.equal(answer.weight.mT)

    def test_global_generator_is_untouched(self, name: str) -> None:
        before = torch.get_rng_state()
        for grid in grids(name, 3):
            draws = grid_draws(grid, 0, 0, [0], "cpu")
            features = torch.ones(1, 3, 4, 4)
            STRATEGIES[name](window_of(WHOLE), window_of(WHOLE), features, features, grid, draws)
        assert torch.get_rng_state().equal(before)

    def test_other_samplings_belong_to_location(self, name: str) -> None:
        if name == "location":
            return
        with pytest.raises(AssertionError):
            found(name, [WHOLE], [WHOLE], Grid("uniform", 2))


def test_used_places_have_a_link() -> None:
    weight = torch.tensor([[[0.0, 2.0, 0.0], [0.0, 0.5, 0.0]], [[0.0, 0.0, 0.0], [0.0, 0.0, 1.0]]])
    nowhere = torch.zeros(2, 2, 1, 2), torch.zeros(2, 3, 1, 2)
    used_1, used_2 = used(Correspondence(*nowhere, weight))
    assert used_1.tolist() == [[True, True], [False, True]]
    assert used_2.tolist() == [[False, True, False], [False, False, True]]
