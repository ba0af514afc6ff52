"""`review` on the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from pages import read_page
from program import Cli, refused
from stored_runs import store_run
from tar_files import pack_in_two

MACHINE = ("--device", "cpu", "--precision", "fp32")


@pytest.fixture
def run(model_folder: Path, image_folder: Path, tmp_path: Path) -> Path:
    return store_run(tmp_path / "my run", model_folder, image_folder)


def test_the_list(cli: Cli, run: Path, image_folder: Path) -> None:
    code, text, error = cli("review", run, image_folder, "--limit", 3, *MACHINE)
    assert (code, error) == (0, "")
    head, *lines = text.splitlines()
    assert head.split() == ["certainty", "novelty", "why", "image"] and len(lines) == 3
    rows = [line.split(maxsplit=3) for line in lines]
    assert [row[2] for row in rows[:2]] == ["uncertain", "unlike"]
    assert all(Path(row[3]).parent == image_folder for row in rows)
    assert all(0 < float(row[0]) < 1 and float(row[1]) > 0.2 for row in rows)


def test_json(cli: Cli, run: Path, image_folder: Path) -> None:
    """The values are those of the list, in its order."""
    found = json.loads(cli("review", run, image_folder, "--json", *MACHINE)[1])
    assert (found["looked_at"], len(found["images"]), found["page"]) == (12, 12, None)
    lines = cli("review", run, image_folder, *MACHINE)[1].splitlines()[1:]
    assert [line.split()[0] for line in lines] == [
        f"{each['certainty']:.3f}" for each in found["images"]
    ]
    least = min(found["images"], key=lambda each: each["certainty"])
    assert found["images"][0] == least


def test_without_the_training_images(cli: Cli, model_folder: Path, image_folder: Path) -> None:
    code, text, error = cli("review", model_folder, image_folder, *MACHINE)
    assert code == 0 and error.startswith("warning: novelty is left out: ")
    assert all(line.split()[1:3] == ["–", "uncertain"] for line in text.splitlines()[1:])
    code, text, error = cli(
        "review", model_folder, image_folder, "--reference", image_folder, *MACHINE
    )
    assert (code, error) == (0, "") and "–" not in text


def test_files(cli: Cli, run: Path, image_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "list.csv"
    code, _, error = cli("review", run, image_folder, "--limit", 2, "-o", out, *MACHINE)
    assert (code, error) == (0, f"list: {out}\n") and len(out.read_text().splitlines()) == 3
    refused(cli("review", run, image_folder, "-o", out), 2, "usage", "exists already")
    page = tmp_path / "list.html"
    assert cli("review", run, image_folder, "--limit", 2, "-o", page, "-q", *MACHINE)[0] == 0
    assert len(read_page(page).images) == 4


def test_bad_images(cli: Cli, run: Path, image_folder: Path, tmp_path: Path) -> None:
    images = Path(shutil.copytree(image_folder, tmp_path / "images"))
    (images / "bad.jpg").write_bytes(b"junk")
    code, text, error = cli("review", run, images, "--json", *MACHINE)
    found = json.loads(text)
    assert code == 9 and [each["image"] for each in found["failed"]] == [str(images / "bad.jpg")]
    assert error.splitlines()[-1].startswith("error[partial]: 1 of 13 images failed")


def test_what_is_refused(cli: Cli, run: Path, image_folder: Path, tmp_path: Path) -> None:
    refused(cli("review", run, tmp_path / "none"), 3, "input", "no such file")
    refused(cli("review", tmp_path, image_folder), 4, "model", "no model here")
    refused(cli("review", run, image_folder, "-o", tmp_path / "l.txt"), 2, "usage", ".csv or .html")


def test_images_in_tars(cli: Cli, run: Path, image_folder: Path, tmp_path: Path) -> None:
    """The same list, under names that people know, everywhere that they are shown."""
    tars = pack_in_two(image_folder, tmp_path / "tars")
    files = json.loads(cli("review", run, image_folder, "--json", *MACHINE)[1])["images"]
    given = ("review", run, tars, "--reference", image_folder, *MACHINE)
    found = json.loads(cli(*given, "--json")[1])["images"]
    assert {each["image"] for each in found} == {
        f"{tars}/{tar}.tar/{file.name}"
        for place, file in enumerate(sorted(image_folder.iterdir()))
        for tar in "ab"[place // 6]
    }
    assert {each["certainty"] for each in found} == {each["certainty"] for each in files}
    for out in ("list.csv", "page.html"):
        text = cli(*given, "-o", tmp_path / out)[1] + (tmp_path / out).read_text()
        assert text.count(f"{tars}/b.tar/07.png") >= 2 and "/@" not in text
