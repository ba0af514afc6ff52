"""Sampled-then-replayed views: parameters first, pixels after.

Axes: B images, C channels, S side of the stored square image, R = S/2 side of a view, h feature side.

A crop + resize + flip of a map F is A_y F A_xᵀ with two small bilinear matrices, for images and feature maps alike. The
last photometric change, the Gaussian blur, is linear and separable too, so it is folded into the same two matrices:
a view costs one pointwise colour pass and two matrix products. Geometry and photometry follow DenseSiam's
supplement, section A: for segmentation (`view_pair`) those of PiCIE, for pre-training (`independent_views`) those of
SimSiam.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Self

import numpy as np
import torch
from torch import Tensor

from densesiam_seg.randomness import Stream, generator

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
LUMA = (0.2989, 0.587, 0.114)  # ITU-R 601, as torchvision rounds it

MIN_CROP = 0.5
JITTER = 0.3
HUE = 0.1
JITTER_PROBABILITY = 0.8
GREY_PROBABILITY = 0.2
BLUR_PROBABILITY = 0.5
BLUR_SIGMA = (0.1, 2.0)

PRETRAINING_JITTER = 0.4
ASPECTS = (3 / 4, 4 / 3)
"""Width over height of a pre-training crop, in the image's own pixels."""
ATTEMPTS = 10
"""Crops drawn until one fits into the image, as torchvision's RandomResizedCrop does."""


class _PerImage:
    """A value per image in every field, each a tensor of shape (B,)."""

    def to(self, device: torch.device | str) -> Self:
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def __getitem__(self, part: slice) -> Self:
        return self._map(lambda tensor: tensor[part])

    def _map(self, change: Callable[[Tensor], Tensor]) -> Self:
        return type(self)(*(change(getattr(self, field.name)) for field in fields(self)))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Geometry(_PerImage):
    """A square crop as fractions of the image's side, then a horizontal flip; each field (B,)."""

    top: Tensor
    left: Tensor
    side: Tensor
    flip: Tensor


@dataclass(frozen=True)
class Window(_PerImage):
    """A crop as fractions of its image's own height and width, then a horizontal flip; each field (B,)."""

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor
    flip: Tensor


@dataclass(frozen=True)
class Photometry(_PerImage):
    """Colour changes in the order of their fields, then a blur of `sigma` pixels (0: none).

    They are pixels of the stored image for segmentation, and of the view for pre-training.
    """

    brightness: Tensor
    contrast: Tensor
    saturation: Tensor
    hue: Tensor
    grey: Tensor
    sigma: Tensor


@dataclass(frozen=True)
class ViewPair:
    """Two views (B, 3, R, R), normalised, and the geometry that maps view 2's features onto view 1's."""

    image_1: Tensor
    image_2: Tensor
    geometry: Geometry


@dataclass(frozen=True)
class WindowPair:
    """Two views (B, 3, R, R), normalised, each drawn for itself, and where in the image each of them lies."""

    image_1: Tensor
    image_2: Tensor
    window_1: Window
    window_2: Window


def sample_geometry(seed: int, round_: int, images: Sequence[int]) -> Geometry:
    """The crop and flip of each image, shared by both its views."""
    table = np.empty((len(images), 4), np.float32)
    for row, image in enumerate(images):
        draw = generator(seed, Stream.VIEWS, round_, image, 0)
        side = draw.uniform(MIN_CROP, 1.0)
        top, left = draw.uniform(0.0, 1.0, 2) * (1.0 - side)
        table[row] = top, left, side, draw.random() < 0.5
    return Geometry(*torch.from_numpy(table).unbind(1))


def sample_photometry(seed: int, round_: int, images: Sequence[int], view: int) -> Photometry:
    """The colour changes and blur of each image in view 1 or 2."""
    assert view in (1, 2)
    table = np.empty((len(images), 6), np.float32)
    for row, image in enumerate(images):
        draw = generator(seed, Stream.VIEWS, round_, image, view)
        jitters = draw.random(4) < JITTER_PROBABILITY
        factors = draw.uniform(1.0 - JITTER, 1.0 + JITTER, 3)
        hue = draw.uniform(-HUE, HUE)
        grey = draw.random() < GREY_PROBABILITY
        blurred = draw.random() < BLUR_PROBABILITY
        sigma = draw.uniform(*BLUR_SIGMA)
        table[row, :3] = np.where(jitters[:3], factors, 1.0)
        table[row, 3:] = hue * jitters[3], grey, sigma * blurred
    return Photometry(*torch.from_numpy(table).unbind(1))


def sample_windows(
    seed: int,
    round_: int,
    images: Sequence[int],
    view: int,
    aspects: Tensor,
    scales: tuple[float, float] = (0.2, 1.0),
) -> Window:
    """RandomResizedCrop and flip of each image for view 1 or 2, with a share of its area from `scales`.

    `aspects` (B,) are the images' own widths over heights. Where none of ten draws fits, the largest centred crop of
    an allowed aspect is taken.
    """
    table = np.empty((len(images), 5), np.float32)
    for row, (image, aspect) in enumerate(zip(images, aspects.tolist(), strict=True)):
        draw = generator(seed, Stream.VIEWS, round_, image, 2 + view)
        shares = draw.uniform(*scales, ATTEMPTS)
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
    return Window(*torch.from_numpy(table).unbind(1))


def sample_pretraining_photometry(
    seed: int, round_: int, images: Sequence[int], view: int
) -> Photometry:
    """ColorJitter(0.4, 0.4, 0.4, 0.1) with p 0.8 for all four at once, grey p 0.2, blur p 0.5, for view 1 or 2."""
    table = np.empty((len(images), 6), np.float32)
    for row, image in enumerate(images):
        draw = generator(seed, Stream.VIEWS, round_, image, 4 + view)
        jitter = draw.random() < JITTER_PROBABILITY
        factors = draw.uniform(1.0 - PRETRAINING_JITTER, 1.0 + PRETRAINING_JITTER, 3)
        hue = draw.uniform(-HUE, HUE)
        grey = draw.random() < GREY_PROBABILITY
        blurred = draw.random() < BLUR_PROBABILITY
        sigma = draw.uniform(*BLUR_SIGMA)
        table[row, :3] = factors if jitter else 1.0
        table[row, 3:] = hue * jitter, grey, sigma * blurred
    return Photometry(*torch.from_numpy(table).unbind(1))


def independent_views(
    images: Tensor,
    indices: Sequence[int],
    aspects: Tensor,
    *,
    seed: int,
    round_: int,
    scales: tuple[float, float] = (0.2, 1.0),
) -> WindowPair:
    """Both pre-training views of a batch, crop, flip and colours drawn per view.

    `images` is uint8 (B, 3, S, S): whole images, stretched to a square; `aspects` (B,) are their true widths over
    heights. The views have side R = S / 2. The crop comes first, then colours and the blur, as in SimSiam.
    """
    found = []
    for view in (1, 2):
        window = sample_windows(seed, round_, indices, view, aspects, scales).to(images.device)
        photometry = sample_pretraining_photometry(seed, round_, indices, view).to(images.device)
        with torch.autocast(images.device.type, enabled=False):
            found.append((_window_view(images, photometry, window), window))
    (image_1, window_1), (image_2, window_2) = found
    return WindowPair(image_1, image_2, window_1, window_2)


def _window_view(images: Tensor, photometry: Photometry, window: Window) -> Tensor:
    """uint8 (B, 3, S, S) → normalised float (B, 3, S/2, S/2)."""
    source, side = images.shape[-1], images.shape[-1] // 2
    never = torch.zeros_like(window.flip)
    rows = bilinear_matrix(window.top, window.height, never, source, side, antialias=True)
    columns = bilinear_matrix(window.left, window.width, window.flip, source, side, antialias=True)
    blur = blur_matrix(photometry.sigma, side)
    step = len(images) if images.is_cuda else 1
    parts = []
    for i in range(0, len(images), step):
        part = slice(i, i + step)
        view = resample(images[part].float().div_(255.0), rows[part], columns[part])
        view = adjust_colour(view, photometry[part])
        # The blur is the last change: where no image of the part has one, it would multiply by the identity.
        parts.append(
            resample(view, blur[part], blur[part]) if photometry.sigma[part].any() else view
        )
    return normalise(torch.cat(parts))


def view_pair(images: Tensor, indices: Sequence[int], *, seed: int, round_: int) -> ViewPair:
    """Both views of a batch of stored images.

    `images` is uint8 (B, 3, S, S) on any device, `indices` their B manifest positions. The views have side R = S / 2:
    view 1 is changed in colour and then cropped, view 2 is changed in colour and shown whole (METHOD: its features are
    cropped later, by `warp` with the returned geometry).
    """
    geometry = sample_geometry(seed, round_, indices).to(images.device)
    whole = Geometry(*(torch.full_like(geometry.top, value) for value in (0.0, 0.0, 1.0, 0.0)))
    image_1 = first_view(images, indices, seed=seed, round_=round_)
    photometry_2 = sample_photometry(seed, round_, indices, 2).to(images.device)
    return ViewPair(image_1, _view(images, photometry_2, whole), geometry)


def first_view(images: Tensor, indices: Sequence[int], *, seed: int, round_: int) -> Tensor:
    """View 1 of `view_pair` alone, (B, 3, R, R)."""
    geometry = sample_geometry(seed, round_, indices).to(images.device)
    photometry = sample_photometry(seed, round_, indices, 1).to(images.device)
    return _view(images, photometry, geometry)


def _view(images: Tensor, photometry: Photometry, geometry: Geometry) -> Tensor:
    """uint8 (B, 3, S, S) → normalised float (B, 3, S/2, S/2)."""
    # The loop calls this under autocast, which would round the matrix products of colours to three digits.
    with torch.autocast(images.device.type, enabled=False):
        return _coloured_and_cropped(images, photometry, geometry)


def _coloured_and_cropped(images: Tensor, photometry: Photometry, geometry: Geometry) -> Tensor:
    side = images.shape[-1]
    rows, columns = crop_matrices(geometry, side, side // 2)
    blur = blur_matrix(photometry.sigma, side)
    # One image at a time stays in a processor's cache; a GPU wants the whole batch.
    step = len(images) if images.is_cuda else 1
    parts = [
        resample(
            adjust_colour(images[i : i + step].float().div_(255.0), photometry[i : i + step]),
            rows[i : i + step] @ blur[i : i + step],
            columns[i : i + step] @ blur[i : i + step],
        )
        for i in range(0, len(images), step)
    ]
    return normalise(torch.cat(parts))


def normalise(images: Tensor) -> Tensor:
    """(…, 3, H, W) in [0, 1] → ImageNet's zero mean and unit deviation per channel."""
    mean = torch.tensor(MEAN, device=images.device).view(3, 1, 1)
    std = torch.tensor(STD, device=images.device).view(3, 1, 1)
    return (images - mean) / std


def adjust_colour(images: Tensor, photometry: Photometry) -> Tensor:
    """Brightness, contrast, saturation, hue, grey, clamped to [0, 1] after each, with torchvision's definitions.

    `images` is float (B, 3, H, W) in [0, 1]. A change that no image of the batch has is not computed.
    """
    brightness, contrast, saturation, hue, grey = (
        getattr(photometry, field.name).view(-1, 1, 1, 1) for field in fields(photometry)[:5]
    )
    if (brightness != 1).any():
        images = (images * brightness).clamp_(0, 1)
    if (contrast != 1).any():
        mean = _luma(images.mean((-2, -1), keepdim=True))
        images = (images * contrast).add_((1.0 - contrast) * mean).clamp_(0, 1)
    if (saturation != 1).any():
        images = (images * saturation).add_((1.0 - saturation) * _luma(images)).clamp_(0, 1)
    if (hue != 0).any():
        images = _rotate_hue(images, hue)
    if grey.any():
        images = torch.where(grey.bool(), _luma(images), images)
    return images


def _luma(images: Tensor) -> Tensor:
    weights = torch.tensor(LUMA, device=images.device).view(1, 3)
    return (weights @ images.flatten(2)).view(len(images), 1, *images.shape[2:])


def _rotate_hue(images: Tensor, hue: Tensor) -> Tensor:
    """Turn the HSV hue by `hue` ∈ [-½, ½] of the circle, with no detour over saturation and value.

    With V the maximum, c the chroma and t the hue in sixths of the circle, the channel at offset n ∈ (5, 3, 1) is
    V - c·clip(2 - |k - 2|, 0, 1), k = (n + t) mod 6. With t ∈ [0, 6) the nearer of k = 2 and k = 8 stands for the
    remainder; sums and clips stand for comparisons, which cost ten times as much.
    """
    red, green, blue = images.unbind(1)
    highest = torch.maximum(torch.maximum(red, green), blue)
    chroma = highest - torch.minimum(torch.minimum(red, green), blue)
    scale = chroma.clamp(min=1e-9).reciprocal_()
    not_red = (highest - red).mul_(1e30).clamp_(max=1)
    not_green = (highest - green).mul_(1e30).clamp_(max=1)
    red_sixth = (green - blue).mul_(scale)
    green_sixth = (blue - red).mul_(scale).add_(2.0)
    blue_sixth = (red - green).mul_(scale).add_(4.0)
    sixth = torch.lerp(red_sixth, torch.lerp(green_sixth, blue_sixth, not_green), not_red)
    sixth = sixth.add_(hue.view(-1, 1, 1) * 6.0).remainder_(6.0)
    turned = torch.empty_like(images)
    for channel, offset in enumerate((5.0, 3.0, 1.0)):
        distance = torch.minimum((sixth + (offset - 2.0)).abs_(), (sixth + (offset - 8.0)).abs_())
        share = distance.neg_().add_(2.0).clamp_(0, 1)
        torch.sub(highest, share.mul_(chroma), out=turned[:, channel])
    return turned


def crop_matrices(geometry: Geometry, source: int, target: int) -> tuple[Tensor, Tensor]:
    """A_y and A_x, each (B, target, source): crop, bilinear resize to `target`, flip of a square map."""
    never = torch.zeros_like(geometry.flip)
    return (
        bilinear_matrix(geometry.top, geometry.side, never, source, target),
        bilinear_matrix(geometry.left, geometry.side, geometry.flip, source, target),
    )


def bilinear_matrix(
    start: Tensor,
    extent: Tensor,
    flip: Tensor,
    source: int,
    target: int,
    *,
    antialias: bool = False,
) -> Tensor:
    """(B, target, source) weights of a bilinear resize of the window [start, start + extent] of a unit interval.

    Pixel centres lie at (i + ½) / length and the border value is continued outwards: `grid_sample` with
    `padding_mode="border", align_corners=False`. Rows sum to 1. Where `flip` is not 0 the target runs backwards.
    With `antialias` the triangle is as wide as a target pixel where that is the wider one, as Pillow's filter is.
    """
    centres = (torch.arange(target, device=start.device) + 0.5) / target
    centres = torch.where(flip.view(-1, 1) != 0, 1.0 - centres, centres)
    position = (start.view(-1, 1) + extent.view(-1, 1) * centres) * source - 0.5
    pixels = torch.arange(source, device=start.device)
    if antialias:
        reach = (extent * source / target).clamp(min=1).view(-1, 1, 1)
        weights = (1.0 - (position.unsqueeze(-1) - pixels).abs() / reach).clamp_(min=0)
        return weights / weights.sum(-1, keepdim=True)
    position = position.clamp(0, source - 1)
    return (1.0 - (position.unsqueeze(-1) - pixels).abs()).clamp_(min=0)


def blur_matrix(sigma: Tensor, side: int) -> Tensor:
    """(B, side, side) Gaussian blur along one axis, renormalised at the border; the identity where sigma is 0."""
    pixels = torch.arange(side, device=sigma.device)
    # At one hundredth of a pixel the neighbour's weight underflows to 0, so the matrix is exactly the identity.
    scale = -0.5 / sigma.clamp(min=0.01).square()
    kernel = torch.exp(scale.view(-1, 1) * pixels.square())
    # The far tails are denormal numbers, which slow a matrix product down five times and add nothing.
    kernel = torch.where(kernel < 1e-8, 0.0, kernel)
    weights = kernel[:, (pixels.view(-1, 1) - pixels).abs()]
    return weights / weights.sum(-1, keepdim=True)


def resample(maps: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """A_y F A_xᵀ: maps (B, C, H, W), rows (B, H', H), columns (B, W', W) → (B, C, H', W'), in float32."""
    with torch.autocast(maps.device.type, enabled=False):
        return rows.unsqueeze(1) @ maps.float() @ columns.unsqueeze(1).mT


def warp(features: Tensor, geometry: Geometry) -> Tensor:
    """Apply the view's geometry to square feature maps (B, C, h, h): the crop, resized back to h, flipped."""
    side = features.shape[-1]
    return resample(features, *crop_matrices(geometry, side, side))
