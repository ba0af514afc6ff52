"""Positions of a unit square, regular, drawn or biased towards where two views differ; and maps read at positions.

Axes: B images, N = size² positions, P positions of a place, C channels, h w feature size; the last axis of positions is
(y, x) in [0, 1]. A sampler turns numbers drawn before into positions; it neither draws by itself nor knows what the
square stands for. The biased one is PointRend's scheme (Kirillov et al., CVPR 2020, section 3.1) with dissimilarity in
place of uncertainty: DenseSiam's supplement, Table A2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from densesiam_seg.io.randomness import Stream, generator

Sampling = Literal["regular", "uniform", "biased"]
Similarity = Callable[[Tensor], Tensor]
"""Positions (B, M, 2) of the square → how alike the two views are at each, (B, M)."""
Sampler = Callable[["Grid", Tensor, Similarity], Tensor]


@dataclass(frozen=True)
class Grid:
    """How positions are chosen: `size`² of them; `oversample` and `importance` are k and β of the biased sampler."""

    sampling: Sampling = "regular"
    size: int = 7
    oversample: int = 3
    importance: float = 0.75

    def __post_init__(self) -> None:
        assert self.size >= 1
        assert self.oversample >= 1
        assert 0 <= self.importance <= 1

    @property
    def positions(self) -> int:
        """N."""
        return self.size**2

    @property
    def hardest(self) -> int:
        """How many of the biased sampler's N positions are chosen for their dissimilarity: βN, rounded down."""
        # As decimals 0.29 of 100 are 29, but the product of floats lies just below.
        return math.floor(round(self.importance * self.positions, 9))

    @property
    def draws(self) -> int:
        """How many random positions an image needs."""
        if self.sampling == "regular":
            return 0
        if self.sampling == "uniform":
            return self.positions
        return self.oversample * self.positions + self.positions - self.hardest


def grid_draws(
    grid: Grid, seed: int, round_: int, indices: Sequence[int], device: torch.device | str
) -> Tensor:
    """Uniform numbers in [0, 1), (B, grid.draws, 2) on `device`, for the images at B manifest positions `indices`."""
    table = np.empty((len(indices), grid.draws, 2), np.float32)
    for row, image in enumerate(indices):
        draw = generator(seed, Stream.GRID, round_, image)
        table[row] = draw.random((grid.draws, 2), dtype=np.float32)
    return torch.from_numpy(table).to(device)


def cell_centres(size: int, device: torch.device | str) -> Tensor:
    """Centres of size × size equal cells of the square, row by row: (size², 2)."""
    centres = (torch.arange(size, device=device) + 0.5) / size
    return torch.cartesian_prod(centres, centres)


def sliding_windows(size: int, device: torch.device | str) -> Tensor:
    """Windows of half the square's sides, each as the centres of its 3 × 3 cells: (size², 9, 2), row by row.

    They lie size × size and evenly spaced from one border of the square to the other; a single one in its middle.
    """
    ends = (0.25, 0.75) if size > 1 else (0.5, 0.5)
    middles = torch.linspace(*ends, size, device=device)
    offsets = 0.5 * (cell_centres(3, device) - 0.5)
    return torch.cartesian_prod(middles, middles).unsqueeze(1) + offsets


def regular(grid: Grid, draws: Tensor, similarity: Similarity) -> Tensor:
    """The same N cell centres in every image, (B, N, 2)."""
    return cell_centres(grid.size, draws.device).expand(len(draws), -1, -1)


def uniform(grid: Grid, draws: Tensor, similarity: Similarity) -> Tensor:
    """The N positions drawn, (B, N, 2)."""
    return draws


def biased(grid: Grid, draws: Tensor, similarity: Similarity) -> Tensor:
    """Of kN candidates the βN least similar, least similar first, then (1 - β)N more as drawn: (B, N, 2)."""
    candidates = draws[:, : grid.oversample * grid.positions]
    others = draws[:, grid.oversample * grid.positions :]
    # A stable sort, unlike `topk`, leaves no choice to the device where similarities are equal.
    order = similarity(candidates).sort(dim=1, stable=True).indices[:, : grid.hardest]
    chosen = candidates.gather(1, order.unsqueeze(-1).expand(-1, -1, 2))
    return torch.cat((chosen, others), 1)


SAMPLERS: dict[Sampling, Sampler] = {"regular": regular, "uniform": uniform, "biased": biased}


def sample(grid: Grid, draws: Tensor, similarity: Similarity) -> Tensor:
    """The N positions (B, N, 2) of the grid's sampler; `draws` are those of `grid_draws` for the same grid."""
    assert draws.shape[1:] == (grid.draws, 2)
    return SAMPLERS[grid.sampling](grid, draws, similarity)


def pool(maps: Tensor, places: Tensor) -> Tensor:
    """The value of each place, the mean of the bilinear samples at its P positions, in float32.

    Maps (B, C, h, w) and places (B, N, P, 2) → (B, N, C). Samples are `grid_sample`'s with `padding_mode="border",
    align_corners=False`, as matrix products: these have a deterministic backward pass on a GPU, which it has not.
    """
    height, width = maps.shape[2:]
    rows = _bilinear_weights(places[..., 0], height)
    columns = _bilinear_weights(places[..., 1], width)
    with torch.autocast(maps.device.type, enabled=False):
        weights = (rows.mT @ columns / places.shape[2]).flatten(2)
        return weights @ maps.float().flatten(2).mT


def _bilinear_weights(positions: Tensor, length: int) -> Tensor:
    """Each pixel's share in the sample at each position along one axis: (…) → (…, length); they sum to 1."""
    pixels = torch.arange(length, device=positions.device)
    exact = (positions * length - 0.5).clamp(0, length - 1)
    return (1.0 - (exact.unsqueeze(-1) - pixels).abs()).clamp_(min=0)
