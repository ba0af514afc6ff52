"""`export model`: files that make our masks in other programs, at any size; and the script of the docs, as it is."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_files import saved
from PIL import Image
from slim import slim_resnets

from densesiam_seg.datasets.scenes import scene
from densesiam_seg.errors import ModelError, OutputError, UsageError
from densesiam_seg.exporting import model as module
from densesiam_seg.exporting.model import export_model, require_model_target
from densesiam_seg.inference.model_card import ModelCard
from densesiam_seg.inference.options import AS_TRAINED, Refinement
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.network.architecture import Architecture
from densesiam_seg.network.model import build_network

DOCS = Path(__file__).parents[2] / "docs" / "export.md"


@pytest.fixture(scope="module")
def trained() -> Iterator[Segmenter]:
    """Five clusters, of which one is merged; of appearance too."""
    with slim_resnets():
        network = build_network(Architecture("resnet18", 8, 5, 0, mixture=True), seed=1)
        draw = torch.Generator().manual_seed(0)
        assert network.mixture is not None
        network.mixture.centres.add_(torch.randn(network.mixture.centres.shape, generator=draw))
        card = ModelCard(network.architecture, 64, clusters=5, refine="pamr")
        found = Segmenter(network, card, device="cpu", precision="fp32")
        clusters = [*found.clusters[:4], replace(found.clusters[4], merged_into=1)]
        yield Segmenter(network, card, clusters, device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def onnx(trained: Segmenter, tmp_path_factory: pytest.TempPathFactory) -> Path:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    out = tmp_path_factory.mktemp("exports") / "onnx"
    export_model(trained, out, "onnx", AS_TRAINED)
    return out


def photograph(folder: Path, height: int, width: int) -> Path:
    return saved(folder, f"{height}x{width}.png", scene(1, 2, 256)[0][:height, :width])


class TestOnnx:
    def test_the_script_of_the_docs(self, trained: Segmenter, onnx: Path, tmp_path: Path) -> None:
        (script,) = re.findall(r"```python\n(.*?)```", DOCS.read_text("utf-8"), re.DOTALL)
        (tmp_path / "example.py").write_text(script)
        for height, width in ((256, 120), (90, 250), (64, 64)):
            path = photograph(tmp_path, height, width)
            words = [sys.executable, "-P", "example.py", str(onnx), str(path), "mask.png"]
            subprocess.run(words, cwd=tmp_path, check=True)
            with Image.open(tmp_path / "mask.png") as picture:
                mask, colours = np.asarray(picture), picture.convert("RGB")
            wanted = trained.predict(path)
            assert mask.shape == wanted.shape
            assert (mask == wanted).mean() > 0.999
            assert set(np.unique(wanted).tolist()) <= {0, 1, 2, 3}
            assert colours.getpixel((5, 5)) == trained.palette[int(mask[5, 5])]

    def test_its_description(self, trained: Segmenter, onnx: Path) -> None:
        import onnx as library

        about = json.loads((onnx / "model.json").read_text("utf-8"))
        assert sorted(path.name for path in onnx.iterdir()) == ["model.json", "model.onnx"]
        graph = library.load(onnx / "model.onnx")
        assert graph.opset_import[0].version == about["opset"] == 18
        assert [each.name for each in graph.graph.input] == [*about["inputs"]]
        assert [each.name for each in graph.graph.output] == [*about["outputs"]]
        assert about["equal_pixels"] > 0.999
        assert about["grouping"] == [0, 1, 2, 3, 1]
        assert about["inside_the_model"]["refine"] == "pamr"
        assert about["preprocessing"]["shorter_side"] == trained.shown_side == 64


def test_torch(trained: Segmenter, tmp_path: Path) -> None:
    out = tmp_path / "new" / "torch"
    about = export_model(trained, out, "torch", Refinement(refine="none"))
    program = torch.export.load(out / about["file"]).module()
    for size in ((256, 120), (90, 250)):
        path = photograph(tmp_path, *size)
        with torch.no_grad():
            mask, scores = program(trained.read(path)[0], torch.tensor(size))
        wanted = trained.predict(path, refinement=Refinement(refine="none"))
        assert (mask.numpy() == wanted).mean() > 0.999
        assert scores.shape[1] == 5


class TestRefusals:
    @pytest.fixture
    def quick(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nothing is traced; the file's mask is all zeros."""
        monkeypatch.setattr(module, "_traced", lambda *given: None)

        def write(program: Any, path: Path, shown: Any, size: tuple[int, int]) -> Any:
            path.write_bytes(b"x")
            return np.zeros(size, np.uint8)

        monkeypatch.setattr(module, "_torch", write)

    def test_other_masks(self, trained: Segmenter, quick: None, tmp_path: Path) -> None:
        with pytest.raises(
            ModelError, match="of the pixels of a drawn image are as predicted here"
        ):
            export_model(trained, tmp_path / "out", "torch", AS_TRAINED)
        assert list(tmp_path.iterdir()) == []

    def test_a_full_disk(
        self, trained: Segmenter, quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "LEAST_EQUAL", 0.0)

        def full(handle: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("os.fsync", full)
        with pytest.raises(OutputError, match="No space left"):
            export_model(trained, tmp_path / "out", "torch", AS_TRAINED)
        assert list(tmp_path.iterdir()) == []

    def test_a_network_that_torch_cannot_export(
        self, trained: Segmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuses(*given: object, **options: object) -> None:
            raise RuntimeError("no\nway")

        monkeypatch.setattr("torch.export.export", refuses)
        with pytest.raises(
            ModelError, match=r"backbone resnet18 for images of any size \(no way\)"
        ):
            export_model(trained, tmp_path / "out", "onnx", AS_TRAINED)

    def test_places(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "full").mkdir()
        (tmp_path / "full/mine.txt").write_text("x")
        for name, options, match in (
            ("model.onnx", {}, "is a folder with two files"),
            ("full/mine.txt", {}, "is a folder with two files"),
            ("full", {}, "give --overwrite or another folder"),
            ("full", {"overwrite": True}, "holds no exported model"),
        ):
            with pytest.raises(UsageError, match=match):
                require_model_target(tmp_path / name, "torch", **options)
        (tmp_path / "full/model.json").write_text("{}")
        require_model_target(tmp_path / "full", "torch", overwrite=True)
        monkeypatch.setattr(module, "find_spec", lambda name: None)
        with pytest.raises(UsageError, match=r"pip install 'densesiam-seg\[onnx\]'"):
            require_model_target(tmp_path / "new", "onnx")
        require_model_target(tmp_path / "new", "torch")
