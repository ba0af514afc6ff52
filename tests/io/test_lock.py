"""One process at a time, and no longer than it lives."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from densesiam_seg.errors import BusyError, OutputError
from densesiam_seg.io.lock import LOCK, RunLock

HOLD = """
import os, sys
from pathlib import Path
from densesiam_seg.io.lock import RunLock
with RunLock(Path(sys.argv[1])):
    if sys.argv[2] == "with worker" and os.fork() == 0:
        print(os.getpid(), flush=True)
        sys.stdin.read()
        os._exit(0)
    if sys.argv[2] == "alone":
        print(os.getpid(), flush=True)
    sys.stdin.read()
"""


def holder(folder: Path, how: str = "alone") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_the_lock_can_be_taken_again_after_it_is_freed(tmp_path: Path) -> None:
    lock = RunLock(tmp_path)
    for _ in range(3):
        with lock:
            assert (tmp_path / LOCK).read_text() == f"{os.getpid()} {socket.gethostname()}\n"
    assert (tmp_path / LOCK).exists()


def test_a_second_holder_in_this_process_is_refused(tmp_path: Path) -> None:
    with RunLock(tmp_path):
        with pytest.raises(BusyError), RunLock(tmp_path):
            pass
        with pytest.raises(BusyError), RunLock(tmp_path):  # the refusal did not free the first
            pass


def test_an_error_in_the_block_frees_the_lock(tmp_path: Path) -> None:
    with pytest.raises(KeyError), RunLock(tmp_path):
        raise KeyError
    with RunLock(tmp_path):
        pass


def test_the_holder_in_another_process_is_named_and_its_death_frees_the_lock(
    tmp_path: Path,
) -> None:
    with holder(tmp_path) as other:
        assert other.stdout is not None
        assert int(other.stdout.readline()) == other.pid
        with pytest.raises(BusyError) as caught, RunLock(tmp_path):
            pass
        assert caught.value.exit_code == 7
        assert f"process {other.pid} on {socket.gethostname()}" in str(caught.value)
        other.kill()
        other.wait()
        with RunLock(tmp_path):
            pass


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_worker_does_not_hold_the_lock_of_its_dead_parent(tmp_path: Path) -> None:
    with holder(tmp_path, "with worker") as other:
        assert other.stdout is not None
        worker = int(other.stdout.readline())
        with pytest.raises(BusyError, match=f"process {other.pid} "), RunLock(tmp_path):
            pass
        other.kill()
        other.wait()
        os.kill(worker, 0)  # alive
        with RunLock(tmp_path):
            pass
        os.kill(worker, signal.SIGKILL)


@pytest.mark.parametrize("text", [b"", b"x" * 5000, b"1 \x1b[31mred", b"12", b"\xff\xfe 1"])
def test_strange_text_in_the_file_is_not_repeated(tmp_path: Path, text: bytes) -> None:
    with RunLock(tmp_path):
        (tmp_path / LOCK).write_bytes(text)
        with pytest.raises(BusyError, match="in use by another process;"), RunLock(tmp_path):
            pass


def test_impossible_places_are_output_errors(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "absent", tmp_path / "file"):
        with pytest.raises(OutputError, match=r"\.lock: cannot be written"), RunLock(folder):
            pass
