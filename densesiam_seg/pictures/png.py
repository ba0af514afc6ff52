"""PNG files of ids, written band by band: no picture needs to be in memory whole.

H W: height and width of the picture, n rows of a band.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PALETTE, _GREY = (8, 3), (16, 0)
"""Bit depth and colour type."""
_UP = 2
"""The filter that stores each byte less the one above it; regions become runs of zeros."""
_BLOCK_PIXELS = 1 << 17
"""What is filtered and compressed at once stays in the processor's cache."""


def write_ids(
    file: BinaryIO, bands: Iterable[NDArray[np.integer]], palette: bytes | None = None
) -> None:
    """Write bands (n, W) from top to bottom as one picture, 8-bit with a palette (RGB RGB …) or else 16-bit grey.

    `file` must be empty and seekable. Ids beyond 8 or 16 bits are cut off.
    """
    layout = _GREY if palette is None else _PALETTE
    file.write(_header(0, 0, *layout))
    if palette is not None:
        file.write(_chunk(b"PLTE", palette))
    # Of zlib's ways, run lengths are both the fastest and nearly the smallest for filtered ids.
    deflate = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS, 9, zlib.Z_RLE)
    height, width = 0, 0
    above: NDArray[np.uint8] | np.uint8 = np.uint8(0)
    for rows in _blocks(bands):
        assert height == 0 or rows.shape[1] == width, (rows.shape, width)
        height, width = height + len(rows), rows.shape[1]
        stored = np.ascontiguousarray(rows, np.uint8 if palette is not None else ">u2")
        stored = stored.view(np.uint8)
        filtered = np.empty((len(rows), 1 + stored.shape[1]), np.uint8)
        filtered[:, 0] = _UP
        filtered[0, 1:] = stored[0] - above
        np.subtract(stored[1:], stored[:-1], out=filtered[1:, 1:])
        above = stored[-1]
        file.write(_chunk(b"IDAT", deflate.compress(filtered.data)))
    assert height and width, "no pixels"
    file.write(_chunk(b"IDAT", deflate.flush()) + _chunk(b"IEND", b""))
    file.seek(0)  # the height is known only now
    file.write(_header(height, width, *layout))


def _blocks(bands: Iterable[NDArray[np.integer]]) -> Iterator[NDArray[np.integer]]:
    """The same rows in pieces of about `_BLOCK_PIXELS`."""
    for band in bands:
        rows = max(_BLOCK_PIXELS // max(band.shape[1], 1), 1)
        yield from (band[top : top + rows] for top in range(0, len(band), rows))


def _header(height: int, width: int, depth: int, colour: int) -> bytes:
    size = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    return _SIGNATURE + _chunk(b"IHDR", size + bytes((depth, colour, 0, 0, 0)))


def _chunk(kind: bytes, data: bytes) -> bytes:
    """Length, kind, data, checksum; nothing for an IDAT that zlib still holds back."""
    if kind == b"IDAT" and not data:
        return b""
    check = zlib.crc32(data, zlib.crc32(kind))
    return len(data).to_bytes(4, "big") + kind + data + check.to_bytes(4, "big")
