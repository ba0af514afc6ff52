"""The package is a program too, as launchers want it."""

from __future__ import annotations

import subprocess
import sys

import densesiam_seg


def test_the_module_is_the_program() -> None:
    command = [sys.executable, "-m", "densesiam_seg", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert densesiam_seg.__version__ in done.stdout
