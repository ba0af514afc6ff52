"""`visualize`: from run and images to one sheet on the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from program import Cli, Patch, refused
from tar_files import write_tar

from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.inference.visualize import draw_files

NAMES = ("00.jpg", "01.png", "02.jpg")


@pytest.fixture
def images(image_folder: Path, tmp_path: Path) -> Path:
    """A folder of three images of one's own."""
    (tmp_path / "images").mkdir()
    for name in NAMES:
        shutil.copy(image_folder / name, tmp_path / "images" / name)
    return tmp_path / "images"


@pytest.fixture
def visualize(cli: Cli, model_folder: Path) -> Cli:
    machine = ("--device", "cpu", "--precision", "fp32")
    return lambda *arguments: cli("visualize", model_folder, *arguments, *machine)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "sheet.png"


def shows(path: Path, segmenter: Segmenter, *images: Path, **options: Any) -> None:
    """The file is the sheet of those images."""
    with Image.open(path) as found:
        assert found.format == "PNG"
        drawing, _ = draw_files(segmenter, [str(image) for image in images], **options)
        assert drawing is not None
        np.testing.assert_array_equal(np.asarray(found), np.asarray(drawing.picture))


class TestSheet:
    def test_a_folder(
        self, visualize: Cli, images: Path, tmp_path: Path, segmenter: Segmenter
    ) -> None:
        out = tmp_path / "new" / "sheet.png"
        assert visualize(images, "--out", out) == (0, "", f"picture: {out}\n")
        shows(out, segmenter, *(images / name for name in NAMES))

    def test_without_a_place_in_the_current_folder(
        self, visualize: Cli, images: Path, tmp_path: Path, monkeypatch: Patch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert visualize(images) == (0, "", "picture: visualize.png\n")
        before = (tmp_path / "visualize.png").read_bytes()
        refused(visualize(images), 2, "usage", "exists already; give --overwrite")
        assert visualize(images / "00.jpg", "--overwrite")[0] == 0
        assert (tmp_path / "visualize.png").read_bytes() != before

    def test_which_and_how(
        self, visualize: Cli, images: Path, out: Path, segmenter: Segmenter
    ) -> None:
        options = ("--clusters-shown", "3,cluster_00", "--clusters-shown", 1, "--columns", 2)
        assert visualize(images, "-o", out, "-q", *options) == (0, "", "")
        paths = [images / name for name in NAMES]
        shows(out, segmenter, *paths, shown=["3", "0", "1"], columns=2)

    def test_a_few_of_many(
        self, visualize: Cli, images: Path, out: Path, segmenter: Segmenter
    ) -> None:
        code, _, error = visualize(images, "-o", out, "--limit", 2)
        told = ["drawing 2 of 3 images; --limit N draws more", f"picture: {out}"]
        assert (code, error.splitlines()) == (0, told)
        shows(out, segmenter, images / "00.jpg", images / "01.png")

    def test_json(self, visualize: Cli, images: Path, out: Path, segmenter: Segmenter) -> None:
        given = ("-o", out, "--json", "-q", "--clusters-shown", "3")
        code, text, error = visualize(images, *given)
        assert (code, error) == (0, "")
        value = json.loads(text)
        clusters = value.pop("clusters")
        assert value.pop("passed_over")["repeated"] == 0
        assert value == {
            "picture": str(out), "images": [str(images / name) for name in NAMES], "shown": [3], "failed": [],
            "skipped": [],
        }  # fmt: skip
        names = [cluster.name for cluster in segmenter.clusters]
        assert [(item["id"], item["name"]) for item in clusters] == list(enumerate(names))
        assert sum(item["share"] for item in clusters) == pytest.approx(1)


class TestBadInput:
    def test_bad_files_among_good_ones(
        self, visualize: Cli, images: Path, out: Path, segmenter: Segmenter
    ) -> None:
        (images / "bad.jpg").write_bytes(b"junk")
        (images / "dangling.png").symlink_to("nowhere")
        code, text, error = visualize(images, "-o", out, "--json")
        assert code == 9
        lines = error.splitlines()
        assert lines[0].startswith("warning: skipped (dangling-link): ")
        assert lines[1].startswith(f"warning: failed: {images / 'bad.jpg'}: ")
        assert lines[2] == f"picture: {out}"
        assert lines[3].startswith("error[partial]: 2 of 5 images failed, the others are done")
        shows(out, segmenter, *(images / name for name in NAMES))
        value = json.loads(text)
        assert [item["image"] for item in value["failed"]] == [str(images / "bad.jpg")]
        assert [item["reason"] for item in value["skipped"]] == ["dangling-link"]
        assert value["images"] == [str(images / name) for name in NAMES]

    def test_only_bad_files(self, visualize: Cli, tmp_path: Path, out: Path) -> None:
        for name in ("a.jpg", "b.jpg"):
            (tmp_path / name).touch()
        code, text, error = visualize(tmp_path / "a.jpg", tmp_path / "b.jpg", "-o", out, "--json")
        assert code == 3
        assert error.splitlines()[-1].startswith("error[input]: none of the 2 images")
        value = json.loads(text)
        assert (value["picture"], value["images"], value["clusters"]) == (None, [], [])
        assert not out.exists()

    def test_a_single_bad_file(self, visualize: Cli, images: Path, out: Path) -> None:
        (images / "bad.jpg").write_bytes(b"junk")
        found = visualize(images / "bad.jpg", "-o", out)
        refused(found, 3, "image", "bad.jpg: is not a JPEG")
        found = visualize(images / "00.jpg", "-o", out, "--max-pixels", 4095)
        refused(found, 3, "image", "--max-pixels")


class TestRefusals:
    def test_places(self, visualize: Cli, images: Path, tmp_path: Path) -> None:
        refused(visualize(images, "-o", tmp_path), 2, "usage", "give a file name ending in .png")
        found = visualize(images, "-o", images / "01.png", "--overwrite")
        refused(found, 2, "usage", "would overwrite an input image")
        (tmp_path / "file").touch()
        found = visualize(images, "-o", tmp_path / "file" / "sheet.png")
        refused(found, 5, "output", "cannot be written")

    def test_options(self, visualize: Cli, images: Path, out: Path) -> None:
        found = visualize(images, "-o", out, "--clusters-shown", "0,5")
        refused(found, 2, "usage", "--clusters-shown 5: no such cluster; give ids from 0 to 4")
        found = visualize(images, "-o", out, "-k", 3)
        refused(found, 2, "usage", "belong to --readout kmeans")
        assert not out.exists()

    def test_inputs(self, cli: Cli, visualize: Cli, images: Path, tmp_path: Path) -> None:
        refused(visualize(tmp_path / "none.jpg"), 3, "input", "no such file or folder")
        found = cli("visualize", tmp_path / "none", images, "-o", tmp_path / "sheet.png")
        refused(found, 4, "model", "no model here")


def test_images_in_tars(visualize: Cli, images: Path, out: Path, segmenter: Segmenter) -> None:
    """Also such that cannot be read are named as people know them."""
    good = {name: (images / name).read_bytes() for name in NAMES}
    tar = write_tar(images.parent / "x.tar", {"bad.jpg": b"junk", **good})
    code, text, error = visualize(tar, "-o", out, "--json")
    assert code == 9 and f"warning: failed: {tar}/bad.jpg: " in error
    shows(out, segmenter, *(images / name for name in NAMES))
    value = json.loads(text)
    assert [item["image"] for item in value["failed"]] == [f"{tar}/bad.jpg"]
    assert value["images"] == [f"{tar}/{name}" for name in NAMES]
