"""What several tests of studies need: labelled scenes."""

from __future__ import annotations

from pathlib import Path

import pytest

from densesiam_seg.datasets.scenes import write_scenes
from densesiam_seg.demo import scenes_toml


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight labelled scenes of 32 pixels to learn from, two to score; for reading only."""
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, 8, seed=0, side=32, split="train")
    write_scenes(folder, 2, seed=0, side=32, split="val", first=8)
    (folder / "scenes.toml").write_text(scenes_toml())
    return folder
