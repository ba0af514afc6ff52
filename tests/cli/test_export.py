"""`export`: a run's backbone on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from program import Cli, refused

from densesiam_seg.inference.model_card import ModelCard
from densesiam_seg.inference.segmenter import Segmenter
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
