"""Backbone and decoder against torchvision's ResNet and slow sums."""

from __future__ import annotations

import math
from typing import get_args

import numpy as np
import pytest
import torch
import torchvision
from numpy.typing import NDArray
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

from densesiam_seg import config
from densesiam_seg.encoder import BACKBONES, Backbone, Decoder, Encoder

Array = NDArray[np.float64]


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

    def test_the_settings_know_the_same_names(self) -> None:
        assert list(BACKBONES) == list(get_args(config.Backbone))

    @pytest.mark.parametrize("name", list(BACKBONES))
    def test_names_and_shapes_are_torchvisions(self, name: str) -> None:
        with torch.device("meta"):
            backbone = Backbone(name)
            reference = getattr(torchvision.models, name)(weights=None)
        wanted = {key: value.shape for key, value in reference.state_dict().items()}
        del wanted["fc.weight"], wanted["fc.bias"]
        assert {key: value.shape for key, value in backbone.state_dict().items()} == wanted

    @pytest.mark.parametrize("name", list(BACKBONES))
    def test_strides_and_channels(self, name: str) -> None:
        with torch.device("meta"):
            stages = Backbone(name)(torch.empty(2, 3, 64, 96))
        for stage, channels, stride in zip(stages, BACKBONES[name], (4, 8, 16, 32), strict=True):
            assert stage.shape == (2, channels, 64 // stride, 96 // stride)


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
    @pytest.mark.parametrize("name", list(BACKBONES))
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

    @pytest.mark.parametrize("name", list(BACKBONES))
    def test_features_have_stride_32_and_the_stages_width(self, name: str) -> None:
        with torch.device("meta"):
            encoder = Encoder(name, 128, "res5")
            features = encoder(torch.empty(1, 3, 64, 96))
        assert encoder.width == BACKBONES[name][-1]
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
