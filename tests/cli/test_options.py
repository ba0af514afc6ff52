"""Options that several commands share."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from program import Cli, Patch

from densesiam_seg.cli.options import require_new, seconds
from densesiam_seg.errors import InputError, UsageError
from densesiam_seg.io.run_directory import read_status, write_status


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
    program = command.split(" ")[0]
    monkeypatch.setattr(f"densesiam_seg.cli.{program}.require_model", lambda path: None)
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


DAMAGED = {
    "predict": "predict {image} --model {run} --out {out}",
    "visualize": "visualize {run} {image} --out {out}.png",
    "evaluate": "evaluate {data}/scenes.toml --root {data} --model {run}",
    "probe": "probe {run} --dataset {data}/scenes.toml --root {data}",
    "export backbone": "export backbone {run} --out {out}.pth",
    "init from": "train {image} --init-from {run} --out {out}",
    "weights": "train {image} --weights {run} --out {out}",
    "weights file": "train {image} --weights {run}/model.safetensors --out {out}",
    "resume": "train --resume --out {stopped}",
}
_REFUSED_EARLY = """
import contextlib, io, json, sys
from densesiam_seg.cli.app import main
found = {}
for name, words in json.loads(sys.argv[1]).items():
    sys.argv = ["densesiam-seg", *words.split()]
    error = io.StringIO()
    with contextlib.redirect_stderr(error):
        try:
            main()
        except SystemExit as end:
            found[name] = [end.code, error.getvalue(), "torch" in sys.modules]
print(json.dumps(found))
"""


def test_damaged_files_are_refused_before_torch_is_imported(
    image_folder: Path, scenes: Path, model_folder: Path, tmp_path: Path
) -> None:
    run, stopped = tmp_path / "model", tmp_path / "stopped"
    shutil.copytree(model_folder, run)
    tensors = run / "model.safetensors"
    data = tensors.read_bytes()
    tensors.write_bytes(b"\xff" * 8 + data[8:])
    (stopped / "checkpoints" / "step-00000001").mkdir(parents=True)
    write_status(stopped, "stopped")
    places = {"data": scenes, "image": image_folder / "00.jpg", "run": run, "out": tmp_path / "out"}
    commands = {name: text.format(**places, stopped=stopped) for name, text in DAMAGED.items()}
    program = [sys.executable, "-c", _REFUSED_EARLY, json.dumps(commands)]
    child = subprocess.run(program, check=True, capture_output=True, text=True)
    for name, (code, error, torch) in json.loads(child.stdout).items():
        assert (code, len(error.splitlines()), torch) == (4, 1, False), (name, error)
        assert error.startswith("error[model]: "), (name, error)
    assert read_status(stopped)["exit_code"] == 4
    assert not (tmp_path / "out").exists()


def test_torch_is_imported_without_the_collector() -> None:
    code = """
import gc, sys
from densesiam_seg.cli.options import import_torch
passes = []
gc.callbacks.append(lambda phase, info: passes.append("torch" in sys.modules))
assert "torch" not in sys.modules and gc.get_freeze_count() == 0
import_torch()
assert "torch" in sys.modules and gc.isenabled() and gc.get_freeze_count() > 100_000
assert len(passes) < 4, len(passes)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
