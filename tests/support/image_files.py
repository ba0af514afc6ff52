"""Image files that tests make, and what reading them gives."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import ExifTags, Image

from densesiam_seg.errors import ImageError
from densesiam_seg.images.decode import image_size, load_image

Bytes = npt.NDArray[np.uint8]


def touch(folder: Path, *names: str) -> None:
    """Make files that differ in size."""
    for index, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(index))


def noise(height: int, width: int, channels: int = 3) -> Bytes:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def saved(folder: Path, name: str, image: Image.Image | npt.NDArray[Any], **options: Any) -> Path:
    """An array or a picture as a file."""
    path = folder / name
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path, **options)
    return path


def encoded(image: Image.Image, format_name: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_name, **options)
    return buffer.getvalue()


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bare_png(
    width: int, height: int, depth: int, colour: int, rows: bytes, *, interlaced: bool = False
) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    start = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header)
    return start + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")


def pixels_of(path: Path) -> Bytes:
    """(H, W, 3), with the promises about the tensor checked."""
    tensor = load_image(path)
    assert tensor.dtype == torch.uint8
    assert tensor.is_contiguous()
    assert tuple(tensor.shape) == (3, *image_size(path))
    return tensor.permute(1, 2, 0).numpy()


def reason_of(read: Callable[..., object], *arguments: object) -> str:
    """Why an image is refused, in one line that begins with its name."""
    with pytest.raises(ImageError) as caught:
        read(*arguments)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(caught.value.path)
    return caught.value.reason
