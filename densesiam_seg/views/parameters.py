"""Every random choice of a view as a frozen value, drawn before any pixel is touched.

Axes: B images.

Each value is a pure function of (seed, round, image, view), so clustering, training and a resumed run replay the same
views. Ranges follow DenseSiam's supplement, section A: PiCIE's for segmentation, SimSiam's for pre-training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Self

import numpy as np
import torch
from torch import Tensor

from densesiam_seg.io.randomness import Stream, generator

MIN_CROP = 0.5
JITTER = 0.3
HUE = 0.1
JITTER_PROBABILITY = 0.8
GREY_PROBABILITY = 0.2
BLUR_PROBABILITY = 0.5
BLUR_SIGMA = (0.1, 2.0)

PRETRAINING_JITTER = 0.4
SCALES = (0.2, 1.0)
"""Least and largest share of an image's area in a view of pre-training."""
ASPECTS = (3 / 4, 4 / 3)
"""Width over height of a pre-training crop, in the image's own pixels."""
ATTEMPTS = 10
"""Crops drawn until one fits into the image, as torchvision's RandomResizedCrop does."""


class PerImage:
    """A value per image in every field, each a tensor of shape (B,)."""

    def to(self, device: torch.device | str) -> Self:
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def __getitem__(self, part: slice | tuple[slice, None]) -> Self:
        return self._map(lambda tensor: tensor[part])

    def _map(self, change: Callable[[Tensor], Tensor]) -> Self:
        return type(self)(*(change(getattr(self, field.name)) for field in fields(self)))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Geometry(PerImage):
    """A crop as fractions of its image's own height and width, then a horizontal flip."""

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor
    flip: Tensor

    def axes(self) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]:
        """Start, extent and flip along y and along x."""
        never = torch.zeros_like(self.flip)
        return (self.top, self.height, never), (self.left, self.width, self.flip)


@dataclass(frozen=True)
class Photometry(PerImage):
    """Colour changes in the order of their fields, then a blur.

    `sigma` is in pixels of the stored image for segmentation, and of the view for pre-training; 0 is no blur.
    """

    brightness: Tensor
    contrast: Tensor
    saturation: Tensor
    hue: Tensor
    grey: Tensor
    sigma: Tensor

    def colours(self) -> Tensor:
        """Brightness, contrast, saturation, hue and grey of each image, (B, 5)."""
        return torch.stack(
            (self.brightness, self.contrast, self.saturation, self.hue, self.grey), 1
        )


def sample_geometry(seed: int, round_: int, images: Sequence[int]) -> Geometry:
    """The crop, square in a square image, and the flip of each image, shared by both its views."""
    table = np.empty((len(images), 4), np.float32)
    for row, image in enumerate(images):
        draw = generator(seed, Stream.VIEWS, round_, image, 0)
        side = draw.uniform(MIN_CROP, 1.0)
        top, left = draw.uniform(0.0, 1.0, 2) * (1.0 - side)
        table[row] = top, left, side, draw.random() < 0.5
    tops, lefts, sides, flips = torch.from_numpy(table).unbind(1)
    return Geometry(tops, lefts, sides, sides, flips)


def sample_photometry(
    seed: int, round_: int, images: Sequence[int], view: int, *, pretraining: bool = False
) -> Photometry:
    """The colour changes and blur of each image in view 1 or 2.

    Each of the four jitters has its own chance; in pre-training they are larger and have one chance for all.
    """
    jitter = PRETRAINING_JITTER if pretraining else JITTER
    table = np.empty((len(images), 6), np.float32)
    for row, image in enumerate(images):
        draw = generator(seed, Stream.VIEWS, round_, image, 4 + view if pretraining else view)
        chances = draw.random(1 if pretraining else 4)
        jitters = np.broadcast_to(chances < JITTER_PROBABILITY, 4)
        factors = draw.uniform(1.0 - jitter, 1.0 + jitter, 3)
        hue = draw.uniform(-HUE, HUE)
        grey = draw.random() < GREY_PROBABILITY
        blurred = draw.random() < BLUR_PROBABILITY
        sigma = draw.uniform(*BLUR_SIGMA)
        table[row, :3] = np.where(jitters[:3], factors, 1.0)
        table[row, 3:] = hue * jitters[3], grey, sigma * blurred
    return Photometry(*torch.from_numpy(table).unbind(1))


def sample_pretraining_geometry(
    seed: int, round_: int, images: Sequence[int], view: int, aspects: Tensor
) -> Geometry:
    """RandomResizedCrop and flip of each image for view 1 or 2, with a share of its area from `SCALES`.

    `aspects` (B,) are the images' own widths over heights. Where none of ten draws fits, the largest centred crop of
    an allowed aspect is taken.
    """
    table = np.empty((len(images), 5), np.float32)
    for row, (image, aspect) in enumerate(zip(images, aspects.tolist(), strict=True)):
        draw = generator(seed, Stream.VIEWS, round_, image, 2 + view)
        shares = draw.uniform(*SCALES, ATTEMPTS)
        ratios = np.exp(draw.uniform(math.log(ASPECTS[0]), math.log(ASPECTS[1]), ATTEMPTS)) / aspect
        heights, widths = np.sqrt(shares / ratios), np.sqrt(shares * ratios)
        fitting = np.flatnonzero((heights <= 1) & (widths <= 1))
        if len(fitting):
            height, width = heights[fitting[0]], widths[fitting[0]]
            top, left = draw.uniform(0.0, 1.0, 2) * (1.0 - height, 1.0 - width)
        else:
            ratio = np.clip(aspect, *ASPECTS) / aspect
            height, width = min(1.0, 1.0 / ratio), min(1.0, ratio)
            top, left = (1.0 - height) / 2, (1.0 - width) / 2
        table[row] = top, left, height, width, draw.random() < 0.5
    return Geometry(*torch.from_numpy(table).unbind(1))
