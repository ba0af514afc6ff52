"""PNG files of ids: every byte as the standard says, and no more than a band in memory."""

from __future__ import annotations

import io
import tracemalloc
import zlib
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from densesiam_seg.pictures import png
from densesiam_seg.pictures.png import write_ids

PALETTE = bytes(range(256)) * 3


def written(*bands: NDArray[np.integer], palette: bytes | None = PALETTE) -> bytes:
    file = io.BytesIO()
    write_ids(file, bands, palette)
    return file.getvalue()


def chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """Kind and content of each chunk, with signature, lengths and checksums verified."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    found, place = [], 8
    while place < len(data):
        length = int.from_bytes(data[place : place + 4], "big")
        kind, content = data[place + 4 : place + 8], data[place + 8 : place + 8 + length]
        check = data[place + 8 + length : place + 12 + length]
        assert check == zlib.crc32(kind + content).to_bytes(4, "big")
        found.append((kind, content))
        place += 12 + length
    return found


def ids(height: int, width: int, largest: int) -> NDArray[np.integer]:
    draw = np.random.default_rng(height * 1000 + width)
    return draw.integers(0, largest + 1, (height, width), np.int32)


def test_the_bytes_of_a_small_picture() -> None:
    """Each row: filter 2, then its ids less those above, modulo 256."""
    parts = chunks(written(np.array([[7, 8, 255], [7, 9, 0]], np.uint8)))
    assert [kind for kind, _ in parts if kind != b"IDAT"] == [b"IHDR", b"PLTE", b"IEND"]
    assert parts[0][1] == bytes([0, 0, 0, 3, 0, 0, 0, 2, 8, 3, 0, 0, 0])
    assert parts[1][1] == PALETTE
    assert parts[-1] == (b"IEND", b"")
    stored = zlib.decompress(b"".join(data for kind, data in parts if kind == b"IDAT"))
    assert stored == bytes([2, 7, 8, 255, 2, 0, 1, 1])


def test_the_bytes_of_16_bit_grey() -> None:
    """The high byte comes first, and each byte is filtered by itself: 0x0201 after 0x0102 is (1, 255)."""
    parts = chunks(written(np.array([[0x0102], [0x0201]], np.uint16), palette=None))
    assert parts[0][1] == bytes([0, 0, 0, 1, 0, 0, 0, 2, 16, 0, 0, 0, 0])
    assert b"PLTE" not in dict(parts)
    stored = zlib.decompress(b"".join(data for kind, data in parts if kind == b"IDAT"))
    assert stored == bytes([2, 1, 2, 2, 1, 255])


@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    cuts=st.lists(st.integers(0, 40), max_size=5),
    block=st.integers(1, 200),
    deep=st.booleans(),
)
def test_bands_do_not_show(size: tuple[int, int], cuts: list[int], block: int, deep: bool) -> None:
    mask = ids(*size, 65535 if deep else 255)
    palette = None if deep else PALETTE
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(png, "_BLOCK_PIXELS", block)
        data = written(*np.split(mask, sorted(cuts)), palette=palette)
    assert data == written(mask, palette=palette)
    with Image.open(io.BytesIO(data)) as picture:
        assert picture.mode == ("I;16" if deep else "P")
        np.testing.assert_array_equal(np.asarray(picture), mask)


def test_a_large_picture_needs_the_memory_of_a_band() -> None:
    def bands() -> Iterator[NDArray[np.integer]]:
        for number in range(200):
            yield np.full((50, 2000), number, np.uint8)

    tracemalloc.start()
    file = io.BytesIO()
    write_ids(file, bands(), PALETTE)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000  # of 20 million pixels
    with Image.open(file) as picture:
        assert picture.size == (2000, 10_000)
        assert np.asarray(picture)[::50, 7].tolist() == list(range(200))


def test_regions_take_hardly_any_space() -> None:
    """192 regions of 900 pixels: less than a byte for 60 pixels."""
    mask = np.kron(ids(12, 16, 26), np.ones((30, 30), np.int32)).astype(np.uint8)
    assert len(written(mask)) - len(PALETTE) < mask.size / 60


def test_bands_of_two_widths_are_refused() -> None:
    with pytest.raises(AssertionError):
        written(ids(2, 3, 9), ids(2, 4, 9))


def test_no_pixels_are_refused() -> None:
    with pytest.raises(AssertionError, match="no pixels"):
        written()
