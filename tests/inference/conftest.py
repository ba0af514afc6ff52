"""Images that several files of this folder look at."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from densesiam_seg.datasets.scenes import scene


@pytest.fixture
def scenes() -> list[Tensor]:
    """Four images in memory, uint8 (3, 48, 48)."""
    return [torch.from_numpy(scene(2, index, 48)[0]).movedim(-1, 0) for index in range(4)]


@pytest.fixture
def paths(image_folder: Path) -> list[str]:
    """The files of the shared folder, in order."""
    return sorted(map(str, image_folder.iterdir()))
