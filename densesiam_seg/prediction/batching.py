"""Batches for inference: images of one working size, a fixed number at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from densesiam_seg.errors import ImageError
from densesiam_seg.images.decode import image_size
from densesiam_seg.images.decoding import Decoding
from densesiam_seg.inference.segmenter import Segmenter, working_size

WINDOW = 512
"""Images that are grouped by size at a time; only their headers are read."""
CPU_PIXELS, CPU_IMAGES = 2**17, 4
"""Most pixels and images of a batch on a processor: in a batch the network's weights are loaded once."""
GPU_PIXELS, GPU_IMAGES = 2**20, 16
"""The same on a GPU: ten images of 320×320."""
PIXEL_BYTES = 2**10
"""Most memory of a network's forward pass per pixel."""
MEMORY_SHARE = 0.25
"""Of a GPU's free memory."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class Group:
    """Indices of images in their list, at most `full`; a smaller group is filled up with repetitions.

    `tiled`: the size (H, W) of an image that is looked at in tiles, and has a group of its own.
    """

    places: tuple[int, ...]
    full: int
    tiled: tuple[int, int] | None = None


def groups(
    segmenter: Segmenter,
    paths: Sequence[str],
    batch_size: int | None,
    decoding: Decoding,
    tile: int = 0,
) -> Iterator[Group]:
    """Every place of `paths` in one group; `batch_size` None: `images_together`.

    Images that cannot be read have a group of their own, as have those with a side above `tile`, if that is not 0.
    """
    if batch_size == 1 and not tile:
        # No header need be read.
        yield from (Group((place,), 1) for place in range(len(paths)))
        return
    for start in range(0, len(paths), WINDOW):
        by_size: dict[tuple[int, int], list[int]] = {}
        for place, path in enumerate(paths[start : start + WINDOW], start):
            try:
                own = image_size(path, decoding)
            except ImageError:
                size = (0, 0)
            else:
                if tile and max(own) > tile:
                    yield Group((place,), 1, own)
                    continue
                size = working_size(*own, segmenter.shown_side)
            by_size.setdefault(size, []).append(place)
        for size, places in by_size.items():
            full = batch_size or images_together(segmenter.device, size)
            for first in range(0, len(places), full):
                yield Group(tuple(places[first : first + full]), full)


def images_together(device: torch.device, size: tuple[int, int]) -> int:
    """How many images of a working size make a batch: bounded by memory, and small since the last one is filled up."""
    pixels, most = GPU_PIXELS, GPU_IMAGES
    if device.type == "cpu":
        pixels, most = CPU_PIXELS, CPU_IMAGES
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        pixels = min(pixels, int(MEMORY_SHARE * free) // PIXEL_BYTES)
    return min(max(pixels // max(size[0] * size[1], 1), 1), most)


@dataclass(frozen=True)
class Batch:
    """Images of a group that have one shape, uint8 (B, 3, h, w); beyond those of `places` they are repetitions."""

    images: Tensor
    places: tuple[int, ...]
    sizes: tuple[tuple[int, int], ...]
    """H and W of each image itself."""


def read_batches(
    segmenter: Segmenter, sources: Sequence[str], group: Group, decoding: Decoding
) -> tuple[list[Batch], dict[int, ImageError]]:
    """The images of a group, and why some of them, by place, cannot be read."""
    # All of one shape, unless a file has changed since its header was read.
    by_shape: dict[torch.Size, list[tuple[int, Tensor, tuple[int, int]]]] = {}
    failed: dict[int, ImageError] = {}
    for place in group.places:
        try:
            image, size = segmenter.read(sources[place], decoding=decoding)
        except ImageError as error:
            failed[place] = error
        else:
            by_shape.setdefault(image.shape, []).append((place, image, size))
    batches: list[Batch] = []
    for ready in by_shape.values():
        places, images, sizes = zip(*ready, strict=True)
        # The last bits of a forward pass may depend on the size of its batch, so that is always the same.
        filled = torch.cat([*images, *images[-1:] * (group.full - len(images))])
        batches.append(Batch(filled, places, sizes))
    return batches, failed


def in_order(results: Iterable[dict[int, Result]]) -> Iterator[Result]:
    """Results of groups by the places of their images → results in the order of the places."""
    waiting: dict[int, Result] = {}
    next_place = 0
    for found in results:
        waiting |= found
        while next_place in waiting:
            yield waiting.pop(next_place)
            next_place += 1
