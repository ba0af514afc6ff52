"""Made-up photographs, files of them, and centroids of the tiny segmenter's features."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional as F

from densesiam_seg.clustering.kmeans import Centroids
from densesiam_seg.datasets.scenes import scene


def photograph(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """A scene cut to (H, W, 3)."""
    pixels, _ = scene(1, seed, max(height, width, 16))
    return np.ascontiguousarray(pixels[:height, :width])


def picture(path: Path, height: int = 20, width: int = 30) -> Path:
    """A file of noise, which depends on its name's length."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(len(os.fsencode(path)))
    Image.fromarray(draw.integers(0, 256, (height, width, 3), np.uint8)).save(path)
    return path


def junk(path: Path) -> Path:
    """A file that is no image."""
    path.write_bytes(b"<html>not an image</html>")
    return path


def centroids_of(count: int) -> Centroids:
    """Centroids (K, 8) of 1, 2, … K points: as means of unit vectors they are shorter than 1."""
    draw = torch.Generator().manual_seed(count)
    centres = F.normalize(torch.randn(count, 8, generator=draw), dim=1)
    centres *= 0.3 + 0.7 * torch.rand(count, 1, generator=draw)
    return Centroids(centres, torch.arange(1, count + 1))
