"""Any Pillow mode as 8-bit RGB.

How stored values become 0…255:

- 8-bit modes as they are; 1-bit as 0 and 255; palettes through their colours; CMYK, YCbCr and LAB
  to RGB (Pillow's own formulas; ICC profiles are not applied);
- 16-bit grey divided by 257 and rounded, never clipped; 32-bit integers likewise when all of them
  lie in 0…65535, otherwise refused; 16-bit colour keeps its high bytes. 10- and 12-bit data in
  16-bit files are scaled as 16-bit and so come out dark;
- floats must be finite and not negative: a maximum up to 1 is taken as 0…1, up to 255 as 0…255, up
  to 65535 as 16 bit, anything above is refused;
- transparent pixels are blended with white.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import cast

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms

from densesiam_seg.errors import ImageError

_STRIP_PIXELS = 1 << 18


def rgb_planes(picture: Image.Image, name: str) -> npt.NDArray[np.uint8]:
    """uint8 (3, H, W); converted in strips of rows, so beside it and the picture memory stays small.

    Raises `ImageError` for values without a meaning in 0…255; `name` is the file's.
    """
    factor = gain(picture, name)
    planes = np.empty((3, picture.height, picture.width), np.uint8)
    for top, strip in _strips(picture):
        rows = slice(top, top + strip.height)
        for plane, channel in zip(planes, channels(eight_bit(strip, factor)), strict=True):
            plane[rows] = np.asarray(channel)
    return planes


def channels(picture: Image.Image) -> tuple[Image.Image, ...]:
    """Red, green and blue of a picture in mode L or RGB; Pillow splits them twice as fast as numpy."""
    return picture.split() if picture.mode == "RGB" else (picture,) * 3


def gain(picture: Image.Image, name: str) -> float:
    """Factor from stored values to 0…255 by the rule above; raises as `rgb_planes` does."""
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


def eight_bit(picture: Image.Image, factor: float) -> Image.Image:
    """The same picture in mode L or RGB, given its `gain`."""
    if _is_deep(picture):
        values = np.asarray(picture)
        grey = np.rint(values * np.float32(factor)).astype(np.uint8)
        clear = picture.info.get("transparency")
        if isinstance(clear, int):
            grey[values == clear] = 255
        return Image.fromarray(grey)
    if picture.has_transparency_data:
        colours = picture.convert("RGBA")
        # White, as viewers and print show it.
        canvas = Image.new("RGB", picture.size, "white")
        canvas.paste(colours, mask=colours.getchannel("A"))
        return canvas
    if picture.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        rgb = ImageCms.profileToProfile(picture, lab, srgb, outputMode="RGB")
        return cast("Image.Image", rgb)
    if picture.mode in ("L", "RGB"):
        return picture  # converting it to its own mode would copy it
    return picture.convert("L" if picture.mode == "1" else "RGB")


def _is_deep(picture: Image.Image) -> bool:
    return picture.mode in ("I", "F") or picture.mode.startswith("I;16")


def _strips(picture: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """Row offset and picture of consecutive strips of about `_STRIP_PIXELS`."""
    rows = max(1, _STRIP_PIXELS // picture.width)
    for top in range(0, picture.height, rows):
        yield top, picture.crop((0, top, picture.width, min(top + rows, picture.height)))


def _bad_values(name: str, detail: str) -> ImageError:
    return ImageError(name, "bad-values", detail, "rescale it to 0 to 255 and save it as PNG")
