"""Children to be killed and measured: each begins from a process that has imported everything and computed nothing.

A start of Python with torch takes seconds; a fork takes a hundredth of one, and is as good while no thread of torch has
been started. Run as a program, this file is that process. Commands come as lines of JSON; everything that is to be
known of the children comes back in one pipe: that they began, what they tell of themselves, and how they ended.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from memory import taken

Call = tuple[str, str, dict[str, Any]]
"""Module, function and arguments."""
PATIENCE = 300.0
"""Seconds after which a child hangs."""
NOBODY = 65534
"""A user without rights."""
ROOM = 4 << 30
"""Bytes of address space that a child may take beyond those that it begins with."""


@dataclass(frozen=True)
class Work:
    """What a child does: the program with some arguments or any function, after some preparations."""

    arguments: list[str] = field(default_factory=list)
    """Of the program `densesiam-seg`, where `call` is not given."""
    call: Call | None = None
    prepare: list[Call] = field(default_factory=list)
    user: int | None = None
    """As whom, in the folder / that all may enter; None: as this process."""


@dataclass
class Child:
    """A process under way."""

    pid: int
    output: Path
    _family: Family
    told: list[str] = field(default_factory=list)
    """What it told of itself and nobody has asked for yet."""
    status: int | None = None
    seconds: float = 0
    """Of processor time, which does not depend on what else the machine does; once it has ended, as the next."""
    growth: int = 0
    """Bytes of resident memory that it had at most beyond those that it began with."""

    def next(self) -> str | None:
        """What it tells next; None once it has ended."""
        self.until(lambda: bool(self.told) or self.status is not None)
        return self.told.pop(0) if self.told else None

    def send(self, number: int, *, group: bool = False) -> None:
        """A signal; nothing where it has ended, as its number is not given to another before it is waited for."""
        if self.status is None:
            with contextlib.suppress(ProcessLookupError):
                (os.killpg if group else os.kill)(self.pid, number)

    def wait(self) -> int:
        """Its exit code; minus the number of the signal that ended it."""
        self.until(lambda: self.status is not None)
        assert self.status is not None
        return os.waitstatus_to_exitcode(self.status)

    def until(self, reached: Callable[[], bool], pause: float = PATIENCE) -> None:
        """Look at each message and after each pause; fail, and end the child, after what no machine needs."""
        give_up = time.monotonic() + PATIENCE
        while not reached():
            if time.monotonic() > give_up:
                self.send(signal.SIGKILL)
                raise AssertionError(f"it hangs; it said: {self.stderr[-500:]}")
            self._family.read(min(pause, give_up - time.monotonic()))

    @property
    def stdout(self) -> str:
        return (self.output / f"{self.pid}.out").read_text("utf-8", "replace")

    @property
    def stderr(self) -> str:
        return (self.output / f"{self.pid}.err").read_text("utf-8", "replace")


class Family:
    """The process that children are forked from; close it at the end."""

    def __init__(self, folder: Path) -> None:
        """What the children print goes to `folder`, which is where they work."""
        self.folder = folder
        reader, writer = os.pipe()
        self._reader = os.fdopen(reader, "rb", buffering=0)
        settings = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(writer), str(folder)],
            stdin=subprocess.PIPE,
            pass_fds=(writer,),
            env={**os.environ, **settings},
        )
        os.close(writer)
        self._children: dict[int, Child] = {}
        self._rest = b""
        self._begun: list[Child] = []

    def start(self, *works: Work) -> list[Child]:
        """Children that begin at once, when all of them have been made."""
        assert self._process.stdin is not None
        self._begun = []
        line = json.dumps([asdict(work) for work in works]) + "\n"
        self._process.stdin.write(line.encode("ascii"))
        self._process.stdin.flush()
        while len(self._begun) < len(works):
            assert self.read(), "no child began"
        return self._begun

    def run(self, work: Work) -> Child:
        """A child that has ended."""
        (child,) = self.start(work)
        child.wait()
        return child

    def read(self, seconds: float = PATIENCE) -> bool:
        """Take what the pipe brings next; False if nothing comes for so long."""
        if not select.select([self._reader], [], [], max(seconds, 0))[0]:
            return False
        data = self._reader.read(1 << 16)
        assert data, "the process that children come from has ended"
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            pid, what, *words = line.decode("ascii").split(" ", 2)
            if what == "begin":
                child = Child(int(pid), self.folder, self, growth=-int(words[0]))
                self._children[child.pid] = child
                self._begun.append(child)
            elif what == "end":
                child = self._children.pop(int(pid))
                status, processor, most = words[0].split()
                child.status, child.seconds = int(status), float(processor)
                child.growth += int(most)
            elif int(pid) in self._children:
                self._children[int(pid)].told.append(" ".join([what, *words]))
        return True

    def close(self) -> None:
        assert self._process.stdin is not None
        for child in list(self._children.values()):
            child.send(signal.SIGKILL)
        self._process.stdin.close()
        self._process.wait()
        self._reader.close()


_pipe = -1
_write = os.write  # which a disturbance of the child does not count


def tell(text: str) -> None:
    """Say something of this child to the test."""
    _write(_pipe, f"{os.getpid()} {text}\n".encode("ascii"))


def _serve(folder: Path) -> None:
    """Begin what is asked for and tell of each end, whichever comes first, until nobody asks any more."""
    ended, woken = os.pipe()
    for handle in (ended, woken):
        os.set_blocking(handle, False)
    signal.set_wakeup_fd(woken)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    rest = b""
    while True:
        ready, _, _ = select.select([0, ended], [], [])
        if ended in ready:
            os.read(ended, 1 << 12)
            _tell_ends()
        if 0 in ready:
            data = os.read(0, 1 << 16)
            if not data:
                return
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                _begin([Work(**work) for work in json.loads(line)], folder, (ended, woken))


def _tell_ends() -> None:
    with contextlib.suppress(ChildProcessError):
        while (found := os.wait4(-1, os.WNOHANG))[0]:
            child, status, usage = found
            seconds, most = usage.ru_utime + usage.ru_stime, 1024 * usage.ru_maxrss
            os.write(_pipe, f"{child} end {status} {seconds} {most}\n".encode("ascii"))


def _begin(works: list[Work], folder: Path, alarm: tuple[int, int]) -> None:
    reader, writer = os.pipe()
    children = []
    for work in works:
        child = os.fork()
        if child == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for handle in (*alarm, writer):
                os.close(handle)
            _be_child(work, folder, reader)
        children.append(child)
    os.close(reader)
    for child in children:
        os.write(_pipe, f"{child} begin {taken('VmRSS', child)}\n".encode("ascii"))
    os.close(writer)  # the children were waiting for this


def _be_child(work: Work, folder: Path, gate: int) -> NoReturn:
    code = 1
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.chdir(folder)
        printed = (f"{os.getpid()}.out", f"{os.getpid()}.err")
        for stream, path in enumerate((os.devnull, *printed)):
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC if stream else os.O_RDONLY)
            os.dup2(handle, stream)
            os.close(handle)
        size = taken("VmSize") + ROOM
        resource.setrlimit(resource.RLIMIT_AS, (size, size))
        if work.user is not None:
            os.chdir("/")
            os.setgid(work.user)
            os.setuid(work.user)
        while os.read(gate, 1):
            pass
        os.close(gate)
        for module, function, options in work.prepare:
            _function(module, function)(**options)
        if work.call is not None:
            module, function, options = work.call
            code = int(_function(module, function)(**options) or 0)
        else:
            sys.argv = ["densesiam-seg", *work.arguments]
            _function("densesiam_seg.cli.app", "main")()
    except SystemExit as end:  # as Python does
        code = end.code if isinstance(end.code, int) else 1
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _function(module: str, name: str) -> Callable[..., Any]:
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return function


def _read_arguments() -> None:
    """Once, as the program's libraries import many more on that occasion. There is nothing to train on."""
    sys.argv = ["densesiam-seg", "train", "--resume", "--out", os.devnull]
    with (
        open(os.devnull, "w") as nowhere,  # noqa: PTH123
        contextlib.redirect_stderr(nowhere),
        contextlib.suppress(SystemExit),
    ):
        _function("densesiam_seg.cli.app", "main")()


def _main() -> None:
    global _pipe
    # Sabotage asks the module `children` for its pipe, and this one is called `__main__`.
    sys.modules["children"] = sys.modules["__main__"]
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _pipe, folder = int(sys.argv[1]), Path(sys.argv[2])
    for name in (
        *("faiss", "timm", "densesiam_seg.cli.console", "densesiam_seg.training.train"),
        *("densesiam_seg.prediction.predict", "densesiam_seg.inference.readout"),
        *("densesiam_seg.evaluation.probe", "sabotage"),
    ):
        importlib.import_module(name)
    _read_arguments()
    _serve(folder)


if __name__ == "__main__":
    _main()
