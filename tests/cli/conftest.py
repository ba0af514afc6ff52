"""Data that several commands work on."""

from __future__ import annotations

from pathlib import Path

import pytest
from labelled_scenes import write_labelled_scenes


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four labelled scenes of 48 pixels to learn from and three to score, and their declaration; for reading only."""
    return write_labelled_scenes(tmp_path_factory.mktemp("scenes"), train=4, val=3, side=48, seed=4)
