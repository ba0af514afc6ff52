"""Grids worked out by hand, samplers against brute-force loops, and maps read as torch's own sampler reads them."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from densesiam_seg.io.randomness import Stream, generator
from densesiam_seg.methods.sampling import (
    SAMPLERS,
    Grid,
    Sampling,
    cell_centres,
    grid_draws,
    pool,
    sample,
    sliding_windows,
)

QUICK = settings(deadline=None, max_examples=40)
IMAGES = st.integers(0, 10**9)
SAMPLINGS: list[Sampling] = ["regular", "uniform", "biased"]


def random_tensor(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def random_places(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand((*shape, 2), generator=torch.Generator().manual_seed(seed))


def grid_sampled(maps: Tensor, places: Tensor) -> Tensor:
    """The mean of torch's own samples at each place, (B, N, C)."""
    grid = 2 * places.flip(-1) - 1
    samples = F.grid_sample(maps, grid, padding_mode="border", align_corners=False)
    return samples.mean(-1).mT


class TestPool:
    """Values of places."""

    def test_two_by_two_map(self) -> None:
        maps = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
        # Pixel centres lie at ¼ and ¾; beyond them the border value goes on.
        points = [
            (0.25, 0.25),
            (0.25, 0.75),
            (0.5, 0.5),
            (0.5, 0.25),
            (0.25, 0.375),
            (0, 0),
            (1, 0.5),
        ]
        expected = [1, 2, 2.5, 2, 1.25, 1, 3.5]
        values = pool(maps, torch.tensor(points).view(1, -1, 1, 2))
        assert values.tolist() == [[[value] for value in expected]]

    def test_place_is_the_mean_of_its_positions(self) -> None:
        maps = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
        place = torch.tensor([(0.25, 0.25), (0.5, 0.5), (1.0, 1.0)]).view(1, 1, 3, 2)
        assert pool(maps, place).item() == pytest.approx((1 + 2.5 + 4) / 3)

    @QUICK
    @given(*[st.integers(1, 9)] * 6, st.integers(0, 1000))
    def test_values_and_gradients_are_those_of_grid_sample(
        self, batch: int, channels: int, height: int, width: int, count: int, points: int, seed: int
    ) -> None:
        maps = random_tensor(batch, channels, height, width, seed=seed).requires_grad_()
        reference = maps.detach().clone().requires_grad_()
        places = random_places(batch, count, points, seed=seed)
        values, expected = pool(maps, places), grid_sampled(reference, places)
        torch.testing.assert_close(values, expected, rtol=0, atol=1e-5)
        upstream = random_tensor(batch, count, channels, seed=seed + 1)
        values.backward(upstream)  # type: ignore[no-untyped-call]
        expected.backward(upstream)  # type: ignore[no-untyped-call]
        assert maps.grad is not None
        torch.testing.assert_close(maps.grad, reference.grad, rtol=0, atol=1e-5)

    def test_half_precision_is_left_before_the_sum(self) -> None:
        maps, places = random_tensor(2, 3, 4, 5).bfloat16(), random_places(2, 6, 9)
        with torch.autocast("cpu", torch.bfloat16):
            values = pool(maps, places)
        assert values.dtype == torch.float32
        torch.testing.assert_close(values, pool(maps.float(), places), rtol=0, atol=0)

    def test_no_places_have_no_values(self) -> None:
        assert pool(random_tensor(2, 3, 4, 4), torch.empty(2, 0, 1, 2)).shape == (2, 0, 3)


class TestGrids:
    """Positions that nothing random chooses."""

    def test_cells_row_by_row(self) -> None:
        expected = [[0.25, 0.25], [0.25, 0.75], [0.75, 0.25], [0.75, 0.75]]
        assert cell_centres(2, "cpu").tolist() == expected
        assert cell_centres(1, "cpu").tolist() == [[0.5, 0.5]]

    def test_four_windows_tile_the_square(self) -> None:
        # Halves of the square, three cells of 1/6 each: centres at 1/12, 3/12, 5/12 and ½ more.
        windows = sliding_windows(2, "cpu").view(2, 2, 3, 3, 2) * 12
        rows, columns = windows[..., 0], windows[..., 1]
        first, second = [1.0, 3.0, 5.0], [7.0, 9.0, 11.0]
        for row, expected in enumerate((first, second)):
            torch.testing.assert_close(rows[row, 1, :, 2], torch.tensor(expected))
            torch.testing.assert_close(columns[0, row, 1], torch.tensor(expected))

    def test_windows_run_from_border_to_border(self) -> None:
        starts = sliding_windows(5, "cpu")[:, 0] - 1 / 12
        expected = torch.linspace(0, 0.5, 5)
        torch.testing.assert_close(starts, torch.cartesian_prod(expected, expected))

    def test_single_window_lies_in_the_middle(self) -> None:
        window = sliding_windows(1, "cpu")
        assert window.shape == (1, 9, 2)
        torch.testing.assert_close(window.mean((0, 1)), torch.tensor([0.5, 0.5]))


class TestCounts:
    """How many positions are drawn and kept."""

    @pytest.mark.parametrize(
        ("size", "importance", "expected"),
        [(7, 0.75, 36), (7, 1.0, 49), (7, 0.0, 0), (10, 0.29, 29), (2, 0.7, 2), (10, 0.999, 99)],
    )
    def test_hardest_are_rounded_down(self, size: int, importance: float, expected: int) -> None:
        assert Grid("biased", size, importance=importance).hardest == expected

    def test_draws_by_hand(self) -> None:
        assert Grid("regular", 7).draws == 0
        assert Grid("uniform", 7).draws == 49
        assert Grid("biased", 7, 3, 0.75).draws == 147 + 13
        assert Grid("biased", 7, 10, 1.0).draws == 490

    @pytest.mark.parametrize(
        "wrong",
        [{"size": 0}, {"oversample": 0}, {"importance": 1.1}, {"distance_threshold": 0.0}],
    )
    def test_meaningless_grid(self, wrong: dict[str, float]) -> None:
        with pytest.raises(AssertionError):
            Grid(**wrong)  # type: ignore[arg-type]


class TestDraws:
    """Numbers are a function of (seed, round, image)."""

    @QUICK
    @given(
        st.sampled_from(SAMPLINGS),
        st.integers(0, 2**63 - 1),
        st.integers(0, 10**6),
        st.lists(IMAGES, min_size=1, max_size=5),
        IMAGES,
    )
    def test_batch_does_not_matter(
        self, sampling: Sampling, seed: int, round_: int, images: list[int], other: int
    ) -> None:
        grid = Grid(sampling, 3)
        together = grid_draws(grid, seed, round_, [other, *images, other], "cpu")
        assert together.shape == (len(images) + 2, grid.draws, 2)
        assert together.dtype == torch.float32
        for row, image in enumerate(images):
            alone = grid_draws(grid, seed, round_, [image], "cpu")
            assert together[row + 1].equal(alone[0])
            own = generator(seed, Stream.GRID, round_, image)
            expected = own.random((grid.draws, 2), dtype=np.float32)
            np.testing.assert_array_equal(alone[0].numpy(), expected)

    def test_every_part_of_the_name_counts(self) -> None:
        names = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
        grid = Grid("uniform", 1)
        draws = {
            tuple(grid_draws(grid, seed, round_, [image], "cpu").flatten().tolist())
            for seed, round_, image in names
        }
        assert len(draws) == len(names)

    def test_uniform_in_the_half_open_square(self) -> None:
        draws = grid_draws(Grid("uniform", 10), 0, 0, range(100), "cpu")
        assert draws.min() >= 0
        assert draws.max() < 1
        counts = torch.histc(draws, 10, 0, 1)
        assert (counts - 2000).abs().max() < 213  # five standard deviations of 42.4

    def test_global_generators_are_untouched(self) -> None:
        def state() -> list[object]:
            numpy_state = np.random.get_state(legacy=False)  # noqa: NPY002
            return [random.getstate(), str(numpy_state), torch.get_rng_state().tolist()]

        with np.printoptions(threshold=10_000):
            before = state()
            grid = Grid("biased", 3)
            draws = grid_draws(grid, 0, 0, range(4), "cpu")
            sample(grid, draws, lambda positions: positions[..., 0])
            assert state() == before


class TestSamplers:
    """From draws to positions."""

    def test_regular(self) -> None:
        grid = Grid("regular", 2)
        positions = sample(grid, torch.empty(3, 0, 2), lambda positions: positions[..., 0])
        assert positions.shape == (3, 4, 2)
        assert all(image.equal(cell_centres(2, "cpu")) for image in positions)

    def test_uniform(self) -> None:
        grid = Grid("uniform", 2)
        draws = grid_draws(grid, 5, 0, [1, 2], "cpu")
        assert sample(grid, draws, lambda positions: positions[..., 0]).equal(draws)

    def test_biased_by_hand(self) -> None:
        # N = 4: two of the eight candidates are chosen, the last two draws fill up.
        grid = Grid("biased", 2, oversample=2, importance=0.5)
        draws = torch.arange(20).view(1, 10, 2) / 20
        alike = torch.tensor([[0.9, 0.1, 0.8, 0.2, 0.7, -0.5, 0.6, 0.1]])
        positions = sample(grid, draws, lambda _: alike)
        assert positions[0].equal(draws[0, [5, 1, 8, 9]])  # of the two at 0.1 the first drawn

    @QUICK
    @given(
        st.integers(1, 4),
        st.integers(1, 5),
        st.integers(0, 100),
        st.integers(1, 4),
        st.integers(0, 1000),
    )
    def test_biased_takes_exactly_the_least_similar(
        self, size: int, oversample: int, percent: int, batch: int, seed: int
    ) -> None:
        grid = Grid("biased", size, oversample, percent / 100)
        kept = percent * size**2 // 100
        draws = grid_draws(grid, seed, 0, range(batch), "cpu")
        # Few values, so that many are equal.
        alike = random_tensor(batch, oversample * size**2, seed=seed).mul(2).round()
        positions = sample(grid, draws, lambda _: alike)
        assert positions.shape == (batch, size**2, 2)
        for image in range(batch):
            left = list(range(oversample * size**2))
            chosen = []
            for _ in range(kept):
                least = min(left, key=lambda number: (alike[image, number].item(), number))
                left.remove(least)
                chosen.append(least)
            fill = range(oversample * size**2, oversample * size**2 + size**2 - kept)
            assert positions[image].equal(draws[image, [*chosen, *fill]])

    def test_biased_asks_at_the_candidates_only(self) -> None:
        grid = Grid("biased", 3)
        draws = grid_draws(grid, 0, 0, [4, 5], "cpu")
        asked: list[Tensor] = []

        def similarity(positions: Tensor) -> Tensor:
            asked.append(positions)
            return positions.sum(-1)

        sample(grid, draws, similarity)
        assert len(asked) == 1
        assert asked[0].equal(draws[:, :27])

    def test_draws_of_another_grid(self) -> None:
        with pytest.raises(AssertionError):
            sample(Grid("uniform", 2), torch.empty(1, 3, 2), lambda positions: positions[..., 0])

    def test_every_sampling_has_a_sampler(self) -> None:
        assert list(SAMPLERS) == SAMPLINGS
