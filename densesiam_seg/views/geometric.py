"""Linear maps along one axis of an image: resize, crop, flip and blur as matrices, dense or in bands.

Axes: B images, C channels, H W source, S source side, T target side, h feature side.

A crop + resize + flip of a map F is A_y F A_xᵀ with two small bilinear matrices, for images and feature maps alike. A
Gaussian blur is linear and separable too, so it can be folded into the same two matrices. Their rows have a few
neighbouring weights and are 0 elsewhere: `Bands` multiplies nothing but those.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from densesiam_seg.views.parameters import BLUR_SIGMA, Geometry

MIN_WEIGHT = 1e-8
"""Weights of a blur below this share of the central one are set to 0."""
BLOCK = 16
"""Target pixels multiplied at once: larger blocks multiply more zeros, smaller ones need more calls."""
_CUT = math.sqrt(-2 * math.log(MIN_WEIGHT))
REACH = math.ceil(_CUT * BLUR_SIGMA[1])
"""Pixels to either side that the widest blur reads."""


def bilinear_matrix(
    start: Tensor, extent: Tensor, flip: Tensor, source: int, target: int, antialias: bool = False
) -> Tensor:
    """(B, target, source) weights of a bilinear resize of the window [start, start + extent] of a unit interval.

    Pixel centres lie at (i + ½) / length and the border value is continued outwards: `grid_sample` with
    `padding_mode="border", align_corners=False`. Rows sum to 1. Where `flip` is not 0 the target runs backwards.
    With `antialias` the triangle is as wide as a target pixel where that is the wider one, as Pillow's filter is.
    """
    position = _positions(start, extent, flip, source, target)
    pixels = torch.arange(source, device=start.device)
    if antialias:
        reach = (extent * source / target).clamp(min=1).view(-1, 1, 1)
        weights = (1.0 - (position.unsqueeze(-1) - pixels).abs() / reach).clamp_(min=0)
        return weights / weights.sum(-1, keepdim=True)
    position = position.clamp(0, source - 1)
    return (1.0 - (position.unsqueeze(-1) - pixels).abs()).clamp_(min=0)


def crop_matrices(
    geometry: Geometry, source: int, target: int, antialias: bool = False
) -> tuple[Tensor, Tensor]:
    """A_y and A_x, each (B, target, source): crop, bilinear resize to `target`, flip of a square map."""
    y, x = geometry.axes()
    return (
        bilinear_matrix(*y, source, target, antialias),
        bilinear_matrix(*x, source, target, antialias),
    )


def warp(features: Tensor, geometry: Geometry) -> Tensor:
    """The view's geometry of square feature maps (B, C, h, h): the crop, resized back to h, flipped."""
    side = features.shape[-1]
    rows, columns = crop_matrices(geometry, side, side)
    if features.dtype == torch.float32:
        return resample(features, rows, columns)
    return _resample_half(features, rows, columns)


def enlarged(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resize of maps (B, C, h, w) in half precision, whose gradient is a product too.

    That of `F.interpolate` adds up in no fixed order on a GPU; where results must repeat torch has another way, which
    gathers and sorts, and costs many times as much.
    """
    whole = torch.zeros(1, device=maps.device), torch.ones(1, device=maps.device)
    never = torch.zeros(1, device=maps.device)
    rows, columns = (
        bilinear_matrix(*whole, never, source, target)
        for source, target in zip(maps.shape[-2:], size, strict=True)
    )
    return _resample_half(maps, rows, columns)


def blur_matrix(sigma: Tensor, side: int) -> Tensor:
    """(B, side, side) Gaussian blur along one axis, renormalised at the border; the identity where sigma is 0."""
    pixels = torch.arange(side, device=sigma.device)
    kernel = _gaussian(sigma, pixels)
    weights = kernel[:, (pixels.view(-1, 1) - pixels).abs()]
    return weights / weights.sum(-1, keepdim=True)


def resample(maps: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """A_y F A_xᵀ: maps (B, C, H, W), rows (B, H', H), columns (B, W', W) → (B, C, H', W'), in float32."""
    with torch.autocast(maps.device.type, enabled=False):
        return rows.unsqueeze(1) @ maps.float() @ columns.unsqueeze(1).mT


def _resample_half(maps: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """`resample` in the maps' own half precision and in channels-last memory, as the network leaves its features."""
    images, channels, height, width = maps.shape
    rows, columns = rows.to(maps.dtype), columns.to(maps.dtype)
    tall = rows @ maps.permute(0, 2, 3, 1).reshape(images, height, width * channels)
    small = columns.unsqueeze(1) @ tall.view(images, -1, width, channels)
    return small.permute(0, 3, 1, 2)


def _positions(start: Tensor, extent: Tensor, flip: Tensor, source: int, target: int) -> Tensor:
    """Where target pixels' centres lie among the source pixels (B, T)."""
    centres = (torch.arange(target, device=start.device) + 0.5) / target
    centres = torch.where(flip.view(-1, 1) != 0, 1.0 - centres, centres)
    return (start.view(-1, 1) + extent.view(-1, 1) * centres) * source - 0.5


def _gaussian(sigma: Tensor, pixels: Tensor) -> Tensor:
    """Weights (B, …) of neighbours this many pixels away, 1 for the pixel itself."""
    # At a hundredth of a pixel the neighbour's weight underflows to 0, so the matrix is exactly the identity.
    scale = -0.5 / sigma.clamp(min=0.01).square()
    kernel = torch.exp(scale.view(-1, 1) * pixels.square())
    # The tails are denormal numbers, which make a matrix product five times as slow and have no effect.
    return torch.where(kernel < MIN_WEIGHT, 0.0, kernel)


@dataclass(frozen=True)
class Bands:
    """A linear map along one axis, T target from S source pixels, in blocks of BLOCK target pixels."""

    weights: Tensor
    """(B, T, W), of W source pixels that begin where the target pixel's block begins."""
    spans: list[list[list[int]]]
    """Of each image and block: where W begins (it may be before the first pixel), and the source pixel behind the last
    that is read."""
    pairs: Mapping[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """Of an image without a blur: the first (T,) of the two neighbours that a pixel mixes, and the second's share."""

    def read(self, image: int) -> slice:
        """The source pixels that any target pixel of an image reads."""
        begins, ends = zip(*self.spans[image], strict=True)
        return slice(max(min(begins), 0), max(ends))

    def blocks(self, image: int) -> Iterator[tuple[slice, slice, Tensor]]:
        """Of an image: a block of target pixels, the source pixels it reads, and their weights."""
        for block, (begin, end) in enumerate(self.spans[image]):
            target, first = slice(block * BLOCK, (block + 1) * BLOCK), max(begin, 0)
            yield (
                target,
                slice(first, end),
                self.weights[image, target, first - begin : end - begin],
            )


def resize_bands(start: Tensor, extent: Tensor, flip: Tensor, source: int, target: int) -> Bands:
    """`bilinear_matrix` with `antialias` as bands."""
    position = _positions(start, extent, flip, source, target)
    width = (extent * source / target).clamp(min=1)
    begins, widest, spans = _spans(position, width, source)
    pixels = begins.unsqueeze(-1) + torch.arange(widest)
    weights = 1 - (position.unsqueeze(-1) - pixels).abs() / width.view(-1, 1, 1)
    weights = weights.clamp_(min=0) * ((pixels >= 0) & (pixels < source))
    return Bands(weights / weights.sum(-1, keepdim=True), spans)


def blurred_bands(
    start: Tensor, extent: Tensor, flip: Tensor, sigma: Tensor, source: int, target: int
) -> Bands:
    """`bilinear_matrix` @ `blur_matrix` as bands: a blur of `sigma` ≤ 2 source pixels, then the resize.

    Each target pixel mixes two source pixels, and each of these its neighbours; their weights are added up directly,
    without a matrix product.
    """
    position = _positions(start, extent, flip, source, target).clamp_(0, source - 1)
    pixel = position.floor()
    second = (position - pixel).unsqueeze(-1)
    offsets = torch.arange(-REACH, REACH + 1)
    kernel = _gaussian(sigma, offsets).unsqueeze(1)
    pixels = pixel.long().unsqueeze(-1)
    taps = torch.zeros(*position.shape, len(offsets) + 1)
    taps[..., :-1] = _renormalised(kernel, pixels + offsets, source) * (1 - second)
    taps[..., 1:] += _renormalised(kernel, pixels + 1 + offsets, source) * second
    begins, widest, spans = _spans(position, (sigma * _CUT).clamp(max=REACH) + 1, source)
    # Taps outside the band have weight 0; they are written to margins on both sides, which are cut off.
    weights = torch.zeros(*position.shape, widest + 2 * len(offsets))
    places = pixels + torch.arange(len(offsets) + 1) - begins.unsqueeze(-1)
    weights.scatter_(-1, places + (len(offsets) - REACH), taps)
    sharp = (sigma == 0).nonzero().flatten().tolist()
    pairs = {image: (pixels[image, :, 0], second[image]) for image in sharp}
    return Bands(weights[..., len(offsets) : len(offsets) + widest], spans, pairs)


def resample_read(
    part: Tensor, rows: Bands, columns: Bands, image: int, out: Tensor, workspace: Tensor
) -> None:
    """A_y F A_xᵀ of one image F (C, H, W), given the `part` of it that is read, into `out` (C, T, T).

    `workspace` is memory for 2·C·T·W numbers, reused, since allocating it for every image is slow.
    """
    channels, high, wide = part.shape
    target = out.shape[-1]
    top, left = rows.read(image).start, columns.read(image).start
    tall, below = workspace[: 2 * channels * target * wide].view(2, channels, target, wide)
    if image in rows.pairs:
        pixels, share = rows.pairs[image]
        torch.index_select(part, 1, pixels - top, out=tall)
        torch.index_select(part, 1, (pixels + 1 - top).clamp(max=high - 1), out=below)
        torch.lerp(tall, below, share, out=tall)
    else:
        for here, read, weights in rows.blocks(image):
            tall[:, here] = weights @ part[:, read.start - top : read.stop - top]
    for here, read, weights in columns.blocks(image):
        out[:, :, here] = tall[:, :, read.start - left : read.stop - left] @ weights.mT


def _spans(
    position: Tensor, reach: Tensor, source: int
) -> tuple[Tensor, int, list[list[list[int]]]]:
    """Where the block of each target pixel at `position` (B, T) begins, the widest block, and `Bands.spans`.

    A target pixel reads so far as `reach` (B,) to both sides.
    """
    first = (position - reach.view(-1, 1)).floor()
    end = (position + reach.view(-1, 1)).ceil() + 1
    begins = torch.stack([part.amin(1) for part in torch.split(first, BLOCK, 1)], 1).long()
    ends = torch.stack([part.amax(1) for part in torch.split(end, BLOCK, 1)], 1).long()
    ends = ends.clamp(1, source)
    own = begins.repeat_interleave(BLOCK, 1)[:, : position.shape[1]]
    return own, int((ends - begins).max()), torch.stack((begins, ends), -1).tolist()


def _renormalised(kernel: Tensor, pixels: Tensor, source: int) -> Tensor:
    """Weights of `pixels` whose sum is 1 without those beyond the border."""
    inside = kernel * ((pixels >= 0) & (pixels < source))
    return inside / inside.sum(-1, keepdim=True).clamp(min=1e-30)
