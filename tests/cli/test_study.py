"""`study` on the command line: its options, its table on stdout, and the end of a study with failures."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from densesiam_seg.cli.study import StudyName
from densesiam_seg.errors import InputError
from densesiam_seg.events import Notice, Progress
from densesiam_seg.studies import study
from densesiam_seg.studies.ablations import STUDIES
from densesiam_seg.studies.scoreboard import Cost, ProbeScore, RunResult
from densesiam_seg.studies.study import Studied
from densesiam_seg.studies.tables import Column, Table

Cli = Callable[..., tuple[int, str, str]]

SCORE = ProbeScore(20.0, 60.0, {"a": 20.0}, "picie: 32", "probe", 1)
GOOD = RunResult("first", 0, None, SCORE, SCORE, Cost(3, 4), Cost(1, 2), {})
BAD = RunResult("second", 0, "the loss is not finite", None, None, Cost(1, 1), Cost(), {})
TABLE = Table("T", (Column("score", "score"),), ("first",), ((20.0,),), ("a note",))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """What the command hands to `study_events`, which fails."""
    found: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def record(*arguments: Any, **options: Any) -> Iterator[Any]:
        found.append((arguments, options))
        raise InputError("enough")

    monkeypatch.setattr(study, "study_events", record)
    return found


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Let a study end with these runs."""

    def end(*results: RunResult) -> None:
        def events(*arguments: Any, **options: Any) -> Iterator[Any]:
            yield Progress("checking labels", 1, 1)
            yield Notice("similarity study")
            for number, result in enumerate(results, 1):
                yield Notice(f"run {number} of {len(results)}: {result}")
            yield Studied(tmp_path, TABLE, tmp_path / "plot.png", results)

        monkeypatch.setattr(study, "study_events", events)

    return end


def refused(found: tuple[int, str, str], code: int, name: str, words: str) -> None:
    assert found[:2] == (code, "")
    assert found[2].startswith(f"error[{name}]: ")
    assert len(found[2].splitlines()) == 1
    assert words in found[2]


def test_every_study_can_be_named() -> None:
    assert [each.value for each in StudyName] == list(STUDIES)


class TestOptions:
    def test_by_default(self, cli: Cli, calls: list[Any]) -> None:
        refused(cli("study", "losses", "camvid", "--root", "data"), 3, "input", "enough")
        assert calls == [
            (
                ("losses", "camvid", Path("data")),
                {
                    "images": [],
                    "seeds": 3,
                    "split": None,
                    "train_split": "train",
                    "protocol": None,
                    "out": None,
                    "preset": None,
                    "resume": False,
                    "overwrite": False,
                },
            )
        ]

    def test_all(self, cli: Cli, calls: list[Any], tmp_path: Path) -> None:
        (tmp_path / "c.toml").write_text("grid = 5\nepochs = 9\n")
        cli(
            "study", "correspondence", "own.toml", "--root", "d", "--images", "a", "--images", "b", "--seeds", "5",
            "--seed", "7", "--out", "o", "--resume", "--overwrite", "--preset", "fast", "--epochs", "4",
            "--batch-size", "8", "--image-size", "64", "--backbone", "resnet34", "--channels", "32",
            "--weights", "none", "--learning-rate", "0.1", "--config", tmp_path / "c.toml", "--split", "test",
            "--train-split", "val", "--protocol", "stego", "--device", "cpu", "--precision", "fp32",
            "--threads", "2", "--workers", "1",
        )  # fmt: skip
        arguments, options = calls[0]
        assert arguments == ("correspondence", "own.toml", Path("d"))
        assert options == {
            "images": ["a", "b"],
            "seeds": 5,
            "split": "test",
            "train_split": "val",
            "protocol": "stego",
            "out": Path("o"),
            "preset": "fast",
            "resume": True,
            "overwrite": True,
            "grid": 5,
            "seed": 7,
            "epochs": 4,
            "batch_size": 8,
            "image_size": 64,
            "backbone": "resnet34",
            "channels": 32,
            "weights": "none",
            "learning_rate": 0.1,
            "device": "cpu",
            "precision": "fp32",
            "threads": 2,
            "workers": 1,
        }


class TestShown:
    def test_the_table_is_data(self, cli: Cli, play: Callable[..., None], tmp_path: Path) -> None:
        play(GOOD)
        code, out, error = cli("study", "similarity", "camvid", "--root", "d")
        assert (code, out) == (0, TABLE.markdown())
        assert error.splitlines()[0] == "similarity study"
        assert error.splitlines()[-2:] == [
            f"table: {tmp_path / 'table.md'}",
            f"plot:  {tmp_path / 'plot.png'}",
        ]

    def test_quiet(self, cli: Cli, play: Callable[..., None]) -> None:
        play(GOOD)
        assert cli("study", "similarity", "camvid", "--root", "d", "-q") == (
            0,
            TABLE.markdown(),
            "",
        )

    def test_json(self, cli: Cli, play: Callable[..., None], tmp_path: Path) -> None:
        play(GOOD)
        code, out, _ = cli("study", "similarity", "camvid", "--root", "d", "--json", "-q")
        value = json.loads(out)
        assert (code, value["folder"], value["title"]) == (0, str(tmp_path), "T")
        assert value["results"] == [GOOD.to_dict()]

    def test_failures_are_told_after_the_table(
        self, cli: Cli, play: Callable[..., None], tmp_path: Path
    ) -> None:
        play(GOOD, BAD)
        code, out, error = cli("study", "similarity", "camvid", "--root", "d", "-q")
        assert (code, out) == (9, TABLE.markdown())
        assert error == (
            f"error[partial]: {tmp_path}: 1 of 2 runs failed, first second, seed 0 (the loss is not finite); the table "
            "has the others\n"
        )


class TestRefusals:
    @pytest.mark.parametrize(
        ("arguments", "code", "name", "words"),
        [
            (["shapes", "camvid", "--root", "d"], 2, "usage", "'shapes' is not one of"),
            (["losses", "camvid"], 2, "usage", "Missing option '--root'"),
            (["losses", "mine", "--root", "d"], 2, "usage", "no dataset is named 'mine'"),
            (["losses", "camvid", "--root", "nowhere"], 3, "input", "nowhere: no folder"),
            (["losses", "camvid", "--root", "d", "--seeds", "0"], 2, "usage", "--seeds 0"),
            (["losses", "camvid", "--root", "d", "--protocol", "x"], 2, "usage", "--protocol x"),
            (["losses", "camvid", "--root", "d", "--epochs", "0"], 2, "usage", "epochs = 0"),
            (["losses", "camvid", "--root", "d", "--workers", "x"], 2, "usage", "--workers x"),
            (["losses", "camvid", "--root", "d", "--config", "no.toml"], 3, "input", "no.toml"),
        ],
    )
    def test_one_line_and_nothing_written(
        self,
        cli: Cli,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        arguments: list[str],
        code: int,
        name: str,
        words: str,
    ) -> None:
        monkeypatch.chdir(tmp_path)
        refused(cli("study", *arguments), code, name, words)
        assert list(tmp_path.iterdir()) == []

    def test_a_setting_that_the_rows_decide(self, cli: Cli, tmp_path: Path) -> None:
        (tmp_path / "c.toml").write_text('similarity = "cosine"\n')
        found = cli("study", "similarity", "camvid", "--root", "d", "--config", tmp_path / "c.toml")
        refused(
            found, 2, "usage", "similarity = 'cosine': is what the rows of the similarity study"
        )
