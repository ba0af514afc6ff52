"""Grids worked out by hand, samplers against brute-force loops, and maps read as torch's own sampler reads them."""

from __future__ import annotations

import random
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from densesiam_seg.config import PretrainConfig
from densesiam_seg.io.randomness import Stream, generator
from densesiam_seg.methods.sampling import (
    cell_centres,
    grid_draws,
    hardest,
    pool,
    sample,
    sliding_windows,
)

QUICK = settings(deadline=None, max_examples=40)
IMAGES = st.integers(0, 10**9)
Sampling = Literal["regular", "uniform", "biased"]
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
    def test_two_by_two_map(self) -> None:
        maps = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
        # Pixel centres lie at ¼ and ¾; beyond them the border value goes on.
        points = [(0.25, 0.25), (0.25, 0.75), (0.5, 0.5), (0.5, 0.25), (0.25, 0.375), (0, 0)]
        values = pool(maps, torch.tensor([*points, (1, 0.5)]).view(1, -1, 1, 2))
        assert values.flatten().tolist() == [1, 2, 2.5, 2, 1.25, 1, 3.5]
        place = torch.tensor([(0.25, 0.25), (0.5, 0.5), (1.0, 1.0)]).view(1, 1, 3, 2)
        assert pool(maps, place).item() == pytest.approx((1 + 2.5 + 4) / 3)

    @QUICK
    @given(*[st.integers(1, 9)] * 6, st.integers(0, 1000))
    def test_values_and_gradients_are_those_of_grid_sample(
        self, batch: int, channels: int, height: int, width: int, count: int, points: int, seed: int
    ) -> None:
        maps = random_tensor(batch, channels, height, width, seed=seed).requires_grad_()
        places = random_places(batch, count, points, seed=seed)
        values, expected = pool(maps, places), grid_sampled(maps, places)
        torch.testing.assert_close(values, expected, rtol=0, atol=1e-5)
        upstream = random_tensor(batch, count, channels, seed=seed + 1)
        (one,), (two,) = (torch.autograd.grad(each, maps, upstream) for each in (values, expected))
        torch.testing.assert_close(one, two, rtol=0, atol=1e-5)

    def test_half_precision_is_left_before_the_sum(self) -> None:
        maps, places = random_tensor(2, 3, 4, 5).bfloat16(), random_places(2, 6, 9)
        with torch.autocast("cpu", torch.bfloat16):
            values = pool(maps, places)
        assert values.dtype == torch.float32
        torch.testing.assert_close(values, pool(maps.float(), places), rtol=0, atol=0)


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
        """A single one lies in the middle."""
        starts = sliding_windows(5, "cpu")[:, 0] - 1 / 12
        expected = torch.linspace(0, 0.5, 5)
        torch.testing.assert_close(starts, torch.cartesian_prod(expected, expected))
        torch.testing.assert_close(sliding_windows(1, "cpu").mean((0, 1)), torch.tensor([0.5, 0.5]))


class TestDraws:
    @pytest.mark.parametrize(
        ("size", "importance", "expected"),
        [(7, 0.75, 36), (7, 1.0, 49), (7, 0.0, 0), (10, 0.29, 29), (2, 0.7, 2), (10, 0.999, 99)],
    )
    def test_hardest_are_rounded_down(self, size: int, importance: float, expected: int) -> None:
        config = PretrainConfig(sampling="biased", grid=size, importance=importance)
        assert hardest(config) == expected
        draws = grid_draws(config, 0, [4], "cpu")
        assert draws.shape == (1, 4 * size**2 - expected, 2)

    @QUICK
    @given(
        st.sampled_from(SAMPLINGS),
        st.integers(0, 2**63 - 1),
        st.integers(0, 10**6),
        st.lists(IMAGES, min_size=1, max_size=5),
    )
    def test_are_a_function_of_seed_round_and_image(
        self, sampling: Sampling, seed: int, round_: int, images: list[int]
    ) -> None:
        config = PretrainConfig(sampling=sampling, grid=3, seed=seed)
        draws = grid_draws(config, round_, images, "cpu")
        count = {"regular": 0, "uniform": 9, "biased": 27 + 3}[sampling]
        assert draws.shape == (len(images), count, 2) and draws.dtype == torch.float32
        for row, image in zip(draws, images, strict=True):
            own = generator(seed, Stream.GRID, round_, image)
            np.testing.assert_array_equal(row.numpy(), own.random((count, 2), dtype=np.float32))


class TestSamplers:
    """From draws to positions."""

    def test_regular_and_uniform(self) -> None:
        regular = sample(PretrainConfig(grid=2), torch.empty(3, 0, 2), torch.sum)
        assert regular.equal(cell_centres(2, "cpu").expand(3, -1, -1))
        config = PretrainConfig(sampling="uniform", grid=2)
        draws = grid_draws(config, 0, [1, 2], "cpu")
        assert sample(config, draws, torch.sum).equal(draws)

    def test_biased_by_hand(self) -> None:
        # N = 4: two of the eight candidates are chosen, the last two draws fill up.
        config = PretrainConfig(sampling="biased", grid=2, oversample=2, importance=0.5)
        draws = torch.arange(20).view(1, 10, 2) / 20
        alike = torch.tensor([[0.9, 0.1, 0.8, 0.2, 0.7, -0.5, 0.6, 0.1]])
        asked: list[Tensor] = []

        def similarity(positions: Tensor) -> Tensor:
            asked.append(positions)
            return alike

        positions = sample(config, draws, similarity)
        assert positions[0].equal(draws[0, [5, 1, 8, 9]])  # of the two at 0.1 the first drawn
        assert len(asked) == 1 and asked[0].equal(draws[:, :8])

    @QUICK
    @given(*[st.integers(1, 4)] * 3, st.integers(0, 100), st.integers(0, 1000))
    def test_biased_takes_exactly_the_least_similar(
        self, size: int, oversample: int, batch: int, percent: int, seed: int
    ) -> None:
        config = PretrainConfig(
            sampling="biased", grid=size, oversample=oversample, importance=percent / 100, seed=seed
        )
        kept, count = percent * size**2 // 100, oversample * size**2
        draws = grid_draws(config, 0, range(batch), "cpu")
        # Few values, so that many are equal.
        alike = random_tensor(batch, count, seed=seed).mul(2).round()
        positions = sample(config, draws, lambda _: alike)
        assert positions.shape == (batch, size**2, 2)
        for image in range(batch):
            order = sorted(range(count), key=lambda number: (alike[image, number].item(), number))
            chosen = [*order[:kept], *range(count, count + size**2 - kept)]
            assert positions[image].equal(draws[image, chosen])

    def test_global_generators_are_untouched(self) -> None:
        def state() -> list[object]:
            numpy_state = np.random.get_state(legacy=False)  # noqa: NPY002
            return [random.getstate(), str(numpy_state), torch.get_rng_state().tolist()]

        before = state()
        config = PretrainConfig(sampling="biased", grid=3)
        sample(config, grid_draws(config, 0, range(4), "cpu"), lambda places: places[..., 0])
        assert state() == before
