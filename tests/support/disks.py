"""Small disks of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def mounted(place: Path, options: str) -> Iterator[Path]:
    """A disk in memory at `place` in this block; the test is skipped where none can be made."""
    if os.getuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root mounts a disk")
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"no disk can be mounted here ({made.stderr.strip()})")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)
