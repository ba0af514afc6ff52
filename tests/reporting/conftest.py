"""A run and its model, for reading only."""

from __future__ import annotations

from pathlib import Path

import pytest
from stored_runs import store_run


@pytest.fixture(scope="module")
def run(model_folder: Path, image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained, as it says, on the twelve shared images."""
    return store_run(tmp_path_factory.mktemp("stored") / "a run", model_folder, image_folder)


@pytest.fixture
def paths(image_folder: Path) -> list[str]:
    """The files of the shared folder, in order."""
    return sorted(map(str, image_folder.iterdir()))
