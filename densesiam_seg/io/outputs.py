"""What this program wrote into a folder, noted there, so that a later run does not take masks for photographs.

A run directory needs no note: its `run.json` tells whose it is. Notes are only ever added to, and each shard of a job
has one of its own: processes that write into one folder, on several hosts too, lose nothing of each other's.
"""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from densesiam_seg.io.files import open_regular, output_error, sync_folder

_START, _END = ".densesiam-seg-outputs", ".jsonl"
OUTPUTS = _START + _END
"""The note: the name of a file in the folder as a JSON string, one a line. A shard's is called `…-2-of-8.jsonl`."""


class Noting:
    """Adds names to the notes of folders; keeps eight bytes of a name that was noted before."""

    def __init__(self, part: str = "") -> None:
        """`part` is what tells this process's notes from those of others that write at the same time, if any do."""
        self._name = f"{_START}-{part}{_END}" if part else OUTPUTS
        self._before: dict[Path, np.ndarray] = {}

    def add(self, folder: Path, names: Iterable[str]) -> None:
        """Note files of a folder that is there, before they are written. Raises OutputError."""
        path = folder / self._name
        if folder not in self._before:
            hashes = array("q", map(hash, _names_in(path)))
            self._before[folder] = np.unique(np.frombuffer(hashes, np.int64))
        fresh = [*dict.fromkeys(names)]
        if len(self._before[folder]):
            known = np.isin(np.fromiter(map(hash, fresh), np.int64), self._before[folder])
            fresh = [name for name, old in zip(fresh, known.tolist(), strict=True) if not old]
        if fresh:
            _append(path, "".join(f"{json.dumps(name)}\n" for name in fresh).encode("ascii"))


def note_outputs(folder: Path, names: Iterable[str]) -> None:
    """Add the names of files in `folder` to its note. Raises OutputError."""
    Noting().add(folder, names)


def _append(path: Path, lines: bytes) -> None:
    """Add whole lines, in one go, so that those of another process stay whole too. Raises OutputError."""
    try:
        new = not path.exists()
        with path.open("ab+", buffering=0) as file:
            # A full disk or a kill may have left a part of a line.
            end = file.seek(0, os.SEEK_END)
            file.seek(max(end - 1, 0))
            whole = file.read(1) in (b"", b"\n")
            rest = memoryview(lines if whole else b"\n" + lines)
            while rest:
                rest = rest[file.write(rest) :]
            os.fsync(file.fileno())
        if new:
            sync_folder(path.parent)
    except OSError as error:
        raise output_error(path, error) from error


def is_note(name: str) -> bool:
    """Whether a file of this name is a folder's note, or a shard's."""
    return name.startswith(_START) and name.endswith(_END)


def noted_outputs(folder: Path, files: Iterable[str] | None = None) -> frozenset[str]:
    """The names in the notes of `folder`; none where there is no note. Lines that are no names are passed over.

    `files` are the names of all files of the folder, for those who know them already.
    """
    if files is None:
        try:
            files = os.listdir(folder)  # noqa: PTH208
        except OSError:
            return frozenset()
    notes = filter(is_note, files)
    return frozenset(name for note in notes for name in _names_in(folder / note))


def _names_in(note: Path) -> Iterator[str]:
    try:
        with open_regular(note) as file:
            for line in file:
                if name := _name(line):
                    yield name
    except OSError:
        return


def _name(line: bytes) -> str:
    try:
        name = json.loads(line)
    except (ValueError, RecursionError):
        return ""
    return name if isinstance(name, str) else ""
