"""One run of a study: its name, its cost over several starts, and what is left of it; `test_study` has it at work."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from densesiam_seg.errors import NumericError, StoppedError
from densesiam_seg.events import Notice
from densesiam_seg.io.records import read_records
from densesiam_seg.io.run_directory import write_status
from densesiam_seg.io.signals import StopRequest
from densesiam_seg.studies import row as studyrow
from densesiam_seg.studies.ablations import Row
from densesiam_seg.studies.row import RowRun, Study, finish, tidy
from densesiam_seg.studies.scoreboard import Cost


class Images:
    """Two images."""

    def __len__(self) -> int:
        return 2

    def path(self, index: int) -> str:
        return f"{index}.jpg"


@pytest.fixture
def study(tmp_path: Path) -> Study:
    plan: Any = SimpleNamespace(
        study="similarity",
        given="camvid",
        root=Path("data"),
        images=Images(),
        preset="fast",
        runs=lambda: [1, 2, 3],
        run_settings=lambda row, seed: {**row.settings, "seed": seed},
    )
    return Study(tmp_path, plan, StopRequest())


@pytest.fixture
def run(study: Study) -> RowRun:
    (study.folder / "runs/a-row-b-seed-2").mkdir(parents=True)
    return RowRun(study, Row("A row (b)", {"similarity": "cosine"}), 2)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What training is asked for; it fails at once."""
    calls: list[dict[str, Any]] = []

    def fail(**options: Any) -> Any:
        calls.append(options)
        raise NumericError("lost")

    monkeypatch.setattr(studyrow, "pretraining_events", fail)
    return calls


def drained(run: RowRun) -> tuple[list[Any], Any]:
    """The events of a run, and its result."""
    events, work = [], finish(run)
    while True:
        try:
            events.append(next(work))
        except StopIteration as end:
            return events, end.value


def test_a_run_has_a_name_and_a_folder(run: RowRun, study: Study) -> None:
    assert run.name == "a-row-b-seed-2"
    assert run.folder == study.folder / "runs" / run.name


class TestCost:
    def test_it_is_the_sum_of_all_starts(self, run: RowRun) -> None:
        assert run.cost("training") == Cost()
        with run.measured("training"):
            pass
        with pytest.raises(KeyError), run.measured("training"):
            raise KeyError
        with run.measured("probing"):
            sum(range(10_000))
        found = read_records(run.study.folder / "costs.jsonl")
        assert [record["part"] for record in found] == ["training", "training", "probing"]
        assert run.cost("training").wall == sum(record["wall"] for record in found[:2]) > 0
        assert run.cost("probing").processor == found[2]["processor"] > 0

    def test_other_runs_have_their_own(self, run: RowRun) -> None:
        with RowRun(run.study, run.row, 3).measured("training"):
            pass
        assert run.cost("training") == Cost()


class TestStart:
    def test_a_new_run(self, run: RowRun, asked: list[dict[str, Any]]) -> None:
        run.folder.rmdir()
        drained(run)
        assert asked == [
            {
                "out": run.folder,
                "images": ["0.jpg", "1.jpg"],
                "preset": "fast",
                "similarity": "cosine",
                "seed": 2,
            }
        ]

    def test_what_holds_no_checkpoint_is_begun_again(
        self, run: RowRun, asked: list[dict[str, Any]]
    ) -> None:
        (run.folder / "run.json").touch()
        (run.folder / "checkpoints").mkdir()
        drained(run)
        assert not run.folder.exists()
        assert "resume" not in asked[0]

    @pytest.mark.parametrize("finished", [False, True])
    def test_what_can_go_on_does(
        self, run: RowRun, asked: list[dict[str, Any]], finished: bool
    ) -> None:
        (run.folder / "checkpoints" / ("." if finished else "step-00000004")).mkdir(parents=True)
        write_status(run.folder, "done" if finished else "stopped")
        events, _ = drained(run)
        assert asked == [
            {"out": run.folder, "images": [], "resume": True, "similarity": "cosine", "seed": 2}
        ]
        text = "A row (b), seed 2: was killed; its training s counts from here"
        assert events == [Notice(text, warning=True)]

    def test_a_known_cost_tells_of_no_kill(self, run: RowRun, asked: list[dict[str, Any]]) -> None:
        write_status(run.folder, "done")
        with run.measured("training"):
            pass
        assert drained(run)[0] == []


class TestFinish:
    def test_a_failure_is_a_result(self, run: RowRun, asked: list[dict[str, Any]]) -> None:
        _, result = drained(run)
        assert (result.row, result.seed, result.failure) == ("A row (b)", 2, "lost")
        assert result.linear is result.kmeans is None
        assert result.training.wall > 0
        assert (result.probing, result.budget) == (Cost(), {})

    def test_a_stop_says_how_to_go_on_with_the_study(
        self, run: RowRun, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def stop(**options: Any) -> Any:
            raise StoppedError("densesiam-seg pretrain --resume", 15)

        monkeypatch.setattr(studyrow, "pretraining_events", stop)
        with pytest.raises(StoppedError) as found:
            drained(run)
        assert str(found.value) == (
            "stopped after 0 of 3 runs; go on with densesiam-seg study similarity camvid --root data --resume "
            f"--out {run.study.folder} and the same options"
        )
        assert found.value.exit_code == 143

    def test_a_signal_that_came_before_training_counts(
        self, run: RowRun, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run.study.stop.number = 2
        monkeypatch.setattr(studyrow, "pretraining_events", lambda **_: iter([Notice("x")]))
        with pytest.raises(StoppedError, match="stopped after 0 of 3 runs"):
            drained(run)

    def test_a_run_says_how_long_it_trained(self, run: RowRun, asked: list[dict[str, Any]]) -> None:
        write_status(run.folder, "done")
        (run.folder / "config.toml").write_text('epochs = 3\nbackbone = "resnet18"\nseed = 2\n')
        (run.folder / "metrics.jsonl").write_text('{"step": 6}\n{"step": 7}\n{}\n')
        assert drained(run)[1].budget == {
            "steps": 7,
            "epochs": 3,
            "image_size": None,
            "batch_size": None,
            "learning_rate": None,
            "backbone": "resnet18",
            "features": None,
        }


def test_tidy_leaves_what_is_worth_keeping(run: RowRun) -> None:
    for name in ("checkpoints/step-00000004", "model", ".tmp-1-ab"):
        (run.folder / name).mkdir(parents=True)
    (run.folder / "metrics.jsonl").touch()
    for _ in range(2):
        tidy(run)
        assert {path.name for path in run.folder.iterdir()} == {"model", "metrics.jsonl"}
