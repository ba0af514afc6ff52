"""How unlike the training images an image is.

An image is described by the mean of its L2-normalised features. Its novelty is its mean distance to the `NEAREST`
training images that are most alike, over the median of the same distance among the training images themselves: about 1
for an image as they are, 2 where it lies twice as far from them as they lie from each other.

Axes: n images, r training images, C channels.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NEAREST = 3
REFERENCE = 128
"""Training images that others are compared with, evenly spread."""


@dataclass(frozen=True)
class Reference:
    """Training images that others are compared with: their files and descriptions (r, C)."""

    sources: tuple[str, ...]
    descriptions: NDArray[np.float32]

    @property
    def usable(self) -> bool:
        """Whether there are enough of them to say what is usual."""
        return len(self.sources) > NEAREST

    def novelty(
        self, sources: Sequence[str], descriptions: NDArray[np.float32]
    ) -> NDArray[np.float64] | None:
        """Of images (n,); None where there are too few training images. An image is not compared with itself."""
        if not self.usable:
            return None
        own = self._distances(self.sources, self.descriptions)
        usual = float(np.median(own))
        return self._distances(sources, descriptions) / max(usual, 1e-6)

    def _distances(
        self, sources: Sequence[str], descriptions: NDArray[np.float32]
    ) -> NDArray[np.float64]:
        """The mean distance to the nearest of the reference, (n,)."""
        places = {os.path.realpath(source): place for place, source in enumerate(self.sources)}
        found = np.empty(len(sources))
        for row, (source, description) in enumerate(zip(sources, descriptions, strict=True)):
            distances = np.linalg.norm(self.descriptions - description, axis=1).astype(np.float64)
            same = places.get(os.path.realpath(source))
            if same is not None:
                distances[same] = np.inf
            found[row] = np.sort(distances)[:NEAREST].mean()
        return found
