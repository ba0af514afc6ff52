"""Files are opened safely: what is no sound image is refused with its class, orientation is applied."""

from __future__ import annotations

import os
import struct
import sys
import threading
import time
import tracemalloc
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import imagecodecs
import numpy as np
import pytest
import tifffile
import torch
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
from tar_files import pack, write_tar

from densesiam_seg.errors import ImageError
from densesiam_seg.images.decode import image_size, load_image, load_square
from densesiam_seg.images.decoding import Decoding
from densesiam_seg.images.labels import load_label
from densesiam_seg.images.opening import FORMATS, SUFFIXES
from densesiam_seg.images.scan import scan


def test_suffixes_belong_to_the_formats() -> None:
    known = Image.registered_extensions() | dict.fromkeys((".heic", ".heif", ".hif"), "HEIC")
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
        (b"\0\0\0\x0cjP  \r\n\x87\n", "unsupported"),
        (b"\xff\x4f\xff\x51\0\x2f", "unsupported"),
        (b"\0\0\0\x18ftypcrx isom", "unsupported"),
        (b"II*\0\x10\0\0\0CR\2\0", "unsupported"),
        (b"FUJIFILMCCD-RAW 0201", "unsupported"),
        (bytes(128) + b"DICM\2\0", "unsupported"),
        (b"8BPS\0\1", "unsupported"),
        (b"P6\n2 2\n255\n", "unsupported"),
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


def test_a_chunk_that_claims_gigabytes_takes_none(tmp_path: Path) -> None:
    """Its reader would set aside what the length says, for what may lie behind the pixels."""
    data = bytearray(encoded(Image.fromarray(noise(8, 8)), "PNG"))
    struct.pack_into(">I", data, data.index(b"IDAT") - 4, 2**31 - 9)
    path = tmp_path / "a.png"
    path.write_bytes(data)
    tracemalloc.start()
    try:
        with suppress(ImageError):
            load_image(path)
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


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
        assert load_image(path, Decoding(200)).shape == (3, 20, 10)
        assert load_square(path, 5).shape == (3, 5, 5)
        assert image_size(path) == (20, 10)
        with pytest.raises(ImageError, match=r"more than 199 in all.*--max-pixels"):
            load_image(path, Decoding(199))
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


def test_unsupported_files_are_named_and_not_called_damaged(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    for content, words in (
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (bytes(128) + b"DICM\2\0", "DICOM"),
        (b"II*\0\x10\0\0\0CR\2\0", "raw camera file.*develop"),
    ):
        path.write_bytes(content)
        with pytest.raises(ImageError, match=words) as caught:
            load_image(path)
        assert "again" not in str(caught.value)
    bitmap = bytearray(encoded(Image.new("RGB", (2, 2)), "BMP"))
    bitmap[14] = 66  # a header of unknown length
    path.write_bytes(bitmap + bytes(100))
    assert reason_of(load_image, path) == "unsupported"


@pytest.mark.parametrize(("suffix", "turns"), [(".avif", True), (".heic", False)])
def test_further_formats(tmp_path: Path, suffix: str, turns: bool) -> None:
    if suffix == ".heic":
        pytest.importorskip("pillow_heif").register_heif_opener()
    half = np.zeros((32, 64, 3), np.uint8)
    half[:, :32] = 200
    path = saved(tmp_path, f"a{suffix}", half, quality=95)
    found = load_image(path).permute(1, 2, 0).numpy().astype(int)
    assert found.shape == half.shape
    assert np.abs(found - half).max() < 20
    assert reason_of(load_label, path) == "bad-values"
    if turns:
        turned_path = saved(tmp_path, "b.avif", half, exif=turned(6))
        assert image_size(turned_path) == (64, 32)
        assert load_image(turned_path).shape == (3, 64, 32)


def test_without_its_package_a_heic_image_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    path = tmp_path / "a.jpg"
    path.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1")
    with pytest.raises(ImageError, match=r"\[heif\]") as caught:
        load_image(path)
    assert caught.value.reason == "unsupported"


def test_frames_are_noted_and_chosen(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (6, 4), (shade, 0, 0)) for shade in (10, 100, 200)]
    for name in ("a.gif", "a.png", "a.webp"):
        path = tmp_path / name
        frames[0].save(path, save_all=True, append_images=frames[1:], lossless=True)
        decoding = Decoding()
        assert abs(int(load_image(path, decoding)[0, 0, 0]) - 10) <= 2
        assert any("3 of them" in line for line in decoding.notes.lines())
        assert abs(int(load_image(path, Decoding(page=3))[0, 0, 0]) - 200) <= 4
        assert reason_of(load_image, f"{path}/4") == "no-such-page"


class TestTars:
    """Images in tars are decoded as files are, and named as people know them."""

    def test_every_kind_of_file(self, tmp_path: Path) -> None:
        """Those that Pillow, its libraries by themselves, imagecodecs and tifffile read."""
        (tmp_path / "files").mkdir()
        picture, deep = Image.fromarray(noise(40, 30)), noise(40, 30).astype(np.uint16) * 257
        options: dict[str, dict[str, Any]] = {
            "a.jpg": {},
            "b.png": {},
            "c.webp": {},
            "d.tif": {"compression": "tiff_lzw"},
            "e.tif": {"compression": "jpeg"},
            "f.tif": {"compression": "group4"},
            "g.gif": {},
            "h.bmp": {},
            "i.avif": {},
        }
        for name, how in options.items():
            shown = picture.convert("1") if name == "f.tif" else picture
            saved(tmp_path / "files", name, shown, **how)
        tifffile.imwrite(tmp_path / "files" / "j.tif", deep, photometric="rgb")
        (tmp_path / "files" / "k.png").write_bytes(imagecodecs.png_encode(deep))
        files = sorted((tmp_path / "files").iterdir())
        found = scan([pack(tmp_path / "x.tar", *files)])
        assert len(found) == len(files) == 11
        for place, file in enumerate(files):
            path = found.path(place)
            assert torch.equal(load_image(path), load_image(file)), file.name
            assert torch.equal(load_square(path, 16), load_square(file, 16)), file.name
            assert image_size(path) == image_size(file)
        assert np.array_equal(load_label(found.path(1)), load_label(files[1]))

    def test_large_members_are_read_in_pieces(self, tmp_path: Path) -> None:
        (tmp_path / "files").mkdir()
        large = saved(tmp_path / "files", "a.tif", noise(800, 900), compression="tiff_lzw")
        other = saved(tmp_path / "files", "b.png", noise(800, 900))
        assert min(large.stat().st_size, other.stat().st_size) > 1 << 20
        found = scan([pack(tmp_path / "x.tar", large, other)])
        for place, file in enumerate((large, other)):
            assert torch.equal(load_image(found.path(place)), load_image(file))

    def test_what_is_wrong_is_told_by_the_name_people_know(self, tmp_path: Path) -> None:
        good = encoded(Image.fromarray(noise(40, 30)), "JPEG")
        contents = {"a.jpg": good[:700], "b.jpg": b"", "c.jpg": b"junk" * 50, "d.png": good[:200]}
        tar = write_tar(tmp_path / "x.tar", contents)
        found = scan([tar])
        reasons = ["truncated", "empty", "not-an-image", "truncated"]
        for place, reason in enumerate(reasons):
            with pytest.raises(ImageError, match=rf"^{tar}/\w\.\w+: ") as caught:
                load_image(found.path(place))
            assert (caught.value.reason, caught.value.path) == (reason, found.shown(place))
        with pytest.raises(ImageError, match=rf"^{tar}/\w\.\w+: "):
            load_label(found.path(0))
        write_tar(tar, {"z.jpg": good, **contents})
        with pytest.raises(ImageError, match=rf"^{tar}/a\.jpg: is not where it was in the tar"):
            load_image(found.path(0))
        tar.unlink()
        with pytest.raises(ImageError, match=rf"^{tar}/a\.jpg: does not exist"):
            load_image(found.path(0))
