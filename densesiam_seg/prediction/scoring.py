"""Scores of images: those of one working size together, large ones in tiles. All masks of files are made of them.

Axes: K clusters, h w scores, H W image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from threading import Lock

from torch import Tensor

from densesiam_seg.errors import ImageError
from densesiam_seg.images.decoding import Decoding
from densesiam_seg.inference.options import Refinement
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.io.parallel import device_lock
from densesiam_seg.prediction.batching import Group, read_batches
from densesiam_seg.prediction.tiles import load_large, shown_size, tiled_scores

LARGE = 2**20
"""Pixels from which on images in tiles pass the network one after the other."""


@dataclass(frozen=True)
class Scored:
    """Scores (K, h, w) of an image of that size (H, W)."""

    scores: Tensor
    size: tuple[int, int]


class Scorer:
    """Gives scores to several threads; images with a side above `tile` are looked at in tiles, if it is not 0."""

    def __init__(
        self,
        segmenter: Segmenter,
        decoding: Decoding,
        refinement: Refinement,
        tile: int,
        *,
        only_largest: bool = False,
    ) -> None:
        """With `only_largest` scores are good for masks alone (`Segmenter.scores`)."""
        self.segmenter, self.decoding = segmenter, decoding
        self.refinement, self.tile = refinement, tile
        self.only_largest = only_largest
        self._lock = device_lock(segmenter.device)
        self._large = Lock()

    def of_group(
        self, sources: Sequence[str], group: Group
    ) -> Iterator[tuple[int, Scored | ImageError]]:
        """Each place of a group of files, with its scores or why it cannot be read."""
        if group.tiled is not None:
            for place in group.places:
                try:
                    yield place, self._of_large(sources[place], group.tiled)
                except ImageError as error:
                    yield place, error
            return
        batches, failed = read_batches(self.segmenter, sources, group, self.decoding)
        yield from failed.items()
        for batch in batches:
            count = len(batch.places)
            with self._lock:
                every = self._of_images(batch.images, count)
            for place, size, scores in zip(batch.places, batch.sizes, every, strict=False):
                yield place, Scored(scores, size)

    def of_pixels(self, pixels: Tensor) -> Scored:
        """Of one image, uint8 (3, H, W)."""
        size = (pixels.shape[-2], pixels.shape[-1])
        shown = shown_size(self.segmenter, size, self.tile)
        if shown is not None:
            return Scored(self._tiled(pixels, shown), size)
        image, _ = self.segmenter.read(pixels)
        with self._lock:
            return Scored(self._of_images(image, 1)[0], size)

    def _of_images(self, images: Tensor, count: int) -> Tensor:
        """Of the first `count` images, uint8 (B, 3, H, W), as the network gets them."""
        found = self.segmenter.scores(
            images, self.refinement, count, only_largest=self.only_largest
        )
        return found.cpu()

    def _of_large(self, source: str, size: tuple[int, int]) -> Scored:
        shown = shown_size(self.segmenter, size, self.tile)
        assert shown is not None
        pixels = load_large(source, self.segmenter, shown, self.decoding)
        return Scored(self._tiled(pixels, shown), size)

    def _tiled(self, pixels: Tensor, shown: tuple[int, int]) -> Tensor:
        """Pixels (3, h, w) → scores (K, h, w) of all tiles."""
        # One very large image at a time: its windows take more memory than other images together.
        turn = self._large if shown[0] * shown[1] > LARGE else nullcontext()
        with turn:
            found = tiled_scores(self.segmenter, pixels, shown, self.refinement, lock=self._lock)
        return found.cpu()
