"""Labels exactly as they are stored: numbers or colours, never scaled, blended or guessed."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray
from PIL import Image

from densesiam_seg.errors import ImageError
from densesiam_seg.images.decoding import MAX_PIXELS, Decoding
from densesiam_seg.images.opening import opened

_LOSSY = ("JPEG", "AVIF", "HEIF")
LabelArray = npt.NDArray[np.uint8] | npt.NDArray[np.int32]


def load_label(path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS) -> LabelArray:
    """Decode a label file exactly: class indices (H, W), uint8 or int32, or colours uint8 (H, W, 3).

    Palette images give their indices, 1-, 2- and 4-bit grey the stored numbers, 16 and 32 bit
    int32. An alpha channel must be opaque and is dropped. An EXIF orientation, which labels
    normally lack, is applied as it is to images, so that a pair written by one tool still fits.

    Raises `ImageError`, also for what cannot hold exact values: JPEG, floats, other colour spaces.
    """
    name = os.fspath(path)
    with opened(path, Decoding(max_pixels)) as image:
        if image.format in _LOSSY:
            raise _refused(name, f"is a {image.format}, whose lossy coding changes label values")
        stored, layout = image.stored()
        if isinstance(stored, np.ndarray):
            return _samples(stored, layout, name)
        return _values(stored, layout, name)


def _samples(stored: NDArray[Any], layout: str, name: str) -> LabelArray:
    """What a TIFF holds that no 8-bit mode of Pillow does."""
    if layout:
        raise _refused(name, "stores grey inverted, so its label values are ambiguous")
    if stored.shape[2] != 1:
        raise _refused(name, f"has {stored.shape[2]} bands of {stored.dtype}")
    if stored.dtype.kind == "f":
        raise _refused(name, "holds floats")
    values = stored[..., 0]
    if values.dtype == np.uint8:
        return np.ascontiguousarray(values)
    if values.dtype.itemsize >= 4 and values.size and int(values.max()) > np.iinfo(np.int32).max:
        raise _refused(name, f"holds the value {values.max()}")
    return values.astype(np.int32)


def _values(picture: Image.Image, layout: str, name: str) -> LabelArray:
    base, _, depth = layout.partition(";")
    if base in ("1", "L") and "I" in depth:
        raise _refused(name, "stores grey inverted, so its label values are ambiguous")
    if base.startswith("RGB") and "16" in depth:
        raise _refused(name, "holds 16-bit colours")
    mode = picture.mode
    if mode == "I" or mode.startswith("I;16"):
        return np.asarray(picture).astype(np.int32)
    if mode in ("RGBA", "LA", "PA"):
        if picture.getchannel("A").getextrema() != (255, 255):
            raise _refused(name, "has transparent pixels")
        picture = picture.convert("RGB") if mode == "RGBA" else picture.getchannel(0)
    elif mode not in ("1", "L", "P", "RGB"):
        raise _refused(name, f"has the colour mode {mode}")
    values = np.asarray(picture).astype(np.uint8)
    if base == "L" and depth[:1] in ("2", "4"):  # Pillow spreads these over 0…255
        values //= 85 if depth[0] == "2" else 17
    return values


def _refused(name: str, detail: str) -> ImageError:
    remedy = "save the labels as an 8-bit or 16-bit PNG of class indices"
    return ImageError(name, "bad-values", detail, remedy)
