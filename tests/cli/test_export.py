"""`export`: a run's backbone on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from densesiam_seg.inference.segmenter import ModelCard, Segmenter
from densesiam_seg.io.tensors import read_safetensors
from densesiam_seg.network.model import Architecture, build_network

Cli = Callable[..., tuple[int, str, str]]


def refused(found: tuple[int, str, str], code: int, name: str, words: str) -> None:
    assert found[:2] == (code, "")
    assert found[2].startswith(f"error[{name}]: ")
    assert len(found[2].splitlines()) == 1
    assert words in found[2]


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_the_backbone(
    cli: Cli, model_folder: Path, segmenter: Segmenter, tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"b{suffix}"
    code, out, error = cli("export", model_folder, "--backbone", "--out", path)
    assert (code, out) == (0, "")
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
    code, _, error = cli("export", model, "--backbone", "-o", tmp_path / "b.pth")
    assert code == 0
    assert "timm.create_model('test_vit').load_state_dict" in error


def test_json(cli: Cli, model_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "b.pth"
    code, out, error = cli("export", model_folder, "--backbone", "-o", path, "--json", "-q")
    assert (code, error) == (0, "")
    assert json.loads(out) == {"file": str(path), "backbone": "resnet18"}


def test_a_second_time(cli: Cli, model_folder: Path, tmp_path: Path) -> None:
    arguments = ("export", model_folder, "--backbone", "-q", "-o", tmp_path / "b.pth")
    assert cli(*arguments)[0] == 0
    refused(cli(*arguments), 2, "usage", "exists already; give --overwrite")
    assert cli(*arguments, "--overwrite") == (0, "", "")


class TestRefusals:
    def test_without_backbone(self, cli: Cli, model_folder: Path, tmp_path: Path) -> None:
        found = cli("export", model_folder, "-o", tmp_path / "b.pth")
        refused(found, 2, "usage", "only the backbone can be exported so far; give --backbone")
        assert list(tmp_path.iterdir()) == []

    def test_without_a_file(self, cli: Cli, model_folder: Path) -> None:
        refused(cli("export", model_folder, "--backbone"), 2, "usage", "Missing option '--out'")

    def test_of_another_kind_before_the_model_is_read(self, cli: Cli, tmp_path: Path) -> None:
        found = cli("export", tmp_path / "none", "--backbone", "-o", tmp_path / "b.onnx")
        refused(found, 2, "usage", "give a name ending in .safetensors or .pth")

    def test_no_model(self, cli: Cli, tmp_path: Path) -> None:
        arguments = ("--backbone", "-o", tmp_path / "b.pth")
        refused(cli("export", tmp_path / "none", *arguments), 4, "model", "no model here")
        (tmp_path / "run" / "checkpoints").mkdir(parents=True)
        found = cli("export", tmp_path / "run", *arguments)
        refused(found, 4, "model", "this run has not finished")

    def test_a_place_that_cannot_be_written(
        self, cli: Cli, model_folder: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "file").touch()
        found = cli("export", model_folder, "--backbone", "-o", tmp_path / "file" / "b.pth")
        refused(found, 5, "output", "cannot be written")
