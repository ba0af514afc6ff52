"""Opening untrusted files: an upright Pillow image, or an `ImageError` that names the file."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from PIL import (
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from densesiam_seg.errors import ImageError
from densesiam_seg.io.files import NotRegularError, open_regular

MAX_PIXELS = 89_000_000
SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".tif", ".tiff"}
    | {".bmp", ".dib", ".gif"}
)


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

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)
_PILLOW_WARNINGS = ("ignore", None, Warning, re.compile(r"PIL\."), 0)


@contextmanager
def opened(path: str | os.PathLike[str], max_pixels: int | None) -> Iterator[ImageFile.ImageFile]:
    """The image with its header read and its size checked; any failure inside is an `ImageError`."""
    name = os.fspath(path)
    _ignore_pillow_warnings()
    try:
        with open_regular(Path(name)) as file:
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


def upright(image: ImageFile.ImageFile) -> Image.Image:
    """Decode and turn; Pillow turns TIFF by itself while loading."""
    turn = _TURNS.get(_orientation(image))
    image.load()
    if turn is None or isinstance(image, _TiffFile):
        return image
    picture = image.transpose(turn)
    image.close()  # frees the first copy
    return picture


def upright_size(image: ImageFile.ImageFile) -> tuple[int, int]:
    """Height and width after `upright`, without decoding."""
    sideways = _orientation(image) in _SIDEWAYS
    if isinstance(image, _TiffFile):  # its size is turned already if its own tag says so
        sideways ^= image.tag_v2.get(ExifTags.Base.Orientation) in _SIDEWAYS
    return (image.width, image.height) if sideways else (image.height, image.width)


def _orientation(image: ImageFile.ImageFile) -> int:
    """EXIF orientation 1…8; unreadable metadata counts as 1.

    The base method uses the header alone. PNG's own would decode all pixels in search of
    a late eXIf chunk, which the standard (third edition) no longer allows.
    """
    try:
        value = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    except Exception:  # any class at all, and never a reason to refuse the pixels
        return 1
    return int(value) if value in _TURNS else 1


def _ignore_pillow_warnings() -> None:
    """Pillow warns of odd metadata, which changes no pixel.

    `catch_warnings` is of no use while other threads decode, so the filter stays, in front.
    """
    if warnings.filters[:1] != [_PILLOW_WARNINGS]:
        cast("list[object]", warnings.filters).insert(0, _PILLOW_WARNINGS)


def _read_header(file: BinaryIO, name: str) -> ImageFile.ImageFile:
    start = file.read(16)
    if not start:
        raise ImageError(name, "empty", "is empty (0 bytes)", "copy it again or remove it")
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
    if isinstance(error, NotRegularError):
        if Path(name).is_dir():
            return ImageError(name, "not-regular", "is a folder, not an image", "name a file in it")
        return ImageError(name, "not-regular", "is not a regular file", "remove it")
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return ImageError(name, "missing", "does not exist", "check the name")
    if isinstance(error, PermissionError):
        return ImageError(name, "permission", "may not be read", "change its permissions")
    if isinstance(error, OSError) and error.errno is not None:
        return ImageError(name, "unreadable", f"cannot be read ({error.strerror})", again)
    if isinstance(error, EOFError) or "truncated" in text.lower():
        return ImageError(name, "truncated", f"ends too early ({text})", again)
    return ImageError(name, "corrupt", f"cannot be decoded ({text})", again)
