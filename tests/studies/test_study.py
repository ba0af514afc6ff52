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
from densesiam_seg.studies.ablations import STUDIES
from densesiam_seg.studies.study import NAMES, Studied, study_events

ROWS = ["cross-entropy", "cosine"]


def evaluation(right: int) -> Any:
    """Half of `right` is the mean IoU; nothing else is looked at."""
    scores = SimpleNamespace(mean_iou=right / 2, pixel_accuracy=right, names=("a",), iou=(right,))
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


@pytest.fixture
def start(scenes: Path, out: Path) -> Callable[..., Iterator[Any]]:
    """A study of two rows with two seeds."""

    def events(**options: Any) -> Iterator[Any]:
        given = {"study": "similarity", "seeds": 2, "device": "cpu", "out": out, **options}
        return study_events(given.pop("study"), scenes / "scenes.toml", scenes, **given)

    return events


@pytest.fixture
def run(start: Callable[..., Iterator[Any]]) -> Callable[..., Studied]:
    def last(**options: Any) -> Studied:
        *_, done = start(**options)
        assert isinstance(done, Studied)
        return done

    return last


Start = Callable[..., Iterator[Any]]
Run = Callable[..., Studied]


def status(out: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((out / "run.json").read_text())
    return value


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


class TestWhole:
    def test_every_row_with_every_seed_in_turn(self, stage: Stage, start: Start, out: Path) -> None:
        events = list(start())
        wanted = [(name, seed) for seed in (0, 1) for name in ROWS]
        assert [(result.row, result.seed) for result in events[-1].results] == wanted
        assert stage.names()[:2] == ["cross-entropy-seed-0", "cosine-seed-0"]
        assert str(events[-1].folder) == str(out)

    def test_what_lies_in_its_folder(self, stage: Stage, run: Run, out: Path) -> None:
        done = run()
        assert {path.name for path in out.iterdir()} == NAMES | {".lock"}
        folders = sorted((out / "runs").iterdir())
        assert len(folders) == 4
        for each in folders:
            assert (each / "model").is_dir()
            assert not (each / "checkpoints").exists()
        assert (status(out)["status"], status(out)["exit_code"]) == ("done", 0)
        assert (out / "table.md").read_text() == done.table.markdown()
        assert done.plot.read_bytes() == b"a chart"
        assert done.error() is None

    def test_a_finished_run_is_one_record(self, stage: Stage, run: Run, out: Path) -> None:
        run()
        first, *others = records(out / "rows.jsonl")
        assert len(others) == 3
        assert (first["row"], first["seed"], first["failure"]) == ("cross-entropy", 0, None)
        assert first["linear"]["pixel_accuracy"] == 80
        assert first["kmeans"]["mean_iou"] == 30
        assert first["budget"]["steps"] == 2
        assert (first["budget"]["epochs"], first["budget"]["backbone"]) == (3, "resnet18")
        assert first["training"]["wall"] > 0
        assert first["probing"]["processor"] >= 0

    def test_the_table(self, stage: Stage, run: Run, out: Path) -> None:
        """Pixel accuracy: 80 and 82 by the linear probe, 60 and 62 by k-means."""
        text = run().table.markdown()
        assert text.startswith("# similarity study, Procedural scenes val\n")
        assert text.count("81.00 ± 1.41") == text.count("61.00 ± 1.41") == 2
        for words in ("- protocol: picie: 32", "scored on val (2 images", "4 of 4 runs finished"):
            assert words in text
        value = json.loads((out / "table.json").read_text())
        assert [row["row"] for row in value["rows"]] == ROWS
        assert value["rows"][0]["linear_pixel_accuracy"]["values"] == [80.0, 82.0]
        assert len(value["results"]) == 4

    def test_all_runs_have_the_same_settings_but_for_their_row(
        self, stage: Stage, run: Run, scenes: Path
    ) -> None:
        run(epochs=4, preset="fast", grid=5)
        shared = {"device": "cpu", "epochs": 4, "grid": 5, "preset": "fast"}
        rows: list[dict[str, Any]] = [dict(row.settings) for row in STUDIES["similarity"]]
        given = [{k: v for k, v in c.items() if k not in ("images", "out")} for c in stage.trained]
        assert given == [{**shared, **row, "seed": seed} for seed in (0, 1) for row in rows]
        images = sorted(str(path) for path in (scenes / "images/train").iterdir())
        assert all(call["images"] == images for call in stage.trained)

    def test_all_are_probed_alike(self, stage: Stage, run: Run, out: Path) -> None:
        run()
        assert stage.probed[0] == (out / "runs/cross-entropy-seed-0/model", "val", "train", 0)
        assert [call[-1] for call in stage.probed] == [0, 0, 1, 1]

    def test_what_is_shown_of_a_run(self, stage: Stage, start: Start) -> None:
        """Progress, and each warning once; neither its notices nor its epochs."""
        events = list(start())
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

    def test_by_default_in_a_folder_of_its_time(
        self, stage: Stage, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        done = run(out=None, seeds=1)
        assert done.folder.parent == Path("runs/study")
        assert run(out=None, seeds=1, resume=True).folder == done.folder
        assert len(stage.trained) == 2


class TestRefusals:
    def test_nothing_is_written_before_everything_was_looked_at(
        self, stage: Stage, run: Run, out: Path
    ) -> None:
        for options in ({"epochs": 0}, {"split": "test"}, {"similarity": "cosine"}, {"seeds": 0}):
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
    def stop_training(self, stage: Stage, name: str) -> None:
        stage.train_error[name] = StoppedError("stopped after step 1", signal.SIGTERM)

    def test_a_stop_while_training(self, stage: Stage, run: Run, out: Path) -> None:
        self.stop_training(stage, "cross-entropy-seed-1")
        with pytest.raises(StoppedError, match="stopped after 2 of 4 runs") as found:
            run()
        assert found.value.exit_code == 128 + signal.SIGTERM
        assert (status(out)["status"], status(out)["exit_code"]) == (
            "stopped",
            128 + signal.SIGTERM,
        )
        assert "2 of 4 runs finished" in (out / "table.md").read_text()

    def test_it_goes_on_where_it_was(self, stage: Stage, run: Run, out: Path) -> None:
        self.stop_training(stage, "cross-entropy-seed-1")
        with pytest.raises(StoppedError):
            run(preset="fast")
        spent = [r for r in records(out / "costs.jsonl") if r["run"] == "cross-entropy-seed-1"]
        stage.trained.clear()
        run(preset="fast", resume=True)
        assert stage.names()[0] == "cross-entropy-seed-1"
        assert len(stage.names()) == 2
        first, second = stage.trained[:2]
        assert (first["resume"], first["images"], "preset" in first) == (True, [], False)
        assert ("resume" in second, second["preset"]) == (False, "fast")
        assert status(out)["status"] == "done"
        row = records(out / "rows.jsonl")[2]
        assert row["training"]["wall"] > spent[0]["wall"] > 0

    def test_scores_are_those_of_a_study_in_one_go(
        self, stage: Stage, run: Run, tmp_path: Path
    ) -> None:
        whole = run(out=tmp_path / "whole")
        self.stop_training(stage, "cosine-seed-0")
        with pytest.raises(StoppedError):
            run()
        parts = run(resume=True)
        scores = [
            [(each.row, each.seed, each.linear, each.kmeans) for each in done.results]
            for done in (whole, parts)
        ]
        assert scores[0] == scores[1]

    @pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
    def test_a_signal_while_probing(self, stage: Stage, run: Run, out: Path) -> None:
        stage.at_probe["cosine-seed-0"] = lambda: os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(StoppedError, match="stopped after 1 of 4 runs"):
            run()
        assert status(out)["status"] == "stopped"
        stage.trained.clear()
        run(resume=True)
        assert stage.trained[0]["resume"] is True
        assert stage.names()[0] == "cosine-seed-0"

    def test_a_finished_study_stays(self, stage: Stage, start: Start, run: Run, out: Path) -> None:
        before = run().table
        stage.trained.clear()
        events = list(start(resume=True))
        assert stage.trained == []
        assert Notice("4 of 4 runs were finished before") in events
        assert events[-1].table == before
        assert status(out)["status"] == "done"

    def test_a_refused_resume_leaves_everything(self, stage: Stage, run: Run, out: Path) -> None:
        self.stop_training(stage, "cosine-seed-0")
        with pytest.raises(StoppedError):
            run()
        before = (out / "run.json").read_bytes(), (out / "rows.jsonl").read_bytes()
        with pytest.raises(UsageError, match="--resume: epochs is not given"):
            run(resume=True, epochs=9)
        assert ((out / "run.json").read_bytes(), (out / "rows.jsonl").read_bytes()) == before


class TestFailures:
    def test_the_others_go_on(self, stage: Stage, run: Run, out: Path) -> None:
        stage.train_error["cosine-seed-1"] = NumericError("the loss is not finite")
        done = run()
        error = done.error()
        assert error is not None
        assert error.exit_code == 9
        assert "1 of 4 runs failed, first cosine, seed 1" in str(error)
        assert (status(out)["status"], status(out)["exit_code"]) == ("done", 9)
        text = done.table.markdown()
        assert "| cosine (1 of 2 seeds) " in text
        assert "- failed: cosine, seed 1: the loss is not finite\n" in text
        assert [r["failure"] for r in records(out / "rows.jsonl")].count(None) == 3

    def test_a_failure_is_not_tried_again(self, stage: Stage, run: Run) -> None:
        stage.train_error["cosine-seed-1"] = NumericError("the loss is not finite")
        run()
        stage.trained.clear()
        assert run(resume=True).error() is not None
        assert stage.trained == []

    def test_features_that_are_not_finite(self, stage: Stage, start: Start) -> None:
        def fail() -> None:
            raise NumericError("its features are not finite")

        stage.at_probe["cross-entropy-seed-0"] = fail
        events = list(start(seeds=1))
        assert Notice("run 1 of 2: failed: its features are not finite") in events
        assert events[-1].results[0].training.wall > 0

    def test_another_error_ends_the_study(self, stage: Stage, run: Run, out: Path) -> None:
        stage.train_error["cosine-seed-0"] = InputError("8 usable images cannot fill a batch of 16")
        with pytest.raises(InputError, match="cannot fill a batch"):
            run()
        assert (status(out)["status"], status(out)["exit_code"]) == ("failed", 3)
        assert "cannot fill" in status(out)["reason"]
        run(resume=True)
        assert status(out)["status"] == "done"


@pytest.mark.usefixtures("slim")
def test_with_real_training_and_probes(
    run: Run, out: Path, tiny_settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "STEPS", 50)
    settings = {k: v for k, v in tiny_settings.items() if k not in ("clusters", "over_clusters")}
    settings |= {"categories": 4, "epochs": 1, "grid": 3, "features": "fpn"}
    done = run(seeds=2, **settings)
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
