"""Backbone and decoder against torchvision's own networks and slow sums."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torchvision
from numpy.typing import NDArray
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

from densesiam_seg.errors import UsageError
from densesiam_seg.network.backbones import TORCHVISION
from densesiam_seg.network.encoder import (
    Backbone,
    Decoder,
    Encoder,
    build_backbone,
    require_backbone,
)
from densesiam_seg.network.timm_backbones import TimmBackbone

Array = NDArray[np.float64]
FAMILIES = ("resnet18", "resnet50", "convnext_tiny", "swin_t", "swin_v2_t")


def upsampled(values: Array, height: int, width: int) -> Array:
    """Bilinear resize of (C, h, w) with half-pixel centres, one output pixel after the other."""
    _, h, w = values.shape
    out = np.empty((len(values), height, width))
    for y in range(height):
        for x in range(width):
            v = min(max((y + 0.5) * h / height - 0.5, 0.0), h - 1.0)
            u = min(max((x + 0.5) * w / width - 0.5, 0.0), w - 1.0)
            y0, x0 = math.floor(v), math.floor(u)
            y1, x1 = min(y0 + 1, h - 1), min(x0 + 1, w - 1)
            dy, dx = v - y0, u - x0
            out[:, y, x] = (1 - dy) * ((1 - dx) * values[:, y0, x0] + dx * values[:, y0, x1])
            out[:, y, x] += dy * ((1 - dx) * values[:, y1, x0] + dx * values[:, y1, x1])
    return out


class TestBackbone:
    def test_computes_torchvisions_stages(self) -> None:
        reference = torchvision.models.resnet18(weights=None).eval()
        stages = [f"layer{n}" for n in (1, 2, 3, 4)]
        extractor = create_feature_extractor(reference, stages)
        backbone = Backbone("resnet18").eval()
        backbone.load_state_dict(
            {key: value for key, value in reference.state_dict().items() if key[:3] != "fc."}
        )
        images = 9 * torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            expected = extractor(images)
            for stage, out in zip(stages, backbone(images), strict=True):
                torch.testing.assert_close(out, expected[stage])

    @pytest.mark.parametrize("name", list(TORCHVISION))
    def test_names_and_shapes_are_torchvisions(self, name: str) -> None:
        with torch.device("meta"):
            backbone = Backbone(name)
            reference = getattr(torchvision.models, name)(weights=None)
        classifier = ("fc.", "classifier.", "norm.", "head.")
        wanted = {
            key: value.shape
            for key, value in reference.state_dict().items()
            if not key.startswith(classifier)
        }
        assert {key: value.shape for key, value in backbone.state_dict().items()} == wanted

    @pytest.mark.parametrize("name", list(TORCHVISION))
    def test_strides_and_channels(self, name: str) -> None:
        with torch.device("meta"):
            stages = Backbone(name)(torch.empty(2, 3, 64, 96))
        channels_of = TORCHVISION[name].channels
        for stage, channels, stride in zip(stages, channels_of, (4, 8, 16, 32), strict=True):
            assert stage.shape == (2, channels, 64 // stride, 96 // stride)

    @pytest.mark.parametrize("name", ["convnext_tiny", "swin_t", "swin_v2_t"])
    def test_stages_of_the_others_are_torchvisions(self, name: str) -> None:
        """Each follows two of the modules under `features`; Swin has its channels last."""
        backbone = Backbone(name).eval()
        reference = getattr(torchvision.models, name)(weights=None).eval()
        missing = reference.load_state_dict(backbone.state_dict(), strict=False)
        assert not missing.unexpected_keys
        images = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
        names = [f"features.{index}" for index in (1, 3, 5, 7)]
        with torch.no_grad():
            expected = create_feature_extractor(reference, names)(images)
            for stage, out in zip(names, backbone(images), strict=True):
                wanted = expected[stage]
                torch.testing.assert_close(
                    out, wanted.permute(0, 3, 1, 2) if name.startswith("swin") else wanted
                )

    @pytest.mark.parametrize("name", ["convnext_tiny", "swin_t"])
    def test_training_draws_nothing(self, name: str) -> None:
        """torchvision's own networks drop layers at random, which a resumed run could not repeat."""
        backbone = Backbone(name).train()
        images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        before = torch.get_rng_state()
        with torch.no_grad():
            assert torch.equal(backbone(images)[-1], backbone(images)[-1])
        assert torch.equal(torch.get_rng_state(), before)


class TestBuild:
    def test_by_its_name(self) -> None:
        with torch.device("meta"):
            assert isinstance(build_backbone("convnext_tiny"), Backbone)

    def test_timms_by_their_prefix(self) -> None:
        pytest.importorskip("timm")
        with torch.device("meta"):
            built = build_backbone("timm:vit_tiny_patch16_224")
            encoder = Encoder("timm:vit_tiny_patch16_224", 8)
            assert isinstance(built, TimmBackbone) and built.channels == (192,) * 4
            assert encoder(torch.empty(1, 3, 96, 64)).shape == (1, 8, 6, 4)
            assert Encoder("timm:vit_tiny_patch16_224", 8, "res5").width == 192

    def test_what_is_required_of_them(self) -> None:
        require_backbone("swin_t", 32)
        pytest.importorskip("timm")
        require_backbone("timm:vit_tiny_patch16_224", 100)
        with pytest.raises(UsageError, match="160x160"):
            require_backbone("timm:mixer_s16_224", 160)
        with pytest.raises(UsageError, match="no such model"):
            require_backbone("timm:vit_micro", 160)


@pytest.mark.parametrize("name", ["resnet18", "convnext_tiny", "swin_t"])
def test_a_backbone_learns(name: str) -> None:
    encoder = Encoder(name, 8).train()
    encoder(torch.randn(2, 3, 64, 64)).square().mean().backward()
    without = {name for name, value in encoder.named_parameters() if value.grad is None}
    assert without == set()


class TestFreeze:
    @pytest.fixture
    def encoder(self, slim: None) -> Encoder:
        encoder = Encoder("resnet18", 8)
        encoder.freeze()
        return encoder

    def test_only_the_decoder_has_gradients(self, encoder: Encoder) -> None:
        encoder.train()(torch.randn(2, 3, 32, 32)).square().mean().backward()
        assert encoder.decoder is not None
        for name, value in encoder.named_parameters():
            assert (value.grad is not None) == name.startswith("decoder."), name

    def test_no_call_of_train_wakes_its_batch_statistics(self, encoder: Encoder) -> None:
        before = {name: value.clone() for name, value in encoder.backbone.state_dict().items()}
        for mode in (True, False, True):
            nn.Sequential(encoder).train(mode)
            assert encoder.training == mode and not encoder.backbone.training
            assert not any(module.training for module in encoder.backbone.modules())
            encoder(torch.randn(2, 3, 32, 32))
        after = encoder.backbone.state_dict()
        assert all(torch.equal(value, before[name]) for name, value in after.items())

    def test_an_image_is_seen_alike_in_any_company(self, encoder: Encoder) -> None:
        images = torch.randn(4, 3, 32, 32)
        encoder.train()
        torch.testing.assert_close(encoder(images)[:1], encoder(images[:1]))

    def test_others_train_as_ever(self, slim: None) -> None:
        encoder = Encoder("resnet18", 8).eval().train()
        assert all(module.training for module in encoder.modules())
        assert all(value.requires_grad for value in encoder.parameters())


class TestDecoder:
    def test_layers_are_four_lateral_convolutions_with_bias(self) -> None:
        decoder = Decoder((64, 128, 256, 512), 128)
        layers = [layer for layer in decoder.modules() if not list(layer.children())]
        assert len(layers) == 4
        for layer, stage in zip(layers, (64, 128, 256, 512), strict=True):
            assert isinstance(layer, nn.Conv2d)
            assert (layer.in_channels, layer.out_channels) == (stage, 128)
            assert layer.kernel_size == (1, 1) and layer.stride == (1, 1)
            assert layer.bias is not None

    @pytest.mark.parametrize(
        "sizes",
        [
            [(8, 8), (4, 4), (2, 2), (1, 1)],
            [(8, 12), (4, 6), (2, 3), (1, 2)],
            [(7, 9), (4, 5), (2, 3), (1, 2)],
        ],
    )
    def test_equals_a_slow_sum(self, sizes: list[tuple[int, int]]) -> None:
        """lateral(res2) + up(lateral(res3) + up(lateral(res4) + up(lateral(res5))))."""
        source = torch.Generator().manual_seed(0)
        widths = (3, 4, 5, 6)
        decoder = Decoder(widths, 2)
        stages = tuple(
            torch.randn(2, width, *size, generator=source)
            for width, size in zip(widths, sizes, strict=True)
        )
        with torch.no_grad():
            out = decoder(stages)
        for image in range(2):
            total: Array | None = None
            for stage, lateral in reversed(list(zip(stages, decoder.laterals, strict=True))):
                assert isinstance(lateral, nn.Conv2d) and lateral.bias is not None
                weight = lateral.weight.detach().double().numpy()[:, :, 0, 0]
                bias = lateral.bias.detach().double().numpy()
                level = np.einsum("oc,chw->ohw", weight, stage[image].double().numpy())
                level += bias[:, None, None]
                total = level if total is None else level + upsampled(total, *level.shape[1:])
            assert total is not None
            np.testing.assert_allclose(out[image].numpy(), total, atol=1e-5)


class TestEncoder:
    @pytest.mark.parametrize("name", FAMILIES)
    def test_features_have_stride_four(self, name: str) -> None:
        with torch.device("meta"):
            features = Encoder(name, 128)(torch.empty(1, 3, 64, 96))
        assert features.shape == (1, 128, 16, 24)

    def test_any_size_is_rounded_up(self) -> None:
        with torch.device("meta"):
            features = Encoder("resnet18", 8)(torch.empty(1, 3, 70, 50))
        assert features.shape == (1, 8, 18, 13)

    def test_is_backbone_then_decoder(self) -> None:
        encoder = Encoder("resnet18", 8).eval()
        images = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            stages = encoder.backbone(images)
            assert encoder.decoder is not None
            expected = encoder.decoder(stages)
            assert torch.equal(encoder(images), expected)
            assert torch.equal(encoder.dense(stages), expected)

    def test_width_is_that_of_the_decoder(self) -> None:
        with torch.device("meta"):
            assert Encoder("resnet18", 24).width == 24


class TestLastStage:
    """Features of res5, without a decoder."""

    @pytest.mark.parametrize("name", FAMILIES)
    def test_features_have_stride_32_and_the_stages_width(self, name: str) -> None:
        with torch.device("meta"):
            encoder = Encoder(name, 128, "res5")
            features = encoder(torch.empty(1, 3, 64, 96))
        assert encoder.width == TORCHVISION[name].channels[-1]
        assert features.shape == (1, encoder.width, 2, 3)

    def test_are_the_last_stage_itself(self) -> None:
        encoder = Encoder("resnet18", 8, "res5").eval()
        images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            stages = encoder.backbone(images)
            assert torch.equal(encoder(images), stages[-1])
            assert encoder.dense(stages) is stages[-1]

    def test_there_is_no_decoder(self) -> None:
        with torch.device("meta"):
            encoder = Encoder("resnet18", 8, "res5")
        assert encoder.decoder is None
        assert {name.split(".")[0] for name in encoder.state_dict()} == {"backbone"}
