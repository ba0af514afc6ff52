"""Hand-made features of a place: colour, texture and position, and the gist of its image. Nothing is learned.

Axes: B images, D channels, H W image size, h w map size.

Colours are logarithms: a change of light multiplies all three, which changes the luminance and hardly the
log-chromaticities, differences of logarithms (Finlayson and Hordley, "Color constancy at a pixel", 2001). Texture is
the logarithm of the local contrast, whose variance is similar for all materials. The gist of an image is the mean
appearance of its upper and of its lower half (a small one of Oliva and Torralba's, 2001): it describes light, weather
and exposure, which change the look of a material.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from densesiam_seg.clustering.resizing import area_mean

GIST = 8
"""Channels of the gist: luminance, two chromaticities and contrast of both halves; the same for a whole image."""
OWN = 10
"""Channels of the place: luminance, two chromaticities and contrast in both windows, y and x."""
CHANNELS = GIST + OWN
NEAR, AROUND = 3, 9
"""Sides of the windows, in cells of half the features' stride: 6 and 18 pixels of the image at stride 4."""
DARK = 0.05
"""Added to intensities in [0, 1] before the logarithm, which limits the noise of dark places."""
FLAT = 0.01
"""Added to contrasts before the logarithm."""


@dataclass(frozen=True)
class Surroundings:
    """The image that a tile is cut from: its gist (1, GIST, 1, 1), and the tile's top, left, bottom and right in it.

    Those are as y and x, from -1 to 1.
    """

    gist: Tensor
    box: tuple[float, float, float, float]

    def mirrored(self) -> Surroundings:
        """Those of the mirrored tile in the mirrored image."""
        top, left, bottom, right = self.box
        return Surroundings(self.gist, (top, -right, bottom, -left))


def appearance(images: Tensor, size: tuple[int, int], within: Surroundings | None = None) -> Tensor:
    """RGB images (B, 3, H, W) in [0, 1] → (B, D, h, w) of that size, float32: the gist, then the place's own channels.

    y and x run from -1 to 1 over the image, whatever its shape. Tiles have the gist of the image that they lie
    `within`, and its positions.
    """
    height, width = size
    # The training loop calls this under autocast, which may round the logarithms' arguments.
    with torch.autocast(images.device.type, enabled=False):
        # Two cells a side for each place, so that windows have a centre; a place's value is the mean of its four cells.
        cells = area_mean(images.float(), (2 * height, 2 * width))
        luminance = cells.mean(1, keepdim=True)
        red, green, blue = (cells + DARK).log().unbind(1)
        colour = torch.stack((red - green, blue - green), 1)
        near, around = (
            (
                (_mean(luminance, side) + DARK).log(),
                _mean(colour, side),
                _log_contrast(luminance, side),
            )
            for side in (NEAR, AROUND)
        )
        both = [each for pair in zip(near, around, strict=True) for each in pair]
        places = F.avg_pool2d(torch.cat(both, 1), 2)
        where = position(len(images), size, places.device)
        if within is None:
            gist = _gist(F.avg_pool2d(torch.cat(near, 1), 2))
        else:
            gist = within.gist.expand(len(images), -1, *size)
            top, left, bottom, right = within.box
            low, high = (
                where.new_tensor(ends).view(2, 1, 1) for ends in ((top, left), (bottom, right))
            )
            where = torch.lerp(low, high, (where + 1) / 2)
        return torch.cat((gist, places, where), 1)


def gist_of(images: Tensor, size: tuple[int, int]) -> Tensor:
    """The gist (B, GIST, 1, 1) of images (B, 3, H, W) whose maps have that size."""
    return appearance(images, size)[:, :GIST, :1, :1]


def _gist(maps: Tensor) -> Tensor:
    """Maps (B, C, h, w) → the means of their upper and of their lower half, at every place: (B, 2C, h, w)."""
    height = maps.shape[-2]
    if torch.compiler.is_exporting():
        # Of parts whose height is half a symbol torch must know whether it is 1; of weights it need not.
        rows = torch.arange(height, device=maps.device)
        upper, lower = 2 * rows < height, 2 * rows >= height - 1
        weights = torch.stack((upper, lower)).to(maps.dtype)
        weights = weights / weights.sum(1, keepdim=True)
        means = (weights @ maps.mean(3).mT).flatten(1)[..., None, None]
    else:
        halves = maps[..., : -(-height // 2), :], maps[..., height // 2 :, :]
        means = torch.cat([half.mean((-2, -1), keepdim=True) for half in halves], 1)
    return means.expand(-1, -1, *maps.shape[-2:])


def position(count: int, size: tuple[int, int], device: torch.device) -> Tensor:
    """y and x of each place's centre, from -1 to 1: (B, 2, h, w)."""
    height, width = size
    y = (torch.arange(height, device=device) + 0.5) / height * 2 - 1
    x = (torch.arange(width, device=device) + 0.5) / width * 2 - 1
    return torch.stack(torch.meshgrid(y, x, indexing="ij")).expand(count, 2, height, width)


def _mean(maps: Tensor, side: int) -> Tensor:
    """Mean over a window, of the cells that lie inside the image."""
    return F.avg_pool2d(maps, side, 1, side // 2, count_include_pad=False)


def _log_contrast(luminance: Tensor, side: int) -> Tensor:
    variance = _mean(luminance.square(), side) - _mean(luminance, side).square()
    return (variance.clamp(min=0).sqrt() + FLAT).log()
