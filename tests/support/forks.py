"""The program in forked children with slim backbones: how each ended, and what it cost.

A start of Python with torch takes seconds; a fork of a process that has imported torch and computed nothing takes a
hundredth of one. Run as a program, this file is that process. It reads one line of JSON for each child and answers with
two: the child's number when it begins, and how it ended.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

PATIENCE = 120
"""Seconds after which a child hangs, however busy the machine is."""
ROOM = 4 << 30
"""Bytes of address space that a child may take beyond those that it begins with."""


@dataclass(frozen=True)
class Ended:
    """A child that has ended."""

    code: int
    """Its exit code, or minus the number of the signal that ended it."""
    out: str
    error: str
    seconds: float
    """Of processor time, which does not depend on what else the machine does."""
    growth: int
    """Bytes of resident memory that it had at most beyond those that it began with."""


class Forks:
    """The process that children are forked from; one child at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        support = str(Path(__file__).parent)
        path = os.pathsep.join(filter(None, [support, os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            [sys.executable, "-P", __file__, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        )

    def start(self, *arguments: object, threads: int = 1) -> int:
        """Begin the program with these arguments; returns the child's number."""
        assert self._process.stdin is not None
        request = {"arguments": list(map(str, arguments)), "threads": threads}
        self._process.stdin.write(json.dumps(request).encode("ascii") + b"\n")
        self._process.stdin.flush()
        return int(self._answer()["pid"])

    def wait(self) -> Ended:
        """How the child ended that was begun last."""
        found = self._answer()
        out, error = (
            (self._folder / name).read_text("utf-8", "replace") for name in ("out", "err")
        )
        return Ended(out=out, error=error, **found)

    def run(self, *arguments: object) -> Ended:
        self.start(*arguments)
        return self.wait()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the process that children come from has ended"
        found: dict[str, Any] = json.loads(line)
        return found

    def close(self) -> None:
        self._process.communicate()


@contextmanager
def forks(folder: Path) -> Iterator[Forks]:
    """That process, in this block; what children print lies in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    found = Forks(folder)
    try:
        yield found
    finally:
        found.close()


def _serve(folder: Path) -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    for line in sys.stdin:
        request = json.loads(line)
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            os.close(reader)
            _be_child(folder, request, writer)
        os.close(writer)
        began = int(os.read(reader, 32))  # its memory; at the same time the sign that it is ready
        os.close(reader)
        print(json.dumps({"pid": child}), file=answers, flush=True)
        status, usage = _ended(child)
        found = {
            "code": os.waitstatus_to_exitcode(status),
            "seconds": usage.ru_utime + usage.ru_stime,
            "growth": 1024 * usage.ru_maxrss - began,
        }
        print(json.dumps(found), file=answers, flush=True)


def _ended(child: int) -> tuple[int, resource.struct_rusage]:
    give_up = time.monotonic() + PATIENCE
    while True:
        found, status, usage = os.wait4(child, os.WNOHANG)
        if found:
            return status, usage
        if time.monotonic() > give_up:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.002)


def _be_child(folder: Path, request: dict[str, Any], ready: int) -> NoReturn:
    code = 1
    try:
        for stream, name in ((1, "out"), (2, "err")):
            handle = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(handle, stream)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        size, resident = _memory()
        resource.setrlimit(resource.RLIMIT_AS, (size + ROOM, size + ROOM))
        import torch

        torch.set_num_threads(request["threads"])
        sys.argv = ["densesiam-seg", *request["arguments"]]
        os.write(ready, str(resident).encode("ascii"))
        os.close(ready)
        importlib.import_module("densesiam_seg.cli.app").main()
    except SystemExit as end:
        assert isinstance(end.code, int)
        code = end.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)


def _memory() -> tuple[int, int]:
    """Address space and resident memory of this process in bytes."""
    size, resident, *_ = Path("/proc/self/statm").read_text("ascii").split()
    page = resource.getpagesize()
    return int(size) * page, int(resident) * page


def _main() -> None:
    for name in (
        *("faiss", "safetensors.torch", "torchvision", "timm", "densesiam_seg.cli.app"),
        *("densesiam_seg.cli.console", "densesiam_seg.training.train"),
        *("densesiam_seg.inference.predict", "densesiam_seg.inference.readout"),
        "densesiam_seg.evaluation.probe",
    ):
        importlib.import_module(name)
    from slim import slim_resnets

    with slim_resnets():
        _serve(Path(sys.argv[1]))


if __name__ == "__main__":
    _main()
