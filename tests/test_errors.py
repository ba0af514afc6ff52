"""Every error a user can meet has the documented exit code and a name for its line."""

from __future__ import annotations

import pytest

from densesiam_seg.errors import (
    BusyError,
    DenseSiamError,
    ImageError,
    InputError,
    ModelError,
    NumericError,
    OutputError,
    PartialError,
    StoppedError,
    UsageError,
    WorkerError,
)


@pytest.mark.parametrize(
    ("error", "code", "name"),
    [
        (DenseSiamError("x"), 1, "bug"),
        (UsageError("x"), 2, "usage"),
        (InputError("x"), 3, "input"),
        (ImageError("x.jpg", "truncated", "ends too early"), 3, "image"),
        (ModelError("x"), 4, "model"),
        (OutputError("x"), 5, "output"),
        (NumericError("x"), 6, "numeric"),
        (BusyError("x"), 7, "busy"),
        (WorkerError("x"), 8, "worker"),
        (PartialError("x"), 9, "partial"),
        (StoppedError("x", 2), 130, "stopped"),
        (StoppedError("x", 15), 143, "stopped"),
    ],
)
def test_exit_codes_and_names(error: DenseSiamError, code: int, name: str) -> None:
    assert isinstance(error, DenseSiamError)
    assert (error.exit_code, error.name) == (code, name)


def test_every_class_is_in_the_table_above() -> None:
    def below(kind: type[DenseSiamError]) -> set[type[DenseSiamError]]:
        return {kind}.union(*(below(each) for each in kind.__subclasses__()))

    package = {kind for kind in below(DenseSiamError) if kind.__module__ == "densesiam_seg.errors"}
    assert len(package) == 11


def test_a_signal_does_not_change_the_class() -> None:
    StoppedError("x", 15)
    assert StoppedError.exit_code == 1


def test_an_image_error_names_file_detail_and_remedy() -> None:
    error = ImageError("a/b.jpg", "truncated", "ends too early")
    assert str(error) == "a/b.jpg: ends too early; remove or convert it"
    assert (error.path, error.reason, error.detail) == ("a/b.jpg", "truncated", "ends too early")
    assert isinstance(error, InputError)
    other = ImageError("b.png", "too-large", "has 9 pixels", "raise --max-pixels")
    assert str(other) == "b.png: has 9 pixels; raise --max-pixels"
