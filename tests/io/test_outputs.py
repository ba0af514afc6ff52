"""The note of what was written into a folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from densesiam_seg.errors import OutputError
from densesiam_seg.io.outputs import OUTPUTS, note_outputs, noted_outputs


def test_names_are_added_and_survive(tmp_path: Path) -> None:
    names = {"a.png", "b\n.png", "[x].png", os.fsdecode(b"\xff.png"), "木.png"}
    note_outputs(tmp_path, names)
    note_outputs(tmp_path, ["c.png", "a.png"])
    assert noted_outputs(tmp_path) == {*names, "c.png"}
    assert (tmp_path / OUTPUTS).read_bytes().count(b"\n") == 6


def test_a_note_that_says_nothing_new_is_not_written(tmp_path: Path) -> None:
    note_outputs(tmp_path, [])
    assert not (tmp_path / OUTPUTS).exists()


@pytest.mark.parametrize("content", [b"", b"\xff\n", b"{}\n[1]\n7\n", b"[" * 100_000])
def test_damaged_notes_name_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / OUTPUTS).write_bytes(content + b'\n"a.png"\n')
    assert noted_outputs(tmp_path) == {"a.png"}


def test_what_is_no_file(tmp_path: Path) -> None:
    (tmp_path / OUTPUTS).mkdir()
    assert noted_outputs(tmp_path) == frozenset()
    with pytest.raises(OutputError):
        note_outputs(tmp_path, ["a.png"])
