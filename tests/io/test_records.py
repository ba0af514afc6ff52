"""Records survive a kill, and a resumed run holds each step once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from densesiam_seg.errors import InputError, OutputError
from densesiam_seg.io.records import Records, read_records, truncate_to_step


def write(path: Path, *steps: int) -> None:
    with Records(path) as records:
        for step in steps:
            records.append({"step": step})


def steps(path: Path) -> list[int]:
    return [record["step"] for record in read_records(path)]


def test_records_are_lines_and_visible_at_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with Records(path) as records:
        records.append({"step": 1, "loss": 0.5, "file": "ä\udcff\n"})
        assert read_records(path) == [{"step": 1, "loss": 0.5, "file": "ä\udcff\n"}]
        records.append({"step": 2, "loss": float("nan")})
    assert path.read_bytes().splitlines()[1] == b'{"step": 2, "loss": null}'
    write(path, 3)
    assert steps(path) == [1, 2, 3]


def test_a_line_torn_at_any_byte_is_passed_over_and_then_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write(path, 1, 2)
    data = path.read_bytes()
    for length in range(len(data) // 2, len(data)):
        path.write_bytes(data[:length])
        assert steps(path) == [1]
        write(path, 3)
        assert steps(path) == [1, 3]


def test_an_absent_or_empty_file_has_no_records(tmp_path: Path) -> None:
    path = tmp_path / "a"
    assert read_records(path) == []
    truncate_to_step(path, 3)
    assert not path.exists()
    write(path)
    assert read_records(path) == []


@pytest.mark.parametrize("line", [b"{]", b"3", b"", b'"text"', b"\xff", b"[" * 50_000])
def test_a_damaged_line_in_the_middle_is_an_input_error(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "a"
    path.write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 2}\n')
    with pytest.raises(InputError, match="line 2 is not a record"):
        read_records(path)


def test_truncation_keeps_what_the_checkpoint_knows(tmp_path: Path) -> None:
    path = tmp_path / "a"
    lines = [b'{"run": "begins"}\n', b'{"step": 1}\n', b'{"step": 2}\n', b'{"step": 3}\n']
    path.write_bytes(b"".join(lines) + b'{"step": 4')
    truncate_to_step(path, 2)
    assert path.read_bytes() == b"".join(lines[:3])


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_records(tmp_path)
    for path in (tmp_path, tmp_path / "absent" / "a"):
        with pytest.raises(OutputError):
            Records(path)


def test_a_full_disk_is_an_output_error() -> None:
    full = Path("/dev/full")
    if not full.is_char_device():
        pytest.skip("no /dev/full here")
    with Records(full) as records, pytest.raises(OutputError, match="No space left"):
        records.append({"step": 1})


@pytest.mark.parametrize("step", ["null", '"3"', "[]"])
def test_step_that_is_no_number_is_refused(tmp_path: Path, step: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": {step}}}\n', encoding="ascii")
    with pytest.raises(InputError, match="step of line 1"):
        truncate_to_step(path, 3)


def test_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "metrics.jsonl")
    with pytest.raises(InputError, match="cannot be read"):
        read_records(tmp_path / "metrics.jsonl")
