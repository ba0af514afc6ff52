"""Every error a user can meet has the documented exit code and a name for its line."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from densesiam_seg import errors
from densesiam_seg.errors import (
    DenseSiamError,
    ImageError,
    InputError,
    NumericError,
    StoppedError,
    UsageError,
    looked_for,
    one_line,
)

CODES = {
    "UsageError": (2, "usage"),
    "InputError": (3, "input"),
    "ImageError": (3, "image"),
    "ModelError": (4, "model"),
    "OutputError": (5, "output"),
    "NumericError": (6, "numeric"),
    "BusyError": (7, "busy"),
    "WorkerError": (8, "worker"),
    "PartialError": (9, "partial"),
    "StoppedError": (1, "stopped"),
    "DenseSiamError": (1, "bug"),
}


def test_exit_codes_and_names() -> None:
    kinds = {name: each for name, each in vars(errors).items() if name.endswith("Error")}
    assert {name: (each.exit_code, each.name) for name, each in kinds.items()} == CODES
    assert all(issubclass(each, DenseSiamError) for each in kinds.values())


@pytest.mark.parametrize(("signal", "code"), [(2, 130), (15, 143)])
def test_a_signal_has_its_own_code(signal: int, code: int) -> None:
    assert StoppedError("x", signal).exit_code == code
    assert StoppedError.exit_code == 1


def test_an_image_error_names_file_detail_and_remedy() -> None:
    error = ImageError("a/b.jpg", "truncated", "ends too early")
    assert str(error) == "a/b.jpg: ends too early; remove or convert it"
    assert (error.path, error.reason, error.detail) == ("a/b.jpg", "truncated", "ends too early")
    assert isinstance(error, InputError)
    other = ImageError("b.png", "too-large", "has 9 pixels", "raise --max-pixels")
    assert str(other) == "b.png: has 9 pixels; raise --max-pixels"


def test_one_line() -> None:
    assert one_line("a\nb\r\x1b[2J\u2028\udcff é 木") == r"a\nb\r\x1b[2J\u2028\udcff é 木"


def test_where_a_relative_path_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert looked_for("a/b") == f" in the current folder {Path.cwd()}"
    assert looked_for(tmp_path / "a") == ""


@pytest.mark.parametrize(
    "error",
    [
        UsageError("no"),
        ImageError("a.png", "truncated", "is truncated"),
        NumericError("no", step=3, files=["a"]),
        StoppedError("stopped", 15),
    ],
)
def test_errors_can_be_sent_to_other_processes(error: DenseSiamError) -> None:
    sent = pickle.loads(pickle.dumps(error))
    assert type(sent) is type(error)
    assert (str(sent), vars(sent)) == (str(error), vars(error))
    assert sent.exit_code == error.exit_code
