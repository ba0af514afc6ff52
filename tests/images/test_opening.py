"""Files are opened safely: what is no sound image is refused with its class, orientation is applied."""

from __future__ import annotations

import os
import struct
import threading
import time
import warnings
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from image_files import (
    Bytes,
    bare_png,
    encoded,
    noise,
    pixels_of,
    png_chunk,
    reason_of,
    saved,
    turned,
)
from PIL import Image, PngImagePlugin

from densesiam_seg.errors import ImageError
from densesiam_seg.images.decode import image_size, load_image, load_square
from densesiam_seg.images.labels import load_label
from densesiam_seg.images.opening import FORMATS, SUFFIXES


def test_suffixes_belong_to_the_formats() -> None:
    known = Image.registered_extensions()
    assert {known[suffix] for suffix in SUFFIXES} == {*FORMATS, "MPO", "DIB"}


UPRIGHT = noise(3, 4)


@pytest.mark.parametrize(
    ("orientation", "stored"),
    [
        (1, UPRIGHT),
        (2, UPRIGHT[:, ::-1]),
        (3, UPRIGHT[::-1, ::-1]),
        (4, UPRIGHT[::-1]),
        (5, UPRIGHT.transpose(1, 0, 2)),
        (6, np.rot90(UPRIGHT, 1)),
        (7, UPRIGHT[::-1, ::-1].transpose(1, 0, 2)),
        (8, np.rot90(UPRIGHT, -1)),
    ],
)
def test_what_a_camera_stores_is_shown_upright(
    tmp_path: Path, orientation: int, stored: Bytes
) -> None:
    picture = Image.fromarray(np.ascontiguousarray(stored))
    exif = turned(orientation)
    for name in ("a.png", "a.webp", "a.tif"):
        path = saved(tmp_path, name, picture, exif=exif, lossless=True)
        np.testing.assert_array_equal(pixels_of(path), UPRIGHT)
        np.testing.assert_array_equal(load_label(path), UPRIGHT)
        np.testing.assert_array_equal(load_square(path, 3), load_image(path)[:, :, :3])
    raw = pixels_of(saved(tmp_path, "raw.jpg", picture)).astype(int)
    found = pixels_of(saved(tmp_path, "a.jpg", picture, exif=exif))
    assert found.shape == (3, 4, 3)
    assert abs(found.mean((0, 1)) - raw.mean((0, 1))).max() < 1e-3


def test_damaged_exif_is_no_reason_to_refuse(tmp_path: Path) -> None:
    path = saved(tmp_path, "a.png", noise(3, 4), exif=b"Exif\0\0junk that is no TIFF")
    np.testing.assert_array_equal(pixels_of(path), noise(3, 4))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"<!DOCTYPE html><html></html>", "not-an-image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not-an-image"),
        (b"RIFF\x24\0\0\0WAVEfmt ", "not-an-image"),
        (b"", "empty"),
    ],
)
def test_not_images(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "page.jpg"
    path.write_bytes(content)
    assert reason_of(load_image, path) == reason


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    dangling, pipe = tmp_path / "dangling.jpg", tmp_path / "pipe.jpg"
    dangling.symlink_to(tmp_path / "nowhere.jpg")
    os.mkfifo(pipe)
    assert reason_of(load_image, dangling) == "missing"
    assert reason_of(load_image, tmp_path / "nothing.jpg") == "missing"
    assert reason_of(load_image, tmp_path) == "not-regular"
    assert reason_of(load_image, pipe) == "not-regular"
    assert reason_of(load_image, "nul\0.jpg") == "corrupt"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (PermissionError(13, "Permission denied"), "permission"),
        (OSError(5, "Input/output error"), "unreadable"),
        (MemoryError(), "too-large"),
        (RecursionError("deep"), "corrupt"),
    ],
)
def test_other_errors_become_image_errors(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception, reason: str
) -> None:
    path = saved(tmp_path, "a.png", Image.new("RGB", (2, 2)))
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load_prepare", Mock(side_effect=error))
    assert reason_of(load_image, path) == reason


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif", "a.bmp"])
def test_truncated_files(tmp_path: Path, name: str) -> None:
    path = saved(tmp_path, name, noise(64, 64))
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    assert reason_of(load_image, path) == reason_of(load_square, path, 8) == "truncated"
    if name != "a.jpg":
        assert reason_of(load_label, path) == "truncated"


def test_huge_headers_are_refused_before_decoding(tmp_path: Path) -> None:
    bitmap = bytearray(encoded(Image.new("RGB", (2, 2)), "BMP"))
    bitmap[18:26] = struct.pack("<ii", 60_000, 50_000)
    path = tmp_path / "a"
    for data in (bytes(bitmap), bare_png(60_000, 50_000, 8, 2, b"")):
        path.write_bytes(data)
        assert reason_of(load_image, path) == reason_of(load_label, path) == "too-large"
        assert reason_of(load_square, path, 8) == "too-large"
        assert image_size(path) == (50_000, 60_000)


def test_the_limit_counts_pixels_and_may_exceed_that_of_pillow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [saved(tmp_path, f"a{suffix}", noise(20, 10)) for suffix in (".png", ".jpg", ".bmp")]
    paths.append(saved(tmp_path, "a.tif", noise(20, 10)))
    paths.append(saved(tmp_path, "b.tif", noise(20, 10), compression="tiff_lzw"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    for path in paths:
        assert load_image(path, max_pixels=200).shape == (3, 20, 10)
        assert load_square(path, 5).shape == (3, 5, 5)
        assert image_size(path) == (20, 10)
        with pytest.raises(ImageError, match=r"more than 199 in all.*--max-pixels"):
            load_image(path, max_pixels=199)
    assert Image.MAX_IMAGE_PIXELS == 50


def test_pillow_warnings_are_ignored_and_those_of_others_kept(tmp_path: Path) -> None:
    data = encoded(Image.new("RGB", (3, 3)), "PNG")
    no_frames = png_chunk(b"acTL", struct.pack(">II", 0, 0))  # an animation without any
    path = tmp_path / "a.png"
    path.write_bytes(data[:33] + no_frames + data[33:])
    with pytest.warns(UserWarning, match="Invalid APNG"), Image.open(path) as image:
        image.load()
    failures: list[BaseException] = []

    def decode() -> None:
        try:
            for _ in range(30):
                assert load_image(path).shape == (3, 3, 3)
        except BaseException as error:
            failures.append(error)

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        threads = [threading.Thread(target=decode) for _ in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(30):
            warnings.warn("mine", UserWarning, stacklevel=1)
            time.sleep(0)
        for thread in threads:
            thread.join()
        filters = len(warnings.filters)
        decode()
        assert len(warnings.filters) == filters  # they do not pile up
    assert not failures
    assert [str(warning.message) for warning in seen] == ["mine"] * 30
