"""A checkpoint is complete or absent. tests/faults/test_saves.py lets every call fail, and kills the process there."""

from __future__ import annotations

import json
import math
import os
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from disturbance import Disturbance
from saving import names, newest, save, tensors_of

from densesiam_seg.errors import ModelError, OutputError
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
