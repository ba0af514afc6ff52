"""`demo` on the command line, with few and tiny scenes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from densesiam_seg import demo
from densesiam_seg.errors import InputError

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def small(slim: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "SIDE", 48)
    monkeypatch.setattr(demo, "TRAINING_SCENES", 8)
    monkeypatch.setattr(demo, "HELD_OUT_SCENES", 4)
    settings = {"image_size": 32, "batch_size": 4, "channels": 8, "threads": 1, "device": "cpu"}
    monkeypatch.setattr(demo, "SETTINGS", demo.SETTINGS | settings)


def test_both_scores_and_what_to_look_at(cli: Cli, tmp_path: Path) -> None:
    code, out, error = cli("demo", "--out", tmp_path / "demo", "--epochs", "1")
    assert code == 0
    last = out.splitlines()[-1]
    assert last.startswith("held-out scenes: densesiam-seg ")
    assert "k-means on colour + position" in last
    assert error.splitlines()[-3:] == [
        f"picture: {tmp_path / 'demo' / 'demo.png'}",
        f"masks:   {tmp_path / 'demo' / 'masks'}",
        "next:    densesiam-seg train YOUR_IMAGES/",
    ]


def test_json(cli: Cli, tmp_path: Path) -> None:
    options = ("--epochs", "1", "--json", "--quiet", "--seed", "3")
    code, out, error = cli("demo", "-o", tmp_path / "demo", *options)
    assert code == 0
    assert all(line.startswith("warning: ") for line in error.splitlines())
    value = json.loads(out)
    assert Path(value["picture"]).is_file()
    assert value["learned"]["images"] == value["baseline"]["images"] == 4


def test_options_reach_the_demonstration(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[Any, ...]] = []

    def record(out: Path | None, **options: Any) -> Iterator[object]:
        calls.append((out, options))
        raise InputError("enough")

    monkeypatch.setattr(demo, "demo_events", record)
    assert cli("demo")[0] == 3
    cli("demo", "-o", "d", "--overwrite", "--seed", "7", "--epochs", "2")
    assert calls == [
        (None, {"overwrite": False, "seed": 0, "epochs": None}),
        (Path("d"), {"overwrite": True, "seed": 7, "epochs": 2}),
    ]


def test_a_second_time(cli: Cli, tmp_path: Path) -> None:
    options = ("demo", "-o", tmp_path / "demo", "--epochs", "1", "-q")
    assert cli(*options)[0] == 0
    code, out, error = cli(*options)
    assert (code, out) == (2, "")
    assert error.startswith(f"error[usage]: --out {tmp_path / 'demo'}: is not empty")
    assert len(error.splitlines()) == 1
    assert cli(*options, "--overwrite")[0] == 0


def test_nobodys_files_are_deleted(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    code, _, error = cli("demo", "-o", tmp_path, "--overwrite")
    assert (code, "which no run wrote" in error) == (2, True)
    assert (tmp_path / "mine.txt").read_text() == "mine"
