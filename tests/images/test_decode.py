"""Images as tensors, end to end: exact pixels, exact squares, and large ones by parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from image_files import Bytes, noise, pixels_of, saved, turned
from PIL import Image, ImageFile
from torch.nn import functional as F

from densesiam_seg.errors import ImageError
from densesiam_seg.images import decode, pixels
from densesiam_seg.images.decode import (
    image_size,
    load_image,
    load_reduced,
    load_square,
    load_stretched,
)
from densesiam_seg.images.decoding import Decoding

BILINEAR = Image.Resampling.BILINEAR


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif", "a.webp"])
def test_lossless_rgb_is_exact(tmp_path: Path, name: str) -> None:
    path = saved(tmp_path, name, noise(13, 17), lossless=True)
    np.testing.assert_array_equal(pixels_of(path), noise(13, 17))
    reduced, own = load_reduced(path, 4)  # only a JPEG is
    assert own == (13, 17)
    assert torch.equal(reduced, load_image(path))
    np.testing.assert_array_equal(pixels_of(path.rename(tmp_path / "b.jpg")), noise(13, 17))


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.webp", "a.tif", "a.mpo"])
def test_of_several_frames_the_first_counts(tmp_path: Path, name: str) -> None:
    frames = [Image.new("RGB", (32, 16), colour) for colour in ("red", "lime", "blue")]
    options: dict[str, Any] = {"save_all": True, "append_images": frames[1:], "lossless": True}
    found = pixels_of(saved(tmp_path, name, frames[0], quality=95, **options))
    assert np.abs(found.astype(int) - [255, 0, 0]).max() <= (3 if name == "a.mpo" else 0)


def planes(array: Bytes) -> Bytes:
    """(3, H, W) of grey (H, W) or colours (H, W, 3)."""
    return array.transpose(2, 0, 1) if array.ndim == 3 else np.stack([array] * 3)


def centre_square(array: Bytes, side: int) -> Bytes:
    """Resize and centre crop with torchvision's rounding, on the whole image: (3, side, side)."""
    height, width = array.shape[:2]
    short = min(height, width)
    size = (int(side * width / short), int(side * height / short))
    left, top = (round((length - side) / 2.0) for length in size)
    resized = Image.fromarray(array).resize(size, BILINEAR)
    return planes(np.asarray(resized.crop((left, top, left + side, top + side))))


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    side=st.integers(1, 40),
    channels=st.sampled_from([1, 3]),
)
def test_squares_are_the_resized_centre_or_the_whole(
    tmp_path_factory: pytest.TempPathFactory, height: int, width: int, side: int, channels: int
) -> None:
    array = noise(height, width, channels)
    path = saved(tmp_path_factory.getbasetemp(), "square.png", array)
    square = load_square(path, side)
    assert square.is_contiguous()
    difference = np.abs(square.numpy().astype(int) - centre_square(array, side))
    # Beyond 8 to 1 only a part is resized, and its place is rounded to single precision.
    exact = int(side * max(height, width) / min(height, width)) <= 8 * side
    assert difference.max() <= (0 if exact else 1)
    whole, aspect = load_stretched(path, side)
    assert aspect == width / height
    assert whole.is_contiguous()
    expected = planes(np.asarray(Image.fromarray(array).resize((side, side), BILINEAR)))
    np.testing.assert_array_equal(whole.numpy(), expected)


@pytest.mark.parametrize(("height", "width"), [(1, 20000), (20000, 1), (1, 1), (2, 5000)])
def test_extreme_shapes(tmp_path: Path, height: int, width: int) -> None:
    ramp = np.linspace(0, 255, height * width).astype(np.uint8)
    ramp = ramp.reshape(height, width) if height != 2 else np.resize(ramp[::2], (2, width))
    path = saved(tmp_path, "a.png", ramp)
    assert load_image(path).shape == (3, height, width)
    square = load_square(path, 32)
    assert square.shape == (3, 32, 32)
    if max(height, width) == 20000:  # the middle of the ramp
        assert (square.float() - 127).abs().max() <= 1
    whole, aspect = load_stretched(path, 32)
    assert (whole.shape, aspect) == ((3, 32, 32), width / height)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_rotated_file_is_what_viewers_display(tmp_path: Path, orientation: int) -> None:
    array = np.zeros((96, 160, 3), np.uint8)
    array[:48, :80] = 250  # a bright top left quarter
    path = saved(tmp_path, "a.jpg", array, exif=turned(orientation), quality=95)
    reduced, own = load_reduced(path, 20)
    assert own == image_size(path) == ((160, 96) if orientation > 4 else (96, 160))
    assert reduced.shape[1:] == (own[0] // 4, own[1] // 4)
    shown = load_image(path)[:, 2::4, 2::4]
    assert (reduced.int() - shown.int()).abs().max() <= 4
    path = saved(tmp_path, "a.png", noise(20, 30), exif=turned(orientation))
    square, aspect = load_stretched(path, 12)
    displayed = Image.fromarray(pixels_of(path))
    assert aspect == displayed.width / displayed.height == (2 / 3 if orientation > 4 else 1.5)
    np.testing.assert_array_equal(
        square.numpy(), planes(np.asarray(displayed.resize((12, 12), BILINEAR)))
    )


@pytest.fixture
def smooth_jpeg(tmp_path: Path) -> Path:
    """401 × 255 pixels."""
    y, x = np.mgrid[0:255, 0:401]
    smooth = np.stack([x * 255 // 400, y, (x + y) // 3], axis=2).astype(np.uint8)
    return saved(tmp_path, "a.jpg", smooth, quality=95)


@pytest.mark.parametrize(
    ("side", "size"),
    [
        *[(side, (255, 401)) for side in (300, 255, 128)],
        *[(side, (128, 201)) for side in (127, 64)],
        *[(side, (64, 101)) for side in (63, 40, 32)],
        *[(side, (32, 51)) for side in (31, 8, 1)],
    ],
)
def test_a_jpeg_is_decoded_at_a_fraction_but_never_below_the_side(
    smooth_jpeg: Path, side: int, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """401 × 255 divided by 1, 2, 4 and 8 and rounded up; each pixel near the mean of those it stands for."""
    picture = Image.open(smooth_jpeg).copy()
    whole = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1).float()
    decoded: list[tuple[int, int]] = []
    load = ImageFile.ImageFile.load

    def note(self: ImageFile.ImageFile) -> Any:
        decoded.append(self.size[::-1])
        return load(self)

    monkeypatch.setattr(ImageFile.ImageFile, "load", note)
    reduced, own = load_reduced(smooth_jpeg, side)
    square = load_square(smooth_jpeg, side)
    stretched, aspect = load_stretched(smooth_jpeg, side)
    assert set(decoded) == {size}
    assert (own, aspect) == ((255, 401), 401 / 255)
    assert reduced.is_contiguous() and reduced.shape[1:] == size
    factor = -(-255 // size[0])
    means = F.avg_pool2d(
        F.pad(whole, (0, -401 % factor, 0, -255 % factor), mode="replicate"), factor
    )
    assert (reduced.float() - means).abs().max() <= 6
    if side > 1:
        expected = centre_square(np.asarray(picture), side)
        assert np.abs(square.numpy().astype(int) - expected).max() <= 8
        expected = planes(np.asarray(picture.resize((side, side), BILINEAR)))
        assert np.abs(stretched.numpy().astype(int) - expected).max() <= 8


def test_giants_are_reduced_by_means_of_squares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As far as both sides stay at least `side`; a smaller image keeps every pixel."""
    monkeypatch.setattr(decode, "MAX_PIXELS", 600)
    monkeypatch.setattr(pixels, "_STRIP_PIXELS", 200)  # several strips
    array = noise(37, 50)
    path = saved(tmp_path, "a.png", array)
    for side, factor in ((4, 8), (5, 4), (9, 4), (10, 2), (19, 1)):
        reduced, own = load_reduced(path, side)
        assert own == (37, 50)
        assert reduced.shape[1:] == (-(-37 // factor), -(-50 // factor))
        means = F.avg_pool2d(
            torch.from_numpy(array).permute(2, 0, 1).float()[None],
            factor, ceil_mode=True, count_include_pad=False,
        )[0]  # fmt: skip
        assert (reduced.float() - means).abs().max() <= 1
    small, _ = load_reduced(saved(tmp_path, "b.png", noise(20, 30)), 2)
    np.testing.assert_array_equal(small.permute(1, 2, 0).numpy(), noise(20, 30))


@pytest.mark.parametrize("load", [load_square, load_stretched, load_reduced])
def test_every_reader_refuses_large_and_truncated_files(tmp_path: Path, load: Any) -> None:
    path = saved(tmp_path, "a.png", Image.new("RGB", (40, 30)))
    load(path, 8, Decoding(1200))
    with pytest.raises(ImageError, match="--max-pixels"):
        load(path, 8, Decoding(1199))
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ImageError, match=r"a\.png"):
        load(path, 8)
