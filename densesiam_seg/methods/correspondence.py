"""Which places of two views belong together: one interface, five strategies (DenseSiam's supplement, Table A1).

Axes: B images, N and M places of view 1 and view 2, P positions of a place, C channels, h w feature size.

A place is P positions (y, x) in [0, 1] of its view, and `sampling.pool` tells its value in a map (a point: P = 1; a
candidate region: P = 9). A strategy answers with places in both views and a weight for each pair; what is then compared
at the places is no concern of it. Where the two views do not overlap every weight is 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from densesiam_seg.methods.sampling import Grid, cell_centres, pool, sample, sliding_windows
from densesiam_seg.views.parameters import Window

THINNEST = 1e-6  # an overlap thinner than this fraction of the image is rounding, not area


DISTANCE_THRESHOLD = 0.7
"""Of the links by pixel distance, in diagonals of a grid cell (PixPro, CVPR 2021)."""


@dataclass(frozen=True)
class Correspondence:
    """Places of view 1 (B, N, P, 2) and of view 2 (B, M, P, 2), and the weight >= 0 of each pair, (B, N, M)."""

    places_1: Tensor
    places_2: Tensor
    weight: Tensor

    @property
    def linked(self) -> Tensor:
        """Which images have any pair: bool (B,)."""
        return (self.weight > 0).flatten(1).any(1)


Strategy = Callable[[Window, Window, Tensor, Tensor, Grid, Tensor], Correspondence]


def used(correspondence: Correspondence) -> tuple[Tensor, Tensor]:
    """Which places have any pair: bool (B, N) for view 1 and (B, M) for view 2."""
    pairs = correspondence.weight > 0
    return pairs.any(2), pairs.any(1)


def overlap(window_1: Window, window_2: Window) -> tuple[Window, Tensor]:
    """The rectangle that both views show, unflipped, and which images have one, bool (B,).

    Where they have none the rectangle is finite but has no meaning.
    """
    top = torch.maximum(window_1.top, window_2.top)
    left = torch.maximum(window_1.left, window_2.left)
    bottom = torch.minimum(window_1.top + window_1.height, window_2.top + window_2.height)
    right = torch.minimum(window_1.left + window_1.width, window_2.left + window_2.width)
    height, width = bottom - top, right - left
    common = Window(top, left, height, width, torch.zeros_like(window_1.flip))
    return common, (height > THINNEST) & (width > THINNEST)


def to_image(positions: Tensor, window: Window) -> Tensor:
    """Positions (B, N, 2) of a view → fractions of the image's height and width, (B, N, 2)."""
    y, x = positions.unbind(-1)
    x = torch.where(_column(window.flip) != 0, 1.0 - x, x)
    y = _column(window.top) + _column(window.height) * y
    x = _column(window.left) + _column(window.width) * x
    return torch.stack((y, x), -1)


def to_view(positions: Tensor, window: Window) -> Tensor:
    """Fractions (B, N, 2) of the image's height and width → positions (B, N, 2) of a view, outside [0, 1] if unseen."""
    y, x = positions.unbind(-1)
    y = (y - _column(window.top)) / _column(window.height)
    x = (x - _column(window.left)) / _column(window.width)
    x = torch.where(_column(window.flip) != 0, 1.0 - x, x)
    return torch.stack((y, x), -1)


def _column(values: Tensor) -> Tensor:
    return values.view(-1, 1)


def none(
    window_1: Window,
    window_2: Window,
    features_1: Tensor,
    features_2: Tensor,
    grid: Grid,
    draws: Tensor,
) -> Correspondence:
    """No places at all, N = M = 0: images are compared as wholes only (SimSiam, CVPR 2021)."""
    assert grid.sampling == "regular"
    nowhere = draws.new_empty(len(draws), 0, 1, 2)
    return Correspondence(nowhere, nowhere, draws.new_empty(len(draws), 0, 0))


def location(
    window_1: Window,
    window_2: Window,
    features_1: Tensor,
    features_2: Tensor,
    grid: Grid,
    draws: Tensor,
) -> Correspondence:
    """The sampler's N positions of the overlap as seen in both views, each linked with itself (DenseSiam)."""

    def similarity(positions: Tensor) -> Tensor:
        places_1, places_2, _ = _seen_twice(window_1, window_2, positions.unsqueeze(2))
        return F.cosine_similarity(pool(features_1, places_1), pool(features_2, places_2), dim=-1)

    positions = sample(grid, draws, similarity)
    return _each_with_itself(window_1, window_2, positions.unsqueeze(2))


def candidate_regions(
    window_1: Window,
    window_2: Window,
    features_1: Tensor,
    features_2: Tensor,
    grid: Grid,
    draws: Tensor,
) -> Correspondence:
    """N sliding windows over the overlap, pooled, each linked with itself (ReSim, ICCV 2021).

    The windows are those of `sliding_windows`: each half as high and wide as the overlap, pooled from 3 × 3 positions.
    """
    assert grid.sampling == "regular"
    places = sliding_windows(grid.size, draws.device)
    return _each_with_itself(window_1, window_2, places.expand(len(draws), -1, -1, -1))


def _each_with_itself(window_1: Window, window_2: Window, places: Tensor) -> Correspondence:
    """Places (B, N, P, 2) of the overlap's own unit square in both views, pair n of place n and place n."""
    places_1, places_2, overlapping = _seen_twice(window_1, window_2, places)
    identity = torch.eye(places.shape[1], device=places.device)
    return Correspondence(places_1, places_2, identity * overlapping.view(-1, 1, 1))


def _seen_twice(
    window_1: Window, window_2: Window, places: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Places (B, N, P, 2) of the overlap's own unit square as places of view 1 and of view 2; which images overlap.

    Where the views do not overlap the places are spread over the whole of each view.
    """
    common, overlapping = overlap(window_1, window_2)
    flat = places.flatten(1, 2)
    in_image = to_image(flat, common)
    places_1, places_2 = (
        # Rounding may put a position on the border just outside it.
        torch.where(
            overlapping.view(-1, 1, 1), to_view(in_image, window).clamp(0, 1), flat
        ).reshape(places.shape)
        for window in (window_1, window_2)
    )
    return places_1, places_2, overlapping


def feature_similarity(
    window_1: Window,
    window_2: Window,
    features_1: Tensor,
    features_2: Tensor,
    grid: Grid,
    draws: Tensor,
) -> Correspondence:
    """Each cell of a view is linked with the cell of the other whose features are most alike (DenseCL, CVPR 2021).

    Regular grids over the whole of each view; alike is the cosine of the pooled features. A link adds 1 to its pair's
    weight, so two cells that choose each other have weight 2.
    """
    cells = _whole_view(grid, draws)
    places = cells.unsqueeze(2)
    values_1, values_2 = (
        F.normalize(pool(features, places), dim=-1) for features in (features_1, features_2)
    )
    with torch.autocast(draws.device.type, enabled=False):
        cosines = values_1 @ values_2.mT
    numbers = torch.arange(grid.positions, device=draws.device)
    chosen_by_1 = cosines.argmax(2, keepdim=True) == numbers
    chosen_by_2 = cosines.argmax(1, keepdim=True) == numbers.view(-1, 1)
    weight = chosen_by_1.float() + chosen_by_2.float()
    return Correspondence(places, places, weight * _overlapping(window_1, window_2))


def pixel_distance(
    window_1: Window,
    window_2: Window,
    features_1: Tensor,
    features_2: Tensor,
    grid: Grid,
    draws: Tensor,
) -> Correspondence:
    """Cells whose centres lie close together in the image are linked (PixPro, CVPR 2021), with weight 1.

    Regular grids over the whole of each view. The distance is divided by the diagonal of a grid cell, of the view whose
    cells are larger, and compared with `DISTANCE_THRESHOLD`. Lengths are fractions of the image's height and
    width, where PixPro measures in pixels: in an image that is not square the two units differ along one axis.
    """
    cells = _whole_view(grid, draws)
    in_image_1, in_image_2 = to_image(cells, window_1), to_image(cells, window_2)
    distance = (in_image_1.unsqueeze(2) - in_image_2.unsqueeze(1)).norm(dim=-1)
    diagonal = torch.maximum(
        torch.hypot(window_1.height, window_1.width), torch.hypot(window_2.height, window_2.width)
    )
    close = distance * grid.size / diagonal.view(-1, 1, 1) < DISTANCE_THRESHOLD
    places = cells.unsqueeze(2)
    return Correspondence(places, places, close * _overlapping(window_1, window_2))


def _whole_view(grid: Grid, draws: Tensor) -> Tensor:
    """Cell centres (B, N, 2) of a regular grid over a whole view."""
    assert grid.sampling == "regular"
    return cell_centres(grid.size, draws.device).expand(len(draws), -1, -1)


def _overlapping(window_1: Window, window_2: Window) -> Tensor:
    """1 where the views overlap, else 0: float (B, 1, 1)."""
    return overlap(window_1, window_2)[1].float().view(-1, 1, 1)


STRATEGIES: dict[str, Strategy] = {
    "none": none,
    "feature-similarity": feature_similarity,
    "pixel-distance": pixel_distance,
    "candidate-regions": candidate_regions,
    "location": location,
}
