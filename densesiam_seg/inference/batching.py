"""Which images pass the network together: those of one working size, a fixed number at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from densesiam_seg.errors import ImageError
from densesiam_seg.images.decode import image_size
from densesiam_seg.inference.segmenter import Segmenter, working_size

WINDOW = 512
"""Images among which those of one size are looked for; of each only the header is read."""
PROCESSOR_PIXELS, PROCESSOR_MOST = 2**17, 4
"""Most pixels and images of a batch on a processor: small images share the work of laying out the weights."""
GPU_PIXELS, GPU_MOST = 2**20, 16
"""The same on a GPU: ten images of 320×320."""
PIXEL_BYTES = 2**10
"""What a pixel takes at most on its way through a network."""
MEMORY_SHARE = 0.25
"""Of a GPU's free memory."""


@dataclass(frozen=True)
class Group:
    """Places of images in their list, at most `full`; where they are fewer the batch is filled with repetitions."""

    places: tuple[int, ...]
    full: int


def groups(segmenter: Segmenter, paths: Sequence[str], batch_size: int | None) -> Iterator[Group]:
    """Every place of `paths` in one group; `batch_size` None: `images_together`.

    Images that cannot be read have a group of their own.
    """
    if batch_size == 1:
        # No header need be read.
        yield from (Group((place,), 1) for place in range(len(paths)))
        return
    for start in range(0, len(paths), WINDOW):
        by_size: dict[tuple[int, int], list[int]] = {}
        for place, path in enumerate(paths[start : start + WINDOW], start):
            try:
                size = working_size(*image_size(path), segmenter.card.image_size)
            except ImageError:
                size = (0, 0)
            by_size.setdefault(size, []).append(place)
        for size, places in by_size.items():
            full = batch_size or images_together(segmenter.device, size)
            for first in range(0, len(places), full):
                yield Group(tuple(places[first : first + full]), full)


def images_together(device: torch.device, size: tuple[int, int]) -> int:
    """How many images of a working size make a batch: few in pixels for memory, and few since the last is filled up."""
    pixels, most = GPU_PIXELS, GPU_MOST
    if device.type == "cpu":
        pixels, most = PROCESSOR_PIXELS, PROCESSOR_MOST
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        pixels = min(pixels, int(MEMORY_SHARE * free) // PIXEL_BYTES)
    return min(max(pixels // max(size[0] * size[1], 1), 1), most)
