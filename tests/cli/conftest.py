"""Data that several commands work on."""

from __future__ import annotations

from pathlib import Path

import pytest

from densesiam_seg.datasets.scenes import write_scenes
from densesiam_seg.demo import scenes_toml


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four labelled scenes of 48 pixels to learn from and three to score, and their declaration; for reading only."""
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, 4, seed=4, side=48, split="train")
    write_scenes(folder, 3, seed=4, side=48, split="val", first=4)
    (folder / "scenes.toml").write_text(scenes_toml())
    return folder
