"""Rows about start-up: what a command takes before its work begins."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from measure import Row, alternate

PROGRAM = str(Path(sys.executable).with_name("densesiam-seg"))
COMMANDS = {
    "--help": ["--help"],
    "--version": ["--version"],
    "a wrong path": ["train", "no/such/folder"],
    "predict without a model": ["predict", "no/such.jpg", "--model", "no/such/model"],
}


def start_rows(repeats: int) -> Iterator[Row]:
    """Wall time of whole processes, beside an interpreter that imports nothing and one that imports torch."""

    def run(command: list[str]) -> None:
        subprocess.run(command, capture_output=True, check=False)

    works = [
        lambda: run([sys.executable, "-c", ""]),
        lambda: run([sys.executable, "-c", "import torch"]),
        *(
            lambda arguments=arguments: run([PROGRAM, *arguments])
            for arguments in COMMANDS.values()
        ),
    ]
    times = alternate(*works, repeats=repeats, clock=time.perf_counter)
    for name, seconds in zip(["python alone", "import torch", *COMMANDS], times, strict=True):
        middle = sorted(seconds)[len(seconds) // 2]
        yield Row(f"start-up: {name}", middle, min(seconds), max(seconds), "s")
