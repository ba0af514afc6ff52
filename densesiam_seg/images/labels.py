"""Labels exactly as they are stored: numbers or colours, never scaled, blended or guessed."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from densesiam_seg.errors import ImageError
from densesiam_seg.images.decoding import MAX_PIXELS, Decoding, page_of
from densesiam_seg.images.opening import opened

LabelArray = NDArray[np.uint8] | NDArray[np.int32] | NDArray[np.int64]


def load_label(path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS) -> LabelArray:
    """What `load_oriented_label` gives, without the orientation."""
    return load_oriented_label(path, max_pixels=max_pixels)[0]


def load_oriented_label(
    path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS
) -> tuple[LabelArray, int]:
    """Decode a label file exactly: class indices (H, W) or colours uint8 (H, W, 3); also its EXIF orientation.

    Palette images give their indices, 1-, 2- and 4-bit grey the stored numbers, both as uint8;
    signed and deeper numbers are int32, and int64 where they exceed that. An alpha channel must be
    opaque and is dropped. An EXIF orientation, which labels normally lack, is applied as it is to
    images, so that a pair written by one tool still fits.

    Raises `ImageError`, also for what cannot hold exact values: JPEG, floats, other colour spaces; and for several
    pages or frames, unless the path names one of them (`FILE/3`).
    """
    with opened(path, Decoding(max_pixels)) as image:
        name = image.name
        if image.pages > 1 and page_of(os.fspath(path))[1] is None:
            raise _refused(name, f"has {image.pages} pages or frames, and a label is one picture")
        if image.lossy:
            raise _refused(
                name, f"is a {image.format} with lossy compression, which changes values"
            )
        stored, layout = image.stored()
        base, _, depth = layout.partition(";")
        if base in ("1", "L") and "I" in depth:
            raise _refused(name, "stores grey inverted, so its label values are ambiguous")
        if isinstance(stored, np.ndarray):
            return _numbers(stored, name), image.orientation
        return _values(stored, base, depth, name), image.orientation


def _numbers(stored: NDArray[Any], name: str) -> LabelArray:
    """Samples (H, W, C) of a TIFF for which Pillow has no mode."""
    if stored.dtype.kind == "f":
        raise _refused(name, "stores floating-point numbers, and label values are whole")
    if stored.dtype == np.uint8 and stored.shape[2] in (3, 4):
        if stored.shape[2] == 4 and stored[..., 3].min() < 255:
            raise _refused(name, "has transparent pixels")
        return np.ascontiguousarray(stored[..., :3])
    if stored.shape[2] != 1:
        raise _refused(name, f"has {stored.shape[2]} bands of {8 * stored.dtype.itemsize} bits")
    values = stored[..., 0]
    if values.dtype == np.uint8:
        return np.ascontiguousarray(values)
    lowest, highest = int(values.min()), int(values.max())
    if lowest >= -(2**31) and highest < 2**31:
        return values.astype(np.int32)
    if highest < 2**63:
        return values.astype(np.int64)
    raise _refused(name, f"holds the value {highest}")


def _values(picture: Image.Image, base: str, depth: str, name: str) -> LabelArray:
    if base.startswith("RGB") and "16" in depth:
        raise _refused(name, "holds 16-bit colours")
    mode = picture.mode
    if mode.startswith("I"):
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
