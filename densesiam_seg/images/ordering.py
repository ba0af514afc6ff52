"""The order of very many names, without an object for each.

Axis: N names.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

WORD = 8
"""Bytes of each name that are compared at a time."""

BLOCK = 1 << 16
"""How many words are read at a time, as each needs several numbers to find it."""

_MASKS = np.array([(1 << 64) - (1 << 8 * (WORD - used)) for used in range(WORD + 1)], np.uint64)
"""For a word of which `used` bytes belong to a name."""


def ascending(
    data: bytes | bytearray, bounds: NDArray[np.int64]
) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """The places (N,) of names in ascending order, and which of them (N,) equal the one before.

    Name i lies in `data` from `bounds[i]` to a NUL right before `bounds[i + 1]`, and holds none itself; `WORD` bytes
    follow the last. Bytes are compared, which for UTF-8 is the order by code point. Equal names keep their order.

    All names are sorted by their first word, those that agree in it by their second, and so on.
    """
    count = len(bounds) - 1
    places = np.arange(count, dtype=np.int32)
    same = np.zeros(count, np.bool_)
    tied = np.arange(count, dtype=np.int32)  # where in `places` names agree in all words so far
    group = np.zeros(count, np.int32)  # which of them agree with each other, ascending
    depth = 0
    while len(tied):
        chosen = places[tied]
        words = _words(data, bounds, chosen, depth)
        order = np.lexsort((words, group))
        places[tied] = chosen[order]
        words = words[order]
        agrees = np.zeros(len(tied) + 1, np.bool_)  # with its predecessor; one more for the end
        agrees[1:-1] = (words[1:] == words[:-1]) & (group[1:] == group[:-1])
        ended = words & np.uint64(0xFF) == 0
        same[tied] = agrees[:-1] & ended
        still = (agrees[:-1] | agrees[1:]) & ~ended
        group = np.cumsum(~agrees[:-1], dtype=np.int32)[still]
        tied = tied[still]
        depth += WORD
    return places, same


def _words(
    data: bytes | bytearray, bounds: NDArray[np.int64], places: NDArray[np.int32], depth: int
) -> NDArray[np.uint64]:
    """The word of each name that begins after `depth` bytes, as a number; zeros follow a name's end."""
    everywhere = np.ndarray(len(data) - WORD + 1, ">u8", data, strides=(1,))
    words = np.empty(len(places), np.uint64)
    for first in range(0, len(places), BLOCK):
        part = places[first : first + BLOCK]
        begin = bounds[part] + depth
        used = np.clip(bounds[part + 1] - 1 - begin, 0, WORD)
        words[first : first + BLOCK] = everywhere[begin] & _MASKS[used]
    return words
