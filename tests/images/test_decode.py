"""Images as tensors, end to end: exact pixels, exact squares, and nothing but `ImageError` from hostile files."""

from __future__ import annotations

import io
import random
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageFile

from densesiam_seg.errors import ImageError
from densesiam_seg.images.decode import (
    image_size,
    load_image,
    load_label,
    load_reduced,
    load_square,
    load_stretched,
)

BAD_IMAGES = Path(__file__).resolve().parents[3] / "shared" / "data" / "badimages"
BILINEAR = Image.Resampling.BILINEAR
Bytes = npt.NDArray[np.uint8]


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> Bytes:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def saved(folder: Path, name: str, image: Image.Image, **options: Any) -> Path:
    path = folder / name
    image.save(path, **options)
    return path


def pixels_of(path: Path) -> Bytes:
    """(H, W, 3), with the promises about the tensor checked."""
    tensor = load_image(path)
    assert tensor.dtype == torch.uint8
    assert tensor.is_contiguous()
    assert tuple(tensor.shape) == (3, *image_size(path))
    return tensor.permute(1, 2, 0).numpy()


def encoded(image: Image.Image, format_name: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_name, **options)
    return buffer.getvalue()


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


def test_first_frame_of_animations(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (6, 5), colour) for colour in ("red", "lime", "blue")]
    for name in ("a.gif", "a.png", "a.webp", "a.tif"):
        options: dict[str, Any] = {"save_all": True, "append_images": frames[1:]}
        path = saved(tmp_path, name, frames[0], lossless=True, **options)
        np.testing.assert_array_equal(pixels_of(path), np.full((5, 6, 3), [255, 0, 0]))


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


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    side=st.integers(1, 40),
    channels=st.sampled_from([1, 3]),
)
def test_stretched_is_the_whole_image_at_another_aspect(
    tmp_path_factory: pytest.TempPathFactory, height: int, width: int, side: int, channels: int
) -> None:
    array = noise(height, width, channels)
    path = saved(tmp_path_factory.getbasetemp(), "stretched.png", Image.fromarray(array))
    square, aspect = load_stretched(path, side)
    assert aspect == width / height
    assert square.shape == (3, side, side) and square.dtype == torch.uint8
    assert square.is_contiguous()
    expected = np.asarray(Image.fromarray(array).resize((side, side), BILINEAR))
    expected = expected.transpose(2, 0, 1) if channels == 3 else np.stack([expected] * 3)
    np.testing.assert_array_equal(square.numpy(), expected)


def test_stretched_corners_are_the_images(tmp_path: Path) -> None:
    """Nothing is cut off: each quarter of a wide image is a quarter of the square."""
    colours = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [9, 9, 9]]], np.uint8)
    array = colours.repeat(10, axis=0).repeat(30, axis=1)
    square, aspect = load_stretched(saved(tmp_path, "a.png", Image.fromarray(array)), 20)
    assert aspect == 3
    np.testing.assert_array_equal(square.permute(1, 2, 0)[::19, ::19].numpy(), colours)


def test_stretched_is_what_a_rotated_file_displays(tmp_path: Path) -> None:
    array = noise(20, 30)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        path = saved(tmp_path, "a.png", Image.fromarray(array), exif=exif)
        square, aspect = load_stretched(path, 12)
        displayed = Image.fromarray(load_image(path).permute(1, 2, 0).numpy())
        assert aspect == displayed.width / displayed.height == (2 / 3 if orientation > 4 else 1.5)
        expected = np.asarray(displayed.resize((12, 12), BILINEAR)).transpose(2, 0, 1)
        np.testing.assert_array_equal(square.numpy(), expected)


def test_stretched_of_an_extreme_shape(tmp_path: Path) -> None:
    path = saved(tmp_path, "a.png", Image.new("RGB", (20000, 1), (9, 8, 7)))
    square, aspect = load_stretched(path, 8)
    assert aspect == 20000
    assert torch.equal(
        square, torch.tensor([9, 8, 7]).to(torch.uint8).view(3, 1, 1).expand(3, 8, 8)
    )


def recorded_sizes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Grows by the size (width, height) at which each file is decoded."""
    loaded: list[tuple[int, int]] = []
    load = ImageFile.ImageFile.load

    def note(self: ImageFile.ImageFile) -> Any:
        loaded.append(self.size)
        return load(self)

    monkeypatch.setattr(ImageFile.ImageFile, "load", note)
    return loaded


@pytest.fixture
def smooth_jpeg(tmp_path: Path) -> Path:
    """401 × 255 pixels."""
    y, x = np.mgrid[0:255, 0:401]
    smooth = np.stack([x * 255 // 400, y, (x + y) // 3], axis=2).astype(np.uint8)
    return saved(tmp_path, "a.jpg", Image.fromarray(smooth), quality=95)


def test_jpeg_is_decoded_reduced_but_never_below_the_side(
    smooth_jpeg: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = recorded_sizes(monkeypatch)
    used: dict[int, tuple[int, int]] = {}
    for side in (300, 255, 128, 127, 64, 40, 8):
        loaded.clear()
        square = load_square(smooth_jpeg, side)
        used[side] = loaded[0]
        whole = square_reference(np.asarray(Image.open(smooth_jpeg)), side).transpose(2, 0, 1)
        assert np.abs(square.numpy().astype(int) - whole).max() <= 8
    assert used[300] == used[255] == used[128] == (401, 255)
    assert used[127] == used[64] == (201, 128)
    assert used[40] == (101, 64)
    assert used[8] == (51, 32)


def test_stretched_jpeg_is_decoded_reduced_but_never_below_the_side(
    smooth_jpeg: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = recorded_sizes(monkeypatch)
    used: dict[int, tuple[int, int]] = {}
    for side in (300, 128, 127, 64, 40, 8):
        loaded.clear()
        square, aspect = load_stretched(smooth_jpeg, side)
        used[side] = loaded[0]
        # The aspect is the file's own, not that of its rounded reduced size.
        assert aspect == 401 / 255
        whole = np.asarray(Image.open(smooth_jpeg).resize((side, side), BILINEAR))
        assert np.abs(square.numpy().astype(int) - whole.transpose(2, 0, 1)).max() <= 8
    assert used[300] == used[128] == (401, 255)
    assert used[127] == used[64] == (201, 128)
    assert used[40] == (101, 64)
    assert used[8] == (51, 32)


@pytest.mark.parametrize(
    ("side", "size"),
    [
        (300, (255, 401)),
        (128, (255, 401)),
        (127, (128, 201)),
        (64, (128, 201)),
        (63, (64, 101)),
        (32, (64, 101)),
        (31, (32, 51)),
        (1, (32, 51)),
    ],
)
def test_reduced_jpeg_is_the_whole_image_at_a_fraction_of_its_size(
    smooth_jpeg: Path, side: int, size: tuple[int, int]
) -> None:
    """401 × 255 divided by 1, 2, 4 and 8 and rounded up; each pixel near the mean of those it stands for."""
    reduced, own = load_reduced(smooth_jpeg, side)
    assert own == image_size(smooth_jpeg) == (255, 401)
    assert reduced.dtype == torch.uint8 and reduced.is_contiguous()
    assert tuple(reduced.shape) == (3, *size)
    factor = -(-255 // size[0])
    whole = torch.nn.functional.pad(
        load_image(smooth_jpeg).float(), (0, -401 % factor, 0, -255 % factor), mode="replicate"
    )
    means = torch.nn.functional.avg_pool2d(whole, factor)
    assert (reduced.float() - means).abs().max() <= 6


def test_reduced_is_what_a_rotated_file_displays(tmp_path: Path) -> None:
    """A bright top left quarter goes where viewers show it, and so do height and width."""
    array = np.zeros((96, 160, 3), np.uint8)
    array[:48, :80] = 250
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        path = saved(tmp_path, "a.jpg", Image.fromarray(array), exif=exif, quality=95)
        reduced, own = load_reduced(path, 20)
        assert own == image_size(path) == ((160, 96) if orientation > 4 else (96, 160))
        assert reduced.shape[1:] == (own[0] // 4, own[1] // 4)
        shown = load_image(path)[:, 2::4, 2::4]
        assert (reduced.int() - shown.int()).abs().max() <= 4


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif", "a.webp", "a.gif"])
def test_other_formats_are_not_reduced(tmp_path: Path, name: str) -> None:
    path = saved(tmp_path, name, Image.fromarray(noise(40, 60, channels=1)), lossless=True)
    reduced, own = load_reduced(path, 4)
    assert own == (40, 60)
    assert torch.equal(reduced, load_image(path))


def test_reduced_grey_and_cmyk_jpegs_are_colours(tmp_path: Path) -> None:
    for mode, expected in (("L", [149] * 3), ("CMYK", [200, 100, 250])):
        picture = Image.new("RGB", (64, 48), (200, 100, 250)).convert(mode)
        reduced, own = load_reduced(saved(tmp_path, "a.jpg", picture, quality=95), 24)
        assert (own, tuple(reduced.shape)) == ((48, 64), (3, 24, 32))
        assert (reduced[:, 5, 5].int() - torch.tensor(expected)).abs().max() <= 2


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
    assert load_stretched(path, 16)[0].shape == (3, 16, 16)
    reduced, own = load_reduced(path, 16)
    assert own == image_size(path)
    assert all(
        length >= 16 or length == full for length, full in zip(reduced.shape[1:], own, strict=True)
    )
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
            load_stretched(path, 16, max_pixels=1_000_000)
            load_reduced(path, 4, max_pixels=1_000_000)
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


def test_stretched_and_reduced_refuse_as_the_others_do(tmp_path: Path) -> None:
    path = saved(tmp_path, "a.png", Image.new("RGB", (40, 30)))
    for load in (load_stretched, load_reduced):
        with pytest.raises(ImageError, match="--max-pixels"):
            load(path, 8, max_pixels=1199)
    assert load_stretched(path, 8, max_pixels=1200)[1] == 4 / 3
    assert load_reduced(path, 8, max_pixels=1200)[1] == (30, 40)
    path.write_bytes(path.read_bytes()[:50])
    for load in (load_stretched, load_reduced):
        with pytest.raises(ImageError, match=r"a\.png"):
            load(path, 8)
