"""What several tests of studies need: labelled scenes."""

from __future__ import annotations

from pathlib import Path

import pytest
from labelled_scenes import write_labelled_scenes


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight labelled scenes of 32 pixels to learn from, two to score; for reading only."""
    return write_labelled_scenes(tmp_path_factory.mktemp("scenes"), train=8, val=2, side=32, seed=0)
