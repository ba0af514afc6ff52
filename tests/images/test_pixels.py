"""Stored values of every mode become 8-bit RGB as worked out by hand."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from image_files import bare_png, noise, pixels_of, png_chunk, reason_of, saved
from PIL import Image

from densesiam_seg.errors import ImageError
from densesiam_seg.images import pixels
from densesiam_seg.images.decode import load_image, load_square
from densesiam_seg.images.decoding import Decoding


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_8_bit_pictures_are_not_copied(mode: str) -> None:
    picture = Image.new(mode, (3, 2))
    assert pixels.eight_bit(picture, None) is picture


def test_large_picture_spans_several_strips(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pixels, "_STRIP_PIXELS", 7 * 11)
    colours = noise(50, 11)
    np.testing.assert_array_equal(pixels_of(saved(tmp_path, "a.png", colours)), colours)
    deep = np.linspace(0, 65535, 550).astype(np.int32).reshape(50, 11)
    grey = pixels_of(saved(tmp_path, "a.tif", Image.fromarray(deep, "I")))[..., 0]
    np.testing.assert_array_equal(grey, np.rint(deep / 257))


def test_conversion_takes_only_strips_beside_the_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow's own buffer is not counted here; copies made for conversion would be."""
    monkeypatch.setattr(pixels, "_STRIP_PIXELS", 20_000)
    path = saved(tmp_path, "a.png", Image.new("RGBA", (2000, 1500), (1, 2, 3, 4)), compress_level=1)
    load_image(path)
    tracemalloc.start()
    tensor = load_image(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert tensor.numel() <= peak < 1.1 * tensor.numel()


@pytest.mark.parametrize(
    ("name", "mode", "colour", "expected"),
    [
        ("a.jpg", "CMYK", (0, 255, 255, 0), [255, 0, 0]),  # no cyan, all magenta and yellow
        ("a.tif", "CMYK", (0, 255, 255, 0), [255, 0, 0]),
        ("a.tif", "LAB", (255, 128, 128), [255, 255, 255]),  # lightness 100 without colour
        ("a.tif", "YCbCr", (76, 85, 255), [254, 0, 0]),
    ],
)
def test_other_colour_spaces(
    tmp_path: Path, name: str, mode: str, colour: tuple[int, ...], expected: list[int]
) -> None:
    found = pixels_of(saved(tmp_path, name, Image.new(mode, (16, 16), colour)))
    assert np.abs(found.astype(int) - expected).max() <= 3


def test_palette_with_and_without_transparency(tmp_path: Path) -> None:
    indexed = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8), "P")
    indexed.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    opaque = [[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [0, 255, 0]]]
    np.testing.assert_array_equal(pixels_of(saved(tmp_path, "a.png", indexed)), opaque)
    np.testing.assert_array_equal(pixels_of(saved(tmp_path, "a.gif", indexed)), opaque)
    clear = [[[255, 0, 0], [255, 255, 255]], [[0, 0, 255], [255, 255, 255]]]
    for name in ("b.png", "b.gif"):
        path = saved(tmp_path, name, indexed, transparency=1)
        np.testing.assert_array_equal(pixels_of(path), clear)
    half = saved(tmp_path, "c.png", indexed, transparency=bytes([255, 128, 0]))
    expected = [[[255, 0, 0], [127, 255, 127]], [[255, 255, 255], [127, 255, 127]]]
    np.testing.assert_array_equal(pixels_of(half), expected)


def test_alpha_is_laid_over_white(tmp_path: Path) -> None:
    rgba = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 255, 100, 51]]], np.uint8)
    expected = [[[10, 20, 30], [255, 255, 255], [204, 255, 224]]]
    for name in ("a.png", "a.tif", "a.webp"):
        path = saved(tmp_path, name, rgba, lossless=True, exact=True)
        np.testing.assert_array_equal(pixels_of(path), expected)
    grey = Image.fromarray(np.array([[[80, 255], [80, 0]]], np.uint8), "LA")
    path = saved(tmp_path, "la.png", grey)
    np.testing.assert_array_equal(pixels_of(path)[..., 0], [[80, 255]])


def test_one_bit(tmp_path: Path) -> None:
    stripes = Image.fromarray(np.array([[0, 255, 255], [255, 0, 0]], np.uint8)).convert("1")
    for name in ("a.png", "a.bmp", "a.tif"):
        path = saved(tmp_path, name, stripes)
        np.testing.assert_array_equal(pixels_of(path)[..., 2], [[0, 255, 255], [255, 0, 0]])


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path: Path) -> None:
    deep = np.array([[0, 128, 129, 257], [300, 32768, 65406, 65535]], np.uint16)
    expected = [[0, 0, 1, 1], [1, 128, 254, 255]]  # 32768 / 257 = 127.502
    for name in ("a.png", "a.tif"):
        path = saved(tmp_path, name, deep)
        np.testing.assert_array_equal(pixels_of(path)[..., 1], expected)
    big_endian = saved(
        tmp_path, "b.tif", Image.frombytes("I;16B", (4, 2), deep.astype(">u2").tobytes())
    )
    np.testing.assert_array_equal(pixels_of(big_endian)[..., 1], expected)
    clear = saved(tmp_path, "c.png", deep, transparency=300)
    np.testing.assert_array_equal(pixels_of(clear)[..., 1], [[0, 0, 1, 1], [255, 128, 254, 255]])


def test_all_sixteen_bit_values_round_to_the_nearest(tmp_path: Path) -> None:
    deep = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    grey = pixels_of(saved(tmp_path, "a.png", deep))[..., 0]
    np.testing.assert_array_equal(grey, (deep.astype(int) + 128) // 257)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.25, 1.0], [0, 64, 255]),
        ([0.0, 1.5, 254.6], [0, 2, 255]),
        ([0.0, 257.0, 65535.0], [0, 1, 255]),
        ([-0.05, 0.5, 1.05], [0, 128, 255]),  # as resampling leaves them
        ([-0.5, 0.5, 1.0], None),
        ([-3.1, 0.0, 3.1], None),
        ([0.0, 2.0, 5.0], [0, 2, 5]),  # whole numbers
        ([0.0, 500.0, 1000.0], [0, 128, 255]),
        ([0.0, 1.3, 5.2], [0, 64, 255]),  # of no known range: never everything black
        ([0.0, 0.5, np.inf], [0, 128, 64]),  # the mean of the others
        ([np.nan, np.nan, np.nan], None),
        ([0, 257, 65535], [0, 1, 255]),
        ([0, 1, -1], None),
        ([0, 1, 65536], None),
    ],
)
def test_floats_and_thirty_two_bit_integers(
    tmp_path: Path, values: list[float], expected: list[int] | None
) -> None:
    dtype = np.float32 if isinstance(values[0], float) else np.int32
    path = saved(tmp_path, "a.tif", np.array([values], dtype))
    if expected is None:
        assert reason_of(load_image, path) == reason_of(load_square, path, 2) == "bad-values"
    else:
        np.testing.assert_array_equal(pixels_of(path)[0, :, 0], expected)


@pytest.mark.parametrize("top", [1.0, 255.0])
def test_a_few_floats_beyond_their_range_do_not_make_the_image_black(
    tmp_path: Path, top: float
) -> None:
    values = np.linspace(0, top, 400, dtype=np.float32).reshape(20, 20)
    expected = pixels_of(saved(tmp_path, "a.tif", values))
    values[-1, -3:] = top * 1000
    decoding = Decoding()
    found = load_image(saved(tmp_path, "b.tif", values), decoding).permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(found[:-1], expected[:-1])
    assert found[-1, -1, 0] == 255
    assert any("clipped" in line for line in decoding.notes.lines())


def test_a_stretch_takes_shares_of_integers_and_floats_as_they_are(tmp_path: Path) -> None:
    half = Decoding(stretch=(0.2, 0.6))
    grey = saved(tmp_path, "a.png", np.array([[51, 103, 153, 255]], np.uint8))
    deep = saved(tmp_path, "b.png", np.array([[13107, 26471, 39321, 65535]], np.uint16))
    real = saved(tmp_path, "c.tif", np.array([[0.2, 103 / 255, 0.6, -7.0]], np.float32))
    expected = [0, 130, 255, 255]
    assert load_image(grey, half)[0, 0].tolist() == expected
    assert load_image(deep, half)[0, 0].tolist() == expected
    assert load_image(real, half)[0, 0].tolist() == [0, 130, 255, 0]
    colours = saved(tmp_path, "d.png", np.array([[[51, 103, 153]]], np.uint8))
    assert load_image(colours, half)[:, 0, 0].tolist() == [0, 130, 255]
    assert load_square(colours, 1, half)[:, 0, 0].tolist() == [0, 130, 255]


def test_sixteen_bit_colours_of_png_are_rounded(tmp_path: Path) -> None:
    import imagecodecs

    values = np.array([[[0, 128, 129], [300, 32768, 65406]]], np.uint16)
    path = tmp_path / "a.png"
    path.write_bytes(imagecodecs.png_encode(values))
    np.testing.assert_array_equal(pixels_of(path), [[[0, 0, 1], [1, 128, 254]]])
    alpha = np.concatenate((values, np.array([[[65535], [0]]], np.uint16)), 2)
    path.write_bytes(imagecodecs.png_encode(alpha))
    np.testing.assert_array_equal(pixels_of(path), [[[0, 0, 1], [255, 255, 255]]])
    assert load_image(path, Decoding(bands=(3,)))[:, 0, 0].tolist() == [1, 1, 1]


def test_a_bitmap_is_transparent_only_where_someone_filled_its_alpha(tmp_path: Path) -> None:
    colours = np.full((2, 2, 4), 90, np.uint8)
    for alpha, expected in ((0, 90), (255, 90)):
        colours[..., 3] = alpha
        path = saved(tmp_path, "a.bmp", Image.fromarray(colours, "RGBA"))
        header = bytearray(path.read_bytes())
        assert header[30:34] == b"\3\0\0\0" or header[28] == 32
        np.testing.assert_array_equal(pixels_of(path), np.full((2, 2, 3), expected))


def test_bands_of_other_formats(tmp_path: Path) -> None:
    colours = saved(tmp_path, "a.png", np.array([[[1, 2, 3]]], np.uint8))
    assert load_image(colours, Decoding(bands=(3, 1, 1)))[:, 0, 0].tolist() == [3, 1, 1]
    assert load_image(colours, Decoding(bands=(2,)))[:, 0, 0].tolist() == [2, 2, 2]
    with pytest.raises(ImageError, match="has 3 bands"):
        load_image(colours, Decoding(bands=(4,)))


def test_transparent_values_of_png_at_every_depth(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    grey = Image.fromarray(np.array([[0, 85, 170, 255]], np.uint8))
    for bits, clear in ((2, 1), (4, 5)):
        grey.save(path, bits=bits)
        data = path.read_bytes()
        if data[24] != bits:  # Pillow writes palettes alone with so few bits
            path.write_bytes(bare_png(4, 1, bits, 0, b"\0\x1b" if bits == 2 else b"\0\x05\xaf"))
            data = path.read_bytes()
        place = data.index(b"IDAT") - 4
        path.write_bytes(data[:place] + png_chunk(b"tRNS", struct.pack(">H", clear)) + data[place:])
        assert pixels_of(path)[0, :, 0].tolist() == [0, 255, 170, 255]
    deep = struct.pack(">B6H", 0, 1, 2, 3, 257, 514, 771)
    path.write_bytes(bare_png(2, 1, 16, 2, deep))
    data = path.read_bytes()
    place = data.index(b"IDAT") - 4
    path.write_bytes(data[:place] + png_chunk(b"tRNS", struct.pack(">3H", 1, 2, 3)) + data[place:])
    assert pixels_of(path).tolist() == [[[255, 255, 255], [1, 2, 3]]]
