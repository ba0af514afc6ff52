"""Other processes that decode images: threads of one wait for each other, for Python's lock and the system's memory.

Each process has Pillow and numpy alone, reads names from its stdin, and leaves squares in memory that it shares with
this process. It gets no signals of the terminal, heeds no request to stop, as this process still needs it to save what
it has, and ends when its stdin does, so it never outlives this process.

Axes: S side of a square.
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import subprocess
import sys
import traceback
from contextlib import suppress
from dataclasses import dataclass
from threading import BoundedSemaphore, Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from densesiam_seg.errors import ImageError
from densesiam_seg.images.decode import square, stretched
from densesiam_seg.images.decoding import Decoding, Notes

_CODE = "from densesiam_seg.images.crew import serve; serve()"
_SETTINGS = {
    # Where glibc gave memory back after each image, the system would clear it again for the next: 440 pages of it.
    "MALLOC_MMAP_THRESHOLD_": "33554432",
    "MALLOC_TRIM_THRESHOLD_": "67108864",
    # numpy would start a thread for each core, of no use to anyone.
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}
_ABOVE_STREAMS = 10
"""A stream of this process may be closed, and its number is then the first that is free."""
LAST_SECONDS = 1.0
"""That a killed process is waited for: one that hangs in a disk that is gone does not end."""


class LostProcessError(Exception):
    """A process ended while it was decoding; the text says how."""


def may_start() -> bool:
    """Whether this system and this program can have such processes."""
    known = hasattr(os, "memfd_create") and bool(sys.executable)
    return known and not getattr(sys, "frozen", False)


@dataclass(frozen=True)
class Form:
    """What becomes of each image: its centre, or with `stretch` the whole of it, as (3, S, S)."""

    side: int
    stretch: bool
    decoding: Decoding

    def decode(self, path: str) -> tuple[NDArray[np.uint8], float]:
        """The square, and width over height of what it shows. Raises ImageError."""
        if self.stretch:
            return stretched(path, self.side, self.decoding)
        return square(path, self.side, self.decoding), 1.0


class Crew:
    """At most `count` processes, started when they are needed; several threads may ask them at once."""

    def __init__(self, form: Form, count: int) -> None:
        self.form = form
        self._free = BoundedSemaphore(count)
        self._lock = Lock()
        self._idle: list[_Process] = []
        self._alive: set[_Process] = set()

    def begin(self) -> str | None:
        """Start the first process; returns why that is not possible, if so."""
        try:
            with suppress(ImageError):
                self.decode("", None)
        except LostProcessError as error:
            return f"no process that decodes images could be started ({error})"
        return None

    def decode(self, path: str, out: NDArray[np.uint8] | None) -> tuple[NDArray[np.uint8], float]:
        """The square of a file, in `out` where that is given, and its aspect.

        Raises ImageError, MemoryError and LostProcessError.
        """
        with self._free:
            process = self._taken()
            try:
                reply = process.ask(path)
            except LostProcessError:
                with self._lock:
                    self._alive.discard(process)
                raise
            for kind, *said in reply["notes"]:
                getattr(self.form.decoding.notes, kind)(*said)
            if "aspect" in reply:
                out = np.empty_like(process.square) if out is None else out
                np.copyto(out, process.square)
            with self._lock:
                if process in self._alive:
                    self._idle.append(process)
        if "error" in reply:
            raise _image_error(*reply["error"])
        if "memory" in reply:
            raise MemoryError
        if "bug" in reply:
            raise RuntimeError(f"in a process that decodes {path}: {reply['bug']}")
        assert out is not None
        return out, reply["aspect"]

    def close(self) -> None:
        """End all processes, also those that are at work or hang; the next image starts new ones."""
        with self._lock:
            ended, self._alive, self._idle = self._alive, set(), []
        for process in ended:
            process.popen.kill()
        for process in ended:
            process.end()

    def _taken(self) -> _Process:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        try:
            process = _Process(self.form)
        except OSError as error:
            raise LostProcessError(str(error)) from error
        with self._lock:
            self._alive.add(process)
        return process


class _Process:
    """One process, asked by one thread at a time; `square` (3, S, S) is the memory that both have."""

    def __init__(self, form: Form) -> None:
        import fcntl

        own = os.memfd_create("square")
        try:
            handle = fcntl.fcntl(own, fcntl.F_DUPFD_CLOEXEC, _ABOVE_STREAMS)
        finally:
            os.close(own)
        try:
            size = 3 * form.side**2
            os.ftruncate(handle, size)
            memory = mmap.mmap(handle, size)
            facts = [handle, form.side, form.stretch, form.decoding.facts()]
            self.popen = subprocess.Popen(
                [sys.executable, "-P", "-c", _CODE, json.dumps(facts)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=(handle,),
                start_new_session=True,
                env={
                    **os.environ,
                    **_SETTINGS,
                    "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                },
            )
        finally:
            os.close(handle)
        self.square = np.frombuffer(memory, np.uint8).reshape(3, form.side, form.side)

    def ask(self, path: str) -> dict[str, Any]:
        """The reply about one file. Raises LostProcessError."""
        assert self.popen.stdin is not None and self.popen.stdout is not None
        line = b""
        # ValueError: another thread has closed it.
        with suppress(OSError, ValueError):
            self.popen.stdin.write(json.dumps(path).encode("ascii") + b"\n")
            self.popen.stdin.flush()
            line = self.popen.stdout.readline()
        if not line.endswith(b"\n"):
            raise LostProcessError(self._how_it_ended())
        reply: dict[str, Any] = json.loads(line)
        return reply

    def _how_it_ended(self) -> str:
        code = self.popen.wait()
        self.end()
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"

    def end(self) -> None:
        """Kill it, however it fares."""
        self.popen.kill()
        try:
            self.popen.wait(LAST_SECONDS)
        except subprocess.TimeoutExpired:
            return  # closing its streams would wait for the thread that reads them
        for stream in (self.popen.stdin, self.popen.stdout):
            # What could not be sent before is lost.
            with suppress(OSError, ValueError):
                assert stream is not None
                stream.close()


def _image_error(path: str, reason: str, detail: str, text: str) -> ImageError:
    error = ImageError(path, reason, detail)
    error.args = (text,)
    return error


class _Said(Notes):
    """What is noted of one image, to be noted again by the process that asked for it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, ...]] = []

    def add(self, kind: str, name: str, detail: str) -> None:
        self.calls.append(("add", kind, name, detail))

    def range(self, name: str, brightest: float, full: float) -> None:
        self.calls.append(("range", name, brightest, full))


def serve() -> None:
    """The whole life of such a process: a square for each name on stdin, a line about it on stdout."""
    # Schedulers and systemd send it to all processes of a job at once.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    handle, side, stretch, facts = json.loads(sys.argv[1])
    memory = np.frombuffer(mmap.mmap(handle, 3 * side**2), np.uint8).reshape(3, side, side)
    replies = os.fdopen(os.dup(1), "wb")
    with suppress(OSError):
        os.dup2(2, 1)  # what a library prints is no reply
    max_pixels, page, bands, spread = facts
    choices = {"max_pixels": max_pixels, "page": page}
    choices |= {"bands": bands and tuple(bands), "stretch": spread and tuple(spread)}
    for line in sys.stdin.buffer:
        said = _Said()
        form = Form(side, stretch, Decoding(**choices, notes=said))
        reply = {**_decoded(form, json.loads(line), memory), "notes": said.calls}
        with suppress(BrokenPipeError):
            replies.write(json.dumps(reply).encode("ascii") + b"\n")
            replies.flush()


def _decoded(form: Form, path: str, memory: NDArray[np.uint8]) -> dict[str, Any]:
    """What is replied about one file, whose square is then in the memory."""
    try:
        memory[:], aspect = form.decode(path)
    except ImageError as error:
        return {"error": [error.path, error.reason, error.detail, str(error)]}
    except MemoryError:
        return {"memory": True}
    except Exception:
        return {"bug": traceback.format_exc()}
    return {"aspect": aspect}
