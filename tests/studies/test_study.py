"""A whole study: every row and seed, its table, stops, failures and resumes.

Training and probing are stand-ins that write what a run writes, so that a study takes no time; one test has the real
ones on slim networks.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from densesiam_seg.config import PretrainConfig
from densesiam_seg.errors import BusyError, InputError, NumericError, StoppedError, UsageError
from densesiam_seg.evaluation import probe
from densesiam_seg.evaluation.probe import Probe
from densesiam_seg.events import EpochRecord, Notice, Progress, Started, StepRecord, Trained
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.io.files import make_folder
from densesiam_seg.io.lock import run_lock
from densesiam_seg.io.run_directory import write_status
from densesiam_seg.studies import runs, study
from densesiam_seg.studies.study import NAMES, Studied, study_events


def evaluation(right: int) -> Any:
    """Half of `right` is the mean IoU; nothing else is looked at."""
    scores = SimpleNamespace(
        mean_iou=right / 2, pixel_accuracy=right, names=("a", "b"), iou=(right, None)
    )
    return SimpleNamespace(scores=scores, protocol="picie: 32", readout="probe", clusters=2)


@dataclass
class Stage:
    """The stand-ins: what was asked of them, and which run is to end how."""

    trained: list[dict[str, Any]] = field(default_factory=list)
    probed: list[tuple[Any, ...]] = field(default_factory=list)
    train_error: dict[str, Exception] = field(default_factory=dict)
    """By the name of a run's folder: the error of its second step."""
    at_probe: dict[str, Callable[[], None]] = field(default_factory=dict)

    def names(self) -> list[str]:
        return [call["out"].name for call in self.trained]

    def pretraining_events(self, images: list[str], *, out: Path, **options: Any) -> Iterator[Any]:
        self.trained.append({"images": images, "out": out, **options})
        if (out / "model").exists():
            assert options.get("resume"), "a finished run is not made again"
            yield Notice("this run had finished; nothing to do")
            yield Trained(out, out / "model", None, complete=True)
            return
        assert (out / "checkpoints/step-1").exists() == bool(options.get("resume"))
        make_folder(out / "checkpoints" / "step-1")
        write_status(out, "running")
        (out / "config.toml").write_text('epochs = 3\nbackbone = "resnet18"\n')
        yield Progress("reading", 1, 1)
        yield Notice("preset balanced")
        yield Notice("skipped (empty): x.jpg", warning=True)
        yield Started(out, PretrainConfig(), len(images), 0, 2)
        yield StepRecord(1, 0, {"total": 1.0}, 1.0, 0.1)
        if error := self.train_error.pop(out.name, None):
            raise error
        (out / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n')
        yield EpochRecord(2, 0, {"total": 1.0}, 0.9, 3, 0.8, [1.0])
        make_folder(out / "model")
        write_status(out, "done")
        yield Trained(out, out / "model", None, complete=True)

    def probe_events(self, segmenter: Any, task: Any, train: Any, seed: int) -> Iterator[Any]:
        self.probed.append((segmenter.path, task.samples.split, train.split, seed))
        yield Progress("features", 1, 2)
        self.at_probe.pop(segmenter.path.parent.name, lambda: None)()
        yield Progress("scoring", 1, 2)
        yield Probe(evaluation(80 + 2 * seed), evaluation(60 + 2 * seed), 1.0)


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    found = Stage()

    # A chart of nothing takes longer than all the rest.
    chart = SimpleNamespace(savefig=lambda file, format: file.write(b"a chart"))
    monkeypatch.setattr(study, "score_chart", lambda *_: chart)
    monkeypatch.setattr(runs, "pretraining_events", found.pretraining_events)
    monkeypatch.setattr(runs, "probe_events", found.probe_events)
    segmenter = SimpleNamespace(load=lambda path, **machine: SimpleNamespace(path=path))
    monkeypatch.setattr(runs, "Segmenter", segmenter)
    return found


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "study"


Run = Callable[..., tuple[Studied, list[Any]]]


@pytest.fixture
def run(scenes: Path, out: Path) -> Run:
    """A study of two rows with two seeds: its end, and the events before that."""

    def last(**options: Any) -> tuple[Studied, list[Any]]:
        given = {"seeds": 2, "device": "cpu", "out": out, **options}
        *events, done = study_events("similarity", scenes / "scenes.toml", scenes, **given)
        assert isinstance(done, Studied)
        return done, events

    return last


def status(out: Path) -> tuple[str, int]:
    value = json.loads((out / "run.json").read_text())
    return value["status"], value["exit_code"]


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


class TestWhole:
    def test_what_lies_in_its_folder(self, stage: Stage, run: Run, out: Path) -> None:
        """Pixel accuracy: 80 and 82 by the linear probe, 60 and 62 by k-means."""
        done, _ = run()
        assert {path.name for path in out.iterdir()} == NAMES | {".lock"}
        assert [path.name for path in sorted((out / "runs").iterdir())] == sorted(stage.names())
        for each in (out / "runs").iterdir():
            assert (each / "model").is_dir()
            assert not (each / "checkpoints").exists()
        assert status(out) == ("done", 0)
        assert done.error() is None
        text = (out / "table.md").read_text()
        assert text == done.table.markdown()
        assert text.startswith("# similarity study, Procedural scenes val\n")
        assert text.count("81.00 ± 1.41") == text.count("61.00 ± 1.41") == 2
        for words in ("- protocol: picie: 32", "scored on val (2 images", "4 of 4 runs finished"):
            assert words in text
        value = json.loads((out / "table.json").read_text())
        assert [row["row"] for row in value["rows"]] == ["cross-entropy", "cosine"]
        assert value["rows"][0]["linear_pixel_accuracy"]["values"] == [80.0, 82.0]
        assert len(value["results"]) == 4
        assert done.plot.read_bytes() == b"a chart"

    def test_a_finished_run_is_one_record(self, stage: Stage, run: Run, out: Path) -> None:
        run()
        first, *others = records(out / "rows.jsonl")
        assert len(others) == 3
        assert (first["row"], first["seed"], first["failure"]) == ("cross-entropy", 0, None)
        assert (first["linear"]["pixel_accuracy"], first["kmeans"]["mean_iou"]) == (80, 30)
        assert first["linear"]["iou"] == {"a": 80, "b": None}
        assert (first["budget"]["steps"], first["budget"]["epochs"]) == (2, 3)
        assert first["training"]["wall"] > 0
        assert first["probing"]["processor"] >= 0

    def test_all_runs_have_the_same_settings_and_probes_but_for_their_row(
        self, stage: Stage, run: Run, scenes: Path, out: Path
    ) -> None:
        run(epochs=4, preset="fast", grid=5)
        images = sorted(str(path) for path in (scenes / "images/train").iterdir())
        shared = {"device": "cpu", "epochs": 4, "grid": 5, "preset": "fast", "images": images}
        wanted: list[dict[str, Any]] = [
            {"out": out / "runs" / f"{row}-seed-{seed}", "similarity": row, "seed": seed, **shared}
            for seed in (0, 1)
            for row in ("cross-entropy", "cosine")
        ]
        assert stage.trained == wanted
        assert stage.probed == [
            (call["out"] / "model", "val", "train", call["seed"]) for call in wanted
        ]

    def test_what_is_shown_of_a_run(self, stage: Stage, run: Run) -> None:
        """Progress, and each warning once; neither its notices nor its epochs."""
        _, events = run()
        after = next(k for k, event in enumerate(events) if str(event).startswith("run 1"))
        notice, *shown, result, following = events[after : after + 8]
        assert str(notice) == "run 1 of 4: cross-entropy, seed 0"
        assert shown == [
            Progress("reading (cross-entropy)", 1, 1),
            Notice("cross-entropy, seed 0: skipped (empty): x.jpg", warning=True),
            Progress("training (cross-entropy)", 1, 2),
            Progress("features (cross-entropy)", 1, 2),
            Progress("scoring (cross-entropy)", 1, 2),
        ]
        assert str(result).startswith("run 1 of 4: linear probe 40.00 mean IoU, 80.00 pixel")
        assert str(following).startswith("run 2 of 4")
        assert sum(isinstance(event, Notice) and event.warning for event in events) == 1

    def test_files_that_all_runs_skip_are_told_once(
        self, stage: Stage, run: Run, scenes: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere")
        _, events = run(images=[scenes / "images/train", tmp_path], seeds=1)
        told = [str(event) for event in events if "gone.jpg" in str(event)]
        assert len(told) == 1

    def test_by_default_in_a_folder_of_its_time(
        self, stage: Stage, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A finished study stays as it is."""
        monkeypatch.chdir(tmp_path)
        done, _ = run(out=None)
        assert done.folder.parent == Path("runs/study")
        again, events = run(out=None, resume=True)
        assert again == done
        assert Notice("4 of 4 runs were finished before") in events
        assert len(stage.trained) == 4
        assert status(done.folder) == ("done", 0)


class TestRefusals:
    def test_nothing_is_written_before_everything_was_looked_at(
        self, stage: Stage, run: Run, out: Path
    ) -> None:
        for options in ({"epochs": -1}, {"split": "test"}, {"similarity": "cosine"}, {"seeds": 0}):
            with pytest.raises(UsageError):
                run(**options)
        with pytest.raises(InputError):
            run(images=["absent"])
        assert not out.exists()

    def test_a_folder_that_is_taken(self, stage: Stage, run: Run, out: Path) -> None:
        run(seeds=1)
        with pytest.raises(UsageError, match="give --overwrite, --resume"):
            run(seeds=1)
        run(overwrite=True)
        assert len(records(out / "rows.jsonl")) == 4
        with run_lock(out), pytest.raises(BusyError):
            run(resume=True)
        (out / "mine.txt").touch()
        with pytest.raises(UsageError, match=r"mine\.txt"):
            run(overwrite=True)


class TestStops:
    def test_a_stop_while_training(self, stage: Stage, run: Run, out: Path, tmp_path: Path) -> None:
        """It goes on where it was, unless the options are others, to the scores of a study in one go."""
        whole, _ = run(out=tmp_path / "whole", preset="fast")
        stage.train_error["cross-entropy-seed-1"] = StoppedError("stopped", signal.SIGTERM)
        with pytest.raises(StoppedError, match="stopped after 2 of 4 runs") as found:
            run(preset="fast")
        assert found.value.exit_code == 128 + signal.SIGTERM
        assert status(out) == ("stopped", 128 + signal.SIGTERM)
        assert "2 of 4 runs finished" in (out / "table.md").read_text()
        spent = records(out / "costs.jsonl")[-1]["wall"]

        before = (out / "run.json").read_bytes(), (out / "rows.jsonl").read_bytes()
        with pytest.raises(UsageError, match="--resume: epochs is not given"):
            run(preset="fast", resume=True, epochs=9)
        assert ((out / "run.json").read_bytes(), (out / "rows.jsonl").read_bytes()) == before

        stage.trained.clear()
        parts, _ = run(preset="fast", resume=True)
        assert stage.names() == ["cross-entropy-seed-1", "cosine-seed-1"]
        first, second = stage.trained
        assert (first["resume"], first["images"], "preset" in first) == (True, [], False)
        assert ("resume" in second, second["preset"]) == (False, "fast")
        assert status(out) == ("done", 0)
        assert records(out / "rows.jsonl")[2]["training"]["wall"] > spent > 0
        for one, other in zip(whole.results, parts.results, strict=True):
            assert (one.row, one.seed, one.linear) == (other.row, other.seed, other.linear)

    @pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
    def test_a_signal_while_probing(self, stage: Stage, run: Run, out: Path) -> None:
        stage.at_probe["cosine-seed-0"] = lambda: os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(StoppedError, match="stopped after 1 of 4 runs"):
            run()
        assert status(out)[0] == "stopped"
        stage.trained.clear()
        run(resume=True)
        assert stage.trained[0]["resume"] is True
        assert stage.names()[0] == "cosine-seed-0"


class TestFailures:
    def test_the_others_go_on(self, stage: Stage, run: Run, out: Path) -> None:
        """A failure is not tried again."""
        stage.train_error["cosine-seed-1"] = NumericError("the loss is not finite")
        done, _ = run()
        error = done.error()
        assert error is not None
        assert error.exit_code == 9
        assert "1 of 4 runs failed, first cosine, seed 1" in str(error)
        assert status(out) == ("done", 9)
        assert "cosine (1 of 2 seeds)" in done.table.names
        assert "failed: cosine, seed 1: the loss is not finite" in done.table.notes
        assert [r["failure"] for r in records(out / "rows.jsonl")].count(None) == 3
        assert run(resume=True)[0] == done
        assert len(stage.trained) == 4

    def test_features_that_are_not_finite(self, stage: Stage, run: Run) -> None:
        def fail() -> None:
            raise NumericError("its features are not finite")

        stage.at_probe["cross-entropy-seed-0"] = fail
        done, events = run(seeds=1)
        assert Notice("run 1 of 2: failed: its features are not finite") in events
        assert done.results[0].training.wall > 0

    def test_another_error_ends_the_study(self, stage: Stage, run: Run, out: Path) -> None:
        stage.train_error["cosine-seed-0"] = InputError("8 usable images cannot fill a batch of 16")
        with pytest.raises(InputError, match="cannot fill a batch"):
            run()
        assert status(out) == ("failed", 3)
        run(resume=True)
        assert status(out) == ("done", 0)


@pytest.mark.usefixtures("slim")
def test_with_real_training_and_probes(
    run: Run, out: Path, tiny_settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "STEPS", 50)
    settings = {k: v for k, v in tiny_settings.items() if k not in ("clusters", "over_clusters")}
    settings |= {"categories": 4, "epochs": 1, "grid": 3, "features": "fpn"}
    done, _ = run(seeds=2, **settings)
    assert done.error() is None
    with Image.open(done.plot) as picture:
        assert picture.format == "PNG"
    assert len(done.results) == 4
    for each in done.results:
        assert each.linear is not None and each.kmeans is not None
        assert 0 < each.kmeans.mean_iou < 100
        assert each.linear.protocol.startswith("picie: shorter side 32")
        assert each.training.processor > 0 and each.probing.processor > 0
        assert each.budget["steps"] == 2
    losses = [
        [record["losses"]["total"] for record in records(path / "metrics.jsonl")]
        for path in sorted((out / "runs").iterdir())
    ]
    assert len({tuple(each) for each in losses}) == 4
    assert Segmenter.load(out / "runs/cosine-seed-1").card.training["seed"] == 1
