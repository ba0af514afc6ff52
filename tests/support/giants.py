"""Images of hundreds of megapixels, written a few rows at a time."""

from __future__ import annotations

import re
import struct
import zlib
from pathlib import Path

import numpy as np
from image_files import encoded, png_chunk
from photographs import photograph
from PIL import Image


def write_png(path: Path, width: int, height: int, *, grey: bool = False) -> Path:
    """A PNG of bands of colour: small as a file, and with something to see for a network."""
    channels = 1 if grey else 3
    header = struct.pack(">IIBBBBB", width, height, 8, 0 if grey else 2, 0, 0, 0)
    steps = np.arange(width) * 8 // width
    packer = zlib.compressobj(1)
    with path.open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header))
        for top in range(0, height, 256):
            rows = min(256, height - top)
            # A colour for each of eight columns and as many rows.
            shades = (steps * 31 + top * 8 // height * 57) % 256
            colours = np.stack([shades, 255 - shades, shades // 2], 1)[:, :channels]
            row = b"\0" + colours.astype(np.uint8).tobytes()
            part = packer.compress(row * rows)
            if part:
                file.write(png_chunk(b"IDAT", part))
        file.write(png_chunk(b"IDAT", packer.flush()) + png_chunk(b"IEND", b""))
    return path


def write_jpeg(path: Path, width: int, height: int) -> Path:
    """A baseline JPEG of a photograph's rows, over and over: its restart intervals need no more than new numbers."""
    rows = 160
    strip = np.tile(photograph(rows, 200), (1, -(-width // 200), 1))[:, :width]
    data = encoded(Image.fromarray(strip), "JPEG", quality=60, restart_marker_rows=1)
    size = data.index(b"\xff\xc0") + 5
    assert struct.unpack_from(">HH", data, size) == (rows, width)
    start = data.index(b"\xff\xda")
    start += 2 + struct.unpack_from(">H", data, start + 2)[0]
    intervals = re.split(rb"\xff[\xd0-\xd7]", data[start:-2])
    assert len(intervals) == 10 and height % rows == 0
    with path.open("wb") as file:
        file.write(data[:size] + struct.pack(">H", height) + data[size + 2 : start])
        count = height // 16
        for number in range(count):
            file.write(intervals[number % len(intervals)])
            if number < count - 1:
                file.write(bytes([0xFF, 0xD0 + number % 8]))
        file.write(b"\xff\xd9")
    return path
