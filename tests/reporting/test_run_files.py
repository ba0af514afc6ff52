"""What a run says of itself, however much of it is there."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from stored_runs import store_run
from tar_files import pack_in_two

from densesiam_seg.errors import InputError, ModelError
from densesiam_seg.inference.readout import training_images
from densesiam_seg.naming.edits import suggest
from densesiam_seg.reporting.run_files import numbers, read_run


def test_a_whole_run(run: Path, image_folder: Path) -> None:
    found = read_run(run)
    assert (found.name, found.is_run, found.status["status"]) == ("a run", True, "done")
    assert found.settings == {"epochs": 2, "weights": "none"}
    assert found.environment["python"] == "3.11.7"
    assert (len(found.steps), len(found.epochs)) == (6, 2)
    assert len(found.training_images("give some")) == 12
    assert found.suggestion is None
    assert read_run(run / "model") == found


def test_a_model_alone(model_folder: Path) -> None:
    found = read_run(model_folder)
    assert (found.is_run, found.manifest, found.steps, found.epochs) == (False, None, [], [])
    with pytest.raises(InputError, match=r"does not tell which images.*give some"):
        found.training_images("give some")


def test_nothing(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no model here"):
        read_run(tmp_path)


@pytest.mark.parametrize("junk", [b"", b"junk \xff", b"[]", b"[" * 100_000, b'{"record": 1}\n'])
def test_damaged_files_are_left_out(
    model_folder: Path, image_folder: Path, tmp_path: Path, junk: bytes
) -> None:
    run = store_run(tmp_path / "run", model_folder, image_folder)
    for name in ("config.toml", "env.json", "dataset.json", "metrics.jsonl"):
        (run / name).write_bytes(junk)
    found = read_run(run)
    assert found.is_run and found.manifest is None
    assert (list(found.steps), list(found.epochs), dict(found.settings)) == ([], [], {})


def test_images_that_have_moved(model_folder: Path, image_folder: Path, tmp_path: Path) -> None:
    """Some of them is an error of these, told when they are read; all of them is one of the run."""
    images = Path(shutil.copytree(image_folder, tmp_path / "images"))
    run = store_run(tmp_path / "run", model_folder, images)
    (images / "00.jpg").unlink()
    assert len(read_run(run).training_images("x")) == 12
    images.rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"00\.jpg: the training images have moved; give some"):
        read_run(run).training_images("give some")


def test_a_suggestion(model_folder: Path, image_folder: Path, tmp_path: Path) -> None:
    run = store_run(tmp_path / "run", model_folder, image_folder)
    suggest(run / "model", {"chosen": 3})
    assert read_run(run).suggestion == {"chosen": 3}


def test_numbers() -> None:
    records: list[dict[str, Any]] = [
        {"a": {"b": 1}},
        {"a": 2},
        {},
        {"a": {"b": True}},
        {"a": {"b": "3"}},
    ]
    found = numbers(records, "a", "b")
    assert found[0] == 1 and all(map(math.isnan, found[1:]))
    assert json.dumps(numbers([{"a": 2}], "a")) == "[2.0]"


def test_images_in_tars(model_folder: Path, image_folder: Path, tmp_path: Path) -> None:
    tars = pack_in_two(image_folder, tmp_path / "tars")
    run = store_run(tmp_path / "run", model_folder, tars)
    assert len(read_run(run).training_images("x")) == 12
    assert training_images(run, "x").is_there(0)
    tars.rename(tmp_path / "elsewhere")
    for ask in (read_run(run).training_images, lambda remedy: training_images(run, remedy)):
        with pytest.raises(InputError, match=r"/a\.tar/00\.jpg: the training images have moved; y"):
            ask("y")
