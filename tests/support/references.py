"""Slow references and made-up data that the tests of views share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as tv

from densesiam_seg.views.parameters import Geometry, Photometry

Array = NDArray[np.float64]


def geometry_of(*crops: tuple[float, float, float, float]) -> Geometry:
    """(top, left, side, flip) of each image."""
    top, left, side, flip = torch.tensor(crops, dtype=torch.float32).T
    return Geometry(top, left, side, side, flip)


def photometry_of(*changes: tuple[float, float, float, float, float, float]) -> Photometry:
    return Photometry(*torch.tensor(changes, dtype=torch.float32).T)


def random_images(batch: int, side: int, seed: int = 0) -> Tensor:
    """uint8 (B, 3, S, S): smooth colours, some noise, and patches of grey, black and white."""
    source = torch.Generator().manual_seed(seed)
    coarse = torch.rand(batch, 3, 3, 3, generator=source)
    images = F.interpolate(coarse, (side, side), mode="bicubic").clamp(0, 1)
    images += 0.2 * torch.rand(batch, 3, side, side, generator=source)
    images[:, :, :2, :2] = 0.5
    images[:, :, :2, -2:] = 0.0
    images[:, :, -2:, :2] = 1.0
    return images.clamp(0, 1).mul(255).to(torch.uint8)


def coloured(image: Tensor, change: Sequence[float]) -> Tensor:
    """The five colour changes in PiCIE's order by torchvision, on one float image (3, H, W)."""
    brightness, contrast, saturation, hue, grey = change[:5]
    image = tv.adjust_brightness(image, brightness)
    image = tv.adjust_contrast(image, contrast)
    image = tv.adjust_saturation(image, saturation)
    image = tv.adjust_hue(image, hue)
    if grey:
        image = tv.rgb_to_grayscale(image, num_output_channels=3)
    return image


def blurred(image: Array, sigma: float) -> Array:
    """Gaussian blur as one two-dimensional weighted mean per pixel of (3, H, W); 0 is no blur."""
    if sigma == 0:
        return image
    _, height, width = image.shape
    ys, xs = np.mgrid[:height, :width]
    out = np.empty_like(image)
    for y in range(height):
        for x in range(width):
            weights = np.exp(-((ys - y) ** 2 + (xs - x) ** 2) / (2 * sigma**2))
            out[:, y, x] = (image * weights).sum((1, 2)) / weights.sum()
    return out


def cropped(image: Array, crop: Sequence[float], target: int) -> Array:
    """Crop, bilinear resize and flip of one square map (C, S, S), pixel by pixel."""
    top, left, extent, flip = crop
    side = image.shape[-1]
    out = np.empty((len(image), target, target))

    def place(start: float, index: int) -> tuple[int, int, float]:
        position = (start + extent * (index + 0.5) / target) * side - 0.5
        position = min(max(position, 0.0), side - 1.0)
        low = math.floor(position)
        return low, min(low + 1, side - 1), position - low

    for i in range(target):
        y0, y1, dy = place(top, i)
        for j in range(target):
            x0, x1, dx = place(left, j)
            upper = image[:, y0, x0] * (1 - dx) + image[:, y0, x1] * dx
            lower = image[:, y1, x0] * (1 - dx) + image[:, y1, x1] * dx
            out[:, i, target - 1 - j if flip else j] = upper * (1 - dy) + lower * dy
    return out


def stacked(parameters: Geometry | Photometry) -> Tensor:
    """One row per image."""
    return torch.stack([getattr(parameters, field.name) for field in fields(parameters)], 1)


def pillow_resized(
    plane: Array, box: tuple[float, float, float, float], height: int, width: int
) -> Array:
    """One plane (H, W) by Pillow's antialiased bilinear filter in floating point; `box` is left, top, right, bottom."""
    image = Image.fromarray(plane.astype(np.float32))
    out: Array = np.asarray(
        image.resize((width, height), Image.Resampling.BILINEAR, box=box), np.float64
    )
    return out
