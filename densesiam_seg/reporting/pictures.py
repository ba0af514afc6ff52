"""Pictures of a page: crops with their cluster outlined, images with their masks, all as `data:` addresses.

Axes: H W picture, K clusters.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from densesiam_seg.errors import ImageError
from densesiam_seg.images.decode import load_reduced
from densesiam_seg.images.decoding import Decoding
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.io.parallel import device_lock, on_own_cores
from densesiam_seg.pictures.masks import Colour, borders, overlay
from densesiam_seg.pictures.sheet import fitted
from densesiam_seg.reporting.observing import Crop

CROP = 176
"""Pixels of a crop's side, shown at about half of it or a little more."""
SIDE = 360
"""Pixels of the longer side of an image on a page."""
QUALITY = 78

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Shown:
    """An image and the same with its mask over it, as addresses; empty where it could not be read again."""

    name: str
    photograph: str = ""
    masked: str = ""
    width: int = 1
    height: int = 1


def address(picture: Pixels) -> str:
    """A picture (H, W, 3) as a `data:` address."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "WEBP", quality=QUALITY, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def crop_addresses(
    crops: Sequence[Crop],
    names: Mapping[int, str],
    colours: Sequence[Colour],
    decoding: Decoding,
) -> Iterator[tuple[Crop, str]]:
    """Each crop as an address, image by image; `names` has the files of the places. Lost files have none."""
    by_place: dict[int, list[Crop]] = {}
    for crop in crops:
        by_place.setdefault(crop.place, []).append(crop)

    def cut(place: int) -> list[tuple[Crop, str]]:
        own = by_place[place]
        side = round(CROP / min(max(crop.box[2:]) for crop in own))
        try:
            pixels, _ = load_reduced(names[place], side, decoding)
        except ImageError:
            return []
        return [(crop, address(outlined(pixels, crop, colours[crop.cluster]))) for crop in own]

    with closing(on_own_cores(cut, sorted(by_place))) as results:
        for found in results:
            yield from found


def outlined(pixels: Tensor, crop: Crop, colour: Colour) -> Pixels:
    """The part of an image (3, H, W) that a crop shows, paler where its cluster is not, with a line inside its edge."""
    height, width = pixels.shape[-2:]
    # Of an image of one row or column there is a pixel in any case.
    top, left = (
        min(round(crop.box[0] * height), height - 1),
        min(round(crop.box[1] * width), width - 1),
    )
    tall, wide = max(round(crop.box[2] * height), 1), max(round(crop.box[3] * width), 1)
    part = pixels[None, :, top : top + tall, left : left + wide]
    part = F.interpolate(part, (CROP, CROP), mode="bilinear", antialias=True)
    picture = part[0].permute(1, 2, 0).numpy()
    inside = torch.from_numpy(crop.inside)[None, None].float()
    mask = (F.interpolate(inside, (CROP, CROP), mode="bilinear")[0, 0] > 0.5).numpy()
    grey = picture.mean(2, keepdims=True)
    pale = (0.35 * picture + 0.25 * grey + 0.4 * 205).astype(np.uint8)
    shown = np.where(mask[..., None], picture, pale)
    line = grown(borders(mask)) & mask
    shown[grown(line) & ~mask] = (255, 255, 255)
    shown[line] = colour
    return shown


def grown(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """A mask (H, W) and all that touches it."""
    wider = mask.copy()
    for axis in (0, 1):
        for step in (-1, 1):
            moved = np.roll(mask, step, axis)
            edge = [slice(None)] * 2
            edge[axis] = slice(0, 1) if step == 1 else slice(-1, None)
            moved[tuple(edge)] = False
            wider |= moved
    return wider


def show_images(
    segmenter: Segmenter, sources: Sequence[str], decoding: Decoding
) -> Iterator[Shown]:
    """Each image and the same with its mask, on all cores."""
    lock = device_lock(segmenter.device)

    def show(source: str) -> Shown:
        try:
            pixels, mask = masked(segmenter, source, decoding, lock)
        except ImageError:
            return Shown(Path(source).name)
        over = overlay(pixels, mask, segmenter.palette)
        height, width = mask.shape
        return Shown(Path(source).name, address(pixels), address(over), width, height)

    with closing(on_own_cores(show, sources)) as results:
        yield from results


def masked(
    segmenter: Segmenter, source: str, decoding: Decoding, lock: AbstractContextManager[object]
) -> tuple[Pixels, NDArray[np.integer]]:
    """An image (H, W, 3) whose longer side is `SIDE`, and its mask (H, W). Raises ImageError."""
    with torch.inference_mode():
        pixels, size = load_reduced(source, SIDE, decoding)
        shown = fitted(size, SIDE)
        read, _ = segmenter.read(source, decoding=decoding)
        with lock:
            scores = segmenter.scores(read, only_largest=True)[0]
        picture = F.interpolate(pixels[None], shown, mode="bilinear", antialias=True)[0]
        return picture.permute(1, 2, 0).contiguous().numpy(), segmenter.mask(scores, *shown)
