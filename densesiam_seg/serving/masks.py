"""Masks on demand: made one after the other in a thread of their own, the last few kept, the next one made ahead.

Axes: K clusters, h w scores, H W image as it is shown.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

KEPT = 8
"""Masks that are kept, with their scores; fewer where they are large."""
ROOM = 2**28
"""Bytes that they may take together."""
_LEAST = 2
"""Masks that are kept whatever their size: the one that is looked at, and the next."""


@dataclass(frozen=True)
class Segmented:
    """Scores (K, h, w) of an image and the learned cluster (H, W) of each pixel, before any merge."""

    scores: Tensor
    ids: NDArray[np.integer]

    @property
    def bytes(self) -> int:
        """Memory that is taken."""
        return self.scores.numel() * self.scores.element_size() + self.ids.nbytes


class Masks:
    """What `make` gives for the images asked for last; for several threads."""

    def __init__(self, make: Callable[[int], Segmented]) -> None:
        self._make = make
        # A single thread: the network gets one image at a time, whoever asks.
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="masks")
        self._found: OrderedDict[int, Future[Segmented]] = OrderedDict()
        self._lock = Lock()

    def get(self, index: int) -> Segmented:
        """That of an image, now or when it is made. Raises what `make` raises; the next call tries again."""
        found = self._begun(index)
        try:
            return found.result()
        except Exception:
            with self._lock:
                if self._found.get(index) is found:
                    del self._found[index]
            raise

    def ahead(self, index: int) -> None:
        """Begin with one that will be wanted soon."""
        self._begun(index)

    def close(self) -> None:
        """Begin with no other; the one that is being made is waited for when the program ends."""
        self._worker.shutdown(wait=False, cancel_futures=True)

    def _begun(self, index: int) -> Future[Segmented]:
        with self._lock:
            found = self._found.get(index)
            if found is None or found.cancelled():
                found = self._found[index] = self._worker.submit(self._make, index)
            self._found.move_to_end(index)
            while len(self._found) > _LEAST and self._too_many():
                self._found.popitem(last=False)[1].cancel()
            return found

    def _too_many(self) -> bool:
        taken = sum(
            each.result().bytes
            for each in self._found.values()
            if each.done() and not each.cancelled() and each.exception() is None
        )
        return len(self._found) > KEPT or taken > ROOM
