"""`predict`: from image to mask on the command line."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from densesiam_seg.errors import InputError
from densesiam_seg.inference import readout
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.inference.test_time import Refinement

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def images(image_folder: Path, tmp_path: Path) -> Path:
    """A folder of three images of one's own."""
    for name in ("00.jpg", "01.png"):
        (tmp_path / "images" / "deep").mkdir(parents=True, exist_ok=True)
        shutil.copy(image_folder / name, tmp_path / "images" / name)
    shutil.copy(image_folder / "02.jpg", tmp_path / "images" / "deep" / "02.jpg")
    return tmp_path / "images"


@pytest.fixture
def predict(cli: Cli, model_folder: Path) -> Cli:
    def run(*arguments: object) -> tuple[int, str, str]:
        options = ("--model", model_folder, "--device", "cpu", "--precision", "fp32")
        return cli("predict", *arguments, *options)

    return run


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def refused(found: tuple[int, str, str], code: int, name: str, words: str) -> None:
    assert found[:2] == (code, "")
    assert found[2].startswith(f"error[{name}]: ")
    assert len(found[2].splitlines()) == 1
    assert words in found[2]


class TestMasks:
    def test_one_image_and_its_mask(
        self, predict: Cli, images: Path, tmp_path: Path, segmenter: Segmenter
    ) -> None:
        mask = tmp_path / "mask.png"
        assert predict(images / "01.png", "--out", mask) == (0, "", f"1 mask written: {mask}\n")
        with Image.open(mask) as picture:
            assert (picture.mode, picture.size) == ("P", (64, 64))
            found = np.asarray(picture)
        np.testing.assert_array_equal(found, segmenter.predict(images / "01.png"))

    def test_a_folder(self, predict: Cli, images: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        assert predict(images, "-o", out) == (0, "", f"3 masks written: {out}\n")
        assert files(out) == {"00.png", "01.png", "deep/02.png"}

    def test_a_glob_and_a_list_and_several(
        self, predict: Cli, images: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "list.txt").write_text(f"{images}/deep/02.jpg\n")
        inputs = (f"{images}/*.png", tmp_path / "list.txt", images / "00.jpg")
        assert predict(*inputs, "-o", tmp_path / "out")[0] == 0
        assert files(tmp_path / "out") == {"00.png", "01.png", "deep/02.png"}

    def test_a_list_on_stdin(
        self, predict: Cli, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(images)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"00.jpg\n01.png\n")))
        assert predict("-", "-o", tmp_path / "out")[0] == 0
        assert files(tmp_path / "out") == {"00.png", "01.png"}

    def test_overlays(self, predict: Cli, images: Path, tmp_path: Path) -> None:
        assert predict(images / "00.jpg", "-o", tmp_path / "out", "--overlay")[0] == 0
        assert files(tmp_path / "out") == {"00.png", "00_overlay.jpg"}

    def test_without_a_place_under_runs(
        self, predict: Cli, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert predict(images / "00.jpg")[0] == 0
        (run,) = (tmp_path / "runs" / "predict").iterdir()
        assert files(run) == {"00.png"}

    def test_json(self, predict: Cli, images: Path, tmp_path: Path) -> None:
        code, out, error = predict(images, "-o", tmp_path / "out", "--json", "-q")
        assert (code, error) == (0, "")
        value = json.loads(out)
        assert value["masks"][0] == {
            "image": str(images / "00.jpg"),
            "mask": str(tmp_path / "out" / "00.png"),
        }
        assert (len(value["masks"]), value["failed"], value["skipped"]) == (3, [], [])

    def test_kmeans_of_any_number(self, predict: Cli, images: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        options = ("--readout", "kmeans", "-k", "9", "--fit-images", images, "--seed", "1")
        assert predict(images, "-o", out, *options)[0] == 0
        with Image.open(out / "00.png") as mask:
            assert int(np.asarray(mask).max()) < 9

    def test_a_merge_of_any_number(self, predict: Cli, images: Path, tmp_path: Path) -> None:
        options = ("--readout", "merge", "-k", "3", "--over-clusters", "20", "--fit-images", images)
        assert predict(images, "-o", tmp_path / "out", *options)[0] == 0
        with Image.open(tmp_path / "out" / "00.png") as mask:
            assert int(np.asarray(mask).max()) < 3

    def test_passes_and_edges(
        self, predict: Cli, images: Path, tmp_path: Path, segmenter: Segmenter
    ) -> None:
        options = ("--flip", "--scales", "0.75,1", "--refine", "guided")
        assert predict(images / "01.png", "-o", tmp_path / "m.png", *options)[0] == 0
        how = Refinement(True, (0.75, 1.0), "guided")
        with Image.open(tmp_path / "m.png") as mask:
            expected = segmenter.predict(images / "01.png", refinement=how)
            np.testing.assert_array_equal(np.asarray(mask), expected)

    @pytest.mark.parametrize("size", ["auto", "2", "64"])
    def test_batches(self, predict: Cli, images: Path, tmp_path: Path, size: str) -> None:
        out = tmp_path / "out"
        assert predict(images, "-o", out, "-b", size) == (0, "", f"3 masks written: {out}\n")
        assert files(out) == {"00.png", "01.png", "deep/02.png"}

    def test_a_second_time(self, predict: Cli, images: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        assert predict(images, "-o", out)[0] == 0
        refused(predict(images, "-o", out), 2, "usage", "exists already; give --overwrite")
        (out / "01.png").unlink()
        code, _, error = predict(images, "-o", out, "--resume")
        assert (code, error) == (0, f"1 mask written, 2 kept: {out / '01.png'}\n")
        assert predict(images, "-o", out, "--resume")[0] == 0
        assert predict(images, "-o", out, "--overwrite") == (0, "", f"3 masks written: {out}\n")


class TestOptions:
    def test_what_the_read_out_is_asked_for(
        self, cli: Cli, images: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

        def record(*arguments: Any, **options: Any) -> Segmenter:
            options.pop("tell")
            calls.append((arguments, options))
            raise InputError("enough")

        monkeypatch.setattr(readout, "load_with_readout", record)
        cli("predict", images / "00.jpg")
        cli(
            "predict", images / "00.jpg", "-m", "m", "--readout", "merge", "-k", "9", "--fit-images", "a",
            "--fit-images", "b", "--over-clusters", "50", "--seed", "7", "--device", "cpu", "--precision", "bf16",
        )  # fmt: skip
        assert calls == [
            (
                (None, "head", None, None),
                {"over_clusters": None, "seed": 0, "device": "auto", "precision": "auto"},
            ),
            (
                (Path("m"), "merge", 9, ["a", "b"]),
                {"over_clusters": 50, "seed": 7, "device": "cpu", "precision": "bf16"},
            ),
        ]

    def test_an_overlay_that_exists_is_refused_before_any_work(
        self, predict: Cli, images: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "00_overlay.jpg").touch()
        found = predict(images / "00.jpg", "-o", tmp_path / "out", "--overlay")
        refused(found, 2, "usage", "00_overlay.jpg: exists already")
        assert predict(images / "00.jpg", "-o", tmp_path / "out")[0] == 0


class TestBadInput:
    def test_bad_files_among_good_ones(self, predict: Cli, images: Path, tmp_path: Path) -> None:
        (images / "bad.jpg").write_bytes(b"junk")
        (images / "dangling.png").symlink_to("nowhere")
        code, out, error = predict(images, "-o", tmp_path / "out", "--json")
        assert code == 9
        assert error.splitlines()[-1].startswith("error[partial]: 2 of 5 images failed")
        assert files(tmp_path / "out") == {"00.png", "01.png", "deep/02.png", "failed.jsonl"}
        value = json.loads(out)
        assert [item["image"] for item in value["failed"]] == [str(images / "bad.jpg")]
        assert [item["reason"] for item in value["skipped"]] == ["dangling-link"]

    def test_a_single_bad_file(self, predict: Cli, tmp_path: Path) -> None:
        (tmp_path / "bad.jpg").write_bytes(b"junk")
        found = predict(tmp_path / "bad.jpg", "-o", tmp_path / "mask.png")
        refused(found, 3, "image", "bad.jpg: is not a JPEG")

    def test_only_bad_files(self, predict: Cli, tmp_path: Path) -> None:
        for name in ("a.jpg", "b.jpg"):
            (tmp_path / name).touch()
        code, _, error = predict(tmp_path / "a.jpg", tmp_path / "b.jpg", "-o", tmp_path / "out")
        assert code == 3
        assert error.splitlines()[-1].startswith("error[input]: none of the 2 images")

    def test_weird_names(self, predict: Cli, images: Path, tmp_path: Path) -> None:
        names = ["a\nb.png", "[/red].png", os.fsdecode(b"\xff.png"), "-x.png"]
        folder = tmp_path / "weird"
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(images / "01.png", folder / name)
        (folder / "bad\n[bold].png").write_bytes(b"junk")
        code, out, error = predict(folder, "-o", tmp_path / "out", "--json")
        assert code == 9
        assert files(tmp_path / "out") == {*names, "failed.jsonl"}
        masks = {item["mask"] for item in json.loads(out)["masks"]}
        assert masks == {str(tmp_path / "out" / name) for name in names}
        assert len(error.splitlines()) == 3
        assert error.count(r"bad\n[bold].png") == 2

    def test_nothing_there(self, predict: Cli, tmp_path: Path) -> None:
        refused(predict(tmp_path / "none.jpg"), 3, "input", "no such file or folder")
        refused(predict(tmp_path), 3, "input", "no image found")
        refused(predict(f"{tmp_path}/*.jpg"), 3, "input", "no image found")

    def test_too_large(self, predict: Cli, images: Path, tmp_path: Path) -> None:
        found = predict(images / "00.jpg", "-o", tmp_path / "m.png", "--max-pixels", "4095")
        refused(found, 3, "image", "--max-pixels")


class TestRefusals:
    def test_models(self, cli: Cli, images: Path, tmp_path: Path) -> None:
        image, mask = images / "00.jpg", tmp_path / "m.png"
        options = (image, "-o", mask, "--device", "cpu")
        found = cli("predict", *options, "--model", tmp_path / "none")
        refused(found, 4, "model", "none: no model here")
        (tmp_path / "foreign").mkdir()
        (tmp_path / "foreign" / "config.json").write_text('{"model_type": "vit"}')
        found = cli("predict", *options, "--model", tmp_path / "foreign")
        refused(found, 4, "model", "not a model of this program")
        (tmp_path / "run" / "checkpoints").mkdir(parents=True)
        found = cli("predict", *options, "--model", tmp_path / "run")
        refused(found, 4, "model", "--resume --out")
        assert not mask.exists()

    def test_no_run_yet(
        self, cli: Cli, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        refused(cli("predict", images / "00.jpg"), 4, "model", "train one first")

    def test_an_input_is_not_overwritten(self, predict: Cli, images: Path) -> None:
        before = (images / "01.png").read_bytes()
        found = predict(images, "-o", images, "--overwrite")
        refused(found, 2, "usage", "would overwrite an input image")
        assert (images / "01.png").read_bytes() == before

    def test_many_images_and_one_mask(self, predict: Cli, images: Path, tmp_path: Path) -> None:
        refused(predict(images, "-o", tmp_path / "m.png"), 2, "usage", "give a folder")

    def test_a_place_that_cannot_be_written(
        self, predict: Cli, images: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "file").touch()
        found = predict(images / "00.jpg", "-o", tmp_path / "file" / "m.png")
        refused(found, 5, "output", "cannot be written")

    def test_options(self, predict: Cli, cli: Cli, images: Path, model_folder: Path) -> None:
        image = images / "00.jpg"
        refused(predict(image, "-k", "3"), 2, "usage", "belong to --readout kmeans")
        refused(predict(image, "--readout", "tree"), 2, "usage", "give head, kmeans, merge or auto")
        refused(predict(image, "--over-clusters", "9"), 2, "usage", "belongs to --readout merge")
        refused(predict(image, "--scales", "0"), 2, "usage", "--scales 0: must be 0.25 to 4")
        refused(
            predict(image, "--refine", "crf"), 2, "usage", "give one of auto, none, guided, pamr"
        )
        refused(predict(image, "-b", "all"), 2, "usage", "--batch-size all: give a whole number")
        refused(predict(image, "-b", "0"), 2, "usage", "--batch-size 0: must be 1 to 1024, or auto")
        for option in ("--device", "--precision"):
            found = cli("predict", image, "-m", model_folder, option, "foo")
            refused(found, 2, "usage", f"{option} foo: ")
        found = predict(image, "--readout", "kmeans")
        refused(found, 3, "input", "--fit-images")
