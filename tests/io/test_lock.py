"""One process at a time, and no longer than it lives."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest

from densesiam_seg.errors import BusyError, OutputError
from densesiam_seg.io.lock import LOCK, run_lock

HOLD = """
import os, sys
from pathlib import Path
from densesiam_seg.io.lock import run_lock
with run_lock(Path(sys.argv[1])):
    worker = os.fork() if "worker" in sys.argv else 0
    # A worker itself, once it runs: before that it may not have let go of the lock.
    if not worker:
        print(os.getpid(), flush=True)
    sys.stdin.read()
"""


def test_the_lock_can_be_taken_again_after_it_is_freed(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(KeyError), run_lock(tmp_path):
            assert (tmp_path / LOCK).read_text() == f"{os.getpid()} {socket.gethostname()}\n"
            raise KeyError
    assert (tmp_path / LOCK).exists()


def test_a_second_holder_in_this_process_is_refused(tmp_path: Path) -> None:
    with run_lock(tmp_path):
        for _ in range(2):  # the refusal does not free the first
            with pytest.raises(BusyError), run_lock(tmp_path):
                pass


def test_the_holder_in_another_process_is_named_and_its_death_frees_the_lock(
    tmp_path: Path,
) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as other:
        assert other.stdout is not None
        assert int(other.stdout.readline()) == other.pid
        with (
            pytest.raises(BusyError, match=f"process {other.pid} on {socket.gethostname()}"),
            run_lock(tmp_path),
        ):
            pass
        other.kill()
        other.wait()
        with run_lock(tmp_path):
            pass


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_worker_does_not_hold_the_lock_of_its_dead_parent(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path), "worker"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as other:
        assert other.stdout is not None
        worker = int(other.stdout.readline())
        with pytest.raises(BusyError, match=f"process {other.pid} "), run_lock(tmp_path):
            pass
        other.kill()
        other.wait()
        os.kill(worker, 0)  # alive
        with run_lock(tmp_path):
            pass
        os.kill(worker, signal.SIGKILL)


@pytest.mark.parametrize("text", [b"", b"x" * 5000, b"1 \x1b[31mred", b"12", b"\xff\xfe 1"])
def test_strange_text_in_the_file_is_not_repeated(tmp_path: Path, text: bytes) -> None:
    with run_lock(tmp_path):
        (tmp_path / LOCK).write_bytes(text)
        with pytest.raises(BusyError, match="in use by another process;"), run_lock(tmp_path):
            pass


@pytest.mark.parametrize("text", ["", f"99999999 {socket.gethostname()}\n"])
def test_a_holder_that_has_not_written_its_name_yet_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    """Else a process would be named that was killed with the lock, or none."""
    with run_lock(tmp_path):
        own = (tmp_path / LOCK).read_text()
        (tmp_path / LOCK).write_text(text)
        write = Mock(side_effect=lambda _: (tmp_path / LOCK).write_text(own))
        monkeypatch.setattr("densesiam_seg.io.lock.time.sleep", write)
        with pytest.raises(BusyError, match=f"process {os.getpid()} on"), run_lock(tmp_path):
            pass
        write.assert_called_once()


def test_impossible_places_are_output_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "absent", tmp_path / "file"):
        with pytest.raises(OutputError, match=r"\.lock: cannot be written"), run_lock(folder):
            pass
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(os, "ftruncate", Mock(side_effect=full))
    with pytest.raises(OutputError, match="No space left"), run_lock(tmp_path):
        pass
