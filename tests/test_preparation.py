"""A run directory becomes a training, fresh or resumed; `test_training` has whole runs and their refusals."""

from __future__ import annotations

import json
import time
from collections.abc import Generator
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch

from densesiam_seg.checkpoint import save_checkpoint
from densesiam_seg.config import TrainConfig, read_config
from densesiam_seg.errors import InputError, StoppedError, UsageError
from densesiam_seg.events import Decoding, Event, Notice, Trained
from densesiam_seg.loop import Training
from densesiam_seg.manifest import Manifest
from densesiam_seg.model import Architecture, build_network
from densesiam_seg.preparation import Run, fresh, numerics, resumed
from densesiam_seg.runs import read_status, write_status
from densesiam_seg.scan import scan
from densesiam_seg.signals import StopRequest

Value = TypeVar("Value")

pytestmark = pytest.mark.usefixtures("slim_module")


def drained(events: Generator[Event, None, Value]) -> tuple[list[Event], Value]:
    """All events, and what the generator returns."""
    seen: list[Event] = []
    while True:
        try:
            seen.append(next(events))
        except StopIteration as end:
            return seen, end.value


def run_in(folder: Path, *, max_time: float | None = None) -> Run:
    folder.mkdir(exist_ok=True)
    return Run(folder, StopRequest(), time.monotonic(), max_time)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return run_in(tmp_path / "run")


def begun(run: Run, images: list[Path], settings: dict[str, Any]) -> tuple[list[Event], Training]:
    return drained(fresh(run, scan(images), None, settings, 1.0, None))


class TestRun:
    def test_time_counts_from_the_start(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = Run(tmp_path, StopRequest(), 100.0, 60.0)
        for now, over in ((100.0, False), (159.9, False), (160.0, True)):
            monkeypatch.setattr(time, "monotonic", lambda now=now: now)
            assert run.out_of_time() is over

    def test_without_a_limit_it_never_ends(self, tmp_path: Path) -> None:
        assert not Run(tmp_path, StopRequest(), -1e9, None).out_of_time()

    def test_a_signal_before_the_first_step(self, run: Run) -> None:
        run.require_going_on()
        run.stop.number = 15
        with pytest.raises(StoppedError, match="nothing is lost") as caught:
            run.require_going_on()
        assert caught.value.exit_code == 143


class TestFresh:
    def test_the_folder_says_what_is_trained_on_what(
        self, run: Run, image_folder: Path, tiny_settings: dict[str, Any]
    ) -> None:
        events, training = begun(run, [image_folder], tiny_settings)
        assert events[:12] == [Decoding(done, 12) for done in range(1, 13)]
        assert [type(event) for event in events[12:]] == [Notice, Notice]
        assert training.step == 0
        assert training.config == TrainConfig(**asdict(training.config) | tiny_settings)
        assert read_config(run.folder / "config.toml") == asdict(training.config)
        saved = json.loads((run.folder / "dataset.json").read_text())
        assert Manifest.from_dict(saved) == training.store.manifest
        facts = json.loads((run.folder / "env.json").read_text())
        assert facts["fingerprint"] == numerics(training)
        assert read_status(run.folder)["status"] == "running"

    def test_initial_weights_are_those_of_the_seed(
        self, run: Run, image_folder: Path, tiny_settings: dict[str, Any]
    ) -> None:
        _, training = begun(run, [image_folder], tiny_settings | {"seed": 5})
        expected = build_network(Architecture("resnet18", 16, 4, 6), 5).state_dict()
        found = training.network.state_dict()
        assert all(torch.equal(found[name], expected[name]) for name in expected)

    def test_the_preset_counts_only_usable_images(
        self, run: Run, image_folder: Path, tiny_settings: dict[str, Any], tmp_path: Path
    ) -> None:
        """Twelve good images make 500 steps at one step an epoch, had the limit of 60 epochs not come first."""
        junk = [tmp_path / f"{k}.jpg" for k in range(8)]
        for path in junk:
            path.write_bytes(b"junk")
        settings = {k: v for k, v in tiny_settings.items() if k not in ("epochs", "batch_size")}
        _, training = begun(run, [image_folder, *junk], settings)
        assert (training.config.batch_size, training.config.epochs) == (12, 60)
        assert len(training.store) == 12

    def test_too_many_bad_files(
        self, run: Run, image_folder: Path, tiny_settings: dict[str, Any], tmp_path: Path
    ) -> None:
        (tmp_path / "bad.jpg").touch()
        manifest = scan([image_folder, tmp_path / "bad.jpg"])
        with pytest.raises(InputError, match=r"1 of 13 files cannot be used .*--max-bad"):
            drained(fresh(run, manifest, None, tiny_settings, 0.05, None))
        (line,) = (run.folder / "skipped.jsonl").read_text().splitlines()
        assert json.loads(line)["reason"] == "empty"


class TestResumed:
    def test_it_is_the_training_that_was_saved(
        self, run: Run, image_folder: Path, tiny_settings: dict[str, Any]
    ) -> None:
        _, before = begun(run, [image_folder], tiny_settings)
        next(iter(before.records()))
        tensors, state = before.state()
        state = {**state, "fingerprint": numerics(before)}
        save_checkpoint(run.folder / "checkpoints", tensors, state, step=before.step)
        events, after = drained(resumed(run_in(run.folder), {}))
        assert after is not None
        assert (after.step, after.config) == (1, before.config)
        assert all(isinstance(event, Decoding) for event in events)
        restored = after.state()[0]
        assert restored.keys() == tensors.keys()
        assert all(torch.equal(restored[name], tensors[name]) for name in tensors)

    def test_a_finished_run_has_nothing_left(
        self, run: Run, image_folder: Path, tiny_settings: dict[str, Any]
    ) -> None:
        begun(run, [image_folder], tiny_settings)
        write_status(run.folder, "done", exit_code=0)
        events, training = drained(resumed(run, {}))
        assert training is None
        assert events[-1] == Trained(run.folder, run.folder / "model", None, complete=True)

    def test_other_settings(
        self, run: Run, image_folder: Path, tiny_settings: dict[str, Any]
    ) -> None:
        begun(run, [image_folder], tiny_settings)
        with pytest.raises(UsageError, match="--resume: clusters is 4"):
            drained(resumed(run, {"clusters": 5}))
