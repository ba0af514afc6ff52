"""Crops of an image as plain numbers, for the slow references of correspondence."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import torch

from densesiam_seg.views.parameters import Geometry

Position: TypeAlias = tuple[float, float]
"""y and x."""


class Crop(NamedTuple):
    top: float
    left: float
    height: float
    width: float
    flip: float = 0.0


def geometry_of(*crops: Crop) -> Geometry:
    return Geometry(*torch.tensor(crops, dtype=torch.float32).T)


def shared(crop_1: Crop, crop_2: Crop) -> tuple[float, float, float, float]:
    """Top, left, bottom and right of what both crops show."""
    return (
        max(crop_1.top, crop_2.top),
        max(crop_1.left, crop_2.left),
        min(crop_1.top + crop_1.height, crop_2.top + crop_2.height),
        min(crop_1.left + crop_1.width, crop_2.left + crop_2.width),
    )


def seen_at(crop: Crop, position: Position) -> Position:
    """Where in the image a position of the view lies."""
    y, x = position
    return crop.top + crop.height * y, crop.left + crop.width * (1 - x if crop.flip else x)


def cells(size: int) -> list[Position]:
    """Centres of size × size equal cells, row by row."""
    return [((i + 0.5) / size, (j + 0.5) / size) for i in range(size) for j in range(size)]
