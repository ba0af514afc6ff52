"""Runs from end to end on tiny images: what they leave, how they stop and go on, and what they refuse."""

from __future__ import annotations

import io
import json
import math
import os
import random
import shutil
import signal
import time
import tomllib
from collections.abc import Callable, Generator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image
from tar_files import pack_in_two, write_tar
from tiny_runs import (
    TinyRuns,
    course,
    end,
    files_of,
    posix,
    same_end,
    started,
    stop_after,
    warnings_of,
)

from densesiam_seg import config
from densesiam_seg.config import TrainConfig
from densesiam_seg.errors import (
    BusyError,
    InputError,
    ModelError,
    NumericError,
    OutputError,
    StoppedError,
    UsageError,
)
from densesiam_seg.events import (
    EpochRecord,
    Event,
    Notice,
    Progress,
    Started,
    StepRecord,
    Trained,
)
from densesiam_seg.images.crew import Crew
from densesiam_seg.images.store import ImageStore, epoch_batches
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.io.environment import environment
from densesiam_seg.io.lock import LOCK, run_lock
from densesiam_seg.io.records import read_records
from densesiam_seg.io.run_directory import RUN_NAMES, read_status
from densesiam_seg.methods.densesiam import DenseSiamMethod
from densesiam_seg.methods.method import Objective
from densesiam_seg.naming.clusters import read_clusters
from densesiam_seg.naming.edits import merge, rename, undo
from densesiam_seg.training import loop, setup
from densesiam_seg.training import train as running
from densesiam_seg.training.checkpoint import TENSORS, load_checkpoint, save_checkpoint
from densesiam_seg.training.recipes import CONFIGS, Command
from densesiam_seg.training.train import Rhythm, pretrain, train, training_events

Finished = dict[Command, tuple[Path, list[Event]]]

pytestmark = pytest.mark.usefixtures("slim_module")


@pytest.fixture
def own_images(image_folder: Path, tmp_path: Path) -> Path:
    """A copy of the images that a test may change; the times of the files are the originals'."""
    return shutil.copytree(image_folder, tmp_path / "own")


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory,
    image_folder: Path,
    tiny_settings: dict[str, Any],
    slim_module: None,
) -> Finished:
    """An uninterrupted run of either command, for reading only, and its events."""
    runs = TinyRuns(tmp_path_factory.mktemp("finished"), image_folder, tiny_settings)
    commands: tuple[Command, ...] = ("train", "pretrain")
    return {name: (runs.folder / name, list(runs.begin(name, command=name))) for name in commands}


@pytest.fixture
def reference(finished: Finished) -> Path:
    """The run of `train`."""
    return finished["train"][0]


@pytest.mark.parametrize("command", ["train", "pretrain"])
class TestRun:
    def test_events_come_in_order(self, finished: Finished, command: Command) -> None:
        run, events = finished[command]
        assert events[:12] == [Progress("reading images", done, 12) for done in range(1, 13)]
        assert [type(event).__name__ for event in events[12:]] == [
            *["Notice", "Notice", "Started"],
            *["StepRecord", "StepRecord", "StepRecord", "EpochRecord"] * 3,
            "Trained",
        ]
        start, last = started(events), events[-2]
        assert (start.run, start.images, start.step, start.total_steps) == (run, 12, 0, 9)
        assert isinstance(last, EpochRecord)
        assert events[-1] == Trained(run, run / "model", last, complete=True)
        assert not warnings_of(events)

    def test_the_folder_holds_what_is_promised(
        self, runs: TinyRuns, finished: Finished, command: Command
    ) -> None:
        run, _ = finished[command]
        names = {path.name for path in run.iterdir()}
        assert names - {LOCK} == RUN_NAMES - {"report"}
        text = (run / "config.toml").read_text()
        assert text.startswith("# preset balanced")
        preset: dict[str, Any] = {"rate_scaling": "none"}
        if command == "pretrain":
            preset["features"] = "fpn"
        config = CONFIGS[command]
        assert config(**tomllib.loads(text)) == config(**preset, **runs.settings[command])
        listed = json.loads((run / "dataset.json").read_text())
        assert listed["names"] == sorted(path.name for path in runs.images.iterdir())
        assert (run / "skipped.jsonl").read_bytes() == b""
        facts = json.loads((run / "env.json").read_text())
        assert facts["fingerprint"]["threads"] == 1
        assert facts["fingerprint"]["precision"] == "float32"
        status = read_status(run)
        assert (status["status"], status["exit_code"], status["reason"]) == ("done", 0, "")
        names = {path.name for path in (run / "checkpoints").iterdir()}
        assert names == {"step-00000000", "step-00000009"}

    def test_the_metrics_are_the_events_and_the_log_tells_them(
        self, finished: Finished, command: Command
    ) -> None:
        run, events = finished[command]
        expected = []
        for event in events:
            if isinstance(event, StepRecord | EpochRecord):
                kind = "step" if isinstance(event, StepRecord) else "epoch"
                expected.append({"record": kind, **asdict(event)})
        assert read_records(run / "metrics.jsonl") == expected
        lines = (run / "train.log").read_text().splitlines()
        for line, part in zip(
            lines, ["preset", "weights", "training", *["epoch"] * 3], strict=True
        ):
            assert part in line

    def test_the_model_predicts(
        self, finished: Finished, command: Command, image_folder: Path
    ) -> None:
        run, events = finished[command]
        segmenter = Segmenter.load(run, device="cpu", precision="fp32")
        mask = segmenter.predict(image_folder / "00.jpg")
        assert mask.shape == (64, 64)
        assert int(mask.max()) < (4 if command == "train" else 5)
        card, (*_, last, _) = segmenter.card, events
        assert isinstance(last, EpochRecord)
        assert [cluster.share for cluster in segmenter.clusters] == last.shares
        facts = (card.training["command"], card.training["steps"], card.training["epochs"])
        assert facts == (command, 9, 3.0)
        assert (card.readout, card.image_size) == ("head", 32)

    def test_without_a_place_it_makes_one_and_points_to_it(
        self, runs: TinyRuns, monkeypatch: pytest.MonkeyPatch, command: Command
    ) -> None:
        monkeypatch.chdir(runs.folder)
        learn = train if command == "train" else pretrain
        trained = learn(str(runs.images), **{**runs.settings[command], "epochs": 1})
        assert trained.run.parent == Path("runs", command)
        assert (runs.folder / "runs" / command / "latest/model").is_dir()
        assert learn([], resume=True).run.resolve() == trained.run.resolve()


def test_global_generators_are_untouched(runs: TinyRuns) -> None:
    before = torch.get_rng_state(), str(np.random.get_state()), random.getstate()  # noqa: NPY002
    end(runs.begin(epochs=1, prior="mixture", freeze=True, method="picie"))
    after = torch.get_rng_state(), str(np.random.get_state()), random.getstate()  # noqa: NPY002
    assert torch.equal(before[0], after[0]) and before[1:] == after[1:]


def test_collapse_is_told(runs: TinyRuns, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "IN_USE", 2.0)
    (text,) = warnings_of(runs.begin(epochs=1))
    assert "0 of 4 in use" in text and "--clusters" in text
    monkeypatch.setattr("densesiam_seg.events.COLLAPSED", 2.0)
    (text,) = warnings_of(runs.begin("pre", command="pretrain", epochs=1))
    assert "one direction (spread 0." in text and "--learning-rate" in text
    assert text in (runs.folder / "pre" / "train.log").read_text()


@posix
class TestResume:
    @pytest.mark.parametrize(
        ("command", "step", "number"),
        [
            ("train", 1, signal.SIGINT),
            ("train", 3, signal.SIGTERM),  # an epoch's end
            ("train", 4, signal.SIGTERM),
            ("train", 6, signal.SIGINT),  # the region loss joins in next
            ("train", 8, signal.SIGTERM),
            ("train", 9, signal.SIGINT),  # all steps done, the model not yet written
            ("pretrain", 1, signal.SIGTERM),
            ("pretrain", 5, signal.SIGTERM),
            ("pretrain", 9, signal.SIGTERM),
        ],
    )
    def test_a_stopped_run_goes_on_to_the_same_bits(
        self, runs: TinyRuns, finished: Finished, command: Command, step: int, number: int
    ) -> None:
        run = runs.path
        before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
        error = stop_after(step, runs.begin(command=command), number)
        assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before
        assert error.exit_code == 128 + number
        assert f"step {step} of 9" in str(error)
        assert f"{command} --resume --out {run}" in str(error)
        status = read_status(run)
        assert (status["status"], status["exit_code"]) == ("stopped", 128 + number)
        assert not (run / "model").exists()

        events = list(runs.resume(command=command))
        assert (started(events).step, started(events).total_steps) == (step, 9)
        assert not warnings_of(events)
        assert end(events).complete
        same_end(run, finished[command][0])

    def test_many_stops(self, runs: TinyRuns, reference: Path) -> None:
        stop_after(2, runs.begin())
        for step in (5, 6):
            stop_after(step, runs.resume())
        end(runs.resume(**runs.settings["train"]))
        same_end(runs.path, reference)

    @pytest.mark.parametrize(
        "options",
        [
            {"precision": "bf16", "prior": "mixture"},
            {"precision": "fp16", "region_start": 0.5},
            {"method": "simsiam", "epochs": 1},
            {"freeze": True, "replay": "run", "cache": "disk"},
            {"command": "pretrain", "features": "res5", "sampling": "biased", "optimizer": "adam"},
        ],
    )
    def test_in_other_courses(
        self, runs: TinyRuns, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
    ) -> None:
        monkeypatch.setattr("densesiam_seg.images.store.free_space", lambda folder: 10**9)
        monkeypatch.setattr("densesiam_seg.methods.stage_cache.free_space", lambda folder: 10**9)
        options = {"epochs": 2, "cache_dir": str(runs.folder / "cache"), **options}
        end(runs.begin("whole", **options))
        stop_after(3 if options["epochs"] == 1 else 4, runs.begin(**options))
        end(runs.resume(command=options.get("command", "train")))
        same_end(runs.path, runs.folder / "whole")

    @pytest.mark.parametrize(("epoch", "step"), [(0, 0), (1, 3), (None, 2)])
    def test_where_an_epoch_is_prepared(self, runs: TinyRuns, epoch: int | None, step: int) -> None:
        """Stopped while it is, or after a step; an epoch under way keeps its centroids and gets the same labels."""
        options: dict[str, Any] = {"method": "picie", "epochs": 2}
        whole = list(runs.begin("whole", **options))
        assert [e for e in whole if isinstance(e, Progress) and "clustering" in e.what] == [
            Progress(f"clustering for epoch {epoch}", done, 12)
            for epoch in (1, 2)
            for done in (4, 8, 12)
        ]
        assert "clustering for" not in (runs.folder / "whole" / "train.log").read_text()
        if epoch is None:
            stop_after(step, runs.begin(**options))
        else:
            with pytest.raises(StoppedError, match=f"after step {step} of 6"):
                for event in runs.begin(**options):
                    if event == Progress(f"clustering for epoch {epoch + 1}", 8, 12):
                        os.kill(os.getpid(), signal.SIGTERM)
        told = {event.what for event in runs.resume() if isinstance(event, Progress)}
        assert ("clustering for epoch 1" in told) == (epoch != 1)
        same_end(runs.path, runs.folder / "whole")

    def test_a_stop_before_the_first_step(self, runs: TinyRuns, reference: Path) -> None:
        with pytest.raises(StoppedError, match="before the first step") as caught:
            for event in runs.begin():
                assert isinstance(event, Progress)
                if event.done == 3:
                    os.kill(os.getpid(), signal.SIGTERM)
        assert caught.value.exit_code == 143
        assert read_status(runs.path)["status"] == "stopped"
        end(runs.resume())
        same_end(runs.path, reference)


@pytest.fixture(scope="module")
def stopped_once(
    tmp_path_factory: pytest.TempPathFactory,
    image_folder: Path,
    tiny_settings: dict[str, Any],
    slim_module: None,
) -> Path:
    """A run that was stopped after step 5, with checkpoints of steps 4 and 5; for reading only."""
    folder = tmp_path_factory.mktemp("stopped")
    images = shutil.copytree(image_folder, folder / "images")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "SAVE_SECONDS", -1.0)
        stop_after(5, TinyRuns(folder, images, tiny_settings).begin())
    return folder


@pytest.fixture
def stopped(stopped_once: Path, runs: TinyRuns) -> Path:
    """A copy of that run, and of its images, that a test may change."""
    for name in ("images", "run"):
        shutil.copytree(stopped_once / name, runs.folder / name)
    listed = runs.path / "dataset.json"
    content = json.loads(listed.read_text())
    listed.write_text(json.dumps({**content, "root": str(runs.folder / "images")}))
    status = read_status(runs.path)
    status["request"]["images"] = [str(runs.folder / "images")]
    (runs.path / "run.json").write_text(json.dumps(status))
    return runs.path


@posix
class TestResumeAfterChange:
    @pytest.mark.parametrize("damage", ["flip", "cut", "no manifest"])
    def test_a_damaged_checkpoint_is_passed_over_with_a_warning(
        self, stopped: Path, runs: TinyRuns, reference: Path, damage: str
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
        events = list(runs.resume())
        (text,) = warnings_of(events)
        assert str(newest) in text and "damaged" in text
        assert started(events).step == 4
        same_end(stopped, reference)

    def test_without_a_sound_checkpoint_it_is_refused(self, stopped: Path, runs: TinyRuns) -> None:
        for path in (stopped / "checkpoints").glob("*/manifest.json"):
            path.write_text("{}")
        with pytest.raises(ModelError, match="no checkpoint is sound"):
            end(runs.resume())
        assert read_status(stopped)["exit_code"] == 4
        shutil.rmtree(stopped / "checkpoints")
        status = read_status(stopped)
        (stopped / "run.json").write_text(json.dumps({**status, "request": None}))
        with pytest.raises(ModelError, match="before its first checkpoint"):
            end(runs.resume())

    def test_changed_settings_are_refused_and_equal_ones_pass(
        self, stopped: Path, runs: TinyRuns
    ) -> None:
        before = files_of(stopped / "checkpoints")
        changed: dict[str, Any] = {"seed": 1, "batch_size": 2, "clusters": 5, "max_pixels": 9}
        for name, value in changed.items():
            with pytest.raises(UsageError, match=f"--resume: {name} is "):
                end(runs.resume(**{name: value}))
        with pytest.raises(UsageError, match="unknown setting 'cluster'"):
            end(runs.resume(cluster=4))
        options: list[dict[str, Any]] = [
            {"overwrite": True},
            {"preset": "fast"},
            {"init_from": "model"},
        ]
        for option in options:
            with pytest.raises(UsageError, match="leave out --init-from"):
                end(runs.resume(**option))
        assert files_of(stopped / "checkpoints") == before
        assert end(runs.resume(clusters=4, seed=0)).complete

    @pytest.mark.parametrize("change", ["edit", "touch", "remove", "spoil"])
    def test_changed_images_are_refused(self, stopped: Path, runs: TinyRuns, change: str) -> None:
        image = stopped.parent / "images" / "05.png"
        status = image.stat()
        reason = r"1 image changed, first 05\.png"
        if change == "remove":
            image.unlink()
            reason = r"1 of 12 training images .* first 05\.png"
        elif change == "touch":
            os.utime(image, (1, 1))
        else:
            image.write_bytes(image.read_bytes() + b"\0")
            if change == "spoil":  # as nothing but its contents tells
                image.write_bytes(b"\0" * status.st_size)
                reason = r"05\.png: was read before and cannot be now"
            os.utime(image, ns=(status.st_atime_ns, status.st_mtime_ns))
        with pytest.raises(ModelError, match=reason) as caught:
            end(runs.resume())
        assert caught.value.exit_code == 4
        assert len(list((stopped / "checkpoints").iterdir())) == 2

    def test_the_one_that_is_bad_now_is_named(self, runs: TinyRuns, own_images: Path) -> None:
        """Not one that was skipped when the run began."""
        (own_images / "zz.jpg").write_bytes(b"junk")
        stop_after(1, runs.begin(images=own_images))
        image = own_images / "05.png"
        status = image.stat()
        image.write_bytes(b"\0" * status.st_size)
        os.utime(image, ns=(status.st_atime_ns, status.st_mtime_ns))
        with pytest.raises(ModelError, match=r"^05\.png: was read before"):
            end(runs.resume())

    def test_images_that_were_added_are_left_out_if_that_is_accepted(
        self, stopped: Path, runs: TinyRuns, reference: Path
    ) -> None:
        folder = stopped.parent / "images"
        shutil.copy(folder / "03.png", folder / "000.png")
        with pytest.raises(ModelError, match=r"1 image came, first .*000\.png"):
            end(runs.resume())
        (text,) = warnings_of(runs.resume(accept_data_change=True))
        assert "1 image came" in text
        same_end(stopped, reference)

    def test_changed_images_are_read_anew_if_that_is_accepted(
        self, stopped: Path, runs: TinyRuns, reference: Path
    ) -> None:
        images = stopped.parent / "images"
        os.utime(images / "05.png", (1, 1))
        (text,) = warnings_of(runs.resume(accept_data_change=True))
        assert "1 image changed, first 05.png" in text
        same_end(stopped, reference)  # only its time had changed
        listed = json.loads((stopped / "dataset.json").read_text())
        assert listed["mtimes_ms"][5] == 1000

    def test_a_tar_that_was_packed_again(
        self, runs: TinyRuns, image_folder: Path, reference: Path
    ) -> None:
        """Its images are at other places then, and another one has come."""
        tars = pack_in_two(image_folder, runs.folder / "tars")
        stop_after(4, runs.begin("packed", images=tars))
        contents = {file.name: file.read_bytes() for file in sorted(image_folder.iterdir())[6:]}
        again = dict(reversed(contents.items())) | {"new.png": contents["07.png"]}
        write_tar(tars / "b.tar", again)
        os.utime(tars / "b.tar", (1, 1))
        with pytest.raises(ModelError, match=r"6 images changed, first b\.tar/06\.jpg and 1 image"):
            end(runs.resume("packed"))
        (text,) = warnings_of(runs.resume("packed", accept_data_change=True))
        assert f"first {tars}/b.tar/new.png" in text
        same_end(runs.folder / "packed", reference)
        del again["07.png"]
        stop_after(4, runs.begin("other", images=tars))
        write_tar(tars / "b.tar", again)
        os.utime(tars / "b.tar", (2, 2))
        with pytest.raises(
            ModelError, match=r"1 of 13 training images are gone .* first b\.tar/07\.png"
        ):
            end(runs.resume("other", accept_data_change=True))

    def test_what_is_gone_is_never_accepted(self, stopped: Path, runs: TinyRuns) -> None:
        (stopped.parent / "images" / "05.png").unlink()
        with pytest.raises(ModelError, match="1 of 12 training images are gone"):
            end(runs.resume(accept_data_change=True))

    def test_settings_of_the_machine_may_change(
        self, stopped: Path, runs: TinyRuns, reference: Path
    ) -> None:
        text = (stopped / "config.toml").read_text()
        (warned,) = warnings_of(runs.resume(workers=2, threads=2))
        assert "not bit-exact: threads 1 -> 2" in warned
        changed = text.replace("\nworkers = 0\n", "\nworkers = 2\n")
        changed = changed.replace("\nthreads = 1\n", "\nthreads = 2\n")
        assert (stopped / "config.toml").read_text() == changed != text
        assert read_status(stopped)["status"] == "done"

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
    def test_a_damaged_run_is_refused(
        self, stopped: Path, runs: TinyRuns, name: str, content: str | None
    ) -> None:
        if content is None:
            (stopped / name).unlink()
        else:
            (stopped / name).write_text(content)
        with pytest.raises(ModelError, match="no run of train to resume here") as caught:
            end(runs.resume())
        assert caught.value.exit_code == 4 and "\n" not in str(caught.value)

    def test_edited_settings_that_do_not_fit_the_checkpoint_are_refused(
        self, stopped: Path, runs: TinyRuns
    ) -> None:
        path = stopped / "config.toml"
        path.write_text(path.read_text().replace("\nclusters = 4\n", "\nclusters = 5\n"))
        with pytest.raises(ModelError, match=r"does not fit the run's config\.toml"):
            end(runs.resume())

    def test_a_run_of_the_other_command_is_refused(self, stopped: Path, runs: TinyRuns) -> None:
        with pytest.raises(ModelError, match=r"no run of pretrain .*unknown setting 'clusters'"):
            end(runs.resume(command="pretrain"))
        assert read_status(stopped)["exit_code"] == 4
        assert end(runs.resume()).complete

    def test_another_machine_is_told(
        self, stopped: Path, runs: TinyRuns, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        here = environment()
        monkeypatch.setattr(setup, "environment", lambda: {**here, "threads": 7})
        (text,) = warnings_of(runs.resume())
        assert "not bit-exact: threads 1 -> 7" in text

    def test_a_finished_run_stays_as_it_is(self, reference: Path, runs: TinyRuns) -> None:
        run = shutil.copytree(reference, runs.path)
        before = files_of(run)
        trained = end(runs.resume())
        assert trained == Trained(run, run / "model", None, complete=True)
        with pytest.raises(UsageError, match="seed"):
            end(runs.resume(seed=5))
        after = files_of(run)
        log = after["train.log"].removeprefix(before["train.log"])
        assert log.endswith(b"nothing to do\n")
        assert after | {"train.log": b"", LOCK: b""} == before | {"train.log": b"", LOCK: b""}


@pytest.mark.parametrize(
    ("rhythm", "seconds", "steps", "due"),
    [
        (Rhythm(None, None), 59.9, 10**9, False),
        (Rhythm(None, None), 60.0, 1, True),
        (Rhythm(5.0, None), 5.0, 1, True),
        (Rhythm(5.0, None), 4.9, 10**9, False),
        (Rhythm(None, 3), 1e9, 2, False),
        (Rhythm(None, 3), 0.0, 3, True),
    ],
)
def test_when_a_checkpoint_is_due(rhythm: Rhythm, seconds: float, steps: int, due: bool) -> None:
    assert rhythm.due(seconds, steps) is due


def test_checkpoints_by_steps(runs: TinyRuns, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[int] = []
    save = save_checkpoint

    def noted(*arguments: Any, step: int) -> Path:
        saved.append(step)
        return save(*arguments, step=step)

    monkeypatch.setattr(running, "save_checkpoint", noted)
    end(runs.begin(checkpoint_steps=4))
    assert saved == [0, 4, 8, 9]
    for wrong in ({"checkpoint_steps": 0}, {"checkpoint_every": -1.0}):
        with pytest.raises(UsageError, match="--checkpoint-every"):
            end(runs.begin("b", **wrong))
    with pytest.raises(UsageError, match="--checkpoint-every"):
        end(runs.begin("b", checkpoint_steps=1, checkpoint_every=1.0))


class TestImagesReadByTraining:
    """As where a GPU trains: a run does not wait until all images are read, and ends as one that does."""

    @pytest.fixture(autouse=True)
    def late(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(setup, "reads_late", lambda device: True)

    @pytest.fixture
    def spoilt(self, own_images: Path) -> Path:
        """Two of fourteen images are cut off in the middle, and are read in different steps of the first epoch."""
        for name in ("00", "05"):
            data = (own_images / "00.jpg").read_bytes()
            (own_images / f"{name}-bad.jpg").write_bytes(data[: len(data) // 2])
        return own_images

    def seed_of_a_bad_last_step(self, spoilt: Path) -> int:
        """Leaves `05-bad.jpg` alone; by that seed the first epoch reads it in its third step."""
        (spoilt / "00-bad.jpg").unlink()
        orders = (epoch_batches(13, 4, seed=seed, epoch=0) for seed in range(100))
        return next(seed for seed, groups in enumerate(orders) if 5 in groups[2])

    @pytest.fixture
    def plain(
        self, runs: TinyRuns, spoilt: Path, monkeypatch: pytest.MonkeyPatch, late: None
    ) -> Path:
        """The run that reads all of them first."""
        with monkeypatch.context() as patch:
            patch.setattr(setup, "reads_late", lambda device: False)
            end(runs.begin("plain", images=spoilt))
        return runs.folder / "plain"

    @pytest.mark.parametrize("keep", ["ram", "none"])
    def test_the_end_is_the_same(self, runs: TinyRuns, reference: Path, keep: str) -> None:
        events = list(runs.begin(cache=keep))
        assert not [event for event in events if isinstance(event, Progress)]
        same_end(runs.path, reference)
        assert "unread" not in json.loads((runs.path / "dataset.json").read_text())

    def test_what_is_told_of_the_files_is_told_after_an_epoch(
        self, runs: TinyRuns, own_images: Path
    ) -> None:
        for number in range(9):
            values = np.full((40, 40), 300 * number, np.uint16)
            Image.fromarray(values).save(own_images / f"deep{number}.png")
        events = list(runs.begin(images=own_images))
        places = [
            place
            for place, event in enumerate(events)
            if isinstance(event, Notice) and "of 65535" in event.text
        ]
        (place,) = places
        before = events[place - 1]
        assert isinstance(before, EpochRecord) and before.epoch == 0

    @pytest.mark.parametrize("command", ["train", "pretrain"])
    def test_bad_files_begin_it_again(
        self, runs: TinyRuns, spoilt: Path, plain: Path, command: Command
    ) -> None:
        """Pre-training, which must know how wide images are, reads them all first."""
        events = list(runs.begin(images=spoilt, command=command, checkpoint_steps=1))
        again = [text for text in warnings_of(events) if "begins again" in text]
        starts = [event for event in events if isinstance(event, Started)]
        if command == "pretrain":
            assert not again and len(starts) == 1
            return
        assert len(again) == 1 and "-bad.jpg: " in again[0]
        assert [start.images for start in starts] == [14, 12]
        same_end(runs.path, plain)
        for name in ("dataset.json", "skipped.jsonl", "config.toml"):
            assert (runs.path / name).read_bytes() == (plain / name).read_bytes()

    def test_images_that_cannot_be_found_again(
        self, runs: TinyRuns, spoilt: Path, plain: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A list from the standard input is gone when the run begins again."""
        names = "".join(f"{path}\n" for path in spoilt.iterdir())
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(names.encode())))
        end(runs.begin(images="-", checkpoint_steps=1))
        same_end(runs.path, plain)

    def test_changed_images_of_one_that_has_not_read_them_all(
        self, runs: TinyRuns, spoilt: Path
    ) -> None:
        """That they are accepted is no sign that all can be read."""
        seed = self.seed_of_a_bad_last_step(spoilt)
        stop_after(1, runs.begin(images=spoilt, seed=seed))
        os.utime(spoilt / "03.png", (1, 1))
        events = runs.resume(accept_data_change=True)
        for event in events:
            if isinstance(event, Progress):
                break
        assert isinstance(events, Generator)
        events.close()
        again = list(runs.resume(accept_data_change=True))
        assert any("begins again" in text for text in warnings_of(again))

    def test_one_that_stopped_before_its_first_bad_file(
        self, runs: TinyRuns, spoilt: Path, plain: Path
    ) -> None:
        (spoilt / "00-bad.jpg").rename(spoilt / "zz-bad.jpg")
        (spoilt / "05-bad.jpg").unlink()
        bad = next(
            seed
            for seed in range(100)
            if 12 in epoch_batches(13, 4, seed=seed, epoch=0)[2]  # in the last step
        )
        with_seed: dict[str, Any] = {"images": spoilt, "seed": bad}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(setup, "reads_late", lambda device: False)
            end(runs.begin("expected", **with_seed))
        stop_after(1, runs.begin(**with_seed))
        assert json.loads((runs.path / "dataset.json").read_text())["unread"] is True
        events = list(runs.resume())
        assert any("begins again" in text for text in warnings_of(events))
        same_end(runs.path, runs.folder / "expected")

    def test_a_time_limit_before_the_bad_ones(self, runs: TinyRuns, spoilt: Path) -> None:
        """A read-out is fitted to the images that training has read, and nothing begins again."""
        seed = self.seed_of_a_bad_last_step(spoilt)
        events = list(runs.begin(images=spoilt, method="simsiam", seed=seed, max_time=0))
        assert not warnings_of(events)
        assert Segmenter.load(runs.path, device="cpu").card.training["steps"] == 1

    def test_names_are_not_given_to_clusters_of_another_training(
        self, runs: TinyRuns, spoilt: Path
    ) -> None:
        seed = self.seed_of_a_bad_last_step(spoilt)
        end(runs.begin(images=spoilt, seed=seed, max_time=0))
        rename(runs.path / "model", {"1": "sky"})
        assert any("begins again" in text for text in warnings_of(runs.resume()))
        clusters = Segmenter.load(runs.path, device="cpu").clusters
        assert "sky" not in [each.name for each in clusters]

    def test_kept_stages_are_read_instead_of_images(
        self, runs: TinyRuns, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """By a second run, which would never know whether its images can be read."""
        monkeypatch.setattr("densesiam_seg.methods.stage_cache.free_space", lambda folder: 10**9)
        frozen: dict[str, Any] = {
            "freeze": True,
            "replay": "run",
            "cache_dir": str(runs.folder / "cache"),
        }
        for out in ("first", "second"):
            events = list(runs.begin(out, **frozen))
            told = [event.text for event in events if isinstance(event, Notice)]
            assert any("features of the frozen backbone lie in" in text for text in told)
            assert "unread" not in json.loads((runs.folder / out / "dataset.json").read_text())

    def test_one_that_stopped_and_has_none(self, runs: TinyRuns, reference: Path) -> None:
        stop_after(1, runs.begin())
        end(runs.resume())
        same_end(runs.path, reference)
        assert "unread" not in json.loads((runs.path / "dataset.json").read_text())

    def test_too_many_bad_files_are_refused_as_ever(self, runs: TinyRuns, spoilt: Path) -> None:
        with pytest.raises(InputError, match="2 of 14 files cannot be used"):
            end(runs.begin(images=spoilt, max_bad=0.1))

    def test_processes_read_them(
        self, runs: TinyRuns, reference: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        read: list[str] = []

        def with_processes(*given: Any, **more: Any) -> ImageStore:
            return ImageStore(*given, **{**more, "processes": True})

        def noted(crew: Crew, path: str, out: Any) -> Any:
            read.append(Path(path).name)
            return decode(crew, path, out)

        decode = Crew.decode
        monkeypatch.setattr(Crew, "decode", noted)
        monkeypatch.setattr(setup, "ImageStore", with_processes)
        end(runs.begin(workers=4))
        same_end(runs.path, reference)
        assert {*read} == {"", *(path.name for path in runs.images.iterdir())}


class TestTimeLimit:
    def test_it_ends_with_a_model_and_can_go_on(self, runs: TinyRuns, reference: Path) -> None:
        run = runs.path
        trained = end(runs.begin(max_time=0))
        assert not trained.complete and trained.last is None
        status = read_status(run)
        assert (status["status"], status["reason"]) == ("stopped", "time limit")
        assert status["exit_code"] == 0
        assert Segmenter.load(run, device="cpu").card.training["steps"] == 1
        assert not end(runs.resume(max_time=0)).complete
        assert Segmenter.load(run, device="cpu").card.training["steps"] == 2
        assert end(runs.resume(max_time=3600)).complete
        same_end(run, reference)

    def test_names_that_its_clusters_got_stay(self, runs: TinyRuns) -> None:
        end(runs.begin(max_time=0))
        rename(runs.path / "model", {"1": "sky"})
        merge(runs.path / "model", ["0", "2"])
        assert end(runs.resume(max_time=3600)).complete
        clusters = Segmenter.load(runs.path, device="cpu").clusters
        assert [each.name for each in clusters[:2]] == ["cluster_00", "sky"]
        assert clusters[1].named_by == "user" and clusters[2].merged_into == 0

    def test_at_an_epochs_end_the_epoch_is_whole(
        self, runs: TinyRuns, reference: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run, now = runs.path, time.monotonic()
        monkeypatch.setattr("densesiam_seg.training.train.time.monotonic", lambda: now)
        last: Event | None = None
        for event in runs.begin(max_time=50):
            last = event
            if isinstance(event, StepRecord) and event.step == 3:
                now += 50
        assert isinstance(last, Trained) and not last.complete
        assert last.last is not None and last.last.step == 3
        assert course(run) == course(reference)[:4]
        end(runs.resume())
        same_end(run, reference)


class TestPlace:
    def test_overwrite_replaces_a_run(self, runs: TinyRuns, reference: Path) -> None:
        end(runs.begin(seed=5, epochs=1))
        with pytest.raises(UsageError, match="is not empty"):
            end(runs.begin())
        end(runs.begin(overwrite=True))
        same_end(runs.path, reference)

    def test_overwrite_refuses_to_delete_its_own_weights(
        self, runs: TinyRuns, reference: Path
    ) -> None:
        shutil.copytree(reference, runs.path)
        with pytest.raises(UsageError, match="which --overwrite empties first"):
            end(runs.begin(overwrite=True, weights=str(runs.path)))
        assert (runs.path / "model" / "config.json").is_file()

    @pytest.mark.parametrize("options", [{}, {"overwrite": True}, {"resume": True}])
    def test_a_folder_in_use_is_refused(
        self, runs: TinyRuns, reference: Path, options: dict[str, Any]
    ) -> None:
        run = runs.path
        if options:
            shutil.copytree(reference, run)
        run.mkdir(exist_ok=True)
        with run_lock(run):
            with pytest.raises(BusyError, match=f"in use by process {os.getpid()}") as caught:
                end(runs.begin(**options))
            assert caught.value.exit_code == 7
        if options:
            same_end(run, reference)

    def test_wrong_settings_leave_no_folder(self, runs: TinyRuns) -> None:
        wrong: list[dict[str, Any]] = [
            {"clusters": 1},
            {"categories": 5},
            {"device": "gpu"},
            {"weights": "absent.pth"},
            {"method": ["picie"]},
            {"method": "simsiam", "image_weight": 0},
            {"command": "pretrain", "clusters": 5},
            {"command": "pretrain", "sampling": "biased", "correspondence": "none"},
        ]
        for settings in wrong:
            with pytest.raises(UsageError) as caught:
                end(runs.begin(**settings))
            assert "\n" not in str(caught.value)
            assert not runs.path.exists()


class TestInput:
    @pytest.fixture
    def refused(self, runs: TinyRuns) -> Callable[..., str]:
        """The message of a run that its input ends."""

        def message(images: Path, **options: Any) -> str:
            run = runs.path
            shutil.rmtree(run, ignore_errors=True)
            with pytest.raises(InputError) as caught:
                end(runs.begin(images=images, **options))
            text = str(caught.value)
            assert caught.value.exit_code == 3 and "\n" not in text
            if run.exists():
                status = read_status(run)
                assert (status["status"], status["exit_code"]) == ("failed", 3)
                assert status["reason"] == text
            return text

        return message

    def test_nothing_to_train_on(self, runs: TinyRuns, refused: Callable[..., str]) -> None:
        folder = runs.folder / "images"
        assert str(folder) in refused(folder)
        folder.mkdir()
        assert str(folder) in refused(folder)
        (folder / "notes.csv").write_text("a, b")
        assert ".csv" in refused(folder)
        assert not runs.path.exists()
        for number in range(3):
            (folder / f"{number}.jpg").write_bytes(b"junk" * number)
        message = refused(folder)
        assert "3 of 3 files cannot be used" in message and "0.jpg" in message
        listed = read_records(runs.path / "skipped.jsonl")
        assert [record["path"] for record in listed] == ["0.jpg", "1.jpg", "2.jpg"]

    def test_fewer_images_than_a_batch(self, runs: TinyRuns, refused: Callable[..., str]) -> None:
        for command in ("train", "pretrain"):
            message = refused(runs.images, command=command, batch_size=13)
            assert "12 usable images" in message and "batch of 13" in message
        options = {
            name: value for name, value in runs.settings["train"].items() if name != "batch_size"
        }
        with pytest.raises(InputError, match="batch of 256"):
            train(runs.images, runs.folder / "b", preset="paper", **options)

    @pytest.mark.parametrize("count", [1, 3])
    def test_the_batch_shrinks_to_few_images(
        self, runs: TinyRuns, tiny_settings: dict[str, Any], count: int
    ) -> None:
        options = {**tiny_settings, "region_start": 0}
        del options["batch_size"]
        paths = sorted(runs.images.iterdir())[:count]
        events = list(training_events(paths, out=runs.path, **options))
        assert (started(events).images, started(events).config.batch_size) == (count, count)
        assert started(events).total_steps == 3
        assert end(events).complete
        steps = [event for event in events if isinstance(event, StepRecord)]
        assert all(math.isfinite(value) for step in steps for value in step.losses.values())

    def test_skipped_files_are_listed_and_change_nothing(
        self, runs: TinyRuns, own_images: Path, reference: Path
    ) -> None:
        for number in range(12):
            (own_images / f"00bad{number:02}.png").write_bytes(b"x")
        (own_images / "link.png").symlink_to(own_images / "absent.png")
        events = list(runs.begin(images=own_images))
        texts = warnings_of(events)
        assert len(texts) == 11, "ten files, and how many there are"
        assert "13 of 25 files were skipped" in texts[-1]
        assert str(runs.path / "skipped.jsonl") in texts[-1]
        listed = read_records(runs.path / "skipped.jsonl")
        names = [*(f"00bad{number:02}.png" for number in range(12)), "link.png"]
        assert [record["path"] for record in listed] == names
        assert all(record.keys() == {"path", "reason", "message"} for record in listed)
        assert listed[-1]["reason"] == "dangling-link"
        same_end(runs.path, reference)

    def test_the_share_of_bad_files_has_a_limit(
        self, runs: TinyRuns, refused: Callable[..., str], own_images: Path
    ) -> None:
        (own_images / "13.png").write_bytes(b"x")
        message = refused(own_images, max_bad=1 / 14, epochs=1)
        assert "1 of 13 files" in message and "--max-bad" in message and "13.png" in message
        assert end(runs.begin("b", images=own_images, max_bad=1 / 13, epochs=1)).complete


class TestFailure:
    def test_a_numeric_failure_keeps_the_last_checkpoint_and_tells_why(
        self, runs: TinyRuns, reference: Path
    ) -> None:
        calls, objective = 0, DenseSiamMethod.objective

        def faulty(*args: Any, **options: Any) -> Objective:
            nonlocal calls
            calls += 1
            result = objective(*args, **options)
            return replace(result, total=result.total * math.nan) if calls == 3 else result

        run = runs.path
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(DenseSiamMethod, "objective", faulty)
            patch.setattr(running, "SAVE_SECONDS", -1.0)
            with pytest.raises(NumericError, match="step 3") as caught:
                end(runs.begin())
        assert caught.value.exit_code == 6
        status = read_status(run)
        assert (status["status"], status["exit_code"]) == ("failed", 6)
        assert "step 3" in status["reason"] and ".png" in status["reason"]
        loaded = load_checkpoint(run / "checkpoints")
        assert loaded is not None and loaded.step == 2
        assert not (run / "model").exists()
        end(runs.resume())
        same_end(run, reference)

    def test_any_error_is_noted_and_raised(
        self, runs: TinyRuns, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for error, code in ((ZeroDivisionError(), 1), (OutputError("the disk is full"), 5)):
            monkeypatch.setattr(running, "require_space", Mock(side_effect=error))
            with pytest.raises(type(error)):
                end(runs.begin(str(code)))
            status = read_status(runs.folder / str(code))
            assert (status["status"], status["exit_code"]) == ("failed", code)
            assert status["reason"] == (str(error) or "ZeroDivisionError")
            assert ("ZeroDivisionError" in status.get("traceback", "")) == (code == 1)
        diverged = NumericError("loss is nan", step=7, files=["a.jpg"])
        monkeypatch.setattr(running, "require_space", Mock(side_effect=diverged))
        with pytest.raises(NumericError):
            end(runs.begin("6"))
        status = read_status(runs.folder / "6")
        assert (status["exit_code"], status["step"], status["files"]) == (6, 7, ["a.jpg"])

    def test_a_log_that_cannot_be_written(self, runs: TinyRuns) -> None:
        with pytest.raises(OutputError, match=r"train\.log"):
            for event in runs.begin():
                if isinstance(event, Progress):
                    (runs.path / "train.log").mkdir(exist_ok=True)


@pytest.mark.parametrize("part", ["", "model"])
def test_a_run_starts_from_the_weights_of_another(
    runs: TinyRuns, reference: Path, part: str
) -> None:
    events = list(runs.begin(init_from=reference / part, seed=9, epochs=1, learning_rate=1e-12))
    assert f"initial weights: {reference / part}" in map(str, events)
    one, other = (Segmenter.load(run, device="cpu").network for run in (reference, runs.path))
    for name, value in one.named_parameters():
        torch.testing.assert_close(other.get_parameter(name), value, rtol=0, atol=1e-6)


def test_what_is_no_model_is_refused(runs: TinyRuns) -> None:
    with pytest.raises(ModelError, match="no model here"):
        end(runs.begin(init_from=runs.images))
    assert not runs.path.exists()


class TestChosenClusters:
    """`clusters auto` learns many and shows as many as are recommended."""

    @pytest.fixture(autouse=True)
    def _few(self, monkeypatch: pytest.MonkeyPatch) -> None:
        meaning = {"clusters": 6, "choose_clusters": True}
        declared = TrainConfig.__dataclass_fields__["clusters"].metadata["setting"]
        monkeypatch.setattr(
            config, "settings_of", lambda _: [("clusters", replace(declared, auto=meaning))]
        )

    def test_the_model_shows_what_is_recommended(self, runs: TinyRuns) -> None:
        *events, last = runs.begin(epochs=1, clusters="auto")
        assert isinstance(last, Trained)
        file = read_clusters(last.model / "clusters.json")
        assert file.suggestion is not None
        chosen = file.suggestion["chosen"]
        assert sum(each.left for each in file.clusters) == chosen < len(file.clusters) == 6
        assert any(isinstance(each, Notice) and f"{chosen} of 6" in each.text for each in events)
        _, undone = undo(last.model)
        assert all(each.left for each in undone.clusters)
        settings = tomllib.loads((last.run / "config.toml").read_text(encoding="utf-8"))
        assert (settings["clusters"], settings["choose_clusters"]) == (6, True)

    def test_a_run_that_goes_on_chooses_too(self, runs: TinyRuns) -> None:
        whole = end(runs.begin(clusters="auto")).run
        events = runs.begin("part", clusters="auto")
        with pytest.raises(StoppedError) as caught:
            for event in events:
                if isinstance(event, Progress) and event.what.startswith("comparing"):
                    os.kill(os.getpid(), signal.SIGTERM)
        assert "--resume" in str(caught.value)
        same_end(end(runs.resume("part", clusters="auto")).run, whole)
