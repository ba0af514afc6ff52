"""The notes of what was written into a folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from densesiam_seg.errors import OutputError
from densesiam_seg.io.outputs import OUTPUTS, Noting, is_note, note_outputs, noted_outputs


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


def test_a_line_that_was_cut_off_spoils_no_other(tmp_path: Path) -> None:
    (tmp_path / OUTPUTS).write_bytes(b'"a.png"\n"b.p')
    note_outputs(tmp_path, ["c.png"])
    note_outputs(tmp_path, ["b.png"])
    assert noted_outputs(tmp_path) == {"a.png", "b.png", "c.png"}


def test_each_part_has_its_own(tmp_path: Path) -> None:
    """Two that write in turn lose nothing; names of the part's own are there once, before and after a new start."""
    parts = {name: Noting(name) for name in ("0-of-2", "1-of-2")}
    for number in range(3):
        for name, noting in parts.items():
            noting.add(tmp_path, [f"{name}-{number}.png"])
    Noting("0-of-2").add(tmp_path, ["0-of-2-1.png", "new.png", "new.png"])
    assert noted_outputs(tmp_path) == {
        *(f"{name}-{number}.png" for name in parts for number in range(3)),
        "new.png",
    }
    notes = sorted(path.name for path in tmp_path.iterdir())
    assert notes == [f".densesiam-seg-outputs-{name}.jsonl" for name in parts]
    assert all(map(is_note, (*notes, OUTPUTS))) and not is_note("a.jsonl")
    assert (tmp_path / notes[0]).read_bytes().count(b"\n") == 4


def test_names_of_the_files_of_a_folder_that_are_known(tmp_path: Path) -> None:
    note_outputs(tmp_path, ["a.png"])
    Noting("x").add(tmp_path, ["b.png"])
    assert noted_outputs(tmp_path, ["c.png", OUTPUTS]) == {"a.png"}
    assert noted_outputs(tmp_path, []) == frozenset()
    assert noted_outputs(tmp_path / "none") == frozenset()


def test_what_is_no_file(tmp_path: Path) -> None:
    (tmp_path / OUTPUTS).mkdir()
    assert noted_outputs(tmp_path) == frozenset()
    with pytest.raises(OutputError):
        note_outputs(tmp_path, ["a.png"])
