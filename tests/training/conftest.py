"""Tiny runs of both commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_runs import TinyRuns


@pytest.fixture
def runs(tmp_path: Path, image_folder: Path, tiny_settings: dict[str, Any]) -> TinyRuns:
    """In a folder of one test."""
    return TinyRuns(tmp_path, image_folder, tiny_settings)
