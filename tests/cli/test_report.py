"""`report` on the command line: the page, what is said of it, and how it ends."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from labelled_scenes import write_labelled_scenes
from pages import read_page
from program import Cli, Patch, refused
from stored_runs import store_run

MACHINE = ("--device", "cpu", "--precision", "fp32")


@pytest.fixture
def run(model_folder: Path, image_folder: Path, tmp_path: Path) -> Path:
    return store_run(tmp_path / "my run", model_folder, image_folder)


def test_the_page_of_a_run(cli: Cli, run: Path) -> None:
    page = run / "report" / "index.html"
    assert cli("report", run, *MACHINE) == (0, "", f"report: {page}\n")
    assert len(read_page(page).images) > 20
    assert cli("report", run, "-q", *MACHINE) == (0, "", "")


def test_json(cli: Cli, run: Path, image_folder: Path, tmp_path: Path) -> None:
    given = (image_folder / "00.jpg", image_folder / "01.png", "-o", tmp_path / "a.html", "--json")
    code, text, _ = cli("report", run, *given, "-q", *MACHINE)
    found = json.loads(text)
    assert (code, found["page"], found["looked_at"]) == (0, str(tmp_path / "a.html"), 2)
    assert sum(each["share"] for each in found["clusters"]) == pytest.approx(1)
    assert found["evaluation"] is None and found["failed"] == []
    assert {each["image"] for each in found["review"]} == set(map(str, given[:2]))


def test_scores(cli: Cli, run: Path, tmp_path: Path) -> None:
    root = write_labelled_scenes(tmp_path / "data", train=1, val=2, side=48, seed=2)
    given = ("--dataset", root / "scenes.toml", "--root", root, "--split", "train", "--json")
    code, text, _ = cli("report", run, "--limit", 2, *given, *MACHINE)
    found = json.loads(text)["evaluation"]
    assert (code, found["split"], found["images"]) == (0, "train", 1)


def test_bad_images_among_good_ones(
    cli: Cli, run: Path, image_folder: Path, tmp_path: Path
) -> None:
    images = Path(shutil.copytree(image_folder, tmp_path / "some images"))
    (images / "bad.jpg").write_bytes(b"junk")
    code, _, error = cli("report", run, images, "-o", tmp_path / "r", *MACHINE)
    assert code == 9 and (tmp_path / "r" / "index.html").is_file()
    assert f"warning: failed: {images / 'bad.jpg'}" in error
    assert error.splitlines()[-1].startswith("error[partial]: 1 of 13 images failed")
    code, _, error = cli("report", run, images / "bad.jpg", "-o", tmp_path / "s", *MACHINE)
    assert code == 3 and not (tmp_path / "s").exists()


def test_what_is_refused(cli: Cli, run: Path, tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.chdir(tmp_path)
    refused(cli("report", tmp_path / "none"), 4, "model", "no model here")
    refused(cli("report", run, "none.jpg"), 3, "input", "no such file or folder")
    refused(cli("report", run, "-o", "a.png"), 2, "usage", "ending in .html")
    refused(cli("report", run, "--dataset", "camvid"), 2, "usage", "belong together")
    refused(cli("report", run, "--split", "val"), 2, "usage", "belong together")
    refused(cli("report", run / "model", "--dataset", "x", "--root", "."), 2, "usage", "no dataset")
    Path("there.html").touch()
    refused(cli("report", run, "-o", "there.html"), 2, "usage", "exists already")


def test_a_disk_that_is_full(cli: Cli, run: Path, monkeypatch: Patch) -> None:
    from densesiam_seg.errors import OutputError

    def full(path: Path, text: str) -> None:
        raise OutputError(f"{path}: cannot be written (No space left on device); free some space")

    monkeypatch.setattr("densesiam_seg.reporting.report.replace_text", full)
    code, out, error = cli("report", run, "--limit", 1, *MACHINE)
    assert (code, out) == (5, "") and "No space left" in error
    assert not (run / "report" / "index.html").exists()
