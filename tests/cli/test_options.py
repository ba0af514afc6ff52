"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from program import Cli, Patch

from densesiam_seg.cli.options import require_new, seconds
from densesiam_seg.errors import InputError, UsageError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, None),
        ("90", 90),
        ("90s", 90),
        ("1.5", 1.5),
        ("15m", 900),
        ("0.5m", 30),
        ("2h", 7200),
        (" 3 ", 3),
    ],
)
def test_seconds(text: str | None, expected: float | None) -> None:
    assert seconds("--max-time", text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "m", "0", "0s", "-5", "-1h", "15 min", "15M", "1d", "1h30m", "nan", "inf", "1e9", "x"],
)
def test_other_times_are_refused_with_an_example(text: str) -> None:
    with pytest.raises(UsageError, match=r"--max-time .*such as 15m"):
        seconds("--max-time", text)


def test_a_file_that_exists_is_replaced_only_when_asked_to(tmp_path: Path) -> None:
    require_new(None, False)
    require_new(tmp_path / "new", False)
    require_new(tmp_path, True)
    with pytest.raises(UsageError, match="--overwrite"):
        require_new(tmp_path, False)


@pytest.mark.parametrize("name", ["a.json", "a.txt", "a", "a.v2"])
def test_names_for_json(tmp_path: Path, name: str) -> None:
    require_new(tmp_path / name, False)


@pytest.mark.parametrize("name", ["a.png", "a.JPG", "a.csv", "a.npy"])
def test_other_names_are_refused(tmp_path: Path, name: str) -> None:
    for overwrite in (False, True):
        with pytest.raises(UsageError, match="holds JSON"):
            require_new(tmp_path / name, overwrite)


@pytest.mark.parametrize(
    ("command", "model"),
    [
        ("evaluate {data}/scenes.toml --root {data}", None),
        ("predict {image}", None),
        ("visualize run {image}", Path("run")),
    ],
)
def test_what_the_read_out_is_asked_for(
    cli: Cli,
    image_folder: Path,
    scenes: Path,
    tmp_path: Path,
    monkeypatch: Patch,
    command: str,
    model: Path | None,
) -> None:
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def record(*arguments: Any, tell: object, **given: Any) -> None:
        calls.append((arguments, given))
        raise InputError("enough")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("densesiam_seg.inference.readout.load_with_readout", record)
    places = {"data": scenes, "image": image_folder / "00.jpg"}
    words = command.format(**places).split(" ")
    cli(*words)
    cli(
        *words, *(() if model else ("-m", "run")), "--readout", "merge", "-k", "9", "--fit-images", "a",
        "--fit-images", "b", "--over-clusters", "50", "--seed", "7", "--device", "cpu", "--precision", "bf16",
    )  # fmt: skip
    defaults = {"over_clusters": None, "seed": 0, "device": "auto", "precision": "auto"}
    given = {"over_clusters": 50, "seed": 7, "device": "cpu", "precision": "bf16"}
    assert calls == [
        ((model, "head", None, None), defaults),
        ((Path("run"), "merge", 9, ["a", "b"]), given),
    ]
