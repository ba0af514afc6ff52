"""Stored values of any kind as 8-bit RGB.

Axes: H W (pixels), C samples of a pixel.

How stored values become 0…255:

- 8-bit modes as they are; 1-bit as 0 and 255; palettes through their colours; CMYK, YCbCr and LAB
  to RGB (Pillow's own formulas; ICC profiles are not applied);
- integers of b bits, as the file declares them, times 255 / (2ᵇ - 1), or 255 / (2ᵇ⁻¹ - 1) where they are
  signed, and rounded. Those of 32 bits are taken as 16 where none is larger, otherwise refused. Negative
  values are refused;
- floats: their maximum, without the brightest hundredth, is taken as 0…1 up to 1.1, as 0…255 from 64 (of whole
  numbers from 1) to 280, and elsewhere becomes 255 itself. What lies above is clipped, and so is what lies below 0
  by a tenth of the maximum; lower values are refused;
- with a stretch: its two values become 0 and 255, whatever lies beyond is clipped;
- white-is-zero is inverted at any depth;
- pixels without data (GDAL's nodata value, in floats whatever is not finite) take the image's mean;
- transparent pixels are blended with white.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray
from PIL import Image, ImageCms

from densesiam_seg.errors import ImageError
from densesiam_seg.images.decoding import Decoding

WIDEST = 65535.0
"""White in integers of 32 bits and more, and wherever no file says more: they hold numbers of 16 bits."""
_STRIP_PIXELS = 1 << 18
_OVERSHOOT = 0.1
"""Part of the range by which floats may leave it, as resampling makes them."""
_BYTES = 64
"""Floats whose maximum is less are hardly numbers up to 255."""
_BRIGHTEST = 0.99
"""Quantile that stands for the maximum of floats."""


@dataclass(frozen=True)
class Samples:
    """Samples (H, W, C) of any depth, as the file holds them, upright: C is 1 or 3, and one more with an alpha.

    `full`: the value of white; None for floats, which do not say. `inverted`: 0 is white. `nodata`: the value of
    pixels without data. `clear`: the colour that is transparent. `alpha`: its opaque value, None where there is none.
    `associated`: colours are multiplied by alpha.
    """

    values: NDArray[Any]
    full: float | None
    inverted: bool = False
    nodata: float | None = None
    clear: tuple[int, ...] | None = None
    alpha: float | None = None
    associated: bool = False

    @property
    def width(self) -> int:
        return int(self.values.shape[1])

    @property
    def height(self) -> int:
        return int(self.values.shape[0])

    @property
    def colours(self) -> NDArray[Any]:
        """Without alpha (H, W, 1 or 3)."""
        return self.values if self.alpha is None else self.values[..., :-1]

    def crop(self, box: tuple[int, int, int, int]) -> Samples:
        """As Pillow's: left, top, right, bottom."""
        left, top, right, bottom = box
        return replace(self, values=self.values[top:bottom, left:right])

    @property
    def may_miss(self) -> bool:
        """Whether some colours may be no data."""
        return self.nodata is not None or self.values.dtype.kind == "f"

    def missing(self) -> NDArray[np.bool_]:
        """Which colours (H, W, 1 or 3) are no data."""
        values, real = self.colours, self.values.dtype.kind == "f"
        found = ~np.isfinite(values) if real else np.zeros(values.shape, np.bool_)
        if self.nodata is not None and not np.isnan(self.nodata):
            if real:
                # Written with few digits, and the largest numbers perhaps beyond the samples' own type.
                limit = float(np.finfo(values.dtype).max)
                alike = np.isclose(values, np.clip(self.nodata, -limit, limit), rtol=1e-5, atol=0)
            else:
                alike = values == self.nodata
            found |= alike.all(2, keepdims=True)
        return found


Picture: TypeAlias = Image.Image | Samples


def as_samples(picture: Image.Image) -> Picture:
    """The samples of one of Pillow's modes of more than 8 bits; another picture as it is."""
    if picture.mode == "F":
        return Samples(np.asarray(picture)[..., None], None)
    if picture.mode.startswith("I"):
        clear = picture.info.get("transparency")
        values = np.asarray(picture)[..., None]
        return Samples(values, WIDEST, clear=(clear,) if isinstance(clear, int) else None)
    return picture


def turned(values: NDArray[Any], orientation: int) -> NDArray[Any]:
    """(H, W, C) as a viewer shows it, given the orientation 1…8 of TIFF and EXIF (tag 274)."""
    if orientation >= 5:
        values = values.swapaxes(0, 1)
    axes = {2: (1,), 3: (0, 1), 4: (0,), 6: (1,), 7: (0, 1), 8: (0,)}.get(orientation, ())
    return np.flip(values, axes) if axes else values


@dataclass(frozen=True)
class Span:
    """The values that become 0 and 255, and the colour (1 or 3,) of what is no data."""

    low: float
    high: float
    fill: NDArray[np.float64] | None = None


def rgb_planes(
    picture: Picture, name: str, decoding: Decoding, factor: int = 1
) -> npt.NDArray[np.uint8]:
    """uint8 (3, H, W); converted in strips of rows, so beside it and the picture memory stays small.

    With a `factor` its pixels are means of squares of so many pixels, and H and W are divided by it and rounded up.
    Raises `ImageError` for values without a meaning in 0…255; `name` is the file's.
    """
    found = span(picture, name, decoding)
    height, width = -(-picture.height // factor), -(-picture.width // factor)
    planes = np.empty((3, height, width), np.uint8)
    for top, strip in _strips(picture, factor):
        part = eight_bit(strip, found)
        if factor > 1:
            part = part.reduce(factor)
        rows = slice(top // factor, top // factor + part.height)
        for plane, channel in zip(planes, channels(part), strict=True):
            plane[rows] = np.asarray(channel)
    return planes


def channels(picture: Image.Image) -> tuple[Image.Image, ...]:
    """Red, green and blue of a picture in mode L or RGB; Pillow splits them twice as fast as numpy."""
    return picture.split() if picture.mode == "RGB" else (picture,) * 3


def span(picture: Picture, name: str, decoding: Decoding) -> Span | None:
    """The values that become 0 and 255 by the rules above, None where all are so; raises as `rgb_planes` does."""
    stretch = decoding.stretch
    if not isinstance(picture, Samples):
        return Span(255 * stretch[0], 255 * stretch[1]) if stretch else None
    low, high, fill = _extremes(picture, name, decoding)
    full = picture.full
    if stretch is not None:
        unit = 1.0 if full is None else full
        return Span(unit * stretch[0], unit * stretch[1], fill)
    if full is None:
        return _float_span(picture, low, high, fill, name, decoding)
    if low < 0 or full < high:
        raise _bad_values(name, f"holds values from {low:g} to {high:g}, outside 0 to {full:g}")
    if full > 255:
        decoding.notes.range(name, _brightest(picture.colours.reshape(-1)), full)
    plain = full == 255 and fill is None and picture.values.dtype == np.uint8
    return None if plain else Span(0.0, full, fill)


def values_in_use(picture: Picture, count: int) -> NDArray[np.float64]:
    """About `count` values of the colours that are data, in the units of `Decoding.stretch`."""
    if not isinstance(picture, Samples):
        colours = np.asarray(eight_bit(picture, None))
        picture = Samples(colours.reshape(*colours.shape[:2], -1), 255.0)
    values = picture.colours
    flat = values[~picture.missing()] if picture.may_miss else values.reshape(-1)
    flat = flat[:: max(1, flat.size // count)]
    unit = 1.0 if picture.full is None else picture.full
    return flat / np.float64(unit)


def eight_bit(picture: Picture, found: Span | None) -> Image.Image:
    """The same picture in mode L or RGB, given its `span`."""
    if isinstance(picture, Samples):
        return _of_samples(picture, found)
    picture = _rgb(picture)
    if found is None:
        return picture
    steps = (np.arange(256) - found.low) * (255 / (found.high - found.low))
    table = np.rint(steps).clip(0, 255).astype(np.uint8).tolist()
    return picture.point(table * len(picture.getbands()))


def _rgb(picture: Image.Image) -> Image.Image:
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


def _of_samples(picture: Samples, found: Span | None) -> Image.Image:
    values = picture.colours
    if found is None:
        colours = values
    else:
        number = np.float64 if values.dtype.itemsize > 2 else np.float32
        factor = 255 / (found.high - found.low)
        scaled = (values if found.low == 0 else values - number(found.low)) * number(factor)
        if found.fill is not None:
            scaled = np.where(picture.missing(), (found.fill - found.low) * factor, scaled)
        colours = np.rint(scaled, out=scaled).clip(0, 255, out=scaled).astype(np.uint8)
    if picture.inverted:
        colours = 255 - colours
    if picture.clear is not None:
        clear = (values == picture.clear).all(2, keepdims=True)
        colours = np.where(clear, np.uint8(255), colours)
    if picture.alpha is not None:
        share = picture.values[..., -1:].astype(np.float32) / np.float32(picture.alpha)
        share = np.nan_to_num(share).clip(0, 1)
        own = colours if picture.associated else colours * share
        colours = np.rint(own + 255 * (1 - share)).clip(0, 255).astype(np.uint8)
    single = colours.shape[2] == 1
    return Image.fromarray(np.ascontiguousarray(colours[..., 0] if single else colours))


def _extremes(
    picture: Samples, name: str, decoding: Decoding
) -> tuple[float, float, NDArray[np.float64] | None]:
    """Lowest and highest value, and the mean colour (1 or 3,) where some pixels are no data."""
    if not picture.may_miss:
        if picture.values.dtype == np.uint8:
            return 0.0, 0.0, None  # nothing depends on them
        return float(picture.colours.min()), float(picture.colours.max()), None
    lows, highs, count, pixels = [], [], 0, 0
    total = np.zeros(picture.colours.shape[2])
    valid = np.zeros(picture.colours.shape[2])
    for _, strip in _strips(picture):
        values, missing = strip.colours, strip.missing()
        known = values[~missing]
        if known.size:
            lows.append(float(known.min()))
            highs.append(float(known.max()))
        total += np.where(missing, 0, values).sum((0, 1), dtype=np.float64)
        valid += (~missing).sum((0, 1))
        count += int(missing.any(2).sum())
        pixels += missing.shape[0] * missing.shape[1]
    if not lows:
        raise _bad_values(name, "holds no data", "remove it")
    if not count:
        return min(lows), max(highs), None
    decoding.notes.add("nodata", name, f"{count} of {pixels} pixels")
    overall = total.sum() / valid.sum()
    return min(lows), max(highs), np.where(valid > 0, total / np.maximum(valid, 1), overall)


def _float_span(
    picture: Samples,
    low: float,
    high: float,
    fill: NDArray[np.float64] | None,
    name: str,
    decoding: Decoding,
) -> Span:
    """What floats mean, which no tag tells."""
    bright, whole = high, False
    if high > 1:
        values = picture.colours
        known = values.reshape(-1) if fill is None else values[~picture.missing()]
        bright = _brightest(known)
        whole = bool((known == np.rint(known)).all())
    if bright <= 1 + _OVERSHOOT and not whole:
        top = 1.0
    elif (whole or bright >= _BYTES) and bright <= 255 * (1 + _OVERSHOOT):
        top = 255.0
    else:
        top = bright
    if low < -_OVERSHOOT * bright:
        raise _bad_values(
            name,
            f"holds floats from {low:g} to {high:g}, and below 0 nothing is known of their range",
            "mark the value of no data (gdal_edit -a_nodata), train with --stretch, or rescale it to 0 to 255",
        )
    if top == bright and high > 1:
        decoding.notes.add("scaled", name, f"up to {high:g}")
    else:
        decoding.notes.range(name, bright, top)
    if low < 0 or (high > top and top != bright):
        decoding.notes.add("clipped", name, f"{low:g} to {high:g}")
    return Span(0.0, top, fill)


def _brightest(values: NDArray[Any]) -> float:
    """The maximum without the brightest hundredth, of about 100,000 values."""
    some = values[:: max(1, values.size // 100_000)]
    return float(np.quantile(some, _BRIGHTEST, method="higher"))


def opaque(alpha: NDArray[Any], full: float | None) -> float:
    """The value of an alpha (H, W) that is opaque: its own maximum where it ends at fewer bits than the colours."""
    top = float(np.nanmax(alpha)) if alpha.size else 0.0
    if full is None:
        return 1.0 if top <= 1 else 255.0 if top <= 255 else top
    return top if top < full and top in (1, 255, 1023, 4095, 16383) else full


def _strips(picture: Any, factor: int = 1) -> Iterator[tuple[int, Any]]:
    """Row offset and picture of consecutive strips of about `_STRIP_PIXELS`, of a multiple of `factor` rows."""
    rows = max(1, _STRIP_PIXELS // picture.width // factor) * factor
    for top in range(0, picture.height, rows):
        yield top, picture.crop((0, top, picture.width, min(top + rows, picture.height)))


def _bad_values(name: str, detail: str, remedy: str = "") -> ImageError:
    default = "train with --stretch, or rescale it to 0 to 255 and save it as PNG"
    return ImageError(name, "bad-values", detail, remedy or default)
