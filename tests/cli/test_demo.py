"""`demo` on the command line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from program import Cli, Patch, refused

from densesiam_seg import demo
from densesiam_seg.errors import InputError


@pytest.mark.usefixtures("small_demo")
def test_both_scores_and_what_to_look_at(cli: Cli, monkeypatch: Patch, tmp_path: Path) -> None:
    """As text, and the same events again as JSON."""
    out, real = tmp_path / "demo", demo.demo_events
    events: list[Any] = []

    def once(*arguments: Any, **given: Any) -> Iterator[Any]:
        events.extend(() if events else real(*arguments, **given))
        return iter(events)

    monkeypatch.setattr(demo, "demo_events", once)
    code, text, error = cli("demo", "--out", out)
    assert code == 0
    last = text.splitlines()[-1]
    assert last.startswith("held-out scenes: densesiam-seg ")
    assert "k-means on colour + position" in last
    assert error.splitlines()[-3:] == [
        f"picture: {out / 'demo.png'}",
        f"masks:   {out / 'masks'}",
        "next:    densesiam-seg train YOUR_IMAGES/",
    ]
    code, text, _ = cli("demo", "--json", "--quiet")
    value = json.loads(text)
    assert (code, Path(value["picture"]).is_file()) == (0, True)
    assert value["learned"]["images"] == value["baseline"]["images"] == 4
    monkeypatch.setattr(demo, "demo_events", real)
    refused(cli("demo", "-o", out), 2, "usage", f"--out {out}: is not empty")


def test_options_reach_the_demonstration(cli: Cli, monkeypatch: Patch) -> None:
    calls: list[tuple[Any, ...]] = []

    def record(out: Path | None, **options: Any) -> Iterator[object]:
        calls.append((out, options))
        raise InputError("enough")

    monkeypatch.setattr(demo, "demo_events", record)
    refused(cli("demo"), 3, "input", "enough")
    refused(cli("demo", "--seed", "-1"), 2, "usage", "seed = -1")
    cli("demo", "-o", "d", "--overwrite", "--seed", "7", "--epochs", "2")
    assert calls == [
        (None, {"overwrite": False, "seed": 0, "epochs": None}),
        (Path("d"), {"overwrite": True, "seed": 7, "epochs": 2}),
    ]


def test_nobodys_files_are_deleted(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    refused(cli("demo", "-o", tmp_path, "--overwrite"), 2, "usage", "which no run wrote")
    assert (tmp_path / "mine.txt").read_text() == "mine"
