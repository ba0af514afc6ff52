"""Sizes as whole numbers: those of Python's floating point."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from densesiam_seg.clustering.resizing import areas, resized, scaled, triangles


def test_a_side_is_rounded_as_python_rounds_it() -> None:
    for denominator in (1, 2, 3, 4, 14, 32):
        for numerator in (1, 2, 3):
            for side in range(1, 200):
                wanted = max(round(side * numerator / denominator), 1)
                assert scaled(side, numerator, denominator) == wanted, (side, numerator)


def test_maps_at_another_size() -> None:
    maps = torch.rand(1, 2, 5, 7, generator=torch.Generator().manual_seed(0))
    assert resized(maps, (5, 7)) is maps
    for size in ((10, 9), (3, 4)):
        wanted = F.interpolate(maps, size, mode="bilinear", antialias=True)
        assert torch.equal(resized(maps, size, antialias=True), wanted)


def test_antialiasing_changes_nothing_where_maps_are_enlarged() -> None:
    maps = torch.rand(1, 2, 5, 7, generator=torch.Generator().manual_seed(0))
    for size in ((5, 7), (9, 7), (10, 14), (33, 50)):
        plain = F.interpolate(maps, size, mode="bilinear")
        torch.testing.assert_close(resized(maps, size, antialias=True), plain)


def test_the_matrices_of_exported_programs() -> None:
    maps = torch.rand(1, 2, 13, 7, generator=torch.Generator().manual_seed(0))
    here = torch.device("cpu")
    for height, width in ((13, 7), (4, 3), (26, 14), (5, 9), (1, 1)):
        for weights, options in (
            (areas, {"mode": "area"}),
            (triangles, {"mode": "bilinear", "antialias": True}),
        ):
            rows, columns = weights(13, height, here), weights(7, width, here)
            wanted = F.interpolate(maps, (height, width), **options)
            torch.testing.assert_close(rows @ maps @ columns.mT, wanted)
