"""Files are opened safely: what is no sound image is refused with its class, orientation is applied."""

from __future__ import annotations

import io
import os
import struct
import threading
import time
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import ExifTags, Image, ImageFile, PngImagePlugin

from densesiam_seg.errors import ImageError
from densesiam_seg.images.decode import image_size, load_image, load_label, load_square
from densesiam_seg.images.opening import FORMATS, SUFFIXES

Bytes = npt.NDArray[np.uint8]


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> Bytes:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def saved(folder: Path, name: str, image: Image.Image, **options: Any) -> Path:
    path = folder / name
    image.save(path, **options)
    return path


def reason_of(read: Callable[..., object], *arguments: object) -> str:
    with pytest.raises(ImageError) as caught:
        read(*arguments)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(caught.value.path)
    return caught.value.reason


def channels_last(path: Path) -> Bytes:
    return load_image(path).permute(1, 2, 0).numpy()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bare_png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header)
    return start + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")


def encoded(image: Image.Image, format_name: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_name, **options)
    return buffer.getvalue()


def test_suffixes_belong_to_the_formats() -> None:
    assert set(FORMATS) == {"JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"}
    known = Image.registered_extensions()
    assert {known[suffix] for suffix in SUFFIXES} == {*FORMATS, "MPO", "DIB"}


def test_exif_orientations(tmp_path: Path) -> None:
    """Each stored array is what the camera would write so that the picture looks as `upright`."""
    upright = noise(3, 4)
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }
    for orientation, array in stored.items():
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        picture = Image.fromarray(np.ascontiguousarray(array))
        for name in ("a.png", "a.webp", "a.tif"):
            path = saved(tmp_path, f"{orientation}{name}", picture, exif=exif, lossless=True)
            assert image_size(path) == (3, 4)
            np.testing.assert_array_equal(channels_last(path), upright, f"{orientation} {name}")
            np.testing.assert_array_equal(load_label(path), upright)
            np.testing.assert_array_equal(load_square(path, 3), load_image(path)[:, :, :3])
        path = saved(tmp_path, f"{orientation}.jpg", picture, exif=exif)
        raw = saved(tmp_path, f"{orientation}-raw.jpg", picture)
        assert image_size(path) == (3, 4)
        flat = load_image(path).float().mean((1, 2)) - load_image(raw).float().mean((1, 2))
        assert flat.abs().max() < 1e-3


def test_damaged_exif_is_no_reason_to_refuse(tmp_path: Path) -> None:
    picture = Image.fromarray(noise(3, 4))
    path = saved(tmp_path, "a.png", picture, exif=b"Exif\0\0junk that is no TIFF")
    np.testing.assert_array_equal(channels_last(path), np.asarray(picture))


def test_not_images(tmp_path: Path) -> None:
    page = tmp_path / "page.jpg"
    page.write_text("<!DOCTYPE html><html></html>")
    assert reason_of(load_image, page) == "not-an-image"
    vector = tmp_path / "drawing.png"
    vector.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    assert reason_of(load_image, vector) == "not-an-image"
    sound = tmp_path / "sound.webp"
    sound.write_bytes(b"RIFF\x24\0\0\0WAVEfmt ")
    assert reason_of(load_image, sound) == "not-an-image"


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    empty = tmp_path / "empty.jpg"
    empty.touch()
    dangling = tmp_path / "dangling.jpg"
    dangling.symlink_to(tmp_path / "nowhere.jpg")
    pipe = tmp_path / "pipe.jpg"
    os.mkfifo(pipe)
    assert reason_of(load_image, empty) == "empty"
    assert reason_of(load_image, dangling) == "missing"
    assert reason_of(load_image, tmp_path / "nothing.jpg") == "missing"
    assert reason_of(load_image, tmp_path) == "not-regular"
    assert reason_of(load_image, pipe) == "not-regular"
    assert reason_of(load_image, "nul\0.jpg") == "corrupt"


def test_a_pipe_put_in_place_after_the_first_look_does_not_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = saved(tmp_path, "good.png", Image.new("RGB", (2, 2)))
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    regular = good.stat()
    monkeypatch.setattr(Path, "stat", lambda self: regular)
    assert reason_of(load_image, pipe) == "not-regular"


def test_no_permission(tmp_path: Path) -> None:
    path = saved(tmp_path, "a.png", Image.new("RGB", (2, 2)))
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    assert reason_of(load_image, path) == "permission"


def test_system_errors_become_image_errors(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = saved(tmp_path, "a.png", Image.new("RGB", (2, 2)))
    for error, reason in (
        (PermissionError(13, "Permission denied"), "permission"),
        (OSError(5, "Input/output error"), "unreadable"),
        (MemoryError(), "too-large"),
        (RecursionError("deep"), "corrupt"),
    ):

        def fail(self: ImageFile.ImageFile, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(PngImagePlugin.PngImageFile, "load_prepare", fail)
        assert reason_of(load_image, path) == reason


def test_truncated_files(tmp_path: Path) -> None:
    picture = Image.fromarray(noise(64, 64))
    for name in ("a.jpg", "a.png", "a.tif", "a.bmp"):
        path = saved(tmp_path, name, picture)
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
        assert reason_of(load_image, path) == reason_of(load_square, path, 8) == "truncated"
        if name != "a.jpg":
            assert reason_of(load_label, path) == "truncated"


def test_huge_headers_are_refused_before_decoding(tmp_path: Path) -> None:
    bitmap = bytearray(encoded(Image.new("RGB", (2, 2)), "BMP"))
    bitmap[18:26] = struct.pack("<ii", 60_000, 50_000)
    files = {"a.bmp": bytes(bitmap), "a.png": bare_png(60_000, 50_000, 8, 2, b"")}
    for name, data in files.items():
        path = tmp_path / name
        path.write_bytes(data)
        assert reason_of(load_image, path) == reason_of(load_label, path) == "too-large"
        assert reason_of(load_square, path, 8) == "too-large"
        assert image_size(path) == (50_000, 60_000)


def test_size_limit_counts_pixels(tmp_path: Path) -> None:
    path = saved(tmp_path, "a.png", Image.new("L", (20, 10)))
    assert load_image(path, max_pixels=200).shape == (3, 10, 20)
    with pytest.raises(ImageError, match=r"20 x 10 pixels, more than 199 in all.*--max-pixels"):
        load_image(path, max_pixels=199)


def test_our_limit_may_exceed_that_of_pillow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = Image.fromarray(noise(64, 64))
    paths = [saved(tmp_path, f"a{suffix}", picture) for suffix in (".png", ".jpg", ".tif", ".bmp")]
    paths.append(saved(tmp_path, "b.tif", picture, compression="tiff_lzw"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for path in paths:
        assert load_image(path).shape == (3, 64, 64)
        assert load_square(path, 16).shape == (3, 16, 16)
        assert image_size(path) == (64, 64)
    assert Image.MAX_IMAGE_PIXELS == 100


def animation_without_frames() -> bytes:
    """A PNG that makes Pillow warn: its acTL chunk promises no frame."""
    data = encoded(Image.new("RGB", (3, 3)), "PNG")
    return data[:33] + png_chunk(b"acTL", struct.pack(">II", 0, 0)) + data[33:]


def test_pillow_warnings_are_ignored_and_those_of_others_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(animation_without_frames())
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
    assert not failures
    assert {str(warning.message) for warning in seen} == {"mine"}
    assert len(seen) == 30


def test_filters_do_not_pile_up(tmp_path: Path) -> None:
    path = saved(tmp_path, "a.png", Image.new("RGB", (2, 2)))
    load_image(path)
    before = len(warnings.filters)
    for _ in range(5):
        load_image(path)
    assert len(warnings.filters) == before
