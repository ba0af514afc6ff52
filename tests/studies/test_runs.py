"""One run of a study: its cost over several starts, and what is left of it; `test_study` has it at work."""

from __future__ import annotations

from array import array
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from densesiam_seg.errors import ModelError, NumericError, OutputError, StoppedError
from densesiam_seg.events import Notice
from densesiam_seg.images.manifest import Manifest
from densesiam_seg.io.records import Records, read_records
from densesiam_seg.io.run_directory import write_status
from densesiam_seg.io.signals import StopRequest
from densesiam_seg.studies import runs
from densesiam_seg.studies.ablations import Row
from densesiam_seg.studies.runs import (
    Cost,
    ProbeScore,
    RowRun,
    RunResult,
    Study,
    finish,
    read_results,
    tidy,
)


@pytest.fixture
def run(tmp_path: Path) -> RowRun:
    """A run that has begun and holds nothing but its settings."""
    plan: Any = SimpleNamespace(
        study="similarity",
        given="camvid",
        root=Path("data"),
        images=Manifest("", ("0.jpg", "1.jpg"), array("q", [1, 1]), array("q", [0, 0])),
        preset="fast",
        settings={},
        runs=lambda: [1, 2, 3],
    )
    study = Study(tmp_path, plan, StopRequest())
    run = RowRun(study, Row("A row (b)", {"similarity": "cosine"}), 2)
    run.folder.mkdir(parents=True)
    (run.folder / "config.toml").write_text('epochs = 3\nbackbone = "resnet18"\nseed = 2\n')
    return run


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What training is asked for; it fails at once."""
    calls: list[dict[str, Any]] = []

    def fail(**options: Any) -> Any:
        calls.append(options)
        options["out"].mkdir(exist_ok=True)
        (options["out"] / "config.toml").touch()
        raise NumericError("lost")

    monkeypatch.setattr(runs, "pretraining_events", fail)
    return calls


def drained(run: RowRun) -> tuple[list[Any], Any]:
    """The events of a run, and its result."""
    events, work = [], finish(run)
    while True:
        try:
            events.append(next(work))
        except StopIteration as end:
            return events, end.value


class TestResults:
    def test_through_a_file(self, tmp_path: Path) -> None:
        probe = ProbeScore(20.0, 60.0, {"a": 20.0, "b": None}, "picie: 32", "probe", 2)
        results = [
            RunResult("first", 3, None, probe, probe, Cost(10, 20), Cost(1, 2), {"steps": 30}),
            RunResult("second", 1, "lost", None, None, Cost(5, 9), Cost(), {}),
        ]
        with Records(tmp_path / "rows.jsonl") as records:
            for each in results:
                records.append(asdict(each))
        assert read_results(tmp_path) == results
        assert "20.00 mean IoU, 60.00 pixel accuracy" in str(results[0])
        assert str(results[1]) == "failed: lost"

    @pytest.mark.parametrize("change", [{"linear": {"mean_iou": 1}}, {"training": None}])
    def test_a_damaged_record(self, tmp_path: Path, change: dict[str, Any]) -> None:
        record = asdict(RunResult("first", 0, "lost", None, None, Cost(), Cost(), {}))
        with Records(tmp_path / "rows.jsonl") as records:
            records.append(record | change)
        (name,) = change
        with pytest.raises(ModelError, match=rf"rows\.jsonl: a line is not a row .*{name}"):
            read_results(tmp_path)


def test_the_cost_is_the_sum_of_all_starts_of_a_run(run: RowRun) -> None:
    assert run.cost("training") == Cost()
    with run.measured("training"):
        pass
    with pytest.raises(KeyError), run.measured("training"):
        raise KeyError
    with run.measured("probing"):
        sum(range(10_000))
    with RowRun(run.study, run.row, 3).measured("training"):
        pass
    found = read_records(run.study.folder / "costs.jsonl")
    assert [record["part"] for record in found] == ["training", "training", "probing", "training"]
    assert run.cost("training").wall == sum(record["wall"] for record in found[:2]) > 0
    assert run.cost("probing").processor == found[2]["processor"] > 0


class TestStart:
    @pytest.mark.parametrize("left", [[], ["checkpoints"]])
    def test_what_holds_no_checkpoint_begins(
        self, run: RowRun, asked: list[dict[str, Any]], left: list[str]
    ) -> None:
        for name in left:
            (run.folder / name).mkdir()
        drained(run)
        assert not (run.folder / "checkpoints").exists()
        given = {"images": ["0.jpg", "1.jpg"], "preset": "fast", "similarity": "cosine", "seed": 2}
        assert asked == [{"out": run.folder, **given}]

    @pytest.mark.parametrize("finished", [False, True])
    def test_what_can_go_on_does(
        self, run: RowRun, asked: list[dict[str, Any]], finished: bool
    ) -> None:
        """A kill is told where it hides a cost."""
        (run.folder / "checkpoints" / ("." if finished else "step-00000004")).mkdir(parents=True)
        write_status(run.folder, "done" if finished else "stopped")
        ((notice,), _), (later, _) = drained(run), drained(run)
        given = {"images": [], "resume": True, "similarity": "cosine", "seed": 2}
        assert asked == 2 * [{"out": run.folder, **given}]
        assert isinstance(notice, Notice)
        assert notice.warning and "A row (b), seed 2: was killed" in notice.text
        assert later == []


class TestFinish:
    def test_a_failure_is_a_result(self, run: RowRun, asked: list[dict[str, Any]]) -> None:
        write_status(run.folder, "done")
        (run.folder / "metrics.jsonl").write_text('{"step": 6}\n{"step": 7}\n')
        _, result = drained(run)
        assert (result.row, result.seed, result.failure) == ("A row (b)", 2, "lost")
        assert result.linear is result.kmeans is None
        assert result.training.wall > 0
        assert result.probing == Cost()
        assert set(result.budget) == {"steps", *runs.BUDGET}
        assert result.budget["steps"] == 7

    def test_a_stop_says_how_to_go_on_with_the_study(
        self, run: RowRun, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def stop(**options: Any) -> Any:
            raise StoppedError("densesiam-seg pretrain --resume", 15)

        monkeypatch.setattr(runs, "pretraining_events", stop)
        with pytest.raises(StoppedError) as found:
            drained(run)
        assert str(found.value).startswith("stopped after 0 of 3 runs; ")
        command = f"study similarity camvid --root data --resume --out {run.study.folder}"
        assert command in str(found.value)
        assert found.value.exit_code == 143

    def test_a_signal_that_came_before_training_counts(
        self, run: RowRun, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run.study.stop.number = 2
        monkeypatch.setattr(runs, "pretraining_events", lambda **_: iter([Notice("x")]))
        with pytest.raises(StoppedError, match="stopped after 0 of 3 runs"):
            drained(run)


def test_what_cannot_be_deleted_is_an_error(run: RowRun, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(runs, "discard", refuse)
    (run.folder / "checkpoints").mkdir()
    with pytest.raises(OutputError, match="checkpoints"):
        tidy(run)


def test_tidy_leaves_what_is_worth_keeping(run: RowRun) -> None:
    for name in ("checkpoints/step-00000004", "model", ".tmp-1-ab"):
        (run.folder / name).mkdir(parents=True)
    for _ in range(2):
        tidy(run)
        assert {path.name for path in run.folder.iterdir()} == {"model", "config.toml"}
