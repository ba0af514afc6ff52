"""`study` on the command line: its options, its table on stdout, and the end of a study with failures."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import pytest
from program import Cli, Patch, options, other_values, refused

from densesiam_seg.cli.study import SETTINGS, StudyName
from densesiam_seg.config import PretrainConfig
from densesiam_seg.errors import InputError
from densesiam_seg.events import Notice, Progress
from densesiam_seg.studies import study
from densesiam_seg.studies.ablations import STUDIES
from densesiam_seg.studies.runs import Cost, ProbeScore, RunResult
from densesiam_seg.studies.study import Studied
from densesiam_seg.studies.tables import Column, Table

SCORE = ProbeScore(20.0, 60.0, {"a": 20.0}, "picie: 32", "probe", 1)
GOOD = RunResult("first", 0, None, SCORE, SCORE, Cost(3, 4), Cost(1, 2), {})
BAD = RunResult("second", 0, "the loss is not finite", None, None, Cost(1, 1), Cost(), {})
TABLE = Table("T", (Column("score", "score"),), ("first",), ((20.0,),), ("a note",))


@pytest.fixture
def calls(monkeypatch: Patch) -> list[Any]:
    """What the command hands to `study_events`, which fails."""
    found: list[Any] = []

    def record(*arguments: Any, **given: Any) -> Iterator[Any]:
        found.append((*arguments, given))
        raise InputError("enough")

    monkeypatch.setattr(study, "study_events", record)
    return found


@pytest.fixture
def play(monkeypatch: Patch, tmp_path: Path, cli: Cli) -> Callable[..., Any]:
    """The command with these options, of a study that ends with these runs."""

    def run(results: tuple[RunResult, ...], *given: str) -> tuple[int, str, str]:
        def events(*_: Any, **__: Any) -> Iterator[Any]:
            yield Progress("checking labels", 1, 1)
            yield Notice("similarity study")
            yield Studied(tmp_path, TABLE, tmp_path / "plot.png", results)

        monkeypatch.setattr(study, "study_events", events)
        return cli("study", "similarity", "camvid", "--root", "d", *given)

    return run


def test_every_study_can_be_named() -> None:
    assert get_args(StudyName) == tuple(STUDIES)


def test_options_reach_the_study(cli: Cli, calls: list[Any], tmp_path: Path) -> None:
    """Options win over the file."""
    refused(cli("study", "losses", "camvid", "--root", "data"), 3, "input", "enough")
    (tmp_path / "c.toml").write_text("grid = 5\nepochs = 9\n")
    others = other_values(PretrainConfig)
    settings = {name: others[name] for name in SETTINGS}
    cli(
        "study", "correspondence", "own.toml", "--root", "d", "--images", "a", "--images", "b", "--seeds", "5",
        "--out", "o", "--resume", "--overwrite", "--preset", "fast", "--config", tmp_path / "c.toml",
        "--split", "test", "--train-split", "val", "--protocol", "stego", *options(settings),
    )  # fmt: skip
    defaults = {
        "images": [], "seeds": 3, "split": None, "train_split": "train", "protocol": None, "out": None,
        "preset": None, "resume": False, "overwrite": False,
    }  # fmt: skip
    given = {
        "images": ["a", "b"], "seeds": 5, "split": "test", "train_split": "val", "protocol": "stego",
        "out": Path("o"), "preset": "fast", "resume": True, "overwrite": True, "grid": 5, **settings,
    }  # fmt: skip
    assert calls == [
        ("losses", "camvid", Path("data"), defaults),
        ("correspondence", "own.toml", Path("d"), given),
    ]


class TestShown:
    def test_the_table_is_data(self, play: Callable[..., Any], tmp_path: Path) -> None:
        code, out, error = play((GOOD,))
        assert (code, out) == (0, TABLE.markdown())
        assert error.splitlines() == [
            "similarity study",
            f"table: {tmp_path / 'table.md'}",
            f"plot:  {tmp_path / 'plot.png'}",
        ]
        assert play((GOOD,), "-q") == (0, TABLE.markdown(), "")

    def test_json(self, play: Callable[..., Any], tmp_path: Path) -> None:
        code, out, _ = play((GOOD,), "--json", "-q")
        value = json.loads(out)
        assert (code, value["folder"], value["title"]) == (0, str(tmp_path), "T")
        assert value["results"] == [asdict(GOOD)]

    def test_failures_are_told_after_the_table(self, play: Callable[..., Any]) -> None:
        code, out, error = play((GOOD, BAD), "-q")
        assert (code, out) == (9, TABLE.markdown())
        assert error.startswith("error[partial]: ")
        assert "1 of 2 runs failed, first second, seed 0 (the loss is not finite)" in error


@pytest.mark.parametrize(
    ("arguments", "code", "name", "words"),
    [
        (["mine", "--root", "d"], 2, "usage", "no dataset is named 'mine'"),
        (["camvid", "--root", "nowhere"], 3, "input", "nowhere: no folder"),
        (["camvid", "--root", "d", "--seeds", "0"], 2, "usage", "--seeds 0"),
        (["camvid", "--root", "d", "--protocol", "x"], 2, "usage", "--protocol x"),
        (["camvid", "--root", "d", "--epochs", "-1"], 2, "usage", "epochs = -1"),
        (["camvid", "--root", "d", "--workers", "x"], 2, "usage", "--workers x"),
        (["camvid", "--root", "d", "--config", "no.toml"], 3, "input", "no.toml"),
    ],
)
def test_refusals_leave_nothing_behind(
    cli: Cli,
    tmp_path: Path,
    monkeypatch: Patch,
    arguments: list[str],
    code: int,
    name: str,
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(cli("study", "losses", *arguments), code, name, words)
    assert list(tmp_path.iterdir()) == []


def test_a_setting_that_the_rows_decide(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('similarity = "cosine"\n')
    found = cli("study", "similarity", "camvid", "--root", "d", "--config", tmp_path / "c.toml")
    refused(found, 2, "usage", "similarity = 'cosine': is what the rows")
