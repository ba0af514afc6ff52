"""Labels exactly as they are stored: numbers or colours, never scaled, blended or guessed."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile

from densesiam_seg.errors import ImageError

LabelArray = npt.NDArray[np.uint8] | npt.NDArray[np.int32]


def stored_layout(image: ImageFile.ImageFile) -> str:
    """Pillow's name for the layout in the file, such as `L;4`; empty where it gives none or has decoded already."""
    if not image.tile:
        return ""
    arguments: Any = image.tile[0].args
    layout = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return layout if isinstance(layout, str) else ""


def label_values(picture: Image.Image, layout: str, name: str) -> LabelArray:
    """Class indices (H, W), uint8 or int32, or colours uint8 (H, W, 3) of a picture that was stored as `layout`.

    Raises `ImageError` for what does not hold exact values; `name` is the file's.
    """
    base, _, depth = layout.partition(";")
    if base in ("1", "L") and "I" in depth:
        raise refused_label(name, "stores grey inverted, so its label values are ambiguous")
    if base.startswith("RGB") and "16" in depth:
        raise refused_label(name, "holds 16-bit colours")
    mode = picture.mode
    if mode == "I" or mode.startswith("I;16"):
        return np.asarray(picture).astype(np.int32)
    if mode in ("RGBA", "LA", "PA"):
        if picture.getchannel("A").getextrema() != (255, 255):
            raise refused_label(name, "has transparent pixels")
        picture = picture.convert("RGB") if mode == "RGBA" else picture.getchannel(0)
    elif mode not in ("1", "L", "P", "RGB"):
        raise refused_label(name, f"has the colour mode {mode}")
    values = np.asarray(picture).astype(np.uint8)
    if base == "L" and depth[:1] in ("2", "4"):  # Pillow spreads these over 0…255
        values //= 85 if depth[0] == "2" else 17
    return values


def refused_label(name: str, detail: str) -> ImageError:
    """The error for the label file `name`, with the remedy."""
    remedy = "save the labels as an 8-bit or 16-bit PNG of class indices"
    return ImageError(name, "bad-values", detail, remedy)
