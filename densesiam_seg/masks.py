"""Predicted masks: cluster ids at the image's own size, palettes, PNG files, overlays.

Axes: K clusters, h w logits, H W image.
"""

from __future__ import annotations

import colorsys
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from densesiam_seg.files import replace_file
from densesiam_seg.views import bilinear_matrix

Colour = tuple[int, int, int]
TILE = 2**22
"""Upsampled logits held at once: 16 MB in float32, whatever the image's size."""
BAND = 256
"""Rows of an overlay that are computed at once."""
LARGEST_8_BIT = 255
"""Ids 0 … 254 fit an 8-bit mask; 255 stays free for ignored pixels."""


def upsample_argmax(logits: Tensor, height: int, width: int) -> Tensor:
    """Cluster of each pixel, (H, W) uint8 (int32 above 255 clusters), of logits (K, h, w) upsampled bilinearly.

    Works through bands of rows, so memory does not grow with the image.
    """
    clusters, rows, _ = logits.shape
    small = logits.float()
    dtype = torch.uint8 if clusters <= LARGEST_8_BIT else torch.int32
    mask = torch.empty((height, width), dtype=dtype, device=logits.device)
    start, extent, flip = (torch.tensor([value], device=logits.device) for value in (0.0, 1.0, 0.0))
    band = max(TILE // (clusters * width), 1)
    for top in range(0, height, band):
        bottom = min(top + band, height)
        weights = bilinear_matrix(
            start + top / height, extent * (bottom - top) / height, flip, rows, bottom - top
        )
        stretched = torch.einsum("yr,krc->kyc", weights[0], small)
        full = F.interpolate(stretched[None], (bottom - top, width), mode="bilinear")[0]
        mask[top:bottom] = full.argmax(0).to(dtype)
    return mask


def palette(count: int) -> list[Colour]:
    """`count` colours that differ as much as a simple rule allows: golden-ratio hues, lightness and saturation in turn.

    A hue nearly comes back after 8, 13, 21, 34 … colours; five lightnesses and three saturations meet again after 15.
    """
    colours = []
    for index in range(count):
        hue = (0.58 + index * 0.61803398875) % 1.0
        lightness = (0.55, 0.38, 0.72, 0.30, 0.64)[index % 5]
        saturation = (0.70, 0.50, 0.85)[index % 3]
        red, green, blue = colorsys.hls_to_rgb(hue, lightness, saturation)
        colours.append((round(255 * red), round(255 * green), round(255 * blue)))
    return colours


def encode_mask(mask: NDArray[np.integer], colours: Sequence[Colour]) -> bytes:
    """PNG of cluster ids (H, W): 8-bit with an embedded palette for up to 255 ids, else 16-bit grey."""
    if len(colours) <= LARGEST_8_BIT:
        picture = Image.fromarray(np.ascontiguousarray(mask, np.uint8))
        # A shorter palette would make Pillow write 1, 2 or 4 bits, which cut off the id of ignored pixels.
        padded = [*colours, *[(0, 0, 0)] * (256 - len(colours))]
        picture.putpalette([value for colour in padded for value in colour])
    else:
        picture = Image.fromarray(np.ascontiguousarray(mask, np.uint16))
    return encode_png(picture)


def encode_png(picture: Image.Image) -> bytes:
    """The bytes of a PNG file; a low compression level writes three times faster and hardly larger."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()


def encode_jpeg(picture: Image.Image) -> bytes:
    """The bytes of a JPEG file, for pictures that people look at."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def write_mask(path: Path, mask: NDArray[np.integer], colours: Sequence[Colour]) -> None:
    """Write `encode_mask` to `path`, whole or not at all. Raises OutputError."""
    # A mask can be made again, so it need not be forced to the disk.
    replace_file(path, encode_mask(mask, colours), sync=False)


def colourise(mask: NDArray[np.integer], colours: Sequence[Colour]) -> NDArray[np.uint8]:
    """(H, W) ids → (H, W, 3) colours; ids beyond the palette (ignored pixels) are black."""
    table = np.zeros((max(int(mask.max(initial=0)) + 1, len(colours)), 3), np.uint8)
    table[: len(colours)] = colours
    coloured: NDArray[np.uint8] = table[mask]
    return coloured


def overlay(
    image: NDArray[np.uint8],
    mask: NDArray[np.integer],
    colours: Sequence[Colour],
    opacity: float = 0.5,
) -> NDArray[np.uint8]:
    """The image (H, W, 3) with its mask's colours laid over it, borders of clusters drawn at full strength."""
    colour = colourise(mask, colours)
    tinted = np.empty_like(image)
    # Band by band: in floating point the whole of a large image would take gigabytes.
    for top in range(0, len(image), BAND):
        rows = slice(top, top + BAND)
        tinted[rows] = image[rows] * (1 - opacity) + colour[rows] * opacity
    border = np.zeros(mask.shape, bool)
    border[:, 1:] |= mask[:, 1:] != mask[:, :-1]
    border[1:] |= mask[1:] != mask[:-1]
    tinted[border] = colour[border]
    return tinted
