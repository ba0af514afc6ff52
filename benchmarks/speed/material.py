"""What is measured on: pictures drawn here, or real ones where a folder of them is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from densesiam_seg.datasets.scenes import scene

COLOUR_NOISE = 6.0
"""Deviation of the grain laid over drawn scenes, whose JPEGs are otherwise smaller than photographs'."""


def jpegs(
    folder: Path, count: int, size: tuple[int, int], photos: Path | None, *, quality: int = 90
) -> list[Path]:
    """`count` JPEGs of `size` (width, height) in `folder`, made once: of photographs by resizing, else of scenes."""
    folder.mkdir(parents=True, exist_ok=True)
    sources = sorted(photos.glob("*.jpg")) if photos else []
    paths = []
    for index in range(count):
        path = folder / f"{index:05}.jpg"
        if not path.exists():
            picture = _photo(sources[index % len(sources)]) if sources else _scene(index)
            picture.resize(size, Image.Resampling.BICUBIC).save(path, quality=quality)
        paths.append(path)
    return paths


def copies(folder: Path, sources: list[Path], count: int) -> Path:
    """A folder of `count` files, the sources again and again, with contents of their own."""
    folder.mkdir(parents=True, exist_ok=True)
    data = [path.read_bytes() for path in sources]
    for index in range(count):
        path = folder / f"{index:06}.jpg"
        if not path.exists():
            path.write_bytes(data[index % len(data)])
    return folder


def labels(folder: Path, names: list[str], size: tuple[int, int], classes: int) -> None:
    """A label PNG for each name: upright bands of classes with ragged borders."""
    folder.mkdir(parents=True, exist_ok=True)
    width, height = size
    draw = np.random.default_rng(0)
    for name in names:
        path = folder / f"{name}.png"
        if not path.exists():
            shift = np.cumsum(draw.integers(-1, 2, height)).reshape(-1, 1)
            values = ((np.arange(width) + shift) * classes // width % classes).astype(np.uint8)
            Image.fromarray(values).save(path)


def _photo(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        return picture.convert("RGB")


def _scene(index: int) -> Image.Image:
    pixels, _ = scene(7, index, 512)
    grain = np.random.default_rng(index).normal(0, COLOUR_NOISE, pixels.shape)
    return Image.fromarray((pixels + grain).clip(0, 255).astype(np.uint8))
