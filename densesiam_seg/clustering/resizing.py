"""Sizes of maps as whole numbers, and maps at another size; also in programs that torch exports.

Axes: B images, C channels, n m map, H W map at another size.

In such a program sides are symbols: they have no floating point to round, and whether two of them are equal is not
known. Filters whose size depends on them are written as products with matrices there, which every format of models has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

LARGEST_SIDE = 1 << 16
"""Of what an exported program takes."""


def scaled(side: int, numerator: int, denominator: int) -> int:
    """`max(round(side * numerator / denominator), 1)`: halves go to the even number, as Python's do."""
    whole, rest = (side * numerator) // denominator, (side * numerator) % denominator
    rounded = whole + (2 * rest + whole % 2 + denominator - 1) // (2 * denominator)
    if torch.compiler.is_exporting():
        return cast("int", torch.sym_max(rounded, 1))
    return max(rounded, 1)


def opaque(side: int) -> int:
    """A number that an exported program reckons with as a symbol of its own, and not by how it was computed.

    What torch knows of a side is an expression, which grows with every layer that halves it; after some dozen it would
    take torch hours to compare two of them.
    """
    if not torch.compiler.is_exporting():
        return side
    found: int = torch.scalar_tensor(side, dtype=torch.int64).item()  # type: ignore[assignment]
    torch._check(found >= 2)
    torch._check(found <= LARGEST_SIDE)
    return found


def resized(maps: Tensor, size: Sequence[int], *, antialias: bool = False) -> Tensor:
    """Maps (B, C, n, m) at another size, bilinearly; themselves where they have that size."""
    if torch.compiler.is_exporting():
        if antialias:
            return _by_matrices(maps, size, triangles)
    elif tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return F.interpolate(maps, tuple(size), mode="bilinear", antialias=antialias)


def area_mean(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Maps (B, C, n, m) at another size: the means of what each place covers, wholly or in part."""
    if torch.compiler.is_exporting():
        return _by_matrices(maps, size, areas)
    return F.interpolate(maps, tuple(size), mode="area")


def _by_matrices(
    maps: Tensor, size: Sequence[int], weights: Callable[[int, int, torch.device], Tensor]
) -> Tensor:
    rows, columns = (
        weights(old, new, maps.device) for old, new in zip(maps.shape[-2:], size, strict=True)
    )
    return rows @ maps @ columns.mT


def areas(old: int, new: int, device: torch.device) -> Tensor:
    """Weights (new, old): place i covers floor(i · old / new) to ceil((i + 1) · old / new)."""
    places, sources = (torch.arange(side, device=device) for side in (new, old))
    start = torch.div(places * old, new, rounding_mode="floor")
    end = torch.div((places + 1) * old + new - 1, new, rounding_mode="floor")
    inside = ((sources >= start[:, None]) & (sources < end[:, None])).float()
    return inside / inside.sum(1, keepdim=True)


def triangles(old: int, new: int, device: torch.device) -> Tensor:
    """Weights (new, old) of bilinear resizing with antialiasing: a triangle around each place, which is as wide as two
    steps from place to place, and as two pixels at least."""
    places, sources = (
        torch.arange(side, device=device, dtype=torch.float32) for side in (new, old)
    )
    step = sources.new_tensor(1.0) * old / new
    away = (sources + 0.5 - (places + 0.5)[:, None] * step).abs() / step.clamp(min=1.0)
    weights = (1.0 - away).clamp(min=0.0)
    return weights / weights.sum(1, keepdim=True)
