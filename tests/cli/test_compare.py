"""`compare` on the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from pages import read_page
from program import Cli, refused
from tar_files import pack_in_two

from densesiam_seg.naming.edits import merge, rename

MACHINE = ("--device", "cpu", "--precision", "fp32")


@pytest.fixture
def other(model_folder: Path, tmp_path: Path) -> Path:
    """The same model with a name, and two of its clusters merged."""
    folder = Path(shutil.copytree(model_folder, tmp_path / "other one"))
    merge(folder, ["0", "1"])
    rename(folder, {"2": "sky [red]"})
    return folder


def test_the_list(cli: Cli, model_folder: Path, other: Path, image_folder: Path) -> None:
    code, text, error = cli("compare", model_folder, other, image_folder, "--limit", 2, *MACHINE)
    assert (code, error) == (0, "")
    assert "2 sky [red]" in text and "only in the first: " in text
    lines = text.splitlines()
    start = lines.index("least agreement:")
    assert len(lines) == start + 3
    shares = [float(line.split()[0]) for line in lines[start + 1 :]]
    assert shares == sorted(shares) and shares[0] < 100


def test_json_and_the_page(
    cli: Cli, model_folder: Path, other: Path, image_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "page.html"
    given = (model_folder, other, image_folder, "--json", "-o", out)
    code, text, error = cli("compare", *given, *MACHINE)
    found = json.loads(text)
    assert (code, error, found["page"]) == (0, f"page: {out}\n", str(out))
    assert {each["second"]["name"] for each in found["pairs"]} >= {"sky [red]"}
    assert all(each["iou"] == 1 for each in found["pairs"] if each["first"]["id"] > 1)
    assert len(found["only_first"]) == 1 and found["only_second"] == []
    assert len(found["images"]) == 10 and found["looked_at"] == 12
    page = read_page(out)
    assert len(page.images) == 36 and "other one" in page.text
    refused(cli("compare", *given), 2, "usage", "exists already")


def test_bad_images(
    cli: Cli, model_folder: Path, other: Path, image_folder: Path, tmp_path: Path
) -> None:
    images = Path(shutil.copytree(image_folder, tmp_path / "images"))
    (images / "bad.jpg").write_bytes(b"junk")
    code, text, error = cli("compare", model_folder, other, images, *MACHINE)
    assert code == 9 and "least agreement" in text
    assert error.splitlines()[-1].startswith("error[partial]: 1 of 13 images failed")


def test_what_is_refused(cli: Cli, model_folder: Path, image_folder: Path, tmp_path: Path) -> None:
    refused(cli("compare", model_folder, tmp_path, image_folder), 4, "model", "no model here")
    refused(cli("compare", model_folder, model_folder, tmp_path / "x"), 3, "input", "no such file")
    found = cli("compare", model_folder, model_folder, image_folder, "-o", tmp_path / "x.png")
    refused(found, 2, "usage", "ending in .html")


def test_images_in_tars(
    cli: Cli, model_folder: Path, other: Path, image_folder: Path, tmp_path: Path
) -> None:
    """The same numbers, under names that people know."""
    tars = pack_in_two(image_folder, tmp_path / "tars")
    out = tmp_path / "page.html"
    found = [
        json.loads(
            cli(
                "compare", model_folder, other, images, "--json", "-o", out, "--overwrite", *MACHINE
            )[1]
        )
        for images in (image_folder, tars)
    ]
    names = [[each["image"] for each in one["images"]] for one in found]
    assert sorted(Path(name).name for name in names[0]) == sorted(
        Path(name).name for name in names[1]
    )
    assert {str(Path(name).parent) for name in names[1]} == {f"{tars}/a.tar", f"{tars}/b.tar"}
    assert found[0]["agreement"] == found[1]["agreement"] and found[0]["pairs"] == found[1]["pairs"]
    page = out.read_text()
    assert len(read_page(out).images) == 36 and f"{tars}/a.tar/00.jpg" in page and "/@" not in page
    lines = cli("compare", model_folder, other, tars, *MACHINE)[1].splitlines()
    assert lines[-1].split()[-1] in names[1]
