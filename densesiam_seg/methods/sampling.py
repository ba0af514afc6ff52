"""Positions of a unit square, regular, drawn or biased towards where two views differ; and maps read at positions.

Axes: B images, N positions (the grid's side, squared), P positions of a place, C channels, h w feature size; the last
axis of positions is (y, x) in [0, 1].

The biased sampler is PointRend's scheme (Kirillov et al., CVPR 2020, section 3.1) with dissimilarity in place of
uncertainty: DenseSiam's supplement, Table A2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from densesiam_seg.config import PretrainConfig
from densesiam_seg.io.randomness import Stream, generator


def hardest(config: PretrainConfig) -> int:
    """How many of the biased sampler's N positions are chosen for their dissimilarity: βN, rounded down."""
    # Rounded first: 0.29 * 100 is just below 29 in floats.
    return math.floor(round(config.importance * config.grid**2, 9))


def grid_draws(
    config: PretrainConfig, round_: int, indices: Sequence[int], device: torch.device | str
) -> Tensor:
    """Random positions (B, …, 2) in [0, 1), as many as the sampler needs, for the images at B manifest positions."""
    count = config.grid**2
    if config.sampling == "regular":
        count = 0
    elif config.sampling == "biased":
        count = (config.oversample + 1) * count - hardest(config)
    table = np.empty((len(indices), count, 2), np.float32)
    for row, image in enumerate(indices):
        draw = generator(config.seed, Stream.GRID, round_, image)
        table[row] = draw.random((count, 2), dtype=np.float32)
    return torch.from_numpy(table).to(device)


def sample(config: PretrainConfig, draws: Tensor, similarity: Callable[[Tensor], Tensor]) -> Tensor:
    """The N positions (B, N, 2) of the sampler; `draws` are those of `grid_draws`.

    `similarity` maps positions (B, M, 2) of the square to the similarity of the views there, (B, M). The biased sampler
    takes of kN candidates the βN least similar, least similar first, then (1 - β)N more as drawn.
    """
    if config.sampling == "regular":
        return cell_centres(config.grid, draws.device).expand(len(draws), -1, -1)
    if config.sampling == "uniform":
        return draws
    count = config.oversample * config.grid**2
    candidates, others = draws[:, :count], draws[:, count:]
    # A stable sort, unlike `topk`, leaves no choice to the device where similarities are equal.
    order = similarity(candidates).sort(dim=1, stable=True).indices[:, : hardest(config)]
    chosen = candidates.gather(1, order.unsqueeze(-1).expand(-1, -1, 2))
    return torch.cat((chosen, others), 1)


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
