"""Labels exactly as they are stored: numbers or colours, never scaled, blended or guessed."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile, TiffImagePlugin

from densesiam_seg.errors import ImageError
from densesiam_seg.images.opening import MAX_PIXELS, opened, upright

LabelArray = npt.NDArray[np.uint8] | npt.NDArray[np.int32] | npt.NDArray[np.int64]

_SIGNED = 2  # TIFF's sample format


def load_label(path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS) -> LabelArray:
    """Decode a label file exactly: class indices (H, W) or colours uint8 (H, W, 3).

    Palette images give their indices, 1-, 2- and 4-bit grey the stored numbers, both as uint8;
    signed and deeper numbers are int32, and int64 where 32 unsigned bits exceed that. An alpha
    channel must be opaque and is dropped. An EXIF orientation, which labels normally lack, is
    applied as it is to images, so that a pair written by one tool still fits.

    Raises `ImageError`, also for what cannot hold exact values: JPEG, floats, other colour spaces.
    """
    name = os.fspath(path)
    try:
        with opened(path, max_pixels) as image:
            if image.format == "JPEG":
                raise _refused(name, "is a JPEG, whose lossy coding changes label values")
            stored = _stored(image)  # decoding forgets it
            return _values(upright(image), stored, name)
    except ImageError as error:
        if "unknown pixel mode" in error.detail:
            raise _refused(name, "stores numbers of a kind that Pillow does not read") from error
        raise


class _Stored(NamedTuple):
    """How a file stores its values, which Pillow does not always hand out so."""

    layout: str
    """Pillow's name for it, such as `L;4`; empty where it gives none or has decoded already."""
    signed: bool
    """Of a TIFF: Pillow hands out 8 bits without their sign and 32 always with one."""
    swapped: bool
    """Pillow turns the bytes of signed big-endian numbers around that libtiff has turned already."""


def _stored(image: ImageFile.ImageFile) -> _Stored:
    arguments: Any = image.tile[0].args if image.tile else ""
    layout = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    layout = layout if isinstance(layout, str) else ""
    formats = getattr(image, "tag_v2", {}).get(TiffImagePlugin.SAMPLEFORMAT, (1,))
    signed = bool(np.atleast_1d(formats)[0] == _SIGNED)
    return _Stored(layout, signed, layout.endswith("BS") and image.tile[0].codec_name == "libtiff")


def _values(picture: Image.Image, stored: _Stored, name: str) -> LabelArray:
    base, _, depth = stored.layout.partition(";")
    if base in ("1", "L") and "I" in depth:
        raise _refused(name, "stores grey inverted, so its label values are ambiguous")
    if base.startswith("RGB") and "16" in depth:
        raise _refused(name, "holds 16-bit colours")
    mode = picture.mode
    if mode == "I" or mode.startswith("I;16"):
        wide = np.asarray(picture).astype(np.int32)
        if stored.swapped:
            narrow = wide.astype(np.int16 if depth.startswith("16") else np.int32)
            return narrow.byteswap().astype(np.int32)
        if base == "I" and depth.startswith("32") and not stored.signed and (wide < 0).any():
            return wide.view(np.uint32).astype(np.int64)
        return wide
    if mode == "F":
        raise _refused(name, "stores floating-point numbers, and label values are whole")
    if mode in ("RGBA", "LA", "PA"):
        if picture.getchannel("A").getextrema() != (255, 255):
            raise _refused(name, "has transparent pixels")
        picture = picture.convert("RGB") if mode == "RGBA" else picture.getchannel(0)
    elif mode not in ("1", "L", "P", "RGB"):
        raise _refused(name, f"has the colour mode {mode}")
    values = np.asarray(picture).astype(np.uint8)
    if stored.signed and mode == "L":
        return values.view(np.int8).astype(np.int32)
    if base == "L" and depth[:1] in ("2", "4"):  # Pillow spreads these over 0…255
        values //= 85 if depth[0] == "2" else 17
    return values


def _refused(name: str, detail: str) -> ImageError:
    remedy = "save the labels as an 8-bit or 16-bit PNG of class indices"
    return ImageError(name, "bad-values", detail, remedy)
