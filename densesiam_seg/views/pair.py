"""Both views of each image: what `parameters` has drawn, applied to pixels.

Axes: B images, S side of the stored square image, R = S/2 side of a view.

Every view is a colour change, linear maps along both axes (crop, resize, flip and the blur) and a normalisation.
In exact mode the maps are dense matrices over whole images, whose bits stay the same from one version to the next.
Otherwise, on a processor, only the pixels that the crop reads are recoloured, in place, and the maps are multiplied in
bands: the same views up to rounding in a fifth of the time. A GPU computes in float16, in which dense maps cost little.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from densesiam_seg.views.geometric import (
    blur_matrix,
    blurred_bands,
    crop_matrices,
    resample,
    resample_read,
    resize_bands,
)
from densesiam_seg.views.parameters import (
    Geometry,
    Photometry,
    sample_geometry,
    sample_photometry,
    sample_pretraining_geometry,
)
from densesiam_seg.views.photometric import (
    adjust_colour,
    brightened_luma,
    changed,
    normalise_,
    recolour,
)

CHUNK = 16
"""Images whose bands are in memory at once."""
GPU_CHUNK = 64
"""Images that are augmented at once on a GPU."""

Colour: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""`photometric.changed`, or the same compiled."""


@dataclass(frozen=True)
class ViewPair:
    """Two views (B, 3, R, R), normalised, and the geometry that maps view 2's features onto view 1's."""

    image_1: Tensor
    image_2: Tensor
    geometry: Geometry


@dataclass(frozen=True)
class IndependentPair:
    """Two views (B, 3, R, R), normalised, drawn independently, and where in the image each of them lies."""

    image_1: Tensor
    image_2: Tensor
    geometry_1: Geometry
    geometry_2: Geometry


def view_pair(
    images: Tensor,
    indices: Sequence[int],
    *,
    seed: int,
    round_: int,
    exact: bool = True,
    colour: Colour = changed,
) -> ViewPair:
    """Both views of stored images, uint8 (B, 3, S, S) on any device, at B manifest positions `indices`.

    View 1 is changed in colour and then cropped, view 2 is changed in colour and left whole: its features are cropped
    later, by `warp` with the returned geometry (PiCIE, CVPR 2021, section 3). `colour` makes a GPU's colour changes.
    """
    geometry = sample_geometry(seed, round_, indices)
    whole = Geometry(*(torch.full_like(geometry.top, value) for value in (0.0, 0.0, 1.0, 1.0, 0.0)))
    return ViewPair(
        _views(images, sample_photometry(seed, round_, indices, 1), geometry, exact, colour=colour),
        _views(images, sample_photometry(seed, round_, indices, 2), whole, exact, colour=colour),
        geometry.to(images.device),
    )


def first_view(
    images: Tensor, indices: Sequence[int], *, seed: int, round_: int, exact: bool = True
) -> Tensor:
    """View 1 of `view_pair` alone, (B, 3, R, R)."""
    geometry = sample_geometry(seed, round_, indices)
    return _views(images, sample_photometry(seed, round_, indices, 1), geometry, exact)


def independent_views(
    images: Tensor,
    indices: Sequence[int],
    aspects: Tensor,
    *,
    seed: int,
    round_: int,
    exact: bool = True,
) -> IndependentPair:
    """Both pre-training views, crop, flip and colours drawn per view; the crop comes first, as in SimSiam.

    `images` is uint8 (B, 3, S, S): whole images, stretched to a square; `aspects` (B,) are their widths over heights.
    """
    places = [sample_pretraining_geometry(seed, round_, indices, v, aspects) for v in (1, 2)]
    image_1, image_2 = (
        _views(
            images,
            sample_photometry(seed, round_, indices, view, pretraining=True),
            geometry,
            exact,
            pretraining=True,
        )
        for view, geometry in enumerate(places, 1)
    )
    return IndependentPair(image_1, image_2, *(place.to(images.device) for place in places))


def _views(
    images: Tensor,
    photometry: Photometry,
    geometry: Geometry,
    exact: bool,
    *,
    pretraining: bool = False,
    colour: Colour = changed,
) -> Tensor:
    """uint8 (B, 3, S, S) → normalised float (B, 3, R, R), some images after the other."""
    device, side = images.device, images.shape[-1] // 2
    if images.is_cuda and not exact and not pretraining:
        # Compiled, changes need no memory between them.
        step = GPU_CHUNK if colour is changed else len(images)
        place = geometry.to(device)
        halved = [
            _halved_views(images[part], photometry[part], place[part], colour)
            for part in (slice(first, first + step) for first in range(0, len(images), step))
        ]
        return normalise_(torch.cat(halved))
    if exact or device.type != "cpu":
        apply = _crop_then_colour if pretraining else _colour_then_crop
        geometry = geometry.to(device)
        # One image at a time stays in a processor's cache.
        step = GPU_CHUNK if images.is_cuda else 1
    else:
        apply = _crop_then_colour_fast if pretraining else _colour_then_crop_fast
        step = CHUNK
    views = torch.empty((len(images), 3, side, side), device=device)
    # The training loop calls this under autocast, which would round matrix products to three digits.
    with torch.autocast(device.type, enabled=False):
        for first in range(0, len(images), step):
            part = slice(first, first + step)
            apply(images[part], photometry[part], geometry[part], views[part])
    return normalise_(views)


def _colour_then_crop(
    images: Tensor, photometry: Photometry, geometry: Geometry, views: Tensor
) -> None:
    """Training's changes of some images (B, 3, S, S), into `views` (B, 3, R, R)."""
    rows, columns = crop_matrices(geometry, images.shape[-1], views.shape[-1])
    blur = blur_matrix(photometry.to(images.device).sigma, images.shape[-1])
    coloured = adjust_colour(images.float().div_(255.0), photometry)
    views.copy_(resample(coloured, rows @ blur, columns @ blur))


def _halved_views(
    images: Tensor, photometry: Photometry, geometry: Geometry, colour: Colour
) -> Tensor:
    """The same of some images in float16 products: float32 views (B, 3, R, R) in the network's memory layout."""
    source = images.shape[-1]
    rows, columns = (each.half() for each in crop_matrices(geometry, source, source // 2))
    blur = blur_matrix(photometry.sigma.to(images.device), source).half()
    with torch.autocast(images.device.type, enabled=False):
        coloured = colour(images, photometry.colours().to(images.device))
        rows, columns = (rows @ blur).unsqueeze(1), (columns @ blur).unsqueeze(1)
        return (rows @ coloured @ columns.mT).float().to(memory_format=torch.channels_last)


def _colour_then_crop_fast(
    images: Tensor, photometry: Photometry, geometry: Geometry, views: Tensor
) -> None:
    """The same without work on pixels that are not read."""
    source, target = images.shape[-1], views.shape[-1]
    rows, columns = (
        blurred_bands(*axis, photometry.sigma, source, target) for axis in geometry.axes()
    )
    floats, workspace = torch.empty(3 * source**2), torch.empty(6 * source * target)
    changes = photometry.colours().tolist()
    for index, (image, change, view) in enumerate(zip(images, changes, views, strict=True)):
        # Contrast keeps the mean of the whole image, so it is taken before the crop.
        mean = brightened_luma(image, change[0], floats) if change[1] != 1 else None
        part = _copied(image[:, rows.read(index), columns.read(index)], floats)
        recolour(part, change, mean)
        resample_read(part, rows, columns, index, view, workspace)


def _crop_then_colour(
    images: Tensor, photometry: Photometry, geometry: Geometry, views: Tensor
) -> None:
    """Pre-training's changes of some images (B, 3, S, S), into `views` (B, 3, R, R)."""
    source, target = images.shape[-1], views.shape[-1]
    matrices = crop_matrices(geometry, source, target, antialias=True)
    changed = adjust_colour(resample(images.float().div_(255.0), *matrices), photometry)
    # Where no image is blurred, this would multiply by the identity.
    if photometry.sigma.any():
        blur = blur_matrix(photometry.to(images.device).sigma, target)
        changed = resample(changed, blur, blur)
    views.copy_(changed)


def _crop_then_colour_fast(
    images: Tensor, photometry: Photometry, geometry: Geometry, views: Tensor
) -> None:
    """The same without work on pixels that are not read."""
    source, target = images.shape[-1], views.shape[-1]
    rows, columns = (resize_bands(*axis, source, target) for axis in geometry.axes())
    never = torch.zeros_like(geometry.flip)
    blur = blurred_bands(never, torch.ones_like(never), never, photometry.sigma, target, target)
    floats, workspace = torch.empty(3 * source**2), torch.empty(6 * source * target)
    blurred, changes = photometry.sigma.tolist(), photometry.colours().tolist()
    for index, (image, change, view) in enumerate(zip(images, changes, views, strict=True)):
        part = _copied(image[:, rows.read(index), columns.read(index)], floats)
        resample_read(part, rows, columns, index, view, workspace)
        recolour(view, change)
        if blurred[index]:
            resample_read(_copied(view, floats), blur, blur, index, view, workspace)


def _copied(pixels: Tensor, memory: Tensor) -> Tensor:
    """Pixels (3, h, w) as contiguous float in this memory."""
    return memory[: pixels.numel()].view(pixels.shape).copy_(pixels)
