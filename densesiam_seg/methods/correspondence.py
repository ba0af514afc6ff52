"""Which places of two views belong together: four strategies (DenseSiam's supplement, Table A1).

Axes: B images, N places of each view, P positions of a place, C channels, h w feature size.

A place is P positions (y, x) in [0, 1] of its view, and `sampling.pool` reads its value from a map (a point: P = 1; a
candidate region: P = 9). A strategy takes the crops and the features (B, C, h, w) of both views and the draws of
`sampling.grid_draws`; it returns N places in each view and a weight for each pair. Where the two views do not
overlap every weight is 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from densesiam_seg.config import PretrainConfig
from densesiam_seg.methods.sampling import cell_centres, pool, sample, sliding_windows
from densesiam_seg.views.parameters import Geometry

MIN_OVERLAP = 1e-6
"""An overlap narrower than this fraction of the image is a rounding error."""
DISTANCE_THRESHOLD = 0.7
"""Largest distance of cells linked by pixel distance, in diagonals of a grid cell (PixPro, CVPR 2021)."""


@dataclass(frozen=True)
class Correspondence:
    """Places of view 1 and of view 2, each (B, N, P, 2), and the weight >= 0 of each pair, (B, N, N)."""

    places_1: Tensor
    places_2: Tensor
    weight: Tensor

    @property
    def linked(self) -> Tensor:
        """Which images have any pair: bool (B,)."""
        return (self.weight > 0).flatten(1).any(1)

    @property
    def used(self) -> Tensor:
        """Which places have any pair: bool (2B, N), view 1 first."""
        pairs = self.weight > 0
        return torch.cat((pairs.any(2), pairs.any(1)))


Crops: TypeAlias = tuple[Geometry, Geometry]
Maps: TypeAlias = tuple[Tensor, Tensor]


def location(crops: Crops, features: Maps, config: PretrainConfig, draws: Tensor) -> Correspondence:
    """The sampler's N positions of the overlap in both views, each linked with itself (DenseSiam)."""

    def similarity(positions: Tensor) -> Tensor:
        places_1, places_2, _ = _in_both_views(crops, positions.unsqueeze(2))
        return F.cosine_similarity(pool(features[0], places_1), pool(features[1], places_2), dim=-1)

    return _each_with_itself(crops, sample(config, draws, similarity).unsqueeze(2))


def candidate_regions(
    crops: Crops, features: Maps, config: PretrainConfig, draws: Tensor
) -> Correspondence:
    """The N `sliding_windows` over the overlap, each linked with itself (ReSim, ICCV 2021)."""
    places = sliding_windows(config.grid, draws.device)
    return _each_with_itself(crops, places.expand(len(draws), -1, -1, -1))


def feature_similarity(
    crops: Crops, features: Maps, config: PretrainConfig, draws: Tensor
) -> Correspondence:
    """Each cell of a view is linked with the cell of the other whose features are most similar (DenseCL, CVPR 2021).

    Regular grids over the whole of each view; similarity is the cosine of the pooled features. A link adds 1 to the
    weight of its pair, so two cells that choose each other have weight 2.
    """
    places = _whole_view(config, draws)
    values_1, values_2 = (F.normalize(pool(maps, places), dim=-1) for maps in features)
    with torch.autocast(draws.device.type, enabled=False):
        cosines = values_1 @ values_2.mT
    numbers = torch.arange(config.grid**2, device=draws.device)
    chosen_by_1 = cosines.argmax(2, keepdim=True) == numbers
    chosen_by_2 = cosines.argmax(1, keepdim=True) == numbers.view(-1, 1)
    weight = chosen_by_1.float() + chosen_by_2.float()
    return Correspondence(places, places, weight * overlap(*crops)[1].view(-1, 1, 1))


def pixel_distance(
    crops: Crops, features: Maps, config: PretrainConfig, draws: Tensor
) -> Correspondence:
    """Cells whose centres lie close together in the image are linked (PixPro, CVPR 2021), with weight 1.

    Regular grids over the whole of each view. The distance is divided by the diagonal of a grid cell, of the view whose
    cells are larger. Lengths are fractions of the image's height and width, where PixPro measures in pixels.
    """
    places = _whole_view(config, draws)
    in_image_1, in_image_2 = (to_image(places.squeeze(2), crop) for crop in crops)
    distance = (in_image_1.unsqueeze(2) - in_image_2.unsqueeze(1)).norm(dim=-1)
    diagonal = torch.maximum(*(torch.hypot(crop.height, crop.width) for crop in crops))
    close = distance * config.grid / diagonal.view(-1, 1, 1) < DISTANCE_THRESHOLD
    return Correspondence(places, places, close * overlap(*crops)[1].float().view(-1, 1, 1))


STRATEGIES: dict[str, Callable[[Crops, Maps, PretrainConfig, Tensor], Correspondence]] = {
    "feature-similarity": feature_similarity,
    "pixel-distance": pixel_distance,
    "candidate-regions": candidate_regions,
    "location": location,
}


def _whole_view(config: PretrainConfig, draws: Tensor) -> Tensor:
    """Cell centres (B, N, 1, 2) of a regular grid over a whole view."""
    return cell_centres(config.grid, draws.device).unsqueeze(1).expand(len(draws), -1, -1, -1)


def _each_with_itself(crops: Crops, places: Tensor) -> Correspondence:
    """Places (B, N, P, 2) of the overlap's own unit square in both views, pair n of place n and place n."""
    places_1, places_2, overlapping = _in_both_views(crops, places)
    identity = torch.eye(places.shape[1], device=places.device)
    return Correspondence(places_1, places_2, identity * overlapping)


def _in_both_views(crops: Crops, places: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Places (B, N, P, 2) of the overlap's own unit square as places of view 1 and of view 2; which images overlap.

    Where the views do not overlap, bool (B, 1, 1), the places are spread over the whole of each view.
    """
    common, overlapping = overlap(*crops)
    overlapping = overlapping.view(-1, 1, 1)
    flat = places.flatten(1, 2)
    in_image = to_image(flat, common)
    places_1, places_2 = (
        # Rounding may put a position on the border just outside it.
        torch.where(overlapping, to_view(in_image, crop).clamp(0, 1), flat).reshape(places.shape)
        for crop in crops
    )
    return places_1, places_2, overlapping


def overlap(crop_1: Geometry, crop_2: Geometry) -> tuple[Geometry, Tensor]:
    """The rectangle that both views show, unflipped, and which images have one, bool (B,).

    Where they have none the rectangle is finite but has no meaning.
    """
    top = torch.maximum(crop_1.top, crop_2.top)
    left = torch.maximum(crop_1.left, crop_2.left)
    bottom = torch.minimum(crop_1.top + crop_1.height, crop_2.top + crop_2.height)
    right = torch.minimum(crop_1.left + crop_1.width, crop_2.left + crop_2.width)
    height, width = bottom - top, right - left
    common = Geometry(top, left, height, width, torch.zeros_like(crop_1.flip))
    return common, (height > MIN_OVERLAP) & (width > MIN_OVERLAP)


def to_image(positions: Tensor, crop: Geometry) -> Tensor:
    """Positions (B, N, 2) of a view → fractions of the image's height and width, (B, N, 2)."""
    (y, x), crop = positions.unbind(-1), crop[:, None]
    x = torch.where(crop.flip != 0, 1.0 - x, x)
    return torch.stack((crop.top + crop.height * y, crop.left + crop.width * x), -1)


def to_view(positions: Tensor, crop: Geometry) -> Tensor:
    """Fractions (B, N, 2) of the image's height and width → positions (B, N, 2) of a view, outside [0, 1] if unseen."""
    (y, x), crop = positions.unbind(-1), crop[:, None]
    y, x = (y - crop.top) / crop.height, (x - crop.left) / crop.width
    return torch.stack((y, torch.where(crop.flip != 0, 1.0 - x, x)), -1)
