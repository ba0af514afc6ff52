"""Predicted masks: cluster ids at the image's own size, palettes, PNG files, overlays.

Axes: K clusters, h w logits, H W image.
"""

from __future__ import annotations

import colorsys
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from densesiam_seg.io.files import replacing
from densesiam_seg.pictures.png import write_ids

Colour = tuple[int, int, int]
LARGEST_8_BIT = 255
"""Ids 0 … 254 fit an 8-bit mask; 255 stays free for ignored pixels."""
BAND = 256
"""Rows of an overlay that are computed at once."""


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


def encode_mask(
    mask: NDArray[np.integer] | Iterable[NDArray[np.integer]], colours: Sequence[Colour]
) -> bytes:
    """PNG of ids (H, W), or of bands of their rows: 8-bit with a palette for up to 255 clusters, else 16-bit grey."""
    buffer = io.BytesIO()
    _write_png(buffer, mask, colours)
    return buffer.getvalue()


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


def write_mask(
    path: Path,
    mask: NDArray[np.integer] | Iterable[NDArray[np.integer]],
    colours: Sequence[Colour],
) -> None:
    """Write what `encode_mask` gives to `path`, whole or not at all, holding one band at a time. Raises OutputError."""
    # A mask can be made again, so it need not be forced to the disk.
    with replacing(path, sync=False) as file:
        _write_png(file, mask, colours)


def _write_png(
    file: BinaryIO,
    mask: NDArray[np.integer] | Iterable[NDArray[np.integer]],
    colours: Sequence[Colour],
) -> None:
    bands = [mask] if isinstance(mask, np.ndarray) else mask
    if len(colours) > LARGEST_8_BIT:
        write_ids(file, bands)
        return
    # All 256 entries, so that readers find a colour for the id of ignored pixels too.
    padded = [*colours, *[(0, 0, 0)] * (256 - len(colours))]
    write_ids(file, bands, bytes(value for colour in padded for value in colour))


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
