"""The records of a run, `metrics.jsonl`: one JSON object a line, each complete when its newline is there."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from densesiam_seg.errors import InputError
from densesiam_seg.io.files import JSON, open_regular, output_error, replace_file, to_json


class Records:
    """Appends records to a file; each is visible to readers at once."""

    def __init__(self, path: Path) -> None:
        """Open `path`, created when absent; a line torn by a kill is cut off first. Raises OutputError."""
        self._path = path
        try:
            if path.is_file():
                with path.open("rb+") as file:
                    file.truncate(file.read().rfind(b"\n") + 1)
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise output_error(path, error) from error

    def append(self, record: Mapping[str, JSON]) -> None:
        """Write one record as one line. Raises OutputError."""
        line = to_json(record).encode("ascii") + b"\n"
        try:
            written = self._file.write(line)
            while written < len(line):  # a disk that fills up takes a part first and then refuses
                written += self._file.write(line[written:])
        except OSError as error:
            raise output_error(self._path, error) from error

    def __enter__(self) -> Records:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def write_records(path: Path, records: Iterable[Mapping[str, JSON]]) -> None:
    """Write a whole file of records in place of an earlier one. Raises OutputError."""
    replace_file(path, b"".join(to_json(record).encode("ascii") + b"\n" for record in records))


def read_records(path: Path) -> list[dict[str, Any]]:
    """All complete records of `path`, none when the file is absent.

    A last line without its newline was cut off by a kill and is passed over. Raises InputError for anything else that
    is not a JSON object.
    """
    return [record for _, record in _lines(path)]


def truncate_to_step(path: Path, step: int) -> None:
    """Keep the records whose "step" is at most `step`, and those without one.

    A resumed run calls this before it appends, or it would hold the steps after its checkpoint twice. Raises
    InputError, OutputError.
    """
    if path.exists():
        kept = []
        for number, (line, record) in enumerate(_lines(path), 1):
            found = record.get("step", step)
            if type(found) is not int:
                raise InputError(
                    f"{path}: the step of line {number} is no number; remove the line and try again"
                )
            if found <= step:
                kept.append(line)
        replace_file(path, b"".join(kept))


def _lines(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    try:
        with open_regular(path) as file:
            lines = file.readlines()
    except FileNotFoundError:
        return
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror or error}); check the path given"
        ) from error
    for number, line in enumerate(lines, 1):
        if not line.endswith(b"\n"):
            return
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise ValueError("not an object")
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{path}: line {number} is not a record; remove the line and try again"
            ) from error
        yield line, record
