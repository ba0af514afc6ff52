"""Predicted masks: palettes, files, overlays.

Axes: H W image.
"""

from __future__ import annotations

import colorsys
import io
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from densesiam_seg.io.files import replace_file, replacing

Colour = tuple[int, int, int]
BAND = 256
"""Rows of an overlay that are computed at once."""
LARGEST_8_BIT = 255
"""Ids 0 … 254 fit an 8-bit mask; 255 stays free for ignored pixels."""


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


def write_mask(path: Path, mask: NDArray[np.integer], colours: Sequence[Colour]) -> None:
    """Write ids (H, W), whole or not at all: 8-bit with a palette for up to 255 clusters, else 16-bit grey.

    The name's suffix says whether as PNG, TIFF or as an array of NumPy. It is put on the disk by the caller's
    `sync_folders`, once for many masks. Raises OutputError.
    """
    if len(colours) > LARGEST_8_BIT:
        ids: NDArray[np.integer] = mask.astype(np.uint16, copy=False)
    else:
        ids = mask.astype(np.uint8, copy=False)
    if path.suffix.lower() == ".npy":
        write_array(path, ids)
        return
    picture = Image.fromarray(ids)
    if ids.dtype == np.uint8:
        # All 256 entries, so that readers find a colour for the id of ignored pixels too.
        entries = np.zeros((256, 3), np.uint8)
        entries[: len(colours)] = colours
        picture.putpalette(entries.tobytes())
    _write(path, picture)


def write_grey(path: Path, values: NDArray[np.uint8]) -> None:
    """Write 8-bit grey values (H, W) as PNG or TIFF, as `write_mask` does."""
    _write(path, Image.fromarray(values))


def write_array(path: Path, values: NDArray[np.integer]) -> None:
    """Write an array as `.npy`, as `write_mask` does."""
    values = np.ascontiguousarray(values)
    with replacing(path, sync_name=False) as file:
        # `np.save` does not say what the system said where the disk takes no more.
        header = np.lib.format.header_data_from_array_1_0(values)
        np.lib.format.write_array_header_1_0(file, header)
        file.write(values.data)


def _write(path: Path, picture: Image.Image) -> None:
    if path.suffix.lower() in (".tif", ".tiff"):
        # Into memory first: on a full disk libtiff would print, and raise an error of its own.
        buffer = io.BytesIO()
        picture.save(buffer, "TIFF", compression="tiff_adobe_deflate")
        replace_file(path, buffer.getvalue(), sync_name=False)
        return
    with replacing(path, sync_name=False) as file:
        # Of zlib's ways, run lengths are the fastest for ids, and hardly larger.
        picture.save(file, "PNG", compress_level=1, compress_type=zlib.Z_RLE)


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


def colourise(mask: NDArray[np.integer], colours: Sequence[Colour]) -> NDArray[np.uint8]:
    """(H, W) ids → (H, W, 3) colours; ids beyond the palette (ignored pixels) are black."""
    table = np.zeros((max(int(mask.max(initial=0)) + 1, len(colours)), 3), np.uint8)
    table[: len(colours)] = colours
    coloured: NDArray[np.uint8] = table[mask]
    return coloured


def overlay(
    image: NDArray[np.uint8], mask: NDArray[np.integer], colours: Sequence[Colour]
) -> NDArray[np.uint8]:
    """The mean of an image (H, W, 3) and its mask's colours; borders of clusters have the colours alone."""
    tinted = np.empty(image.shape, np.uint8)
    # Band by band, as sums of a whole large picture would need a gigabyte.
    for top in range(0, len(image), BAND):
        rows, before = slice(top, top + BAND), max(top - 1, 0)
        colour = colourise(mask[rows], colours)
        band = (image[rows].astype(np.uint16) + colour) >> 1
        border = borders(mask[before : top + BAND])[top - before :]
        band[border] = colour[border]
        tinted[rows] = band
    return tinted


def borders(mask: NDArray[np.generic]) -> NDArray[np.bool_]:
    """Where a mask (H, W) differs from the pixel above or before it."""
    border = np.zeros(mask.shape, bool)
    border[:, 1:] |= mask[:, 1:] != mask[:, :-1]
    border[1:] |= mask[1:] != mask[:-1]
    return border
