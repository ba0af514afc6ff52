"""Errors that carry the remedy.

Everything a user can cause is a `DenseSiamError`. Its text is one line that says what happened, to which file, and
what to do; the command line prints it as `error[name]: text` and leaves with `exit_code`. A programmer's mistake is
an `assert` and stays a traceback.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar


def counted(number: int, what: str, several: str = "") -> str:
    """`1 file`, `2 files`, for texts; `several` where an s does not do."""
    return f"{number:,} {what if number == 1 else several or what + 's'}"


class DenseSiamError(Exception):
    """Base of all errors meant for a user."""

    exit_code: int = 1
    name: ClassVar[str] = "bug"
    told: bool = False
    """Whether another process of the same job tells it."""
    own: bool = False
    """Whether it may be one that no other process of the job meets, so that this one has to tell it."""

    def __reduce__(self) -> tuple[Any, ...]:
        """So that any of them can be sent to another process, whatever its constructor takes."""
        return _rebuilt, (type(self), self.args, vars(self))


def _rebuilt(
    kind: type[DenseSiamError], arguments: tuple[Any, ...], members: dict[str, Any]
) -> DenseSiamError:
    error = kind.__new__(kind, *arguments)
    vars(error).update(members)
    return error


class UsageError(DenseSiamError):
    """Options that contradict each other or have no meaning."""

    exit_code = 2
    name = "usage"


class InputError(DenseSiamError):
    """Bad, missing or too little input data."""

    exit_code = 3
    name = "input"


class ImageError(InputError):
    """One image (or label) file that cannot be used; `reason` is a short class for lists of skipped files."""

    name = "image"

    def __init__(
        self, path: str, reason: str, detail: str, remedy: str = "remove or convert it"
    ) -> None:
        """`path` names the file, `reason` is a kebab-case class such as `truncated`, `detail` a sentence part."""
        super().__init__(f"{path}: {detail}; {remedy}")
        self.path = path
        self.reason = reason
        self.detail = detail


class ModelError(DenseSiamError):
    """A model, weights file or checkpoint that is refused."""

    exit_code = 4
    name = "model"


class OutputError(DenseSiamError):
    """A place that cannot be written."""

    exit_code = 5
    name = "output"


class NumericError(DenseSiamError):
    """A loss, gradient or feature that is not finite."""

    exit_code = 6
    name = "numeric"

    def __init__(self, message: str, *, step: int | None = None, files: Sequence[str] = ()) -> None:
        """`step` and `files`, the images of its batch, say where; None and empty where that is not known."""
        super().__init__(message)
        self.step = step
        self.files = tuple(files)


class BusyError(DenseSiamError):
    """An output directory that another process is using."""

    exit_code = 7
    name = "busy"


class WorkerError(DenseSiamError):
    """A lost worker or peer."""

    exit_code = 8
    name = "worker"


class PartialError(DenseSiamError):
    """Work that is done, but not for every input."""

    exit_code = 9
    name = "partial"


class StoppedError(DenseSiamError):
    """A signal ended the work after its state was saved; the exit code is 128 + the signal's number."""

    name = "stopped"

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


def looked_for(path: str | Path) -> str:
    """` in FOLDER` behind a relative path in an error text: the current folder, which it begins at; else nothing."""
    return "" if Path(path).is_absolute() else f" in the current folder {Path.cwd()}"


def one_line(text: str) -> str:
    """`text` with escapes for what a line cannot hold: names of files may have newlines and control codes in them."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
