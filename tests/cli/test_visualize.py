"""`visualize`: from run and images to one sheet on the command line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from densesiam_seg.errors import InputError
from densesiam_seg.inference import readout
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.inference.visualize import visualize as draw

Cli = Callable[..., tuple[int, str, str]]
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
    def run(*arguments: object) -> tuple[int, str, str]:
        options = ("--device", "cpu", "--precision", "fp32")
        return cli("visualize", model_folder, *arguments, *options)

    return run


def shows(path: Path, segmenter: Segmenter, *images: Path, **options: Any) -> None:
    """The file is the sheet of those images."""
    with Image.open(path) as found:
        assert found.format == "PNG"
        wanted = draw(segmenter, images, **options)
        np.testing.assert_array_equal(np.asarray(found), np.asarray(wanted))


def refused(found: tuple[int, str, str], code: int, name: str, words: str) -> None:
    assert found[:2] == (code, "")
    assert found[2].startswith(f"error[{name}]: ")
    assert len(found[2].splitlines()) == 1
    assert words in found[2]


class TestSheet:
    def test_a_folder(
        self, visualize: Cli, images: Path, tmp_path: Path, segmenter: Segmenter
    ) -> None:
        out = tmp_path / "new" / "sheet.png"
        assert visualize(images, "--out", out) == (0, "", f"picture: {out}\n")
        shows(out, segmenter, *(images / name for name in NAMES))

    def test_without_a_place_in_the_current_folder(
        self, visualize: Cli, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert visualize(images) == (0, "", "picture: visualize.png\n")
        assert (tmp_path / "visualize.png").is_file()

    def test_which_and_how(
        self, visualize: Cli, images: Path, tmp_path: Path, segmenter: Segmenter
    ) -> None:
        out = tmp_path / "sheet.png"
        options = ("--clusters-shown", "3,cluster_00", "--clusters-shown", 1, "--columns", 2)
        assert visualize(images, "-o", out, "-q", *options) == (0, "", "")
        paths = [images / name for name in NAMES]
        shows(out, segmenter, *paths, shown=["3", "0", "1"], columns=2)

    def test_a_few_of_many(
        self, visualize: Cli, images: Path, image_folder: Path, tmp_path: Path, segmenter: Segmenter
    ) -> None:
        out = tmp_path / "sheet.png"
        code, _, error = visualize(images, "-o", out, "--limit", 2)
        assert code == 0
        assert error.splitlines() == [
            "drawing 2 of 3 images; --limit N draws more",
            f"picture: {out}",
        ]
        shows(out, segmenter, images / "00.jpg", images / "01.png")
        assert "drawing 8 of 12 images" in visualize(image_folder, "-o", tmp_path / "b.png")[2]

    def test_json(self, visualize: Cli, images: Path, tmp_path: Path, segmenter: Segmenter) -> None:
        out = tmp_path / "sheet.png"
        shown = ("--clusters-shown", "3")
        code, text, error = visualize(images, "-o", out, "--json", "-q", *shown)
        assert (code, error) == (0, "")
        value = json.loads(text)
        assert value["picture"] == str(out)
        assert value["images"] == [str(images / name) for name in NAMES]
        assert (value["shown"], value["failed"], value["skipped"]) == ([3], [], [])
        names = [cluster.name for cluster in segmenter.clusters]
        assert [(item["id"], item["name"]) for item in value["clusters"]] == list(enumerate(names))
        assert sum(item["share"] for item in value["clusters"]) == pytest.approx(1)

    def test_kmeans_of_any_number(self, visualize: Cli, images: Path, tmp_path: Path) -> None:
        out = tmp_path / "sheet.png"
        options = ("--readout", "kmeans", "-k", 7, "--fit-images", images, "--json")
        code, text, _ = visualize(images, "-o", out, "--clusters-shown", "6", *options)
        assert code == 0
        assert len(json.loads(text)["clusters"]) == 7

    def test_a_second_time(self, visualize: Cli, images: Path, tmp_path: Path) -> None:
        out = tmp_path / "sheet.png"
        assert visualize(images, "-o", out)[0] == 0
        before = out.read_bytes()
        refused(visualize(images, "-o", out), 2, "usage", "exists already; give --overwrite")
        assert visualize(images / "00.jpg", "-o", out, "--overwrite")[0] == 0
        assert out.read_bytes() != before


def test_what_the_read_out_is_asked_for(
    cli: Cli, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def record(*arguments: Any, **options: Any) -> Segmenter:
        options.pop("tell")
        calls.append((arguments, options))
        raise InputError("enough")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(readout, "load_with_readout", record)
    cli("visualize", "run", images)
    cli(
        "visualize", "run", images, "--readout", "merge", "-k", "9", "--over-clusters", "50", "--fit-images", "a",
            "--fit-images", "b",
        "--seed", "7", "--device", "cpu", "--precision", "bf16",
    )  # fmt: skip
    assert calls == [
        (
            (Path("run"), "head", None, None),
            {"over_clusters": None, "seed": 0, "device": "auto", "precision": "auto"},
        ),
        (
            (Path("run"), "merge", 9, ["a", "b"]),
            {"over_clusters": 50, "seed": 7, "device": "cpu", "precision": "bf16"},
        ),
    ]


class TestBadInput:
    def test_bad_files_among_good_ones(
        self, visualize: Cli, images: Path, tmp_path: Path, segmenter: Segmenter
    ) -> None:
        (images / "bad.jpg").write_bytes(b"junk")
        (images / "dangling.png").symlink_to("nowhere")
        out = tmp_path / "sheet.png"
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

    def test_only_bad_files(self, visualize: Cli, tmp_path: Path) -> None:
        for name in ("a.jpg", "b.jpg"):
            (tmp_path / name).touch()
        out = tmp_path / "sheet.png"
        code, text, error = visualize(tmp_path / "a.jpg", tmp_path / "b.jpg", "-o", out, "--json")
        assert code == 3
        assert error.splitlines()[-1].startswith("error[input]: none of the 2 images")
        value = json.loads(text)
        assert (value["picture"], value["images"], value["clusters"]) == (None, [], [])
        assert not out.exists()

    def test_a_single_bad_file(self, visualize: Cli, tmp_path: Path) -> None:
        (tmp_path / "bad.jpg").write_bytes(b"junk")
        found = visualize(tmp_path / "bad.jpg", "-o", tmp_path / "sheet.png")
        refused(found, 3, "image", "bad.jpg: is not a JPEG")

    def test_too_large(self, visualize: Cli, images: Path, tmp_path: Path) -> None:
        out = tmp_path / "sheet.png"
        found = visualize(images / "00.jpg", "-o", out, "--max-pixels", 4095)
        refused(found, 3, "image", "--max-pixels")

    def test_nothing_there(self, visualize: Cli, tmp_path: Path) -> None:
        refused(visualize(tmp_path / "none.jpg"), 3, "input", "no such file or folder")


class TestRefusals:
    def test_categories(self, visualize: Cli, images: Path, tmp_path: Path) -> None:
        out = tmp_path / "sheet.png"
        found = visualize(images, "-o", out, "--clusters-shown", "0,5")
        refused(found, 2, "usage", "--clusters-shown 5: no such cluster; give ids from 0 to 4")
        assert not out.exists()

    def test_places(self, visualize: Cli, images: Path, tmp_path: Path) -> None:
        refused(visualize(images, "-o", tmp_path), 2, "usage", "give a file name ending in .png")
        found = visualize(images, "-o", images / "01.png", "--overwrite")
        refused(found, 2, "usage", "would overwrite an input image")
        (tmp_path / "file").touch()
        found = visualize(images, "-o", tmp_path / "file" / "sheet.png")
        refused(found, 5, "output", "cannot be written")

    def test_options(self, visualize: Cli, images: Path, tmp_path: Path) -> None:
        out = ("-o", tmp_path / "sheet.png")
        refused(visualize(images, *out, "--limit", 0), 2, "usage", "Invalid value for '--limit'")
        refused(visualize(images, *out, "--columns", 0), 2, "usage", "'--columns'")
        refused(visualize(images, *out, "-k", 3), 2, "usage", "belong to --readout kmeans")

    def test_models(self, cli: Cli, images: Path, tmp_path: Path) -> None:
        out = ("-o", tmp_path / "sheet.png", "--device", "cpu")
        refused(cli("visualize", tmp_path / "none", images, *out), 4, "model", "no model here")
        (tmp_path / "run" / "checkpoints").mkdir(parents=True)
        found = cli("visualize", tmp_path / "run", images, *out)
        refused(found, 4, "model", "this run has not finished")
