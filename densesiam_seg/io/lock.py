"""One process at a time in the folder of a run."""

from __future__ import annotations

import errno
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from densesiam_seg.errors import BusyError
from densesiam_seg.io.files import output_error

LOCK = ".lock"
_ATTEMPTS, _PAUSE = 50, 0.01
"""How often, and seconds in between, a lock's file is read that names no holder yet."""
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


@contextmanager
def run_lock(folder: Path, *, wait: float = 0.0) -> Iterator[None]:
    """Hold `<folder>/.lock` for this process; its death, however sudden, frees the lock.

    Raises BusyError, naming the holder, when another process (or another part of this one) has not freed it after
    `wait` seconds, and OutputError when the folder cannot be written. The file itself is never deleted: a process that
    waited for a deleted file would lock something that others no longer see.
    """
    path = folder / LOCK
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise output_error(path, error) from error
    held = [handle]
    if hasattr(os, "register_at_fork"):
        # A forked process shares the lock, and would hold it beyond a sudden death of this one.
        os.register_at_fork(after_in_child=lambda: _close(held))
    try:
        _take(handle, path, time.monotonic() + wait)
        yield
    finally:
        _close(held)


def _close(held: list[int]) -> None:
    """Close the lock's file, once."""
    if held:
        os.close(held.pop())


def _take(handle: int, path: Path, until: float) -> None:
    try:
        _wait_for(handle, until)
        os.ftruncate(handle, 0)
        os.lseek(handle, 0, os.SEEK_SET)
        os.write(handle, f"{os.getpid()} {socket.gethostname()}\n".encode())
    except OSError as error:
        if error.errno not in _REFUSED:
            raise output_error(path, error) from error
        raise BusyError(
            f"{path.parent}: in use by {_holder(handle)}; wait for it or choose another --out"
        ) from None


def _wait_for(handle: int, until: float) -> None:
    """Lock the file, trying again until that time. Raises OSError."""
    while True:
        try:
            _lock(handle)
            return
        except OSError as error:
            if error.errno not in _REFUSED or time.monotonic() >= until:
                raise
            time.sleep(_PAUSE)


def _holder(handle: int) -> str:
    """Who wrote the lock's file; its text is foreign, so only plain characters are shown.

    A holder that has just taken the lock writes its name right afterwards: until then the file is empty, or names one
    that has ended.
    """
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(_PAUSE)
        words: list[str] = []
        with suppress(OSError):
            os.lseek(handle, 0, os.SEEK_SET)
            words = os.read(handle, 256).decode("ascii", "replace").split()
        if len(words) == 2 and words[0].isdecimal() and words[1].isprintable():
            if words[1] != socket.gethostname() or is_alive(words[1], int(words[0])):
                return f"process {words[0]} on {words[1]}"
        elif words:
            break
    return "another process"


def is_alive(host: object, pid: object) -> bool:
    """Whether a process is one of this machine and still there; true too where that cannot be asked."""
    if host != socket.gethostname() or type(pid) is not int or pid <= 0:
        return False
    if sys.platform != "win32":  # there the question would end it
        try:
            os.kill(pid, 0)
        except (ProcessLookupError, OverflowError):
            return False
        except PermissionError:
            pass
    return True
