"""One process at a time in the folder of a run."""

from __future__ import annotations

import errno
import os
import socket
import sys
import weakref
from pathlib import Path
from types import TracebackType

from densesiam_seg.errors import BusyError
from densesiam_seg.io.files import output_error

LOCK = ".lock"
_REFUSED = (errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK)

if sys.platform == "win32":
    import msvcrt

    def _lock(handle: int) -> None:
        os.lseek(handle, 1 << 20, os.SEEK_SET)  # beyond the text: others may not read a locked byte
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _lock(handle: int) -> None:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


class RunLock:
    """Context manager that holds `<folder>/.lock` for this process; its death, however sudden, frees the lock.

    Entering raises BusyError, naming the holder, when another process (or another part of this one) holds it, and
    OutputError when the folder cannot be written. The file itself is never deleted: a process that waited for a
    deleted file would lock something that others no longer see.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOCK
        self._handle: int | None = None
        if hasattr(os, "register_at_fork"):
            # A forked worker shares the lock, and would hold it beyond a sudden death of this process.
            forget = weakref.WeakMethod(self._forget)
            os.register_at_fork(after_in_child=lambda: (method := forget()) and method())

    def __enter__(self) -> RunLock:
        assert self._handle is None, "the lock is already held"
        try:
            handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise output_error(self._path, error) from error
        try:
            _lock(handle)
            os.ftruncate(handle, 0)
            os.lseek(handle, 0, os.SEEK_SET)
            os.write(handle, f"{os.getpid()} {socket.gethostname()}\n".encode())
        except OSError as error:
            holder = _holder(handle)
            os.close(handle)
            if error.errno not in _REFUSED:
                raise output_error(self._path, error) from error
            raise BusyError(
                f"{self._path.parent}: in use by {holder}; wait for it or choose another --out"
            ) from None
        self._handle = handle
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._forget()

    def _forget(self) -> None:
        """Close the file, which frees the lock when no other process shares it."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


def _holder(handle: int) -> str:
    """Who wrote the lock's file; its text is foreign, so only plain characters are shown."""
    try:
        os.lseek(handle, 0, os.SEEK_SET)
        words = os.read(handle, 256).decode("ascii", "replace").split()
    except OSError:
        words = []
    if len(words) != 2 or not words[0].isdecimal() or not words[1].isprintable():
        return "another process"
    return f"process {words[0]} on {words[1]}"
