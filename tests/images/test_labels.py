"""Labels come back to the last bit, and what cannot hold exact values is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from image_files import bare_png, noise, reason_of, saved
from PIL import Image
from tiff_files import FLOAT, SIGNED, UNSIGNED, page, write_tiff

from densesiam_seg.errors import ImageError
from densesiam_seg.images.labels import load_label

KINDS = {"u": UNSIGNED, "i": SIGNED, "f": FLOAT}


def test_label_indices_are_exact(tmp_path: Path) -> None:
    indices = noise(5, 6, 1)
    grey = saved(tmp_path, "l.png", indices)
    coloured = Image.fromarray(indices, "P")
    coloured.putpalette(noise(1, 256).tobytes())
    for path in (
        grey,
        saved(tmp_path, "p.png", coloured),
        saved(tmp_path, "p.bmp", coloured),
        saved(tmp_path, "p.tif", coloured),
        saved(tmp_path, "p.gif", coloured, optimize=False),
        saved(tmp_path, "t.png", coloured, transparency=0),
    ):
        label = load_label(path)
        assert label.dtype == np.uint8
        np.testing.assert_array_equal(label, indices)


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_label_of_few_bits_gives_the_stored_numbers(tmp_path: Path, depth: int) -> None:
    path = tmp_path / "a.png"
    stored = np.arange(8) % 2**depth  # eight pixels in one row
    bits = "".join(format(value, f"0{depth}b") for value in stored)
    row = bytes([0]) + int(bits, 2).to_bytes(depth, "big")
    path.write_bytes(bare_png(8, 1, depth, 0, row))
    np.testing.assert_array_equal(load_label(path), stored[None])


def test_label_colours_and_alpha(tmp_path: Path) -> None:
    colours = noise(4, 4)
    opaque = np.dstack([colours, np.full((4, 4), 255, np.uint8)])
    for name, array in (("rgb.png", colours), ("rgba.png", opaque)):
        label = load_label(saved(tmp_path, name, array))
        assert label.dtype == np.uint8
        np.testing.assert_array_equal(label, colours)
    opaque[1, 1, 3] = 254
    clear = saved(tmp_path, "clear.png", opaque)
    assert reason_of(load_label, clear) == "bad-values"
    for alpha, good in ((255, True), (0, False)):
        grey = np.dstack([colours[..., 0], np.full((4, 4), alpha, np.uint8)])
        path = saved(tmp_path, f"la{alpha}.png", Image.fromarray(grey, "LA"))
        if good:
            np.testing.assert_array_equal(load_label(path), colours[..., 0])
        else:
            assert reason_of(load_label, path) == "bad-values"


def test_label_that_cannot_be_exact_is_refused(tmp_path: Path) -> None:
    grey = Image.fromarray(noise(8, 8, 1))
    deep_colours = tmp_path / "deep.png"
    deep_colours.write_bytes(bare_png(1, 1, 16, 2, bytes(7)))
    inverted = saved(tmp_path, "inverted.tif", grey, tiffinfo={262: 0})
    for path in (
        saved(tmp_path, "a.jpg", grey),
        saved(tmp_path, "cmyk.tif", Image.new("CMYK", (2, 2))),
        saved(tmp_path, "lab.tif", Image.new("LAB", (2, 2))),
        saved(tmp_path, "float.tif", Image.new("F", (2, 2))),
        deep_colours,
        inverted,
    ):
        assert reason_of(load_label, path) == "bad-values"


@pytest.mark.parametrize("suffix", ["png", "gif", "tif"])
def test_label_of_several_frames_is_refused(tmp_path: Path, suffix: str) -> None:
    """Unless one of them is named."""
    frames = [Image.fromarray(noise(5, 6, 1) ^ np.uint8(flip)) for flip in (0, 255)]
    path = saved(tmp_path, f"a.{suffix}", frames[0], save_all=True, append_images=[frames[1]])
    assert reason_of(load_label, path) == "bad-values"
    if suffix == "tif":
        np.testing.assert_array_equal(load_label(path / "2"), np.asarray(frames[1]))


def test_label_of_sixteen_and_thirty_two_bits(tmp_path: Path) -> None:
    deep = np.array([[0, 300], [65535, 3]], np.uint16)
    wide = np.array([[0, 70_000], [-1, 3]], np.int32)
    for name, values in (("a.png", deep), ("a.tif", deep), ("b.tif", wide)):
        label = load_label(saved(tmp_path, name, values))
        assert label.dtype == np.int32
        np.testing.assert_array_equal(label, values)


@pytest.mark.parametrize("deflated", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("u1", [0, 7, 255]),
        ("i1", [-1, -128, 127]),
        ("u2", [0, 65535, 3]),
        ("i2", [-1, -32768, 3]),
        ("u4", [65536, 2**32 - 1, 3]),
        ("i4", [-1, -(2**31), 2**31 - 1]),
        ("i8", [-1, 2**40, 3]),
    ],
)
def test_tiff_of_whole_numbers(
    tmp_path: Path, kind: str, values: list[int], order: str, deflated: bool
) -> None:
    made = page(np.array([values]), 8 * int(kind[1]), kind=KINDS[kind[0]], deflated=deflated)
    path = write_tiff(tmp_path / "a.tif", made, order=order, big=deflated)
    assert load_label(path).tolist() == [values]


@pytest.mark.parametrize(("kind", "value"), [("f4", 3), ("f8", 3), ("u8", 2**64 - 1)])
def test_tiff_of_other_numbers_is_refused_with_the_remedy(
    tmp_path: Path, kind: str, value: int
) -> None:
    made = page(np.array([[1, 2, value]], kind), 8 * int(kind[1]), kind=KINDS[kind[0]])
    path = write_tiff(tmp_path / "a.tif", made)
    with pytest.raises(ImageError, match="save the labels as an 8-bit or 16-bit PNG"):
        load_label(path)
