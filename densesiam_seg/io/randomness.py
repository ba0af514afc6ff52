"""Counter-based random draws: every choice is a pure function of what it is for.

A draw is named by (seed, stream, round, image, view). Philox (Salmon et al., SC 2011) turns that name into bits, so a
worker, a resumed run or another machine finds the same value without any stored table or running state.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """What a draw is for; streams never share bits."""

    VIEWS = 0
    ORDER = 1
    WEIGHTS = 2
    PIXELS = 3
    GRID = 4


def generator(
    seed: int, stream: Stream, round_: int = 0, image: int = 0, view: int = 0
) -> np.random.Generator:
    """A generator that belongs to this one name; `round_`, `image` and `view` are non-negative."""
    # The first counter word is left at 0: it counts the draws made from this generator.
    return np.random.Generator(
        np.random.Philox(key=[seed, round_], counter=[0, int(stream), view, image])
    )


def torch_seed(seed: int, stream: Stream) -> int:
    """A seed for torch's own generators, for code that cannot take a numpy one (weight initialisation)."""
    return int(generator(seed, stream).integers(2**63))
