"""Label Studio's run lengths: what its brush stores of a mask.

A stream of bits: the number of values (32 bits), their width less 1 (5 bits), four widths of run lengths less 1 (4 bits
each); then for each run a 1, the place of its width in the table (2 bits), its length less 1, and its value. The values
are an RGBA picture's, four for each pixel.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_WIDTHS = (3, 4, 8, 16)
_LONGEST = 1 << _WIDTHS[-1]


def brush(mask: NDArray[np.bool_]) -> list[int]:
    """The bytes of a mask (H, W) in which pixels are on (255) or off (0)."""
    flat = mask.ravel()
    starts = np.flatnonzero(np.diff(flat, prepend=~flat[:1]))
    lengths = 4 * np.diff(starts, append=len(flat))
    parts = [f"{4 * len(flat):032b}", f"{7:05b}", *(f"{width - 1:04b}" for width in _WIDTHS)]
    for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
        value = "11111111" if flat[start] else "00000000"
        while length > 0:
            now = min(length, _LONGEST)
            place, width = next((p, w) for p, w in enumerate(_WIDTHS) if now <= 1 << w)
            parts.append(f"1{place:02b}{now - 1:0{width}b}{value}")
            length -= now
    bits = "".join(parts)
    count = -(-len(bits) // 8)
    return list(int(bits.ljust(8 * count, "0"), 2).to_bytes(count, "big"))
