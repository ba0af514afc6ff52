"""Images as tensors, decoded safely: whatever is wrong with a file is an `ImageError` that names it.

H W: height and width after the EXIF orientation. `images.decoding` has the choices, and `images.pixels` defines how
values become 0…255.
"""

from __future__ import annotations

import math
import os
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from densesiam_seg.images.decoding import MAX_PIXELS, Decoding
from densesiam_seg.images.opening import opened
from densesiam_seg.images.pixels import (
    Picture,
    Samples,
    Span,
    channels,
    eight_bit,
    rgb_planes,
    span,
    values_in_use,
)

if TYPE_CHECKING:
    from torch import Tensor

# Up to this aspect ratio an image is resized whole and then cropped, which gives torchvision's
# pixels to the bit; beyond it the whole resized image would be large and mostly thrown away.
_WHOLE_ASPECT = 8

PLAIN = Decoding()
"""What files declare, up to the usual size; its notes are of no use to anyone."""


def load_image(path: str | os.PathLike[str], decoding: Decoding = PLAIN) -> Tensor:
    """Decode a file to uint8 (3, H, W), contiguous.

    Raises `ImageError`. WebP and GIF above Pillow's own limit (179 million pixels) stay refused.
    """
    return load_oriented(path, decoding)[0]


def load_oriented(path: str | os.PathLike[str], decoding: Decoding = PLAIN) -> tuple[Tensor, int]:
    """What `load_image` gives, and the EXIF orientation 1 to 8 that it was turned by. Raises `ImageError`."""
    with opened(path, decoding) as image:
        planes = rgb_planes(image.picture(), image.name, decoding)
        return _tensor(planes), image.orientation


def load_reduced(
    path: str | os.PathLike[str], side: int, decoding: Decoding = PLAIN
) -> tuple[Tensor, tuple[int, int]]:
    """Decode the whole image to uint8 (3, h, w), contiguous; also its own height and width (H, W).

    A JPEG is decoded at 1/2, 1/4 or 1/8 size (rounded up) where both its sides stay at least `side`, and so is what has
    more than `MAX_PIXELS`, so that it need not be there twice; of any other file h w are H W. Raises `ImageError`.
    """
    with opened(path, decoding) as image:
        size = image.height, image.width
        image.draft(side)
        picture = image.picture()
        factor = 1
        if picture.width * picture.height > MAX_PIXELS:
            short = min(picture.width, picture.height)
            factor = next((each for each in (8, 4, 2) if short >= each * side), 1)
        return _tensor(rgb_planes(picture, image.name, decoding, factor)), size


def load_square(path: str | os.PathLike[str], side: int, decoding: Decoding = PLAIN) -> Tensor:
    """Decode to uint8 (3, side, side): shorter side resized to `side`, then the centre cut out.

    Bilinear with antialiasing, sizes and offsets rounded as torchvision's Resize and CenterCrop do.
    A JPEG is decoded at 1/2, 1/4 or 1/8 size where both its sides stay at least `side`. Raises `ImageError`.
    """
    return _tensor(square(path, side, decoding))


def square(
    path: str | os.PathLike[str], side: int, decoding: Decoding = PLAIN
) -> NDArray[np.uint8]:
    """The same without torch, which a process that only decodes does not load."""
    with opened(path, decoding) as image:
        height, width = image.height, image.width
        image.draft(side)
        picture = image.picture()
        found = span(picture, image.name, decoding)
        return _planar(_centre_square(picture, side, width, height, found))


def load_stretched(
    path: str | os.PathLike[str], side: int, decoding: Decoding = PLAIN
) -> tuple[Tensor, float]:
    """Decode the whole image to uint8 (3, side, side), whatever its shape; also its own width over height.

    Bilinear with antialiasing; a JPEG is decoded at reduced size where both its sides stay at least `side`.
    Raises `ImageError`.
    """
    planes, aspect = stretched(path, side, decoding)
    return _tensor(planes), aspect


def stretched(
    path: str | os.PathLike[str], side: int, decoding: Decoding = PLAIN
) -> tuple[NDArray[np.uint8], float]:
    """The same without torch."""
    with opened(path, decoding) as image:
        height, width = image.height, image.width
        image.draft(side)
        picture = image.picture()
        whole = eight_bit(picture, span(picture, image.name, decoding))
        return _planar(whole.resize((side, side), Image.Resampling.BILINEAR)), width / height


def image_size(path: str | os.PathLike[str], decoding: Decoding = PLAIN) -> tuple[int, int]:
    """Height and width that `load_image` would give, read from the header alone. Raises `ImageError`."""
    with opened(path, replace(decoding, max_pixels=None)) as image:
        return image.height, image.width


def load_values(
    path: str | os.PathLike[str], count: int, decoding: Decoding = PLAIN
) -> tuple[NDArray[np.float64], float | None]:
    """About `count` values of an image that are data, in the units of `Decoding.stretch`; and its white, as `Samples`.

    Raises `ImageError`.
    """
    with opened(path, decoding) as image:
        picture = image.picture()
        white = picture.full if isinstance(picture, Samples) else 255.0
        return values_in_use(picture, count), white


def _planar(picture: Image.Image) -> NDArray[np.uint8]:
    """uint8 (3, H, W) of a small picture in mode L or RGB."""
    return np.stack([np.asarray(channel) for channel in channels(picture)])


def _tensor(values: NDArray[np.uint8]) -> Tensor:
    """The same memory as a tensor."""
    import torch

    return torch.from_numpy(values)


def _centre_square(
    picture: Picture, side: int, width: int, height: int, found: Span | None
) -> Image.Image:
    """Resize and crop; `width` and `height` are those before a JPEG was decoded at reduced size."""
    short, long = sorted((width, height))
    long_resized = int(side * long / short)
    resized = (side, long_resized) if width <= height else (long_resized, side)
    left, top = (round((length - side) / 2) for length in resized)
    if long_resized <= _WHOLE_ASPECT * side:
        whole = eight_bit(picture, found).resize(resized, Image.Resampling.BILINEAR)
        return whole.crop((left, top, left + side, top + side))
    x_from, x_to, x_0, x_1 = _source_span(picture.width, resized[0], left, side)
    y_from, y_to, y_0, y_1 = _source_span(picture.height, resized[1], top, side)
    part = eight_bit(picture.crop((x_from, y_from, x_to, y_to)), found)
    box = (x_0 - x_from, y_0 - y_from, x_1 - x_from, y_1 - y_from)
    return part.resize((side, side), Image.Resampling.BILINEAR, box=box)


def _source_span(
    length: int, resized: int, offset: int, side: int
) -> tuple[int, int, float, float]:
    """Along one axis: the source pixels from, to that are needed, and the exact span to resize."""
    step = length / resized
    first, last = offset * step, min((offset + side) * step, float(length))
    reach = math.ceil(max(step, 1.0)) + 1  # the filter looks this far beyond the span
    return max(0, math.floor(first) - reach), min(length, math.ceil(last) + reach), first, last
