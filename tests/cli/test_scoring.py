"""Parts of an evaluation on the command line, and one that several processes share."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from program import Cli, Patch, refused

SLIM_PROGRAM = Path(__file__).parents[1] / "support" / "slim_program.py"
MACHINE = ("--device", "cpu", "--precision", "fp32")


@pytest.fixture
def run(cli: Cli, scenes: Path, model_folder: Path) -> Cli:
    where = (scenes / "scenes.toml", "--root", scenes, "--model", model_folder)
    return lambda *arguments: cli("evaluate", *where, *MACHINE, *arguments)


def test_parts_are_joined_to_the_same_file(run: Cli, cli: Cli, tmp_path: Path) -> None:
    """Neither data nor model are needed; a part that is there already stays, and takes no time."""
    parts, one, sum_ = (tmp_path / name for name in ("some parts", "one.json", "sum.json"))
    assert run("--out", one)[0] == 0
    for index in range(4):
        given = ("--shard", f"{index}/4", "--out", parts / f"{index}.json")
        code, out, error = run(*given)
        assert (code, out) == (0, "")
        assert f"part {index}/4" in error
        before = (parts / f"{index}.json").stat().st_mtime_ns
        code, _, error = run(*given)
        assert (code, "there already" in error) == (0, True)
        assert (parts / f"{index}.json").stat().st_mtime_ns == before
    code, out, _ = cli("evaluate", "--merge", parts, "--out", sum_)
    assert (code, sum_.read_bytes()) == (0, one.read_bytes())
    assert out == run()[1]
    files = [parts / f"{index}.json" for index in (2, 0, 3, 1)]
    assert cli("evaluate", *files, "--merge", "--json")[1] == run("--json")[1]
    files[0].unlink()
    found = cli("evaluate", "--merge", parts)
    refused(found, 3, "input", "1 part of 4 missing, first 2/4")


def test_a_part_of_another_job_is_not_replaced(run: Cli, tmp_path: Path) -> None:
    path = tmp_path / "part.json"
    part = ("--shard", "0/2", "--out", path)
    code, out, _ = run(*part, "--json")
    assert (code, json.loads(out)) == (0, json.loads(path.read_bytes()))
    before = path.read_bytes()
    for other in (("--image-size", "40"), ("--flip",)):
        refused(run(*part, *other), 2, "usage", "give --overwrite")
    refused(run("--shard", "1/2", "--out", path), 2, "usage", "give --overwrite")
    assert path.read_bytes() == before
    assert run(*part, "--image-size", "40", "--overwrite", "-q")[::2] == (0, "")
    assert path.read_bytes() != before
    path.write_bytes(before[:99])
    refused(run(*part), 3, "input", "a damaged one")
    code, _, error = run("--shard", "0/2", "--out", tmp_path / "part.json/deeper.json")
    assert (code, "cannot be written" in error) == (5, True)


def test_without_ray(run: Cli, monkeypatch: Patch) -> None:
    monkeypatch.setattr("densesiam_seg.on_ray.cluster.find_spec", lambda name: None)
    refused(run("--ray", "auto"), 2, "usage", "pip install 'densesiam-seg[ray]'")


def launched(count: int, *arguments: Any) -> list[tuple[int, str, str]]:
    """Processes as a launcher starts them: code, stdout and stderr of each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
    words = [sys.executable, str(SLIM_PROGRAM), *map(str, arguments)]
    children = [
        subprocess.Popen(
            words,
            env={**os.environ, **place, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    found = []
    for child in children:
        out, error = child.communicate(timeout=120)
        found.append((child.returncode, out, error))
    return found


def test_two_processes_tell_one_score(
    cli: Cli, scenes: Path, model_folder: Path, tmp_path: Path
) -> None:
    """A read-out that is fitted is fitted once; an error is that of one process."""
    fit = ("--readout", "kmeans", "--fit-images", scenes / "images/val")
    where = (
        "evaluate",
        scenes / "scenes.toml",
        "--root",
        scenes,
        "-m",
        model_folder,
        *MACHINE,
        *fit,
    )
    code, out, _ = cli(*where, "--json")
    assert code == 0
    first, second = launched(2, *where, "--json", "--out", tmp_path / "two.json")
    assert (first[0], second[:2]) == (0, (0, "")), (first, second)
    assert first[1] == out
    assert (tmp_path / "two.json").read_text() == out
    first, second = launched(2, *where[:3], tmp_path, *where[4:])
    assert first[:2] == second[:2] == (3, "")
    assert f"error[input] (process 0 of 2): {tmp_path}: no folder" in first[2]
