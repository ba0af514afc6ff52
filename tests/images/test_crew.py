"""Processes that decode: the same squares as here, and none is left when one dies, hangs, or this process does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from densesiam_seg.errors import ImageError
from densesiam_seg.images import crew as crews
from densesiam_seg.images.crew import Crew, Form, LostProcessError
from densesiam_seg.images.decoding import Decoding

SIDE = 48
pytestmark = pytest.mark.skipif(not crews.may_start(), reason="needs memfd_create")


@pytest.fixture
def crew() -> Iterator[Crew]:
    made = Crew(Form(SIDE, False, Decoding()), 2)
    yield made
    made.close()


def pids(crew: Crew) -> set[int]:
    return {process.popen.pid for process in crew._alive}


def gone(pid: int, seconds: float = 10.0) -> bool:
    """Whether a process has ended, or does so soon."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with suppress(OSError, IndexError):
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z":
                time.sleep(0.02)
                continue
        return True
    return False


@pytest.mark.parametrize("stretch", [False, True])
def test_squares_are_those_that_are_decoded_here(image_folder: Path, stretch: bool) -> None:
    form = Form(SIDE, stretch, Decoding())
    paths = sorted(map(str, image_folder.iterdir()))
    crew = Crew(form, 3)
    out = np.zeros((len(paths), 3, SIDE, SIDE), np.uint8)
    with ThreadPoolExecutor(6) as pool:  # more threads than processes
        found = list(pool.map(lambda pair: crew.decode(*pair), zip(paths, out, strict=True)))
    assert len(pids(crew)) <= 3
    for path, given, (square, aspect) in zip(paths, out, found, strict=True):
        expected, its_aspect = form.decode(path)
        assert np.array_equal(square, expected) and aspect == its_aspect
        assert np.array_equal(given, expected)
    fresh, _ = crew.decode(paths[0], None)
    crew.decode(paths[1], None)
    assert np.array_equal(fresh, out[0])  # not the memory that the next image is decoded into
    crew.close()


def test_choices_and_notes_go_to_and_fro(tmp_path: Path) -> None:
    path = tmp_path / "deep.png"
    Image.fromarray(np.arange(900, dtype=np.uint16).reshape(30, 30)).save(path)
    here, there = (Decoding(stretch=(0.001, 0.01)) for _ in range(2))
    crew = Crew(Form(SIDE, False, there), 1)
    found, _ = crew.decode(str(path), None)
    assert np.array_equal(found, Form(SIDE, False, here).decode(str(path))[0])
    plain, other = Decoding(), Decoding()
    Form(SIDE, False, plain).decode(str(path))
    crew.close()
    crew = Crew(Form(SIDE, False, other), 1)
    crew.decode(str(path), None)
    assert plain.notes.lines() and other.notes.lines() == plain.notes.lines()
    crew.close()


def test_errors_are_those_of_decoding_here(crew: Crew, tmp_path: Path) -> None:
    odd = tmp_path / os.fsdecode(b"a\n\xff.jpg")
    odd.write_bytes(b"junk")
    for path in (odd, tmp_path / "nowhere.png"):
        with pytest.raises(ImageError) as here:
            crew.form.decode(str(path))
        with pytest.raises(ImageError) as there:
            crew.decode(str(path), None)
        assert str(there.value) == str(here.value)
        assert (there.value.path, there.value.reason) == (here.value.path, here.value.reason)
    assert len(pids(crew)) == 1  # the process lives on


def test_a_process_has_no_torch_and_no_terminal(crew: Crew, image_folder: Path) -> None:
    crew.decode(str(min(image_folder.iterdir())), None)
    (pid,) = pids(crew)
    assert "torch" not in Path(f"/proc/{pid}/maps").read_text()
    assert os.getsid(pid) == pid != os.getsid(0)


def test_a_killed_process_is_told_and_replaced(crew: Crew, image_folder: Path) -> None:
    path = str(min(image_folder.iterdir()))
    crew.decode(path, None)
    (pid,) = pids(crew)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(LostProcessError, match="SIGKILL"):
        crew.decode(path, None)
    crew.decode(path, None)
    assert pids(crew) and pid not in pids(crew)


def test_a_request_to_stop_is_for_others(crew: Crew, image_folder: Path) -> None:
    path = str(min(image_folder.iterdir()))
    crew.decode(path, None)
    (pid,) = pids(crew)
    os.kill(pid, signal.SIGTERM)
    crew.decode(path, None)
    assert pids(crew) == {pid}


def test_closing_ends_one_that_hangs(crew: Crew, image_folder: Path) -> None:
    path = str(min(image_folder.iterdir()))
    crew.decode(path, None)
    (pid,) = pids(crew)
    os.kill(pid, signal.SIGSTOP)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(crew.decode, path, None)
        time.sleep(0.1)
        assert not asked.done()
        crew.close()
        with pytest.raises(LostProcessError):
            asked.result(10)
    assert gone(pid) and not pids(crew)
    crew.decode(path, None)  # another one


def test_one_that_does_not_end_is_not_waited_for(
    crew: Crew, image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that waits for a disk that is gone, while a thread waits for its reply."""
    path = str(min(image_folder.iterdir()))
    crew.decode(path, None)
    (process,) = crew._alive
    os.kill(process.popen.pid, signal.SIGSTOP)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(crew.decode, path, None)
        with monkeypatch.context() as patch:
            patch.setattr(crews, "LAST_SECONDS", 0.1)
            patch.setattr(process.popen, "kill", lambda: None)
            crew.close()
        assert process.popen.poll() is None and not asked.done() and not pids(crew)
        crew.decode(path, None)  # another one
        process.end()
        with pytest.raises(LostProcessError):
            asked.result(10)


def test_none_outlives_this_process(image_folder: Path) -> None:
    """Killed, with a stdin that is closed, whose number the memory must not take."""
    code = (
        "import os, signal; os.close(0)\n"
        "from densesiam_seg.images.crew import Crew, Form\n"
        "from densesiam_seg.images.decoding import Decoding\n"
        f"crew = Crew(Form(8, False, Decoding()), 1); crew.decode({str(min(image_folder.iterdir()))!r}, None)\n"
        "print(next(iter(crew._alive)).popen.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, env=environment, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert gone(int(done.stdout))


def test_memory_that_ran_out_and_bugs_are_told(
    crew: Crew, image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = np.zeros((3, SIDE, SIDE), np.uint8)
    path = str(min(image_folder.iterdir()))

    def fail(error: BaseException) -> dict[str, Any]:
        def decode(self: Form, path: str) -> Any:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(Form, "decode", decode)
            return {**crews._decoded(crew.form, path, memory), "notes": []}

    crew.decode(path, None)
    for error, kind, text in (
        (MemoryError(), MemoryError, None),
        (OSError("odd"), RuntimeError, "odd"),
    ):
        reply = fail(error)
        monkeypatch.setattr(crews._Process, "ask", lambda self, path, reply=reply: reply)
        with pytest.raises(kind, match=text):
            crew.decode(path, None)


def test_no_process_can_be_started(
    image_folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", "/nowhere/python")
        assert "/nowhere/python" in str(Crew(Form(8, False, Decoding()), 1).begin())
    monkeypatch.setattr(crews, "_CODE", "raise SystemExit(3)")
    assert "exit code 3" in str(Crew(Form(8, False, Decoding()), 1).begin())
    monkeypatch.undo()
    crew = Crew(Form(8, False, Decoding()), 1)
    assert crew.begin() is None
    crew.close()
    assert "Traceback" not in capfd.readouterr().err
