"""`export`: masks, a model and its backbone on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from image_files import noise, saved
from program import Cli, refused

from densesiam_seg.inference.model_card import ModelCard
from densesiam_seg.inference.options import Refinement
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.io.files import make_folder
from densesiam_seg.io.tensors import read_safetensors
from densesiam_seg.network.architecture import Architecture
from densesiam_seg.network.model import build_network


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_the_backbone(
    cli: Cli, model_folder: Path, segmenter: Segmenter, tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"b{suffix}"
    code, out, error = cli("export", "backbone", model_folder, "--out", path, "--json")
    assert (code, json.loads(out)) == (0, {"file": str(path), "backbone": "resnet18"})
    assert error.splitlines()[0] == f"backbone (resnet18): {path}"
    assert f"--weights {path}" in error.splitlines()[1]
    read = read_safetensors if suffix == ".safetensors" else torch.load
    found, wanted = read(path), segmenter.network.encoder.backbone.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_backbone_of_timm(cli: Cli, tmp_path: Path) -> None:
    pytest.importorskip("timm")
    architecture = Architecture("timm:test_vit", channels=4, clusters=2, over_clusters=0)
    card = ModelCard(architecture, 32, clusters=2)
    model = Segmenter(build_network(architecture, 0), card, device="cpu").save(tmp_path / "m")
    code, _, error = cli("export", "backbone", model, "-o", tmp_path / "b.pth")
    assert (code, "timm.create_model('test_vit').load_state_dict" in error) == (0, True)


def test_a_second_time(cli: Cli, model_folder: Path, tmp_path: Path) -> None:
    arguments = ("export", "backbone", model_folder, "-q", "-o", tmp_path / "b.pth")
    assert cli(*arguments) == (0, "", "")
    refused(cli(*arguments), 2, "usage", "exists already; give --overwrite")
    assert cli(*arguments, "--overwrite") == (0, "", "")


def test_refusals(cli: Cli, model_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "b.pth"
    command = ("export", "backbone", tmp_path / "none", "-o")
    found = cli("export", "backbone", model_folder, "-o", tmp_path / "b.onnx")
    refused(found, 2, "usage", "give a name ending in .safetensors or .pth")
    refused(cli(*command, path), 4, "model", "no model here")
    (tmp_path / "none" / "checkpoints").mkdir(parents=True)
    refused(cli(*command, path), 4, "model", "this run has not finished")
    assert not path.exists()
    path.touch()
    found = cli("export", "backbone", model_folder, "-o", path / "b.pth")
    refused(found, 5, "output", "cannot be written")


class TestMasks:
    @pytest.fixture
    def photos(self, tmp_path: Path) -> Path:
        folder = tmp_path / "my photos"
        saved(make_folder(folder / "a b"), "x, y.png", noise(40, 50))
        saved(folder, "one.jpg", noise(50, 40))
        return folder

    def test_a_run(self, cli: Cli, model_folder: Path, photos: Path) -> None:
        command = ("export", "masks", model_folder, photos, "--format", "coco", "--json")
        out = photos.parent / "coco"
        code, text, error = cli(*command, "--out", out)
        assert (code, error) == (0, f"2 images as coco: {out}\n")
        found = json.loads(text)
        images = [str(photos / "a b/x, y.png"), str(photos / "one.jpg")]
        assert (found["out"], found["images"], found["failed"]) == (str(out), images, [])
        assert (out / "images/a b/x, y.png").read_bytes() == Path(images[0]).read_bytes()
        refused(cli(*command, "--out", out), 2, "usage", "give --overwrite or another folder")
        assert cli(*command, "--out", out, "--overwrite", "-q")[0] == 0

    def test_masks_of_predict(self, cli: Cli, model_folder: Path, photos: Path) -> None:
        """They are those that are predicted at once, byte for byte."""
        folder = photos.parent
        assert cli("predict", photos, "--model", model_folder, "--out", folder / "masks")[0] == 0
        command = ("export", "masks", model_folder, photos, "-f", "lightly-train", "-q", "--out")
        assert cli(*command, folder / "one") == (0, "", "")
        assert cli(*command, folder / "two", "--masks", folder / "masks") == (0, "", "")
        for name in ("masks/one.png", "masks/a b/x, y.png", "data.json"):
            assert (folder / "one" / name).read_bytes() == (folder / "two" / name).read_bytes()

    def test_an_image_that_cannot_be_read(self, cli: Cli, model_folder: Path, photos: Path) -> None:
        (photos / "bad.jpg").write_text("no image")
        command = ("export", "masks", model_folder, photos, "--format", "voc", "--json", "--out")
        code, text, error = cli(*command, photos.parent / "voc")
        assert (code, len(json.loads(text)["failed"])) == (9, 1)
        assert "1 of 3 images failed, the others are done" in error
        code, text, _ = cli(*command[:3], photos / "bad.jpg", *command[4:], photos.parent / "new")
        assert (code, json.loads(text)["out"]) == (3, None)
        assert not (photos.parent / "new").exists()

    def test_refusals(self, cli: Cli, model_folder: Path, photos: Path) -> None:
        command = ("export", "masks", model_folder, photos, "--format", "voc", "--out")
        refused(cli(*command, photos.parent / "x.zip"), 2, "usage", "is a folder")
        none = photos.parent / "none"
        refused(cli(*command, none, "--masks", none), 2, "usage", "no such folder")
        refused(cli(*command[:2], none, photos, *command[4:], none), 4, "model", "no model here")
        refused(cli(*command[:3], none, *command[4:], none), 3, "input", "no such file")
        (photos.parent / "file").touch()
        found = cli(*command, photos.parent / "file/new")
        refused(found, 5, "output", "cannot be written")


class TestModel:
    def test_what_is_told(
        self, cli: Cli, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The export itself, which takes a while, has its own tests."""
        given: list[Any] = []

        def export(segmenter: Segmenter, *rest: Any) -> dict[str, Any]:
            given.extend((str(segmenter.precision), *rest))
            return {"file": "model.pt2", "equal_pixels": 0.99987}

        monkeypatch.setattr("densesiam_seg.exporting.model.export_model", export)
        out = tmp_path / "out"
        command = ("export", "model", model_folder, "--format", "torch", "--json", "--out")
        code, text, error = cli(*command, out, "--refine", "none")
        assert code == 0 and json.loads(text)["equal_pixels"] == 0.99987
        assert given == ["torch.float32", out, "torch", Refinement(refine="none")]
        assert "99.99 %" in error and str(out / "model.pt2") in error
        refused(cli(*command, tmp_path / "x.onnx"), 2, "usage", "is a folder with two files")
        refused(cli(*command, out, "--refine", "crf"), 2, "usage", "--refine crf")
        none = ("export", "model", tmp_path / "none", "--format", "torch", "--out", out)
        refused(cli(*none), 4, "model", "no model here")
