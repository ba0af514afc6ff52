"""A checkpoint is complete or absent, whatever fails and whenever the process is killed.

Run as a program, this file is the child of the kill tests: it forks savers and kills them.
"""

from __future__ import annotations

import errno
import io
import json
import math
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from densesiam_seg.errors import ModelError, OutputError
from densesiam_seg.io.files import is_leftover, remove_leftovers
from densesiam_seg.io.sealed import seal
from densesiam_seg.training.checkpoint import (
    MANIFEST,
    TENSORS,
    discard_checkpoint,
    load_checkpoint,
    save_checkpoint,
    space_needed,
)

posix = pytest.mark.skipif(os.name != "posix", reason="POSIX processes")


def tensors_of(step: int, size: int = 4) -> dict[str, Tensor]:
    return {"weight": torch.full((size,), float(step)), "count": torch.tensor(step)}


def save(folder: Path, step: int, size: int = 4) -> Path:
    return save_checkpoint(folder, tensors_of(step, size), {"at": step}, step=step)


def newest(folder: Path) -> int | None:
    """The step that loads, after a check that all of its parts belong together."""
    loaded = load_checkpoint(folder)
    if loaded is None:
        return None
    assert loaded.state == {"at": loaded.step}
    assert set(loaded.tensors) == {"weight", "count"}
    assert int(loaded.tensors["count"]) == loaded.step
    assert bool((loaded.tensors["weight"] == loaded.step).all())
    return loaded.step


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class Disturbance:
    """Counts the calls that change the disk, and does something in place of the n-th."""

    def __init__(self, patch: pytest.MonkeyPatch, number: int, action: Callable[[], None]) -> None:
        self.left = number
        self.action = action
        disturbance = self

        class Writer(io.BufferedWriter):
            def write(self, data: Any) -> int:
                if disturbance.left == 1:  # what is torn apart is half written
                    super().write(bytes(data)[: len(data) // 2])
                    self.flush()
                disturbance.count()
                return super().write(data)

        open_file = Path.open

        def opened(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            if mode != "xb":
                return open_file(path, mode, *args, **kwargs)
            self.count()
            return Writer(io.FileIO(path, "xb"))

        patch.setattr(Path, "open", opened)
        for name in ("fsync", "mkdir", "rename", "replace"):
            patch.setattr(os, name, self._counted(getattr(os, name)))

    def count(self) -> None:
        self.left -= 1
        if self.left == 0:
            self.action()

    def _counted(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.count()
            return call(*args, **kwargs)

        return counted


def test_round_trip(tmp_path: Path) -> None:
    tensors = {
        "net.weight": torch.randn(3, 2, generator=torch.Generator().manual_seed(0)).t(),
        "net.steps": torch.tensor(7),
        "mask": torch.tensor([True, False]),
        "half": torch.ones(2, dtype=torch.bfloat16),
        "nan": torch.tensor([float("nan")]),
    }
    state: dict[str, Any] = {
        "epoch": 3,
        "phase": "train",
        "rate": 0.1 + 0.2,
        "best": -math.inf,
        "file": "bad\udcff.jpg",
        "order": [1, [2, None]],
    }
    path = save_checkpoint(tmp_path / "checkpoints", tensors, state, step=1234)
    assert path == tmp_path / "checkpoints" / "step-00001234"
    assert names(path) == [MANIFEST, TENSORS]
    assert names(tmp_path / "checkpoints") == ["step-00001234"]
    loaded = load_checkpoint(tmp_path / "checkpoints")
    assert loaded is not None
    assert (loaded.path, loaded.rejected) == (path, [])
    assert loaded.step == 1234
    assert loaded.state == state
    assert set(loaded.tensors) == set(tensors)
    for name, tensor in tensors.items():
        found = loaded.tensors[name]
        assert found.dtype == tensor.dtype
        torch.testing.assert_close(found, tensor, rtol=0, atol=0, equal_nan=True)


def test_nothing_saved_is_none(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path / "absent") is None
    (tmp_path / "notes").mkdir()
    (tmp_path / ".tmp-3-1").mkdir()
    (tmp_path / "step-x").mkdir()
    assert load_checkpoint(tmp_path) is None


def test_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (0, 5, 10, 100_000_000, 200_000_000):
        save(tmp_path, step)
    assert names(tmp_path) == ["step-100000000", "step-200000000"]
    save(tmp_path, 150_000_000)  # of a course that goes on from an earlier step
    assert names(tmp_path) == ["step-100000000", "step-150000000"]


def test_a_step_may_be_saved_again(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    for repetition in range(2, 12):
        state = {"repetition": repetition}
        path = save_checkpoint(tmp_path, tensors_of(2), state, step=2)
        loaded = load_checkpoint(tmp_path)
        assert loaded is not None
        assert loaded.path == path
        assert loaded.state == state
        assert names(tmp_path) == ["step-00000001", path.name]


def test_a_refused_checkpoint_is_replaced_or_discarded(tmp_path: Path) -> None:
    for step in (1, 2):
        save(tmp_path, step)
    os.truncate(tmp_path / "step-00000002" / TENSORS, 3)
    loaded = load_checkpoint(tmp_path)
    assert loaded is not None
    ((path, reason),) = loaded.rejected
    assert path == tmp_path / "step-00000002"
    assert "SHA-256" in reason
    assert save(tmp_path, 2).name == "step-00000002.2"
    assert newest(tmp_path) == 2
    discard_checkpoint(tmp_path / "step-00000002.2")
    assert newest(tmp_path) == 1
    assert names(tmp_path) == ["step-00000001"]
    with pytest.raises(OutputError):
        discard_checkpoint(tmp_path / "step-00000002")


def test_every_truncation_and_every_damaged_byte_is_noticed(tmp_path: Path) -> None:
    draw = random.Random(0)
    save(tmp_path, 1)
    damaged = save(tmp_path, 2)
    mutations = 0
    for name in (TENSORS, MANIFEST):
        data = (damaged / name).read_bytes()
        mutants = [data[:length] for length in range(len(data))] + [data + b"\0"]
        for position in range(len(data)):
            flipped = bytearray(data)
            flipped[position] ^= 1 << draw.randrange(8)
            mutants.append(bytes(flipped))
        for mutant in mutants:
            (damaged / name).write_bytes(mutant)
            assert newest(tmp_path) == 1
        (damaged / name).write_bytes(data)
        assert newest(tmp_path) == 2
        mutations += len(mutants)
    assert mutations > 500


def test_no_tensor_is_read_before_its_digest_is_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path, 1)
    tensors = (path / TENSORS).read_bytes()
    (path / TENSORS).write_bytes(tensors[:-1] + b"!")
    monkeypatch.setattr("densesiam_seg.training.checkpoint.read_safetensors", None)
    with pytest.raises(ModelError, match="SHA-256"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("missing", [MANIFEST, TENSORS])
def test_a_missing_file_and_nothing_sound_is_a_model_error(tmp_path: Path, missing: str) -> None:
    for step in (1, 2):
        (save(tmp_path, step) / missing).unlink()
    with pytest.raises(
        ModelError, match=r"no checkpoint is sound \(2 refused.*step-00000002"
    ) as caught:
        load_checkpoint(tmp_path)
    assert caught.value.exit_code == 4
    assert "\n" not in str(caught.value)


def test_manifests_with_a_right_digest_and_wrong_contents_are_refused(tmp_path: Path) -> None:
    save(tmp_path, 1)
    path = save(tmp_path, 2)
    good = json.loads((path / MANIFEST).read_bytes())
    del good["sha256"]
    assert seal(good) == (path / MANIFEST).read_bytes()
    wrong: list[tuple[dict[str, Any], str]] = [
        ({**good, "format": 2}, "format is not known"),
        ({**good, "step": 3}, "belongs to step 3"),
        ({**good, "step": "2"}, "belongs to step 2"),
        ({**good, "files": {}}, "SHA-256"),
        ({**good, "files": {TENSORS: None}}, "SHA-256"),
        ({**good, "files": []}, "format is not known"),
        ({**good, "state": []}, "format is not known"),
        ({"format": 1}, "format is not known"),
    ]
    for manifest, reason in wrong:
        (path / MANIFEST).write_bytes(seal(manifest))
        loaded = load_checkpoint(tmp_path)
        assert loaded is not None
        assert loaded.step == 1
        assert reason in loaded.rejected[0][1]


@posix
def test_pipes_and_files_in_place_of_checkpoints_are_refused(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (tmp_path / "step-00000002").write_text("a file")
    (tmp_path / "step-00000003").mkdir()
    os.mkfifo(tmp_path / "step-00000003" / MANIFEST)
    assert newest(tmp_path) == 1
    with pytest.raises(ModelError, match="cannot be read"):
        load_checkpoint(tmp_path / "step-00000002")
    with pytest.raises(OutputError, match="step-00000002"):
        save(tmp_path / "step-00000002", 1)


@pytest.mark.parametrize("advance", [1, 0], ids=["next step", "same step"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_failure_of_any_call_leaves_what_was_saved(
    tmp_path: Path, code: int, advance: int
) -> None:
    def fail() -> None:
        raise OSError(code, os.strerror(code))

    for step in (1, 2):
        save(tmp_path, step)
    step, faults = 2, 0
    while True:
        faults += 1
        assert faults < 100
        with pytest.MonkeyPatch.context() as patch:
            disturbance = Disturbance(patch, faults, fail)
            try:
                save(tmp_path, step + advance)
            except OutputError as error:
                assert error.exit_code == 5
                assert str(tmp_path) in str(error)
                assert os.strerror(code) in str(error)
            if disturbance.left > 0:
                break
        assert newest(tmp_path) in (step, step + advance), faults
        assert not any(map(is_leftover, tmp_path.iterdir())), faults
        step += advance
        save(tmp_path, step)  # a retry works
        assert newest(tmp_path) == step
    assert newest(tmp_path) == step + advance
    assert faults > 15


@posix
def test_a_file_that_may_not_grow(tmp_path: Path) -> None:
    save(tmp_path, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(OutputError, match="File too large"):
            save(tmp_path, 2, size=1 << 19)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(tmp_path) == ["step-00000001"]
    assert newest(tmp_path) == 1
    save(tmp_path, 2, size=1 << 19)
    assert newest(tmp_path) == 2


def test_an_interrupt_removes_the_unfinished_save(tmp_path: Path) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    save(tmp_path, 1)
    with pytest.MonkeyPatch.context() as patch:
        Disturbance(patch, 5, interrupt)
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path, 2)
    assert names(tmp_path) == ["step-00000001"]


def test_space_needed_covers_what_is_written(tmp_path: Path) -> None:
    tensors = tensors_of(1, size=10_000)
    path = save_checkpoint(tmp_path, tensors, {}, step=1)
    written = sum(file.stat().st_size for file in path.iterdir())
    # Two that are kept, one being written, and the model.
    assert 4 * written <= space_needed(tensors) <= 4 * written + (4 << 20)
    assert 2 * written <= space_needed(tensors, kept=2) <= 2 * written + (2 << 20)


@posix
def test_kill_9_at_any_moment(tmp_path: Path) -> None:
    child = subprocess.run(
        [sys.executable, __file__, str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert child.returncode == 0, child.stderr
    enumerated, at_random = map(int, child.stdout.split())
    assert enumerated > 15
    assert at_random == 20


def forked(work: Callable[[], None]) -> int:
    """The process id of a child that does `work` and ends."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    return child


def kill_at_every_call(folder: Path) -> int:
    """Saves that kill themselves in place of their n-th call, for n = 1, 2, …; returns how many died."""
    for step in (1, 2):
        save(folder, step)
    step = 2
    for number in range(1, 100):

        def disturbed(step: int = step, number: int = number) -> None:
            Disturbance(pytest.MonkeyPatch(), number, lambda: os.kill(os.getpid(), signal.SIGKILL))
            save(folder, step + 1)

        _, status = os.waitpid(forked(disturbed), 0)
        before, step = step, newest(folder) or 0
        assert step in (before, before + 1), (number, step)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            assert step == before + 1
            remove_leftovers(folder)
            assert len(names(folder)) == 2
            return number - 1
    raise AssertionError("the save never ended")


def kill_at_random(folder: Path) -> int:
    """Savers killed at random moments, each going on from what the one before left; returns how many."""
    draw = random.Random(0)
    step = 0
    for _ in range(20):
        reader, writer = os.pipe()

        def endless(first: int = step + 1, writer: int = writer) -> None:
            for step in range(first, first + 100_000):
                save(folder, step, size=100_000)
                os.write(writer, b"s")

        child = forked(endless)
        os.close(writer)
        finished = sum(len(os.read(reader, 1)) for _ in range(draw.randrange(3)))
        time.sleep(draw.uniform(0, 0.02))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status)
        while os.read(reader, 1):
            finished += 1
        os.close(reader)
        found = newest(folder) or 0
        assert found in (step + finished, step + finished + 1)  # none that ended is lost
        step = found
        remove_leftovers(folder)
        assert len(names(folder)) <= 3
    assert step >= 10
    return 20


if __name__ == "__main__":
    torch.set_num_threads(1)  # a forked child must not wait for threads that only its parent has
    where = Path(sys.argv[1])
    print(kill_at_every_call(where / "enumerated"), kill_at_random(where / "random"))
