from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from densesiam_seg.clustering.appearance import (
    AROUND,
    CHANNELS,
    DARK,
    FLAT,
    GIST,
    NEAR,
    Surroundings,
    appearance,
    gist_of,
    position,
)


def noise(height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(seed))


def test_a_flat_image_by_hand() -> None:
    image = torch.tensor([0.4, 0.2, 0.1]).view(1, 3, 1, 1).expand(1, 3, 24, 24)
    maps = appearance(image, (6, 6))
    assert maps.shape == (1, CHANNELS, 6, 6)
    luminance = math.log(0.7 / 3 + DARK)
    colours = [math.log(0.45 / 0.25), math.log(0.15 / 0.25)]
    expected = [luminance, luminance, *colours, *colours, math.log(FLAT), math.log(FLAT)]
    half = [luminance, *colours, math.log(FLAT)]
    for found, value in zip(maps[0], [*half, *half, *expected], strict=False):
        torch.testing.assert_close(found, torch.full((6, 6), value), atol=2e-2, rtol=0)


def test_positions_run_from_minus_one_to_one() -> None:
    maps = position(2, (2, 4), torch.device("cpu"))
    assert maps.shape == (2, 2, 2, 4)
    assert maps[1, 0].tolist() == [[-0.5] * 4, [0.5] * 4]
    assert maps[0, 1].tolist() == [[-0.75, -0.25, 0.25, 0.75]] * 2
    torch.testing.assert_close(appearance(noise(16, 32), (2, 4))[:, -2:], maps)


def test_against_loops() -> None:
    """Every channel by plain loops over cells and windows, windows cut off at the border."""
    height, width = 5, 4
    images = noise(2 * height * 2, 2 * width * 2)
    found = appearance(images, (height, width)).double().numpy()
    cells = images.double().view(2, 3, 2 * height, 2, 2 * width, 2).mean((3, 5)).numpy()
    light = cells.mean(1)
    logs = np.log(cells + DARK)
    for image in range(2):
        for row in range(height):
            for column in range(width):
                own = [(2 * row + i, 2 * column + j) for i in (0, 1) for j in (0, 1)]
                means: list[list[float]] = []
                colours: list[list[float]] = []
                spreads: list[list[float]] = []
                for side in (NEAR, AROUND):
                    reach = side // 2
                    windows = [
                        (
                            slice(max(y - reach, 0), y + reach + 1),
                            slice(max(x - reach, 0), x + reach + 1),
                        )
                        for y, x in own
                    ]
                    means.append([np.log(light[image][w].mean() + DARK) for w in windows])
                    for one in (0, 2):
                        ratio = logs[image, one] - logs[image, 1]
                        colours.append([ratio[w].mean() for w in windows])
                    spreads.append([np.log(light[image][w].std() + FLAT) for w in windows])
                expected = [float(np.mean(values)) for values in (*means, *colours, *spreads)]
                place = found[image, GIST:-2, row, column]
                np.testing.assert_allclose(place, expected, atol=1e-4)


@pytest.mark.parametrize("height", [1, 2, 5])
def test_the_gist_is_what_both_halves_look_like(height: int) -> None:
    """A middle row belongs to both."""
    maps = appearance(noise(8 * height, 24), (height, 6))
    near = maps[:, [GIST, GIST + 2, GIST + 3, GIST + 6]]
    upper, lower = near[:, :, : (height + 1) // 2], near[:, :, height // 2 :]
    expected = torch.cat((upper.mean((2, 3)), lower.mean((2, 3))), 1)
    torch.testing.assert_close(maps[:, :GIST], expected[..., None, None].expand(2, 8, height, 6))


def test_a_change_of_light_leaves_bright_colours_nearly_alone() -> None:
    bright = 0.5 + 0.4 * noise(32, 32)
    one, other = appearance(bright, (8, 8)), appearance(0.7 * bright, (8, 8))
    own = (one - other)[:, GIST:]
    assert float(own[:, :2].abs().min()) > 0.2
    assert float(own[:, 2:6].abs().max()) < 0.1


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 12), st.integers(1, 12))
@settings(deadline=None, max_examples=30)
def test_any_size_is_finite(height: int, width: int, rows: int, columns: int) -> None:
    # Some pixels are black and some white.
    maps = appearance((2 * noise(height, width) - 0.5).clamp(0, 1), (rows, columns))
    assert maps.shape == (2, CHANNELS, rows, columns)
    assert bool(maps.isfinite().all())


def test_autocast_rounds_nothing() -> None:
    images = noise(16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        found = appearance(images, (4, 4))
    assert torch.equal(found, appearance(images, (4, 4)))


class TestTiles:
    WHOLE = noise(64, 64)[:1]

    def test_positions_are_those_of_the_whole(self) -> None:
        whole = appearance(self.WHOLE, (16, 16))
        gist = gist_of(self.WHOLE, (16, 16))
        around = Surroundings(gist, (-1, 0, 0, 1))
        tile = appearance(self.WHOLE[..., :32, 32:], (8, 8), around)
        torch.testing.assert_close(tile[:, :GIST], whole[:, :GIST, :8, 8:])
        torch.testing.assert_close(tile[:, -2:], whole[:, -2:, :8, 8:])
        # Windows reach 4 cells, 2 places.
        inside = (..., slice(0, 5), slice(3, 8))
        torch.testing.assert_close(tile[:, GIST:][inside], whole[:, GIST:, :8, 8:][inside])

    def test_mirrored(self) -> None:
        around = Surroundings(gist_of(self.WHOLE, (16, 16)), (-1, 0, 0, 1))
        tile = self.WHOLE[..., :32, 32:]
        own, mirrored = (
            appearance(tile, (8, 8), around),
            appearance(tile.flip(-1), (8, 8), around.mirrored()).flip(-1),
        )
        torch.testing.assert_close(mirrored[:, -2], own[:, -2])
        torch.testing.assert_close(mirrored[:, -1], -own[:, -1])
