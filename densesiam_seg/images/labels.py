"""Labels exactly as they are stored: numbers or colours, never scaled, blended or guessed."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile

from densesiam_seg.errors import ImageError
from densesiam_seg.images.opening import MAX_PIXELS, opened, upright

LabelArray = npt.NDArray[np.uint8] | npt.NDArray[np.int32]


def load_label(path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS) -> LabelArray:
    """Decode a label file exactly: class indices (H, W), uint8 or int32, or colours uint8 (H, W, 3).

    Palette images give their indices, 1-, 2- and 4-bit grey the stored numbers, 16 and 32 bit
    int32. An alpha channel must be opaque and is dropped. An EXIF orientation, which labels
    normally lack, is applied as it is to images, so that a pair written by one tool still fits.

    Raises `ImageError`, also for what cannot hold exact values: JPEG, floats, other colour spaces.
    """
    name = os.fspath(path)
    with opened(path, max_pixels) as image:
        if image.format == "JPEG":
            raise _refused(name, "is a JPEG, whose lossy coding changes label values")
        layout = _stored_layout(image)  # decoding forgets it
        return _values(upright(image), layout, name)


def _stored_layout(image: ImageFile.ImageFile) -> str:
    """Pillow's name for the layout in the file, such as `L;4`; empty where it gives none or has decoded already."""
    arguments: Any = image.tile[0].args if image.tile else ""
    layout = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return layout if isinstance(layout, str) else ""


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
