"""Sizes of maps as whole numbers, and maps at another size.

In a program that torch exports sides are symbols: they have no floating point to round, and whether two of them are
equal is not known. What is written here works for both.
"""

from __future__ import annotations

from collections.abc import Sequence

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
        return torch.sym_max(rounded, 1)  # type: ignore[no-any-return]
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
    """Maps (B, C, H, W) at another size, bilinearly; themselves where they have that size."""
    if not torch.compiler.is_exporting() and tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return F.interpolate(maps, tuple(size), mode="bilinear", antialias=antialias)
