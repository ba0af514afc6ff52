"""Images that several files of this folder look at."""

from __future__ import annotations

from pathlib import Path

import pytest
from photographs import picture


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Three images, one of them in a sub-folder."""
    folder = tmp_path / "images"
    picture(folder / "a.jpg", 20, 30)
    picture(folder / "b.png", 31, 17)
    picture(folder / "deep" / "er" / "c.webp", 8, 9)
    return folder
