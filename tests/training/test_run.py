"""A run from end to end on tiny images: what it leaves, how it stops and goes on, and what it refuses.

`train` stands for every recipe here; what is a recipe's own is in `test_training` and `test_pretraining`.

Run as a program, this file is the child of the kill test: it trains, and kills itself after a given step.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import runpy
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from densesiam_seg.clustering.mixture import RESTARTS
from densesiam_seg.config import TrainConfig
from densesiam_seg.errors import (
    BusyError,
    DenseSiamError,
    InputError,
    ModelError,
    NumericError,
    OutputError,
    StoppedError,
    UsageError,
)
from densesiam_seg.events import EpochRecord, Event, Notice, Progress, Started, StepRecord, Trained
from densesiam_seg.images import store as batches
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.io.environment import environment
from densesiam_seg.io.lock import LOCK, RunLock
from densesiam_seg.io.records import read_records
from densesiam_seg.io.run_directory import RUN_NAMES, read_status
from densesiam_seg.methods.densesiam import objective_of
from densesiam_seg.methods.interface import Objective
from densesiam_seg.network.model import DenseSiam
from densesiam_seg.presets import FROM_SCRATCH
from densesiam_seg.training import loop
from densesiam_seg.training import run as running
from densesiam_seg.training import setup as preparation
from densesiam_seg.training.checkpoint import TENSORS, load_checkpoint
from densesiam_seg.training.pretrain import pretrain
from densesiam_seg.training.train import train, training_events

posix = pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
BAD_IMAGES = Path(__file__).resolve().parents[3] / "shared" / "data" / "badimages"


@pytest.fixture(scope="module", autouse=True)
def _slim(slim_resnets: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    with slim_resnets():
        yield


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def save_always(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint after every step."""
    monkeypatch.setattr(running, "SAVE_SECONDS", -1.0)


@pytest.fixture
def own_images(image_folder: Path, tmp_path: Path) -> Path:
    """A copy of the images that a test may change; the times of the files are the originals'."""
    return shutil.copytree(image_folder, tmp_path / "own")


def model_files(run: Path) -> dict[str, str]:
    """SHA-256 of every file of the model."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((run / "model").iterdir())
    }


def course(run: Path) -> list[dict[str, Any]]:
    """The metrics without their times."""
    return [
        {name: value for name, value in record.items() if name != "seconds"}
        for record in read_records(run / "metrics.jsonl")
    ]


def stop_after(
    step: int, images: Path, out: Path, number: int = signal.SIGTERM, **options: Any
) -> tuple[StoppedError, list[Event]]:
    """Train until a step was made, send this process the signal, and go on until the run ends."""
    seen: list[Event] = []
    with pytest.raises(StoppedError) as caught:
        for event in training_events([images], out=out, **options):
            seen.append(event)
            if isinstance(event, StepRecord) and event.step == step:
                os.kill(os.getpid(), number)
    return caught.value, seen


def leave_at(end: Callable[[Event], bool], events: Iterator[Event]) -> list[Event]:
    """The events up to the one that is the end; the rest of the run does not happen."""
    seen = []
    for event in events:
        seen.append(event)
        if end(event):
            break
    events.close()  # type: ignore[attr-defined]
    return seen


@pytest.fixture(scope="module")
def finished(
    image_folder: Path, tiny_settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[Event]]:
    """An uninterrupted run, for reading only, and its events."""
    out = tmp_path_factory.mktemp("finished") / "run"
    return out, list(training_events([image_folder], out=out, **tiny_settings))


@pytest.fixture(scope="module")
def reference(finished: tuple[Path, list[Event]]) -> Path:
    return finished[0]


def same_end(run: Path, reference: Path) -> None:
    """The run ended as the reference did: every byte of the model, every record but its time, the status."""
    assert model_files(run) == model_files(reference)
    assert course(run) == course(reference)
    assert read_status(run)["status"] == "done"


class TestRun:
    def test_events_come_in_order(self, finished: tuple[Path, list[Event]]) -> None:
        run, events = finished
        assert events[:12] == [Progress("reading images", done, 12) for done in range(1, 13)]
        # The images are looked at, and then the mixture's fits are made.
        preparing = [event for event in events[12:] if isinstance(event, Progress)]
        assert len(preparing) == 12 + RESTARTS
        assert (preparing[0], preparing[-1]) == (
            Progress("clustering for epoch 1", 1, 12),
            Progress("clustering for epoch 1", 12, 12),
        )
        assert [type(event).__name__ for event in events[12:]] == [
            *["Notice", "Notice", "Started"],
            *["Progress"] * len(preparing),
            *["StepRecord", "StepRecord", "StepRecord", "EpochRecord"] * 3,
            "Trained",
        ]
        started, trained = events[14], events[-1]
        assert isinstance(started, Started) and isinstance(trained, Trained)
        assert (started.run, started.images) == (run, 12)
        assert (started.step, started.total_steps) == (0, 9)
        assert (trained.run, trained.model) == (run, run / "model")
        assert trained.complete and trained.last == events[-2]
        assert not [event for event in events if isinstance(event, Notice) and event.warning]

    def test_the_folder_holds_what_is_promised(
        self, reference: Path, image_folder: Path, tiny_settings: dict[str, Any]
    ) -> None:
        names = {path.name for path in reference.iterdir()}
        assert names - {LOCK} == RUN_NAMES - {"report"}
        config = TrainConfig(**tomllib.loads((reference / "config.toml").read_text()))
        recipe = {**FROM_SCRATCH, "rate_scaling": "none"}
        assert config == TrainConfig(**recipe, **tiny_settings)
        assert (reference / "config.toml").read_text().startswith("# preset balanced")
        listed = json.loads((reference / "dataset.json").read_text())
        assert listed["names"] == sorted(path.name for path in image_folder.iterdir())
        assert (reference / "skipped.jsonl").read_bytes() == b""
        facts = json.loads((reference / "env.json").read_text())
        assert facts["fingerprint"]["threads"] == 1
        assert facts["fingerprint"]["precision"] == "float32"
        status = read_status(reference)
        assert (status["status"], status["exit_code"], status["reason"]) == ("done", 0, "")
        names = {path.name for path in (reference / "checkpoints").iterdir()}
        assert names == {"step-00000000", "step-00000009"}

    def test_the_metrics_are_the_events(self, finished: tuple[Path, list[Event]]) -> None:
        run, events = finished
        expected = []
        for event in events:
            if isinstance(event, StepRecord | EpochRecord):
                kind = "step" if isinstance(event, StepRecord) else "epoch"
                expected.append({"record": kind, **asdict(event)})
        assert read_records(run / "metrics.jsonl") == expected

    def test_the_log_tells_the_course(self, reference: Path) -> None:
        lines = (reference / "train.log").read_text().splitlines()
        text = "\n".join(lines)
        for part in ("preset balanced", "weights: none", "training on 12 images", "epoch 3: "):
            assert part in text
        assert len(lines) == 6

    def test_the_model_predicts(self, reference: Path, image_folder: Path) -> None:
        segmenter = Segmenter.load(reference, device="cpu", precision="fp32")
        mask = segmenter.predict(image_folder / "00.jpg")
        assert mask.shape == (64, 64) and int(mask.max()) < 4
        shares = [cluster.share for cluster in segmenter.clusters]
        assert shares == read_records(reference / "metrics.jsonl")[-1]["shares"]
        assert segmenter.card.training["steps"] == 9
        assert segmenter.card.training["epochs"] == 3.0

    def test_without_a_place_it_makes_one_and_points_to_it(
        self, image_folder: Path, tiny_settings: dict[str, Any], tmp_path: Path
    ) -> None:
        trained = train(image_folder, **{**tiny_settings, "epochs": 1})
        assert trained.run.parent == Path("runs/train")
        assert (tmp_path / "runs/train/latest/model").is_dir()
        assert train([], resume=True).run.resolve() == trained.run.resolve()

    def test_global_generators_are_untouched(
        self, image_folder: Path, tiny_settings: dict[str, Any], tmp_path: Path
    ) -> None:
        before = torch.get_rng_state(), str(np.random.get_state()), random.getstate()  # noqa: NPY002
        train(image_folder, tmp_path / "run", **{**tiny_settings, "epochs": 1})
        after = torch.get_rng_state(), str(np.random.get_state()), random.getstate()  # noqa: NPY002
        assert torch.equal(before[0], after[0]) and before[1:] == after[1:]

    def test_collapse_is_told(
        self,
        image_folder: Path,
        tiny_settings: dict[str, Any],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(loop, "IN_USE", 2.0)
        options = {**tiny_settings, "epochs": 1}
        events = list(training_events([image_folder], out=tmp_path / "run", **options))
        (warning,) = [event for event in events if isinstance(event, Notice) and event.warning]
        assert "0 of 4 in use" in warning.text and "--clusters" in warning.text

    def test_the_last_two_checkpoints_stay(
        self,
        image_folder: Path,
        tiny_settings: dict[str, Any],
        tmp_path: Path,
        save_always: None,
    ) -> None:
        events = training_events([image_folder], out=tmp_path, **tiny_settings)
        leave_at(lambda event: isinstance(event, StepRecord) and event.step == 6, events)
        names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
        assert names == ["step-00000004", "step-00000005"]


class TestReplay:
    @pytest.mark.parametrize("workers", [1, 3])
    def test_workers_and_memory_do_not_matter(
        self,
        image_folder: Path,
        tiny_settings: dict[str, Any],
        tmp_path: Path,
        reference: Path,
        monkeypatch: pytest.MonkeyPatch,
        workers: int,
    ) -> None:
        monkeypatch.setattr(batches, "free_memory", lambda: 0)
        train(image_folder, tmp_path / "run", **{**tiny_settings, "workers": workers})
        same_end(tmp_path / "run", reference)

    def test_bad_files_among_the_good_do_not_matter(
        self, own_images: Path, tiny_settings: dict[str, Any], tmp_path: Path, reference: Path
    ) -> None:
        (own_images / "000.png").write_bytes(b"junk")
        (own_images / "07b.jpg").write_bytes((own_images / "06.jpg").read_bytes()[:200])
        train(own_images, tmp_path / "run", **tiny_settings)
        same_end(tmp_path / "run", reference)


@posix
class TestResume:
    @pytest.mark.parametrize(
        ("step", "number"),
        [
            (1, signal.SIGINT),
            (3, signal.SIGTERM),  # an epoch's end
            (4, signal.SIGTERM),
            (6, signal.SIGINT),  # the region loss joins in next
            (8, signal.SIGTERM),
            (9, signal.SIGINT),  # all steps done, the model not yet written
        ],
    )
    def test_a_stopped_run_goes_on_to_the_same_bits(
        self,
        image_folder: Path,
        tiny_settings: dict[str, Any],
        tmp_path: Path,
        reference: Path,
        step: int,
        number: int,
    ) -> None:
        run = tmp_path / "run"
        error, _ = stop_after(step, image_folder, run, number, **tiny_settings)
        assert error.exit_code == 128 + number
        assert f"step {step} of 9" in str(error) and f"--resume --out {run}" in str(error)
        status = read_status(run)
        assert (status["status"], status["exit_code"]) == ("stopped", 128 + number)
        assert not (run / "model").exists()

        *events, trained = training_events([], out=run, resume=True)
        started = next(event for event in events if isinstance(event, Started))
        assert (started.step, started.total_steps) == (step, 9)
        assert not [event for event in events if isinstance(event, Notice) and event.warning]
        assert isinstance(trained, Trained) and trained.complete
        same_end(run, reference)

    def test_many_stops(
        self, image_folder: Path, tiny_settings: dict[str, Any], tmp_path: Path, reference: Path
    ) -> None:
        stop_after(2, image_folder, tmp_path / "run", **tiny_settings)
        for step in (5, 6):
            stop_after(step, image_folder, tmp_path / "run", resume=True)
        train([], tmp_path / "run", resume=True, **tiny_settings)
        same_end(tmp_path / "run", reference)

    @pytest.mark.parametrize("precision", ["bf16", "fp16"])
    def test_in_half_precision(
        self, image_folder: Path, tiny_settings: dict[str, Any], tmp_path: Path, precision: str
    ) -> None:
        options = {**tiny_settings, "precision": precision, "epochs": 2}
        train(image_folder, tmp_path / "whole", **options)
        stop_after(4, image_folder, tmp_path / "run", **options)
        train([], tmp_path / "run", resume=True)
        same_end(tmp_path / "run", tmp_path / "whole")

    def test_a_killed_run_goes_on_to_the_same_bits(
        self, image_folder: Path, tiny_settings: dict[str, Any], tmp_path: Path, reference: Path
    ) -> None:
        """Killed after step 5 was recorded and before it was saved."""
        run = tmp_path / "run"
        child = subprocess.run(
            [sys.executable, __file__, image_folder, run, json.dumps(tiny_settings)],
            check=False,
            capture_output=True,
            text=True,
        )
        assert child.returncode == -signal.SIGKILL, child.stderr
        assert read_status(run)["status"] == "running"
        assert read_records(run / "metrics.jsonl")[-1]["step"] == 5
        stale = run / "checkpoints" / ".tmp-5-1234567"
        stale.mkdir()
        (run / ".tmp-1234567-0badc0de").write_text("half a file")

        events = list(training_events([], out=run, resume=True))
        assert next(event.step for event in events if isinstance(event, Started)) == 4
        same_end(run, reference)
        assert not stale.exists() and not list(run.glob(".tmp-*"))

    def test_a_stop_before_the_first_step(
        self, image_folder: Path, tiny_settings: dict[str, Any], tmp_path: Path
    ) -> None:
        with pytest.raises(StoppedError, match="before the first step") as caught:
            for event in training_events([image_folder], out=tmp_path / "run", **tiny_settings):
                assert isinstance(event, Progress)
                if event.done == 3:
                    os.kill(os.getpid(), signal.SIGTERM)
        assert caught.value.exit_code == 143
        assert read_status(tmp_path / "run")["status"] == "stopped"
        with pytest.raises(ModelError, match="no run of train to resume here"):
            train([], tmp_path / "run", resume=True)

    def test_handlers_are_gone_when_it_ends(
        self, image_folder: Path, tiny_settings: dict[str, Any], tmp_path: Path
    ) -> None:
        before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
        stop_after(1, image_folder, tmp_path / "run", **tiny_settings)
        assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.fixture(scope="module")
def stopped_once(
    image_folder: Path, tiny_settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A run that was stopped after step 5, with checkpoints of steps 4 and 5; for reading only."""
    folder = tmp_path_factory.mktemp("stopped")
    images = shutil.copytree(image_folder, folder / "images")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "SAVE_SECONDS", -1.0)
        stop_after(5, images, folder / "run", **tiny_settings)
    return folder


@pytest.fixture
def stopped(stopped_once: Path, tmp_path: Path) -> Path:
    """A copy of that run, and of its images, that a test may change."""
    for name in ("images", "run"):
        shutil.copytree(stopped_once / name, tmp_path / name)
    listed = tmp_path / "run" / "dataset.json"
    content = json.loads(listed.read_text())
    assert content["root"] == str(stopped_once / "images")
    listed.write_text(json.dumps({**content, "root": str(tmp_path / "images")}))
    return tmp_path / "run"


@posix
class TestResumeAfterChange:
    def test_the_copy_itself_goes_on(self, stopped: Path, reference: Path) -> None:
        train([], stopped, resume=True)
        same_end(stopped, reference)

    @pytest.mark.parametrize("damage", ["flip", "cut", "no manifest"])
    def test_a_damaged_checkpoint_is_passed_over_with_a_warning(
        self, stopped: Path, reference: Path, damage: str
    ) -> None:
        newest = max((stopped / "checkpoints").iterdir())
        assert newest.name == "step-00000005"
        tensors = newest / TENSORS
        if damage == "flip":
            data = bytearray(tensors.read_bytes())
            data[len(data) // 2] ^= 1
            tensors.write_bytes(data)
        elif damage == "cut":
            tensors.write_bytes(tensors.read_bytes()[:-1])
        else:
            (newest / "manifest.json").unlink()
        events = list(training_events([], out=stopped, resume=True))
        (warning,) = [event for event in events if isinstance(event, Notice) and event.warning]
        assert str(newest) in warning.text and "damaged" in warning.text
        assert next(event.step for event in events if isinstance(event, Started)) == 4
        same_end(stopped, reference)

    def test_without_a_sound_checkpoint_it_is_refused(self, stopped: Path) -> None:
        for path in (stopped / "checkpoints").glob("*/manifest.json"):
            path.write_text("{}")
        with pytest.raises(ModelError, match="no checkpoint is sound"):
            train([], stopped, resume=True)
        assert read_status(stopped)["exit_code"] == 4

    def test_without_any_checkpoint_it_is_refused(self, stopped: Path) -> None:
        shutil.rmtree(stopped / "checkpoints")
        with pytest.raises(ModelError, match="before its first checkpoint"):
            train([], stopped, resume=True)

    @pytest.mark.parametrize(
        ("name", "value"), [("seed", 1), ("batch_size", 2), ("clusters", 5), ("workers", 2)]
    )
    def test_changed_settings_are_refused(self, stopped: Path, name: str, value: int) -> None:
        before = model_tensors(stopped)
        with pytest.raises(UsageError, match=f"--resume: {name} is ") as caught:
            train([], stopped, resume=True, **{name: value})
        assert caught.value.exit_code == 2
        assert model_tensors(stopped) == before

    def test_equal_settings_and_unknown_ones(self, stopped: Path) -> None:
        with pytest.raises(UsageError, match="unknown setting 'cluster'"):
            train([], stopped, resume=True, cluster=4)
        assert train([], stopped, resume=True, clusters=4, seed=0).complete

    @pytest.mark.parametrize(
        "options", [{"overwrite": True}, {"preset": "fast"}, {"init_from": "model"}]
    )
    def test_options_of_a_new_run_are_refused(
        self, stopped: Path, options: dict[str, object]
    ) -> None:
        with pytest.raises(UsageError, match="leave out --init-from, --overwrite and --preset"):
            train([], stopped, resume=True, **options)

    @pytest.mark.parametrize("change", ["edit", "touch", "remove"])
    def test_changed_images_are_refused(self, stopped: Path, change: str) -> None:
        image = stopped.parent / "images" / "05.png"
        if change == "edit":
            status = image.stat()
            image.write_bytes(image.read_bytes() + b"\0")
            os.utime(image, ns=(status.st_atime_ns, status.st_mtime_ns))
        elif change == "touch":
            os.utime(image, (1, 1))
        else:
            image.unlink()
        with pytest.raises(ModelError, match=r"1 of 12 training images .* first 05\.png") as caught:
            train([], stopped, resume=True)
        assert caught.value.exit_code == 4
        assert len(list((stopped / "checkpoints").iterdir())) == 2

    def test_an_image_that_can_no_longer_be_read_is_refused(self, stopped: Path) -> None:
        image = stopped.parent / "images" / "05.png"
        status = image.stat()
        image.write_bytes(b"\0" * status.st_size)
        os.utime(image, ns=(status.st_atime_ns, status.st_mtime_ns))
        with pytest.raises(ModelError, match=r"05\.png: was read before and cannot be now"):
            train([], stopped, resume=True)

    def test_images_that_were_added_are_left_out(self, stopped: Path, reference: Path) -> None:
        folder = stopped.parent / "images"
        shutil.copy(folder / "03.png", folder / "000.png")
        train([], stopped, resume=True)
        same_end(stopped, reference)

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("config.toml", None),
            ("config.toml", "clusters = "),
            ("config.toml", "clusters = 1"),
            ("config.toml", "unknown = 1"),
            ("dataset.json", None),
            ("dataset.json", "{"),
            ("dataset.json", "[]"),
            ("dataset.json", "{}"),
        ],
    )
    def test_a_damaged_run_is_refused(self, stopped: Path, name: str, content: str | None) -> None:
        if content is None:
            (stopped / name).unlink()
        else:
            (stopped / name).write_text(content)
        with pytest.raises(ModelError, match="no run of train to resume here") as caught:
            train([], stopped, resume=True)
        assert caught.value.exit_code == 4 and "\n" not in str(caught.value)

    def test_edited_settings_that_do_not_fit_the_checkpoint_are_refused(
        self, stopped: Path
    ) -> None:
        path = stopped / "config.toml"
        path.write_text(path.read_text().replace("\nclusters = 4\n", "\nclusters = 5\n"))
        with pytest.raises(ModelError, match=r"does not fit the run's config\.toml"):
            train([], stopped, resume=True)

    def test_a_run_of_before_there_were_methods(self, stopped: Path, reference: Path) -> None:
        path = stopped / "config.toml"
        new = ("method", "image_weight", "optimizer", "visualize_every")
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(line for line in lines if line.split(" ")[0] not in new))
        assert len(path.read_text().splitlines()) == len(lines) - len(new)
        train([], stopped, resume=True)
        same_end(stopped, reference)

    def test_a_run_of_the_other_command_is_refused(self, stopped: Path) -> None:
        with pytest.raises(
            ModelError, match=r"no run of pretrain to resume here \(unknown setting 'method'"
        ):
            pretrain([], stopped, resume=True)
        assert read_status(stopped)["exit_code"] == 4
        assert train([], stopped, resume=True).complete

    def test_another_machine_is_told(self, stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        here = environment()
        monkeypatch.setattr(preparation, "environment", lambda: {**here, "threads": 7})
        events = list(training_events([], out=stopped, resume=True))
        (warning,) = [event for event in events if isinstance(event, Notice) and event.warning]
        assert "not bit-exact: threads 1 -> 7" in warning.text

    @pytest.mark.parametrize("make", [False, True])
    def test_no_run_is_refused(self, tmp_path: Path, make: bool) -> None:
        if make:
            (tmp_path / "empty").mkdir()
        with pytest.raises(UsageError, match="holds no run to resume"):
            train([], tmp_path / "empty", resume=True)
        with pytest.raises(UsageError, match="no run to resume"):
            train([], resume=True)

    def test_a_finished_run_stays_as_it_is(self, reference: Path, tmp_path: Path) -> None:
        run = shutil.copytree(reference, tmp_path / "run")
        before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and p.name != LOCK}
        trained = train([], run, resume=True)
        assert trained.complete and trained.model == run / "model"
        with pytest.raises(UsageError, match="seed"):
            train([], run, resume=True, seed=5)
        log = run / "train.log"
        assert log.read_bytes().removeprefix(before.pop(log)).endswith(b"nothing to do\n")
        assert {path: path.read_bytes() for path in before} == before


def model_tensors(run: Path) -> dict[str, str]:
    return {
        str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((run / "checkpoints").rglob("*"))
        if path.is_file()
    }


class TestTimeLimit:
    def test_it_ends_with_a_model_and_can_go_on(
        self, image_folder: Path, tiny_settings: dict[str, Any], tmp_path: Path, reference: Path
    ) -> None:
        run = tmp_path / "run"
        trained = train(image_folder, run, max_time=0, **tiny_settings)
        assert not trained.complete and trained.last is None
        status = read_status(run)
        assert (status["status"], status["reason"]) == ("stopped", "time limit")
        assert status["exit_code"] == 0
        assert Segmenter.load(run, device="cpu").card.training["steps"] == 1
        assert not train([], run, resume=True, max_time=0).complete
        assert Segmenter.load(run, device="cpu").card.training["steps"] == 2
        assert train([], run, resume=True, max_time=3600).complete
        same_end(run, reference)

    def test_at_an_epochs_end_the_epoch_is_whole(
        self,
        image_folder: Path,
        tiny_settings: dict[str, Any],
        tmp_path: Path,
        reference: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        run, now = tmp_path / "run", time.monotonic()
        monkeypatch.setattr("densesiam_seg.training.run.time.monotonic", lambda: now)
        last: Event | None = None
        for event in training_events([image_folder], out=run, max_time=50, **tiny_settings):
            last = event
            if isinstance(event, StepRecord) and event.step == 3:
                now += 50
        assert isinstance(last, Trained) and not last.complete
        assert last.last is not None and last.last.step == 3
        assert course(run) == course(reference)[:4]
        train([], run, resume=True)
        same_end(run, reference)


class TestPlace:
    def test_a_folder_with_something_in_it_is_refused(
        self, image_folder: Path, tiny_settings: dict[str, Any], tmp_path: Path
    ) -> None:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "mine.txt").write_text("mine")
        with pytest.raises(UsageError, match="is not empty; give --overwrite, --resume or another"):
            train(image_folder, tmp_path / "run", **tiny_settings)
        with pytest.raises(UsageError, match=r"mine\.txt"):
            train(image_folder, tmp_path / "run", overwrite=True, **tiny_settings)
        assert [path.name for path in (tmp_path / "run").iterdir() if path.name != LOCK] == [
            "mine.txt"
        ]

    def test_overwrite_replaces_a_run(
        self, image_folder: Path, tiny_settings: dict[str, Any], tmp_path: Path, reference: Path
    ) -> None:
        run = tmp_path / "run"
        train(image_folder, run, **{**tiny_settings, "seed": 5, "epochs": 1})
        with pytest.raises(UsageError, match="is not empty"):
            train(image_folder, run, **tiny_settings)
        train(image_folder, run, overwrite=True, **tiny_settings)
        same_end(run, reference)

    def test_a_file_is_no_folder(
        self, image_folder: Path, tiny_settings: dict[str, Any], tmp_path: Path
    ) -> None:
        (tmp_path / "run").write_text("mine")
        for overwrite in (False, True):
            with pytest.raises(OutputError, match="is not a folder") as caught:
                train(image_folder, tmp_path / "run", overwrite=overwrite, **tiny_settings)
            assert caught.value.exit_code == 5
        assert (tmp_path / "run").read_text() == "mine"

    @pytest.mark.parametrize("options", [{}, {"overwrite": True}, {"resume": True}])
    def test_a_folder_in_use_is_refused(
        self,
        image_folder: Path,
        tiny_settings: dict[str, Any],
        tmp_path: Path,
        reference: Path,
        options: dict[str, bool],
    ) -> None:
        run = tmp_path / "run"
        if options:
            shutil.copytree(reference, run)
        run.mkdir(exist_ok=True)
        with RunLock(run):
            with pytest.raises(BusyError, match=f"in use by process {os.getpid()}") as caught:
                train(image_folder, run, **options, **tiny_settings)
            assert caught.value.exit_code == 7
        if options:
            same_end(run, reference)

    def test_wrong_settings_leave_no_folder(self, image_folder: Path, tmp_path: Path) -> None:
        wrong: list[dict[str, Any]] = [
            {"clusters": 1},
            {"cluster": 3},
            {"device": "gpu"},
            {"method": ["picie"]},
            {"method": "simsiam", "image_weight": 0},
        ]
        for settings in wrong:
            with pytest.raises(UsageError):
                train(image_folder, tmp_path / "run", **settings)
        assert not (tmp_path / "run").exists()


class TestInput:
    def refused(self, images: Path, run: Path, **options: Any) -> str:
        with pytest.raises(InputError) as caught:
            train(images, run, **options)
        message = str(caught.value)
        assert caught.value.exit_code == 3 and "\n" not in message
        if run.exists():
            status = read_status(run)
            assert (status["status"], status["exit_code"]) == ("failed", 3)
            assert status["reason"] == message
        return message

    def test_nothing_to_train_on(self, tmp_path: Path) -> None:
        folder = tmp_path / "images"
        assert str(folder) in self.refused(folder, tmp_path / "run")
        folder.mkdir()
        assert str(folder) in self.refused(folder, tmp_path / "run")
        (folder / "notes.csv").write_text("a, b")
        assert ".csv" in self.refused(folder, tmp_path / "run")
        assert not (tmp_path / "run").exists()

    def test_a_folder_of_junk(self, tiny_settings: dict[str, Any], tmp_path: Path) -> None:
        folder = tmp_path / "images"
        folder.mkdir()
        for number in range(3):
            (folder / f"{number}.jpg").write_bytes(b"junk" * number)
        message = self.refused(folder, tmp_path / "run", **tiny_settings)
        assert "3 of 3 files cannot be used" in message and "0.jpg" in message
        listed = read_records(tmp_path / "run" / "skipped.jsonl")
        assert [record["path"] for record in listed] == ["0.jpg", "1.jpg", "2.jpg"]

    def test_fewer_images_than_a_batch(
        self, image_folder: Path, tiny_settings: dict[str, Any], tmp_path: Path
    ) -> None:
        message = self.refused(image_folder, tmp_path / "a", **{**tiny_settings, "batch_size": 13})
        assert "12 usable images" in message and "batch of 13" in message
        options = {**tiny_settings, "preset": "paper"}
        del options["batch_size"]
        assert "batch of 256" in self.refused(image_folder, tmp_path / "b", **options)

    @pytest.mark.parametrize("count", [1, 3])
    def test_the_batch_shrinks_to_few_images(
        self, image_folder: Path, tiny_settings: dict[str, Any], tmp_path: Path, count: int
    ) -> None:
        options = {**tiny_settings, "region_start": 0}
        del options["batch_size"]
        paths: list[str | Path] = [*sorted(image_folder.iterdir())[:count]]
        events = list(training_events(paths, out=tmp_path / "run", **options))
        started = next(event for event in events if isinstance(event, Started))
        assert (started.images, started.config.batch_size) == (count, count)
        assert started.total_steps == 3
        assert isinstance(events[-1], Trained) and events[-1].complete
        steps = [event for event in events if isinstance(event, StepRecord)]
        assert all(math.isfinite(value) for step in steps for value in step.losses.values())

    def test_skipped_files_are_listed_and_counted(
        self, own_images: Path, tiny_settings: dict[str, Any], tmp_path: Path
    ) -> None:
        for number in range(12):
            (own_images / f"bad{number:02}.png").write_bytes(b"x")
        (own_images / "link.png").symlink_to(own_images / "absent.png")
        options = {**tiny_settings, "epochs": 1}
        events = list(training_events([own_images], out=tmp_path / "run", **options))
        warnings = [event.text for event in events if isinstance(event, Notice) and event.warning]
        assert len(warnings) == 11, "ten files, and how many there are"
        assert "13 of 25 files were skipped" in warnings[-1]
        assert str(tmp_path / "run" / "skipped.jsonl") in warnings[-1]
        listed = read_records(tmp_path / "run" / "skipped.jsonl")
        names = [*(f"bad{number:02}.png" for number in range(12)), "link.png"]
        assert [record["path"] for record in listed] == names
        assert all(record.keys() == {"path", "reason", "message"} for record in listed)
        assert listed[-1]["reason"] == "dangling-link"
        assert isinstance(events[-1], Trained) and events[-1].complete

    def test_the_share_of_bad_files_has_a_limit(
        self, own_images: Path, tiny_settings: dict[str, Any], tmp_path: Path
    ) -> None:
        (own_images / "13.png").write_bytes(b"x")
        options = {**tiny_settings, "epochs": 1}
        message = self.refused(own_images, tmp_path / "a", max_bad=1 / 14, **options)
        assert "1 of 13 files" in message and "--max-bad" in message and "13.png" in message
        assert train(own_images, tmp_path / "b", max_bad=1 / 13, **options).complete

    @pytest.mark.skipif(not BAD_IMAGES.is_dir(), reason="needs the shared data")
    def test_real_bad_images_among_good_ones(
        self, image_folder: Path, tiny_settings: dict[str, Any], tmp_path: Path
    ) -> None:
        options = {**tiny_settings, "epochs": 1, "max_pixels": 10**6}
        trained = train([image_folder, BAD_IMAGES], tmp_path / "run", **options)
        assert trained.complete
        listed = read_records(tmp_path / "run" / "skipped.jsonl")
        assert len({record["reason"] for record in listed}) > 3
        content = json.loads((tmp_path / "run" / "dataset.json").read_text())
        assert len(content["names"]) >= 12
        assert {record["path"] for record in listed}.isdisjoint(content["names"])


class TestNumericFailure:
    @pytest.mark.usefixtures("save_always")
    def test_it_keeps_the_last_checkpoint_and_tells_why(
        self,
        image_folder: Path,
        tiny_settings: dict[str, Any],
        tmp_path: Path,
        reference: Path,
    ) -> None:
        calls = 0

        def faulty(
            network: DenseSiam,
            features: Tensor,
            config: TrainConfig,
            *,
            regions: bool,
            prior: Tensor | None,
        ) -> Objective:
            nonlocal calls
            calls += 1
            result = objective_of(network, features, config, regions=regions, prior=prior)
            return replace(result, total=result.total * math.nan) if calls == 3 else result

        run = tmp_path / "run"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("densesiam_seg.methods.densesiam.objective_of", faulty)
            with pytest.raises(NumericError, match="step 3") as caught:
                train(image_folder, run, **tiny_settings)
        assert caught.value.exit_code == 6
        status = read_status(run)
        assert (status["status"], status["exit_code"]) == ("failed", 6)
        assert "step 3" in status["reason"] and ".png" in status["reason"]
        loaded = load_checkpoint(run / "checkpoints")
        assert loaded is not None and loaded.checkpoint.step == 2
        assert not (run / "model").exists()
        train([], run, resume=True)
        same_end(run, reference)

    def test_a_programmers_mistake_is_noted_and_raised(
        self,
        image_folder: Path,
        tiny_settings: dict[str, Any],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def wrong(*args: object, **options: object) -> Objective:
            raise ZeroDivisionError

        monkeypatch.setattr("densesiam_seg.methods.densesiam.objective_of", wrong)
        with pytest.raises(ZeroDivisionError):
            train(image_folder, tmp_path / "run", **tiny_settings)
        status = read_status(tmp_path / "run")
        assert (status["status"], status["exit_code"]) == ("failed", 1)
        assert status["reason"] == "ZeroDivisionError"


class TestInitFrom:
    """Which weights are taken over is `test_preparation`'s."""

    @pytest.mark.parametrize("part", ["", "model"])
    def test_a_run_starts_from_the_weights_of_another(
        self,
        image_folder: Path,
        tiny_settings: dict[str, Any],
        tmp_path: Path,
        reference: Path,
        part: str,
    ) -> None:
        options = {**tiny_settings, "init_from": reference / part, "seed": 9}
        events = training_events([image_folder], out=tmp_path, **options)
        seen = leave_at(lambda event: isinstance(event, Started), events)
        (*_, line) = [event.text for event in seen if isinstance(event, Notice)]
        assert line == f"initial weights: {reference / part}"
        loaded = load_checkpoint(tmp_path / "checkpoints")
        assert loaded is not None and loaded.checkpoint.step == 0
        trained = Segmenter.load(reference, device="cpu").network.state_dict()
        for name, value in trained.items():
            assert torch.equal(loaded.checkpoint.tensors[f"network.{name}"], value), name

    def test_what_is_no_model_is_refused(
        self, image_folder: Path, tiny_settings: dict[str, Any], tmp_path: Path
    ) -> None:
        with pytest.raises(ModelError, match="no model here"):
            train(image_folder, tmp_path / "run", init_from=image_folder, **tiny_settings)
        assert not (tmp_path / "run").exists()


class TestPictures:
    """`--visualize-every`."""

    @pytest.mark.parametrize(("every", "epochs"), [(1, [1, 2, 3]), (2, [2])])
    def test_they_come_after_so_many_epochs_and_change_nothing(
        self,
        image_folder: Path,
        tiny_settings: dict[str, Any],
        tmp_path: Path,
        reference: Path,
        every: int,
        epochs: list[int],
    ) -> None:
        run = tmp_path / "run"
        options = {**tiny_settings, "visualize_every": every}
        events = list(training_events([image_folder], out=run, **options))
        paths = [run / "report" / f"epoch-{epoch:04}.png" for epoch in epochs]
        told = [str(event) for event in events if str(event).startswith("picture: ")]
        assert told == [f"picture: {path}" for path in paths]
        assert paths == sorted((run / "report").iterdir())
        for path in paths:
            with Image.open(path) as picture:
                assert (picture.format, picture.mode) == ("PNG", "RGB")
        for epoch in epochs:
            place = events.index(next(e for e in events if str(e).endswith(f"{epoch:04}.png")))
            before = events[place - 1]
            assert isinstance(before, EpochRecord) and before.epoch + 1 == epoch
        same_end(run, reference)

    def test_few_images(
        self, image_folder: Path, tiny_settings: dict[str, Any], tmp_path: Path
    ) -> None:
        """Fewer than a picture has room for."""
        options = {**tiny_settings, "visualize_every": 1, "batch_size": 2, "epochs": 1}
        paths: list[str | Path] = [*sorted(image_folder.iterdir())[:2]]
        assert train(paths, tmp_path, **options).complete
        assert (tmp_path / "report" / "epoch-0001.png").is_file()

    def test_a_place_that_is_taken(
        self, image_folder: Path, tiny_settings: dict[str, Any], tmp_path: Path
    ) -> None:
        options = {**tiny_settings, "visualize_every": 1}
        with pytest.raises(OutputError) as caught:
            for event in training_events([image_folder], out=tmp_path / "run", **options):
                if isinstance(event, Started):
                    (tmp_path / "run" / "report").write_text("mine")
        status = read_status(tmp_path / "run")
        assert (status["status"], status["exit_code"]) == ("failed", 5)
        assert status["reason"] == str(caught.value)
        assert (tmp_path / "run" / "report").read_text() == "mine"


@pytest.fixture(scope="module")
def picie(
    image_folder: Path, tiny_settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[Event]]:
    """An uninterrupted run whose method prepares every epoch, for reading only, and its events."""
    out = tmp_path_factory.mktemp("picie") / "run"
    options = {**tiny_settings, "method": "picie", "epochs": 2}
    return out, list(training_events([image_folder], out=out, **options))


@posix
class TestPreparing:
    """A method that looks at all images before an epoch."""

    def test_it_is_told_and_not_written_down(self, picie: tuple[Path, list[Event]]) -> None:
        run, events = picie
        told = [e for e in events if isinstance(e, Progress) and e.what != "reading images"]
        assert told == [
            Progress(f"clustering for epoch {epoch}", done, 12)
            for epoch in (1, 2)
            for done in (4, 8, 12)
        ]
        kinds = [record["record"] for record in read_records(run / "metrics.jsonl")]
        assert kinds == ["step", "step", "step", "epoch"] * 2
        assert "clustering for" not in (run / "train.log").read_text()

    @pytest.mark.parametrize(("epoch", "step"), [(0, 0), (1, 3)])
    def test_a_stop_in_the_middle_of_it(
        self,
        image_folder: Path,
        tiny_settings: dict[str, Any],
        tmp_path: Path,
        picie: tuple[Path, list[Event]],
        epoch: int,
        step: int,
    ) -> None:
        run, options = tmp_path / "run", {**tiny_settings, "method": "picie", "epochs": 2}
        with pytest.raises(StoppedError, match=f"after step {step} of 6"):
            for event in training_events([image_folder], out=run, **options):
                if event == Progress(f"clustering for epoch {epoch + 1}", 8, 12):
                    os.kill(os.getpid(), signal.SIGTERM)
        assert read_status(run)["exit_code"] == 128 + signal.SIGTERM
        train([], run, resume=True)
        same_end(run, picie[0])

    def test_a_stop_between_steps(
        self,
        image_folder: Path,
        tiny_settings: dict[str, Any],
        tmp_path: Path,
        picie: tuple[Path, list[Event]],
    ) -> None:
        """The epoch goes on with the centroids and pseudo-labels that it began with."""
        options = {**tiny_settings, "method": "picie", "epochs": 2}
        stop_after(2, image_folder, tmp_path / "run", **options)
        events = list(training_events([], out=tmp_path / "run", resume=True))
        told = {event.what for event in events if isinstance(event, Progress)}
        assert told == {"reading images", "clustering for epoch 2"}
        same_end(tmp_path / "run", picie[0])


def test_every_error_of_a_run_is_in_its_status(
    image_folder: Path,
    tiny_settings: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*args: object) -> None:
        raise OutputError("3 MB are free and 9 MB are needed")

    monkeypatch.setattr(preparation, "require_space", full)
    with pytest.raises(DenseSiamError):
        train(image_folder, tmp_path / "run", **tiny_settings)
    status = read_status(tmp_path / "run")
    assert (status["status"], status["exit_code"]) == ("failed", 5)
    assert status["reason"] == "3 MB are free and 9 MB are needed"


def _die_after_step_5(images: str, out: str, settings: str) -> None:
    """The child of the kill test: a checkpoint after each step, and no chance to end well."""
    slim_resnets = runpy.run_path(str(Path(__file__).parents[1] / "conftest.py"))["slim_resnets"]
    running.SAVE_SECONDS = -1.0
    with slim_resnets():
        for event in training_events([images], out=out, **json.loads(settings)):
            if isinstance(event, StepRecord) and event.step == 5:
                os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    _die_after_step_5(*sys.argv[1:])
