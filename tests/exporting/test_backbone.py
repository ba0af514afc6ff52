"""The exported backbone: torchvision reads it, and so does this program."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import pytest
import torch
import torchvision
from torch import Tensor

from densesiam_seg.errors import OutputError, UsageError
from densesiam_seg.exporting.backbone import export_backbone, require_export_target
from densesiam_seg.inference.model_card import ModelCard
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.io.tensors import read_safetensors
from densesiam_seg.network.architecture import Architecture
from densesiam_seg.network.encoder import Encoder
from densesiam_seg.network.model import build_network
from densesiam_seg.training.weights import load_encoder

SUFFIXES = (".pth", ".safetensors")


def read(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    tensors: dict[str, Tensor] = torch.load(path, weights_only=True)
    return tensors


def filled(architecture: Architecture) -> Segmenter:
    """A network whose backbone has statistics that no fresh one has."""
    network = build_network(architecture, seed=4)
    draw = torch.Generator().manual_seed(0)
    for name, tensor in network.encoder.backbone.state_dict().items():
        if name.endswith("running_mean"):
            tensor.copy_(0.1 * torch.randn(tensor.shape, generator=draw))
        elif name.endswith("running_var"):
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=draw))
        elif name.endswith("num_batches_tracked"):
            tensor.fill_(7)
    card = ModelCard(architecture, 32, clusters=architecture.clusters)
    return Segmenter(network, card, device="cpu", precision="fp32")


class TestTorchvision:
    """With a real ResNet-18, not a slim one."""

    @pytest.fixture
    def real(self) -> Segmenter:
        return filled(Architecture(channels=4, clusters=2, over_clusters=0))

    @pytest.mark.parametrize("suffix", SUFFIXES)
    def test_a_resnet_lacks_the_classifier_alone_and_computes_the_same(
        self, real: Segmenter, tmp_path: Path, suffix: str
    ) -> None:
        path = tmp_path / "new" / f"backbone{suffix}"
        export_backbone(real, path)
        assert list(path.parent.iterdir()) == [path]
        resnet = torchvision.models.resnet18(weights=None)
        found = resnet.load_state_dict(read(path), strict=False)
        assert found.missing_keys == ["fc.weight", "fc.bias"]
        assert found.unexpected_keys == []

        stages: list[Tensor] = []
        for stage in (resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4):
            stage.register_forward_hook(lambda module, given, result: stages.append(result))
        images = torch.rand(2, 3, 64, 48, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            resnet.eval()(images)
            wanted = real.network.encoder.backbone(images)
        for stage, other in zip(stages, wanted, strict=True):
            torch.testing.assert_close(stage, other)

    def test_its_tensors_are_plain(self, real: Segmenter, tmp_path: Path) -> None:
        """In memory the weights lie channels last, which no other program should have to know."""
        export_backbone(real, tmp_path / "b.pth")
        content = torch.load(tmp_path / "b.pth", weights_only=True)
        assert type(content) is dict
        for name, tensor in content.items():
            counter = name.endswith("num_batches_tracked")
            assert type(tensor) is Tensor, name
            assert tensor.dtype == (torch.int64 if counter else torch.float32), name
            assert tensor.is_contiguous() and not tensor.requires_grad, name


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("features", ["fpn", "res5"])
def test_train_takes_it_as_its_weights(
    slim: None, tmp_path: Path, suffix: str, features: Literal["fpn", "res5"]
) -> None:
    segmenter = filled(Architecture(clusters=3, over_clusters=0, features=features))
    path = tmp_path / f"b{suffix}"
    export_backbone(segmenter, path)
    encoder = Encoder("resnet18", 8)
    assert load_encoder(encoder, "resnet18", str(path)) == f"weights: {path}"
    wanted = segmenter.network.encoder.backbone.state_dict()
    for name, tensor in encoder.backbone.state_dict().items():
        assert torch.equal(tensor, wanted[name]), name


class TestTarget:
    def test_what_is_refused(self, tmp_path: Path) -> None:
        for name in ("b", "b.pt", "b.pth.gz", ".pth", "b.PTH"):
            with pytest.raises(UsageError, match=r"give a name ending in \.safetensors or \.pth"):
                require_export_target(tmp_path / name)
        path = tmp_path / "b.pth"
        require_export_target(path)
        path.touch()
        with pytest.raises(UsageError, match="exists already; give --overwrite"):
            require_export_target(path)
        require_export_target(path, overwrite=True)

    @pytest.mark.parametrize("suffix", SUFFIXES)
    def test_a_failed_write_leaves_the_old_file_and_nothing_else(
        self, slim: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
    ) -> None:
        path = tmp_path / f"b{suffix}"
        path.write_bytes(b"old")

        def full(handle: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OutputError, match="No space left"):
            export_backbone(filled(Architecture(clusters=3, over_clusters=0)), path)
        assert path.read_bytes() == b"old"
        assert list(tmp_path.iterdir()) == [path]


class TestOtherBackbones:
    @pytest.mark.parametrize("name", ["swin_t", "convnext_tiny", "timm:test_vit"])
    def test_their_libraries_read_them(self, tmp_path: Path, name: str) -> None:
        if name.startswith("timm:"):
            model = pytest.importorskip("timm").create_model(name.removeprefix("timm:"))
        else:
            model = getattr(torchvision.models, name)(weights=None)
        export_backbone(filled(Architecture(name, 4, 2, 0)), tmp_path / "b.pth")
        found = model.load_state_dict(read(tmp_path / "b.pth"), strict=False)
        assert found.unexpected_keys == []
        classifier = ("norm.", "head.", "classifier.", "fc_norm.")
        assert all(key.startswith(classifier) for key in found.missing_keys)

    @pytest.mark.parametrize("name", ["convnext_tiny", "timm:test_vit"])
    def test_torch_exports_the_network(self, name: str) -> None:
        if name.startswith("timm:"):
            pytest.importorskip("timm")
        network = build_network(Architecture(name, 4, 2, 0), seed=0).eval()
        images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            program = torch.export.export(network, (images,))
            torch.testing.assert_close(program.module()(images), network(images))
