"""What this program wrote into a folder, noted there, so that a later run does not take masks for photographs.

A run directory needs no note: its `run.json` tells whose it is.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from densesiam_seg.io.files import open_regular, replace_file

OUTPUTS = ".densesiam-seg-outputs.jsonl"
"""The note: the name of a file in the folder as a JSON string, one a line."""


def note_outputs(folder: Path, names: Iterable[str]) -> None:
    """Add the names of files in `folder` to its note. Raises OutputError."""
    before = noted_outputs(folder)
    after = before.union(names)
    if after != before:
        lines = "".join(f"{json.dumps(name)}\n" for name in sorted(after))
        replace_file(folder / OUTPUTS, lines.encode("ascii"))


def noted_outputs(folder: Path) -> frozenset[str]:
    """The names in the note of `folder`; none where there is no note. Lines that are no names are passed over."""
    try:
        with open_regular(folder / OUTPUTS) as file:
            lines = file.readlines()
    except OSError:
        return frozenset()
    return frozenset(name for name in map(_name, lines) if name)


def _name(line: bytes) -> str:
    try:
        name = json.loads(line)
    except (ValueError, RecursionError):
        return ""
    return name if isinstance(name, str) else ""
