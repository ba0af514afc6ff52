from __future__ import annotations

import io
import os
import random
import struct
import threading
import time
import tracemalloc
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageFile, PngImagePlugin

from densesiam_seg import images, manifest
from densesiam_seg.errors import ImageError
from densesiam_seg.images import image_size, load_image, load_label, load_square

BAD_IMAGES = Path(__file__).resolve().parents[2] / "shared" / "data" / "badimages"
Bytes = npt.NDArray[np.uint8]
SIDEWAYS = {5, 6, 7, 8}
BILINEAR = Image.Resampling.BILINEAR


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


def pixels_of(path: Path) -> Bytes:
    """(H, W, 3), with the promises about the tensor checked."""
    tensor = load_image(path)
    assert tensor.dtype == torch.uint8
    assert tensor.is_contiguous()
    assert tuple(tensor.shape) == (3, *image_size(path))
    return tensor.permute(1, 2, 0).numpy()


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


# ---- formats and modes ----------------------------------------------------------------------


def test_suffixes_are_those_of_the_folder_scan() -> None:
    assert images.SUFFIXES == manifest.SUFFIXES
    assert set(images.FORMATS) == {"JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"}


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif", "a.webp"])
def test_lossless_rgb_is_exact(tmp_path: Path, name: str) -> None:
    colours = noise(13, 17)
    path = saved(tmp_path, name, Image.fromarray(colours), lossless=True)
    np.testing.assert_array_equal(pixels_of(path), colours)


def test_jpeg_and_mpo_give_the_first_picture(tmp_path: Path) -> None:
    first, second = (Image.new("RGB", (32, 16), colour) for colour in ("red", "blue"))
    plain = pixels_of(saved(tmp_path, "a.jpg", first, quality=95))
    path = saved(tmp_path, "a.mpo", first, quality=95, save_all=True, append_images=[second])
    np.testing.assert_array_equal(pixels_of(path), plain)
    assert np.abs(plain.astype(int) - [255, 0, 0]).max() <= 3


def test_suffix_does_not_matter(tmp_path: Path) -> None:
    colours = noise(4, 5)
    path = saved(tmp_path, "a.jpg", Image.fromarray(colours), format="PNG")
    np.testing.assert_array_equal(pixels_of(path), colours)


def test_large_picture_spans_several_strips(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "_STRIP_PIXELS", 7 * 11)
    colours = noise(50, 11)
    np.testing.assert_array_equal(
        pixels_of(saved(tmp_path, "a.png", Image.fromarray(colours))), colours
    )
    deep = np.linspace(0, 65535, 550).astype(np.int32).reshape(50, 11)
    grey = pixels_of(saved(tmp_path, "a.tif", Image.fromarray(deep, "I")))[..., 0]
    np.testing.assert_array_equal(grey, np.rint(deep / 257))


def test_conversion_takes_only_strips_beside_the_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow's own buffer is not counted here; copies made for conversion would be."""
    monkeypatch.setattr(images, "_STRIP_PIXELS", 20_000)
    path = saved(tmp_path, "a.png", Image.new("RGBA", (2000, 1500), (1, 2, 3, 4)), compress_level=1)
    load_image(path)
    tracemalloc.start()
    tensor = load_image(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert tensor.numel() <= peak < 1.1 * tensor.numel()


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
            np.testing.assert_array_equal(pixels_of(path), upright, f"{orientation} {name}")
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
    np.testing.assert_array_equal(pixels_of(path), np.asarray(picture))


def test_cmyk_jpeg_and_tiff(tmp_path: Path) -> None:
    inks = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # no cyan, all magenta and yellow: red
    for name in ("a.jpg", "a.tif"):
        red = pixels_of(saved(tmp_path, name, inks))
        assert np.abs(red.astype(int) - [255, 0, 0]).max() <= 3


def test_lab_and_ycbcr(tmp_path: Path) -> None:
    lab = pixels_of(saved(tmp_path, "a.tif", Image.new("LAB", (2, 2), (255, 128, 128))))
    assert lab.min() >= 253  # lightness 100 without colour: white
    ycbcr = pixels_of(saved(tmp_path, "b.tif", Image.new("YCbCr", (2, 2), (76, 85, 255))))
    assert np.abs(ycbcr.astype(int) - [254, 0, 0]).max() <= 2


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
        path = saved(tmp_path, name, Image.fromarray(rgba), lossless=True, exact=True)
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
        path = saved(tmp_path, name, Image.fromarray(deep))
        np.testing.assert_array_equal(pixels_of(path)[..., 1], expected)
        np.testing.assert_array_equal(load_label(path), deep)
    big_endian = saved(
        tmp_path, "b.tif", Image.frombytes("I;16B", (4, 2), deep.astype(">u2").tobytes())
    )
    np.testing.assert_array_equal(pixels_of(big_endian)[..., 1], expected)
    clear = saved(tmp_path, "c.png", Image.fromarray(deep), transparency=300)
    np.testing.assert_array_equal(pixels_of(clear)[..., 1], [[0, 0, 1, 1], [255, 128, 254, 255]])


def test_all_sixteen_bit_values_round_to_the_nearest(tmp_path: Path) -> None:
    deep = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    grey = pixels_of(saved(tmp_path, "a.png", Image.fromarray(deep)))[..., 0]
    np.testing.assert_array_equal(grey, (deep.astype(int) + 128) // 257)


def test_thirty_two_bit_integers(tmp_path: Path) -> None:
    good = Image.fromarray(np.array([[0, 257], [65535, 514]], np.int32))
    np.testing.assert_array_equal(
        pixels_of(saved(tmp_path, "a.tif", good))[..., 0], [[0, 1], [255, 2]]
    )
    for number, wrong in enumerate((-1, 65536)):
        path = saved(tmp_path, f"{number}.tif", Image.fromarray(np.array([[0, wrong]], np.int32)))
        assert reason_of(load_image, path) == "bad-values"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.25, 1.0], [0, 64, 255]),
        ([0.0, 1.5, 254.6], [0, 2, 255]),
        ([0.0, 257.0, 65535.0], [0, 1, 255]),
        ([-0.1, 0.5, 1.0], None),
        ([0.0, 0.5, 65536.0], None),
        ([0.0, np.nan, 1.0], None),
        ([0.0, 0.5, np.inf], None),
    ],
)
def test_floats(tmp_path: Path, values: list[float], expected: list[int] | None) -> None:
    path = saved(tmp_path, "a.tif", Image.fromarray(np.array([values], np.float32)))
    if expected is None:
        assert reason_of(load_image, path) == "bad-values"
        assert reason_of(load_square, path, 2) == "bad-values"
    else:
        np.testing.assert_array_equal(pixels_of(path)[0, :, 0], expected)
    assert reason_of(load_label, path) == "bad-values"


def test_first_frame_of_animations(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (6, 5), colour) for colour in ("red", "lime", "blue")]
    for name in ("a.gif", "a.png", "a.webp", "a.tif"):
        options: dict[str, Any] = {"save_all": True, "append_images": frames[1:]}
        path = saved(tmp_path, name, frames[0], lossless=True, **options)
        np.testing.assert_array_equal(pixels_of(path), np.full((5, 6, 3), [255, 0, 0]))


# ---- refusals -------------------------------------------------------------------------------


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


# ---- warnings -------------------------------------------------------------------------------


def animation_without_frames() -> bytes:
    """A PNG that makes Pillow warn: its acTL chunk promises no frame."""
    data = encoded(Image.new("RGB", (3, 3)), "PNG")
    return data[:33] + png_chunk(b"acTL", struct.pack(">II", 0, 0)) + data[33:]


def test_pillow_warnings_are_kept_in_the_decoding_thread(tmp_path: Path) -> None:
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


# ---- squares --------------------------------------------------------------------------------


def square_reference(array: Bytes, side: int) -> Bytes:
    """Resize and centre crop with torchvision's rounding, on the whole image."""
    height, width = array.shape[:2]
    short = min(height, width)
    size = (int(side * width / short), int(side * height / short))
    left, top = (round((length - side) / 2.0) for length in size)
    resized = Image.fromarray(array).resize(size, BILINEAR)
    return np.asarray(resized.crop((left, top, left + side, top + side)))


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    side=st.integers(1, 40),
    channels=st.sampled_from([1, 3]),
)
def test_square_equals_resize_then_crop(
    tmp_path_factory: pytest.TempPathFactory, height: int, width: int, side: int, channels: int
) -> None:
    array = noise(height, width, channels)
    path = saved(tmp_path_factory.getbasetemp(), "square.png", Image.fromarray(array))
    square = load_square(path, side)
    assert square.shape == (3, side, side)
    assert square.is_contiguous()
    expected = square_reference(array, side)
    expected = expected.transpose(2, 0, 1) if channels == 3 else np.stack([expected] * 3)
    difference = np.abs(square.numpy().astype(int) - expected)
    # Beyond 8 to 1 only a part is resized, and its place is rounded to single precision.
    exact = int(side * max(height, width) / min(height, width)) <= 8 * side
    assert difference.max() <= (0 if exact else 1)


@pytest.mark.parametrize(("height", "width"), [(1, 20000), (20000, 1), (1, 1), (2, 5000)])
def test_extreme_shapes(tmp_path: Path, height: int, width: int) -> None:
    ramp = np.linspace(0, 255, max(height, width)).astype(np.uint8).reshape(height, -1)
    if height > 2:
        ramp = ramp.reshape(height, 1)
    path = saved(tmp_path, "a.png", Image.fromarray(np.resize(ramp, (height, width))))
    assert load_image(path).shape == (3, height, width)
    square = load_square(path, 32)
    assert square.shape == (3, 32, 32)
    if max(height, width) == 20000:  # the middle of the ramp
        assert (square.float() - 127).abs().max() <= 1


def test_upscaled_constant_stays_constant(tmp_path: Path) -> None:
    path = saved(tmp_path, "a.png", Image.new("RGB", (3, 2), (9, 8, 7)))
    expected = torch.tensor([9, 8, 7], dtype=torch.uint8)[:, None, None].expand(3, 10, 10)
    assert torch.equal(load_square(path, 10), expected)


def test_jpeg_is_decoded_reduced_but_never_below_the_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    y, x = np.mgrid[0:255, 0:401]
    smooth = np.stack([x * 255 // 400, y, (x + y) // 3], axis=2).astype(np.uint8)
    path = saved(tmp_path, "a.jpg", Image.fromarray(smooth), quality=95)
    loaded: list[tuple[int, int]] = []
    load = ImageFile.ImageFile.load

    def note(self: ImageFile.ImageFile) -> Any:
        loaded.append(self.size)
        return load(self)

    monkeypatch.setattr(ImageFile.ImageFile, "load", note)
    used: dict[int, tuple[int, int]] = {}
    for side in (300, 255, 128, 127, 64, 40, 8):
        loaded.clear()
        square = load_square(path, side)
        used[side] = loaded[0]
        whole = square_reference(np.asarray(Image.open(path)), side).transpose(2, 0, 1)
        assert np.abs(square.numpy().astype(int) - whole).max() <= 8
    assert used[300] == used[255] == used[128] == (401, 255)
    assert used[127] == used[64] == (201, 128)
    assert used[40] == (101, 64)
    assert used[8] == (51, 32)


# ---- labels ---------------------------------------------------------------------------------


def test_label_indices_are_exact(tmp_path: Path) -> None:
    indices = noise(5, 6, 1)
    grey = saved(tmp_path, "l.png", Image.fromarray(indices))
    coloured = Image.fromarray(indices, "P")
    coloured.putpalette(noise(1, 256).tobytes())
    for path in (
        grey,
        saved(tmp_path, "p.png", coloured),
        saved(tmp_path, "p.bmp", coloured),
        saved(tmp_path, "p.tif", coloured),
        saved(tmp_path, "t.png", coloured, transparency=0),
    ):
        label = load_label(path)
        assert label.dtype == np.uint8
        np.testing.assert_array_equal(label, indices)


def test_label_gif_keeps_its_indices(tmp_path: Path) -> None:
    indices = np.array([[0, 1, 2], [2, 1, 0]], np.uint8)
    coloured = Image.fromarray(indices, "P")
    coloured.putpalette([9, 8, 7, 50, 60, 70, 200, 100, 0])
    path = saved(tmp_path, "p.gif", coloured, optimize=False)
    np.testing.assert_array_equal(load_label(path), indices)


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
        label = load_label(saved(tmp_path, name, Image.fromarray(array)))
        assert label.dtype == np.uint8
        np.testing.assert_array_equal(label, colours)
    opaque[1, 1, 3] = 254
    clear = saved(tmp_path, "clear.png", Image.fromarray(opaque))
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
        deep_colours,
        inverted,
    ):
        assert reason_of(load_label, path) == "bad-values"


def test_label_of_thirty_two_bits(tmp_path: Path) -> None:
    values = np.array([[0, 70_000], [-1, 3]], np.int32)
    label = load_label(saved(tmp_path, "a.tif", Image.fromarray(values)))
    assert label.dtype == np.int32
    np.testing.assert_array_equal(label, values)


# ---- hostile files --------------------------------------------------------------------------


def outcome(path: Path) -> str:
    try:
        tensor = load_image(path)
    except ImageError as error:
        return error.reason
    assert tensor.dtype == torch.uint8
    assert tensor.ndim == 3
    assert tensor.shape[0] == 3
    assert tuple(tensor.shape[1:]) == image_size(path)
    assert load_square(path, 16).shape == (3, 16, 16)
    return "good"


def test_mutants_raise_nothing_else(tmp_path: Path) -> None:
    picture = Image.fromarray(noise(20, 24))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    animated: dict[str, Any] = {"save_all": True, "append_images": [picture.rotate(90)]}
    originals = [
        encoded(picture, "JPEG", exif=exif),
        encoded(picture.convert("CMYK"), "JPEG"),
        encoded(picture, "PNG", exif=exif, **animated),
        encoded(picture.quantize(16), "PNG", transparency=3),
        encoded(picture, "TIFF", exif=exif),
        encoded(picture, "TIFF", compression="tiff_lzw"),
        encoded(picture, "WEBP", exif=exif),
        encoded(picture.quantize(16), "GIF", **animated),
        encoded(picture.quantize(16), "BMP"),
    ]
    draw = random.Random(0)
    path = tmp_path / "mutant"
    outcomes = set()
    for number in range(450):
        data = bytearray(originals[number % len(originals)])
        for _ in range(draw.randint(1, 4)):
            place = draw.randrange(draw.choice([min(64, len(data)), len(data)]))
            action = draw.random()
            if action < 0.7:
                data[place] = draw.randrange(256)
            elif action < 0.8:
                del data[place : place + draw.randrange(1, 30)]
            elif action < 0.9:
                data[place:place] = draw.randbytes(draw.randrange(1, 20))
            else:
                del data[max(place, 20) :]
        path.write_bytes(data)
        try:
            load_image(path, max_pixels=1_000_000)
            load_square(path, 16, max_pixels=1_000_000)
            outcomes.add("good")
        except ImageError as error:
            outcomes.add(error.reason)
        for read in (load_label, image_size):
            try:
                read(path)
            except ImageError as error:
                assert error.path == str(path)
    assert {"good", "corrupt", "truncated", "not-an-image"} <= outcomes


def test_bad_images_of_others() -> None:
    if not BAD_IMAGES.is_dir():
        pytest.skip("the collection of bad images is not here")
    outcomes = {
        path.relative_to(BAD_IMAGES): outcome(path)
        for path in sorted(BAD_IMAGES.rglob("*"))
        if path.is_file()
    }
    assert len(outcomes) > 150
    by_folder: dict[str, set[str]] = {}
    for path, result in outcomes.items():
        by_folder.setdefault(path.parts[0][:2], set()).add(result)
    assert by_folder["05"] == {"not-an-image"}
    assert by_folder["01"] == {"not-an-image", "too-large"}
    assert by_folder["04"] == {"not-an-image", "truncated", "corrupt"}
    for folder in ("07", "09", "10", "12", "13"):
        assert by_folder[folder] <= {"good", "not-an-image"}
