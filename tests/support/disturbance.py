"""Something done in place of the n-th call that changes the disk: the process dies there, or the call fails."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

CALLS = (
    *("fsync", "mkdir", "rename", "replace", "unlink", "remove", "rmdir", "link", "symlink"),
    *("truncate", "ftruncate", "utime", "chmod"),
)
"""Functions of `os` that change the disk, beside `open`, `write` and the writes of file objects."""


class Disturbance:
    """Counts the calls that change the disk from now on, and does `action` in place of the n-th.

    A write is half done before. With `action` None it is the file's write that is cut short, as a system may do it
    without an error; other calls go well. `left` is above 0 afterwards if there were fewer calls. `seen` names them.
    """

    def __init__(
        self, patch: pytest.MonkeyPatch, number: int, action: Callable[[], None] | None
    ) -> None:
        self.left = number
        self.action = action
        self.seen: list[str] = []
        self._patch(patch)

    def count(self, name: str = "") -> bool:
        """One more call; returns whether it is the one, for an action that lets it go on."""
        self.seen.append(name)
        self.left -= 1
        if self.left == 0 and self.action is not None:
            self.action()
        return self.left == 0

    def _patch(self, patch: pytest.MonkeyPatch) -> None:
        disturbance, open_path, open_handle, write = self, Path.open, os.open, os.write

        class File(io.FileIO):
            """A file whose writes and truncations are counted as the system sees them."""

            def write(self, data: Any) -> int:
                half = len(data) // 2
                if disturbance.left == 1:
                    done = super().write(bytes(data)[:half]) if half else 0
                    disturbance.count("write")
                    return done or super().write(data)
                disturbance.count("write")
                return super().write(data)

            def truncate(self, size: int | None = None) -> int:
                disturbance.count("truncate")
                return super().truncate(size)

        def opened(
            path: Path,
            mode: str = "r",
            buffering: int = -1,
            encoding: str | None = None,
            errors: str | None = None,
            newline: str | None = None,
        ) -> Any:
            if not set(mode) & set("wxa+"):
                return open_path(path, mode, buffering, encoding, errors, newline)
            self.count(f"open {mode}")
            raw = File(path, mode.replace("b", "").replace("t", ""))
            if buffering == 0:
                return raw
            buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
            return (
                buffered if "b" in mode else io.TextIOWrapper(buffered, encoding, errors, newline)
            )

        def opened_handle(path: Any, flags: int, *args: Any, **options: Any) -> int:
            if flags & os.O_CREAT:
                self.count("open")
            return open_handle(path, flags, *args, **options)

        def written(handle: int, data: Any) -> int:
            half = len(data) // 2
            if self.left == 1 and half:
                done = write(handle, bytes(data)[:half])
                self.count("write")
                return done
            self.count("write")
            return write(handle, data)

        patch.setattr(Path, "open", opened)
        patch.setattr(os, "open", opened_handle)
        patch.setattr(os, "write", written)
        for name in CALLS:
            patch.setattr(os, name, self._counted(name, getattr(os, name)))

    def _counted(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **options: Any) -> Any:
            self.count(name)
            return call(*args, **options)

        return counted
