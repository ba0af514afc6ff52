"""Safe decoding: a file that nobody vouches for becomes RGB pixels, or an `ImageError` that names it.

H W: height and width after the EXIF orientation. Pixels are uint8.

How stored values become 0…255:

- 8-bit modes as they are; 1-bit as 0 and 255; palettes through their colours; CMYK, YCbCr and LAB
  to RGB (Pillow's own formulas; ICC profiles are not applied);
- 16-bit grey divided by 257 and rounded, never clipped; 32-bit integers likewise when all of them
  lie in 0…65535, otherwise refused; 16-bit colour keeps its high bytes;
- floats must be finite and not negative: a maximum up to 1 is taken as 0…1, up to 255 as 0…255, up
  to 65535 as 16 bit, anything above is refused;
- alpha is laid over white; of an animation the first frame counts.
"""

from __future__ import annotations

import math
import os
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt
import torch
from PIL import (
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    ImageCms,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)
from torch import Tensor

from densesiam_seg.errors import ImageError

LabelArray = npt.NDArray[np.uint8] | npt.NDArray[np.int32]

MAX_PIXELS = 89_000_000
# `manifest` scans folders for the same suffixes; a test holds the two equal.
SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".tif", ".tiff"}
    | {".bmp", ".dib", ".gif"}
)

# Viewers and paper show what is transparent as white, so that is what a cut-out was made for.
_WHITE = 255
_STRIP_PIXELS = 1 << 20
# Up to this aspect ratio an image is resized whole and then cropped, which gives torchvision's
# pixels to the bit; beyond it the whole resized image would be large and mostly thrown away.
_WHOLE_ASPECT = 8
_SIDEWAYS = (5, 6, 7, 8)
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class _TiffFile(TiffImagePlugin.TiffImageFile):
    """TIFF without Pillow's own pixel limit: the caller's `max_pixels` was checked before."""

    def load_prepare(self) -> None:
        if self._im is None:
            self.im = Image.new(self.mode, self._tile_size, None).im
        super().load_prepare()


# `Image.open` would apply Pillow's global limit, which only a change of a global can lift, and would
# hand MPO files to a further reader. Calling the readers by their signatures needs neither.
_READERS: dict[str, tuple[tuple[bytes, ...], type[ImageFile.ImageFile]]] = {
    "JPEG": ((b"\xff\xd8\xff",), JpegImagePlugin.JpegImageFile),  # MPO starts with a plain JPEG
    "PNG": ((b"\x89PNG\r\n\x1a\n",), PngImagePlugin.PngImageFile),
    "WEBP": ((b"RIFF",), WebPImagePlugin.WebPImageFile),
    "TIFF": ((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), _TiffFile),
    "BMP": ((b"BM",), BmpImagePlugin.BmpImageFile),
    "GIF": ((b"GIF87a", b"GIF89a"), GifImagePlugin.GifImageFile),
}
FORMATS = tuple(_READERS)


def load_image(path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS) -> Tensor:
    """Decode a file to uint8 (3, H, W), contiguous.

    Beside the decoded picture only a strip of rows is held in another form.

    Raises `ImageError`. WebP and GIF above Pillow's own limit (179 million pixels) stay refused.
    """
    with _opened(path, max_pixels) as image:
        picture = _upright(image)
        gain = _gain(picture, os.fspath(path))
        pixels = np.empty((3, picture.height, picture.width), np.uint8)
        for top, strip in _strips(picture):
            rows = np.asarray(_eight_bit(strip, gain))
            pixels[:, top : top + strip.height] = (
                rows if rows.ndim == 2 else rows.transpose(2, 0, 1)
            )
        return torch.from_numpy(pixels)


def load_square(path: str | os.PathLike[str], side: int, *, max_pixels: int = MAX_PIXELS) -> Tensor:
    """Decode to uint8 (3, side, side): shorter side resized to `side`, then the centre cut out.

    Bilinear with antialiasing, sizes and offsets rounded as torchvision's Resize and CenterCrop do.
    A JPEG is decoded at 1/2, 1/4 or 1/8 size where both its sides stay at least `side`.

    Raises `ImageError`.
    """
    assert side > 0
    with _opened(path, max_pixels) as image:
        height, width = _upright_size(image)
        image.draft(None, (side, side))
        picture = _upright(image)
        square = _centre_square(picture, side, width, height, _gain(picture, os.fspath(path)))
        pixels = np.asarray(square.convert("RGB")).transpose(2, 0, 1)
        return torch.from_numpy(np.ascontiguousarray(pixels))


def load_label(path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS) -> LabelArray:
    """Decode a label file exactly: class indices (H, W), uint8 or int32, or colours uint8 (H, W, 3).

    Palette images give their indices, 1-, 2- and 4-bit grey the stored numbers, 16 and 32 bit
    int32. An alpha channel must be opaque and is dropped. An EXIF orientation, which labels
    normally lack, is applied as it is to images, so that a pair written by one tool still fits.

    Raises `ImageError`, also for what cannot hold exact values: JPEG, floats, other colour spaces.
    """
    with _opened(path, max_pixels) as image:
        name = os.fspath(path)
        base, _, depth = _stored_layout(image).partition(";")
        if image.format == "JPEG":
            raise _bad_label(name, "is a JPEG, whose lossy coding changes label values")
        if base in ("1", "L") and "I" in depth:
            raise _bad_label(name, "stores grey inverted, so its label values are ambiguous")
        if base.startswith("RGB") and "16" in depth:
            raise _bad_label(name, "holds 16-bit colours")
        values = _label_values(_upright(image), name)
        if base == "L" and depth[:1] in ("2", "4"):  # Pillow spreads these over 0…255
            values //= 85 if depth[0] == "2" else 17
        return values


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Height and width that `load_image` would give, read from the header alone.

    Raises `ImageError`.
    """
    with _opened(path, None) as image:
        return _upright_size(image)


# ---- opening --------------------------------------------------------------------------------


@contextmanager
def _opened(path: str | os.PathLike[str], max_pixels: int | None) -> Iterator[ImageFile.ImageFile]:
    """The image with its header read and its size checked; any failure inside is an `ImageError`."""
    name = os.fspath(path)
    try:
        with _quiet(), _open_regular(name) as file:
            image = _read_header(file, name)
            if max_pixels is not None and image.width * image.height > max_pixels:
                raise ImageError(
                    name,
                    "too-large",
                    f"has {image.width} x {image.height} pixels, more than {max_pixels:,} in all",
                    "shrink it or raise --max-pixels",
                )
            yield image
    except ImageError:
        raise
    except Exception as error:  # malformed files have made Pillow raise a dozen unrelated classes
        raise _translated(name, error) from error


def _open_regular(name: str) -> BinaryIO:
    """Open a regular file; nothing else is opened, as a FIFO or a device could block or act."""
    _require_regular(name, Path(name).stat().st_mode)
    # The name may have changed hands since: do not block on what is there now, and look again.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    file = os.fdopen(os.open(name, flags), "rb")
    try:
        status = os.fstat(file.fileno())
        _require_regular(name, status.st_mode)
        if status.st_size == 0:
            raise ImageError(name, "empty", "is empty (0 bytes)", "copy it again or remove it")
    except BaseException:
        file.close()
        raise
    return file


def _require_regular(name: str, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise ImageError(name, "not-regular", "is a folder, not an image", "name a file in it")
    if not stat.S_ISREG(mode):
        raise ImageError(name, "not-regular", "is not a regular file", "remove it")


def _read_header(file: BinaryIO, name: str) -> ImageFile.ImageFile:
    start = file.read(16)
    for signatures, reader in _READERS.values():
        if start.startswith(signatures) and (start[:4] != b"RIFF" or start[8:12] == b"WEBP"):
            file.seek(0)
            return reader(file, "")  # without a name Pillow cannot map or reopen the file
    raise ImageError(
        name,
        "not-an-image",
        f"is not a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} image",
        "convert it to PNG or remove it",
    )


def _translated(name: str, error: Exception) -> ImageError:
    """The `ImageError` for what Pillow or the system raised."""
    text = " ".join(str(error).split()) or type(error).__name__
    again = "copy it again from its source or remove it"
    if isinstance(error, MemoryError):
        return ImageError(name, "too-large", "does not fit in memory", "shrink it or remove it")
    if isinstance(error, Image.DecompressionBombError):
        return ImageError(name, "too-large", f"is too large ({text})", "convert it to TIFF")
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return ImageError(name, "missing", "does not exist", "check the name")
    if isinstance(error, PermissionError):
        return ImageError(name, "permission", "may not be read", "change its permissions")
    if isinstance(error, OSError) and error.errno is not None:
        return ImageError(name, "unreadable", f"cannot be read ({error.strerror})", again)
    if isinstance(error, EOFError) or "truncated" in text.lower():
        return ImageError(name, "truncated", f"ends too early ({text})", again)
    return ImageError(name, "corrupt", f"cannot be decoded ({text})", again)


class _QuietThreads(threading.local):
    """The "module" pattern of a warnings filter that matches only in threads that are decoding.

    Pillow tells of odd metadata by warnings, which change nothing in the pixels. `catch_warnings`
    swaps the filters of the whole process and so is no use in threads. But a filter asks its
    pattern's `match`, and this one answers for the asking thread alone, so that it may stay in the
    list of filters for good.
    """

    decoding = False

    def match(self, module: str) -> bool:
        return self.decoding


_QUIET_THREADS = _QuietThreads()
_QUIET_FILTER = ("ignore", None, Warning, _QUIET_THREADS, 0)


@contextmanager
def _quiet() -> Iterator[None]:
    """Ignore warnings raised by this thread."""
    filters = cast("list[object]", warnings.filters)
    if not filters or filters[0] is not _QUIET_FILTER:  # others may have put theirs in front
        filters.insert(0, _QUIET_FILTER)
    before = _QUIET_THREADS.decoding
    _QUIET_THREADS.decoding = True
    try:
        yield
    finally:
        _QUIET_THREADS.decoding = before


# ---- orientation ----------------------------------------------------------------------------


def _orientation(image: ImageFile.ImageFile) -> int:
    """EXIF orientation 1…8; unreadable metadata counts as 1.

    The base method reads what the header brought. PNG's own would decode all pixels in search of
    a late eXIf chunk, which the standard (third edition) no longer allows.
    """
    try:
        value = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    except Exception:  # as above: any class at all, and never a reason to refuse the pixels
        return 1
    return int(value) if value in _TURNS else 1


def _upright_size(image: ImageFile.ImageFile) -> tuple[int, int]:
    sideways = _orientation(image) in _SIDEWAYS
    if isinstance(image, _TiffFile):  # its size is turned already if its own tag says so
        sideways ^= image.tag_v2.get(ExifTags.Base.Orientation) in _SIDEWAYS
    return (image.width, image.height) if sideways else (image.height, image.width)


def _upright(image: ImageFile.ImageFile) -> Image.Image:
    """Decode and turn; Pillow turns TIFF by itself while loading."""
    turn = _TURNS.get(_orientation(image))
    image.load()
    if turn is None or isinstance(image, _TiffFile):
        return image
    picture = image.transpose(turn)
    image.close()  # frees the first copy
    return picture


# ---- values ---------------------------------------------------------------------------------


def _is_deep(picture: Image.Image) -> bool:
    return picture.mode in ("I", "F") or picture.mode.startswith("I;16")


def _strips(picture: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """Row offset and picture of consecutive strips of about a million pixels."""
    rows = max(1, _STRIP_PIXELS // picture.width)
    for top in range(0, picture.height, rows):
        yield top, picture.crop((0, top, picture.width, min(top + rows, picture.height)))


def _gain(picture: Image.Image, name: str) -> float:
    """Factor from stored values to 0…255 by the rule of the module's docstring."""
    if picture.mode.startswith("I;16"):
        return 255 / 65535
    if not _is_deep(picture):
        return 1.0
    lowest, highest = math.inf, -math.inf
    for _, strip in _strips(picture):
        values = np.asarray(strip)
        if not np.isfinite(values).all():
            raise _bad_values(name, "holds values that are not finite")
        lowest, highest = min(lowest, float(values.min())), max(highest, float(values.max()))
    if lowest < 0 or highest > 65535:
        span = f"{lowest:g} to {highest:g}"
        raise _bad_values(name, f"holds values from {span}, outside 0 to 65535")
    if picture.mode == "I" or highest > 255:
        return 255 / 65535
    return 255.0 if highest <= 1 else 1.0


def _eight_bit(picture: Image.Image, gain: float) -> Image.Image:
    """The same picture in mode L or RGB."""
    if _is_deep(picture):
        values = np.asarray(picture)
        grey = np.rint(values * np.float32(gain)).astype(np.uint8)
        clear = picture.info.get("transparency")
        if isinstance(clear, int):
            grey[values == clear] = _WHITE
        return Image.fromarray(grey)
    if picture.has_transparency_data:
        colours = picture.convert("RGBA")
        canvas = Image.new("RGB", picture.size, (_WHITE, _WHITE, _WHITE))
        canvas.paste(colours, mask=colours.getchannel("A"))
        return canvas
    if picture.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        rgb = ImageCms.profileToProfile(picture, lab, srgb, outputMode="RGB")
        return cast("Image.Image", rgb)
    return picture.convert("L" if picture.mode in ("1", "L") else "RGB")


def _centre_square(
    picture: Image.Image, side: int, width: int, height: int, gain: float
) -> Image.Image:
    """Resize and crop; `width` and `height` are those before a JPEG was decoded at reduced size."""
    short, long = sorted((width, height))
    long_resized = int(side * long / short)
    resized = (side, long_resized) if width <= height else (long_resized, side)
    left, top = (round((length - side) / 2) for length in resized)
    if long_resized <= _WHOLE_ASPECT * side:
        whole = _eight_bit(picture, gain).resize(resized, Image.Resampling.BILINEAR)
        return whole.crop((left, top, left + side, top + side))
    x_from, x_to, x_0, x_1 = _source_span(picture.width, resized[0], left, side)
    y_from, y_to, y_0, y_1 = _source_span(picture.height, resized[1], top, side)
    part = _eight_bit(picture.crop((x_from, y_from, x_to, y_to)), gain)
    box = (x_0 - x_from, y_0 - y_from, x_1 - x_from, y_1 - y_from)
    return part.resize((side, side), Image.Resampling.BILINEAR, box=box)


def _source_span(
    length: int, resized: int, offset: int, side: int
) -> tuple[int, int, float, float]:
    """Along one axis: the source pixels from, to that are needed, and the exact span to resize."""
    step = length / resized
    first, last = offset * step, min((offset + side) * step, float(length))
    reach = math.ceil(max(step, 1.0)) + 1  # the filter looks this far beyond the span
    return max(0, math.floor(first) - reach), min(length, math.ceil(last) + reach), first, last


# ---- labels ---------------------------------------------------------------------------------


def _stored_layout(image: ImageFile.ImageFile) -> str:
    """Pillow's name for the layout in the file, such as `L;4`; empty where it gives none."""
    if not image.tile:
        return ""
    arguments: Any = image.tile[0].args
    layout = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return layout if isinstance(layout, str) else ""


def _label_values(picture: Image.Image, name: str) -> LabelArray:
    """The pixels as numbers, with an opaque alpha channel dropped."""
    mode = picture.mode
    if mode in ("RGBA", "LA", "PA"):
        if picture.getchannel("A").getextrema() != (255, 255):
            raise _bad_label(name, "has transparent pixels")
        picture = picture.convert("RGB") if mode == "RGBA" else picture.getchannel(0)
    elif mode == "I" or mode.startswith("I;16"):
        return np.asarray(picture).astype(np.int32)
    elif mode not in ("1", "L", "P", "RGB"):
        raise _bad_label(name, f"has the colour mode {mode}")
    return np.asarray(picture).astype(np.uint8)


def _bad_values(name: str, detail: str) -> ImageError:
    return ImageError(name, "bad-values", detail, "rescale it to 0 to 255 and save it as PNG")


def _bad_label(name: str, detail: str) -> ImageError:
    remedy = "save the labels as an 8-bit or 16-bit PNG of class indices"
    return ImageError(name, "bad-values", detail, remedy)
