"""Sampled-then-replayed views: the pixels of what `draws` has drawn.

Axes: B images, C channels, S side of the stored square image, R = S/2 side of a view, h feature side.

Every view is a colour change, linear maps along both axes (crop, resize, flip and the blur) and a normalisation.
In exact mode they are dense matrix products over whole images, whose bits this program keeps from one version to the
next. Otherwise, on a processor, each image is cut to what its crop reads, recoloured in place and multiplied in bands:
the same views up to rounding in a fifth of the time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from densesiam_seg.views.geometric import (
    bilinear_matrix,
    blur_matrix,
    blurred_bands,
    resample,
    resample_half,
    resample_read,
    resize_bands,
)
from densesiam_seg.views.parameters import (
    Geometry,
    Photometry,
    Window,
    sample_geometry,
    sample_photometry,
    sample_pretraining_photometry,
    sample_windows,
)
from densesiam_seg.views.photometric import (
    adjust_colour,
    brightened_luma,
    normalise,
    normalise_,
    recolour,
)

PART = 16
"""Images whose matrices are held at once."""
GPU_PART = 64
"""Images whose colours are changed at once on a GPU."""


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


def view_pair(
    images: Tensor, indices: Sequence[int], *, seed: int, round_: int, exact: bool = True
) -> ViewPair:
    """Both views of a batch of stored images.

    `images` is uint8 (B, 3, S, S) on any device, `indices` their B manifest positions. The views have side R = S / 2:
    view 1 is changed in colour and then cropped, view 2 is changed in colour and shown whole (METHOD: its features are
    cropped later, by `warp` with the returned geometry).
    """
    geometry = sample_geometry(seed, round_, indices)
    whole = Geometry(*(torch.full_like(geometry.top, value) for value in (0.0, 0.0, 1.0, 0.0)))
    return ViewPair(
        _view(images, sample_photometry(seed, round_, indices, 1), geometry, exact),
        _view(images, sample_photometry(seed, round_, indices, 2), whole, exact),
        geometry.to(images.device),
    )


def first_view(
    images: Tensor, indices: Sequence[int], *, seed: int, round_: int, exact: bool = True
) -> Tensor:
    """View 1 of `view_pair` alone, (B, 3, R, R)."""
    geometry = sample_geometry(seed, round_, indices)
    return _view(images, sample_photometry(seed, round_, indices, 1), geometry, exact)


def independent_views(
    images: Tensor,
    indices: Sequence[int],
    aspects: Tensor,
    *,
    seed: int,
    round_: int,
    exact: bool = True,
) -> WindowPair:
    """Both pre-training views of a batch, crop, flip and colours drawn per view.

    `images` is uint8 (B, 3, S, S): whole images, stretched to a square; `aspects` (B,) are their true widths over
    heights. The views have side R = S / 2. The crop comes first, then colours and the blur, as in SimSiam.
    """
    found = []
    for view in (1, 2):
        window = sample_windows(seed, round_, indices, view, aspects)
        photometry = sample_pretraining_photometry(seed, round_, indices, view)
        found.append((_window_view(images, photometry, window, exact), window.to(images.device)))
    (image_1, window_1), (image_2, window_2) = found
    return WindowPair(image_1, image_2, window_1, window_2)


def _view(images: Tensor, photometry: Photometry, geometry: Geometry, exact: bool) -> Tensor:
    """uint8 (B, 3, S, S) → normalised float (B, 3, S/2, S/2)."""
    # The loop calls this under autocast, which would round the matrix products of colours to three digits.
    with torch.autocast(images.device.type, enabled=False):
        if exact or images.device.type != "cpu":
            return normalise(_coloured_and_cropped(images, photometry, geometry))
        return _in_parts(_read_and_recoloured, images, photometry, geometry)


def _coloured_and_cropped(images: Tensor, photometry: Photometry, geometry: Geometry) -> Tensor:
    side, device = images.shape[-1], images.device
    rows, columns = crop_matrices(geometry.to(device), side, side // 2)
    blur = blur_matrix(photometry.to(device).sigma, side)
    # One image at a time stays in a processor's cache.
    step = GPU_PART if images.is_cuda else 1
    parts = [
        resample(
            adjust_colour(images[i : i + step].float().div_(255.0), photometry[i : i + step]),
            rows[i : i + step] @ blur[i : i + step],
            columns[i : i + step] @ blur[i : i + step],
        )
        for i in range(0, len(images), step)
    ]
    return torch.cat(parts)


def _read_and_recoloured(
    images: Tensor, photometry: Photometry, geometry: Geometry, views: Tensor
) -> None:
    """`_coloured_and_cropped` into `views`, with no work on pixels that nothing reads."""
    source, target = images.shape[-1], views.shape[-1]
    never, sigma = torch.zeros_like(geometry.flip), photometry.sigma
    rows = blurred_bands(geometry.top, geometry.side, never, sigma, source, target)
    columns = blurred_bands(geometry.left, geometry.side, geometry.flip, sigma, source, target)
    room, more = torch.empty(3 * source**2), torch.empty(6 * source * target)
    changes = photometry.colours().tolist()
    for index, (image, change, view) in enumerate(zip(images, changes, views, strict=True)):
        # The contrast of the whole image is changed, so its mean is taken before anything is cut off.
        mean = brightened_luma(image, change[0], room) if change[1] != 1 else None
        part = _floats(image[:, rows.read(index), columns.read(index)], room)
        recolour(part, change, mean, white=255)
        resample_read(part, rows, columns, index, view, more)


def _window_view(images: Tensor, photometry: Photometry, window: Window, exact: bool) -> Tensor:
    """uint8 (B, 3, S, S) → normalised float (B, 3, S/2, S/2)."""
    with torch.autocast(images.device.type, enabled=False):
        if exact or images.device.type != "cpu":
            return normalise(_cropped_and_coloured(images, photometry, window))
        return _in_parts(_read_then_recoloured, images, photometry, window)


def _cropped_and_coloured(images: Tensor, photometry: Photometry, window: Window) -> Tensor:
    source, side, device = images.shape[-1], images.shape[-1] // 2, images.device
    place = window.to(device)
    never = torch.zeros_like(place.flip)
    rows = bilinear_matrix(place.top, place.height, never, source, side, antialias=True)
    columns = bilinear_matrix(place.left, place.width, place.flip, source, side, antialias=True)
    blur = blur_matrix(photometry.to(device).sigma, side)
    step = GPU_PART if images.is_cuda else 1
    parts = []
    for i in range(0, len(images), step):
        part = slice(i, i + step)
        view = resample(images[part].float().div_(255.0), rows[part], columns[part])
        view = adjust_colour(view, photometry[part])
        # The blur is the last change: where no image of the part has one, it would multiply by the identity.
        parts.append(
            resample(view, blur[part], blur[part]) if photometry.sigma[part].any() else view
        )
    return torch.cat(parts)


def _read_then_recoloured(
    images: Tensor, photometry: Photometry, window: Window, views: Tensor
) -> None:
    """`_cropped_and_coloured` into `views`, with no work on pixels that nothing reads."""
    source, target = images.shape[-1], views.shape[-1]
    never = torch.zeros_like(window.flip)
    rows = resize_bands(window.top, window.height, never, source, target, antialias=True)
    columns = resize_bands(window.left, window.width, window.flip, source, target, antialias=True)
    blur = blurred_bands(never, torch.ones_like(never), never, photometry.sigma, target, target)
    blurred = (photometry.sigma != 0).tolist()
    room, more = torch.empty(3 * source**2), torch.empty(6 * source * target)
    changes = photometry.colours().tolist()
    for index, (image, change, view) in enumerate(zip(images, changes, views, strict=True)):
        part = _floats(image[:, rows.read(index), columns.read(index)], room)
        resample_read(part, rows, columns, index, view, more)
        recolour(view, change, white=255)
        if blurred[index]:
            sharp = room[: view.numel()].view_as(view).copy_(view)
            resample_read(sharp, blur, blur, index, view, more)


def _floats(pixels: Tensor, room: Tensor) -> Tensor:
    """uint8 (3, h, w) → contiguous float from 0 to 255, in the memory of `room`."""
    return room[: pixels.numel()].view(pixels.shape).copy_(pixels)


def _in_parts(
    apply: Callable[[Tensor, Photometry, Any, Tensor], None],
    images: Tensor,
    photometry: Photometry,
    place: Geometry | Window,
) -> Tensor:
    """Normalised views (B, 3, S/2, S/2), a few images after the other, so that their matrices stay small."""
    side = images.shape[-1] // 2
    views = torch.empty((len(images), 3, side, side))
    for first in range(0, len(images), PART):
        part = slice(first, first + PART)
        apply(images[part], photometry[part], place[part], views[part])
    return normalise_(views)


def crop_matrices(geometry: Geometry, source: int, target: int) -> tuple[Tensor, Tensor]:
    """A_y and A_x, each (B, target, source): crop, bilinear resize to `target`, flip of a square map."""
    never = torch.zeros_like(geometry.flip)
    return (
        bilinear_matrix(geometry.top, geometry.side, never, source, target),
        bilinear_matrix(geometry.left, geometry.side, geometry.flip, source, target),
    )


def warp(features: Tensor, geometry: Geometry) -> Tensor:
    """Apply the view's geometry to square feature maps (B, C, h, h): the crop, resized back to h, flipped."""
    side = features.shape[-1]
    rows, columns = crop_matrices(geometry, side, side)
    if features.dtype == torch.float32:
        return resample(features, rows, columns)
    return resample_half(features, rows, columns)
