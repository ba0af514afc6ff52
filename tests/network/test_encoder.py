"""Backbone and decoder against torchvision's own networks and slow sums."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torchvision
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor

from densesiam_seg.backbones import TORCHVISION
from densesiam_seg.errors import UsageError
from densesiam_seg.network.encoder import Backbone, Decoder, Encoder, require_backbone

Array = NDArray[np.float64]
RESNET = [f"layer{number}" for number in (1, 2, 3, 4)]
PAIRS = [f"features.{index}" for index in (1, 3, 5, 7)]
STAGES = {"resnet18": RESNET, "convnext_tiny": PAIRS, "swin_t": PAIRS, "swin_v2_t": PAIRS}
"""One model of each kind, and the modules that give torchvision's stages."""


def random_images(*size: int) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(0))


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
    @pytest.mark.parametrize("name", STAGES)
    def test_computes_torchvisions_stages(self, name: str) -> None:
        """Swin has its channels last."""
        backbone = Backbone(name).eval()
        reference = getattr(torchvision.models, name)(weights=None).eval()
        missing = reference.load_state_dict(backbone.state_dict(), strict=False)
        assert not missing.unexpected_keys
        images = random_images(1, 3, 64, 96)
        with torch.no_grad():
            expected = create_feature_extractor(reference, STAGES[name])(images)
            for stage, out in zip(STAGES[name], backbone(images), strict=True):
                wanted = expected[stage]
                torch.testing.assert_close(
                    out, wanted.permute(0, 3, 1, 2) if name.startswith("swin") else wanted
                )

    @pytest.mark.parametrize("name", TORCHVISION)
    def test_names_strides_and_channels(self, name: str) -> None:
        with torch.device("meta"):
            backbone = Backbone(name)
            reference = getattr(torchvision.models, name)(weights=None)
            stages = backbone(torch.empty(2, 3, 64, 96))
        classifier = ("fc.", "classifier.", "norm.", "head.")
        wanted = {
            key: value.shape
            for key, value in reference.state_dict().items()
            if not key.startswith(classifier)
        }
        assert {key: value.shape for key, value in backbone.state_dict().items()} == wanted
        channels_of = TORCHVISION[name].channels
        for stage, channels, stride in zip(stages, channels_of, (4, 8, 16, 32), strict=True):
            assert stage.shape == (2, channels, 64 // stride, 96 // stride)

    @pytest.mark.parametrize("name", ["convnext_tiny", "swin_t"])
    def test_training_draws_nothing(self, name: str) -> None:
        """torchvision's own networks drop layers at random, which a resumed run could not repeat."""
        backbone = Backbone(name).train()
        images = random_images(2, 3, 32, 32)
        before = torch.get_rng_state()
        with torch.no_grad():
            assert torch.equal(backbone(images)[-1], backbone(images)[-1])
        assert torch.equal(torch.get_rng_state(), before)


def test_what_is_required_of_a_backbone() -> None:
    require_backbone("swin_t", 32)
    pytest.importorskip("timm")
    require_backbone("timm:vit_tiny_patch16_224", 100)
    with pytest.raises(UsageError, match="no such model"):
        require_backbone("timm:vit_micro", 160)
    for name in ("timm:mixer_s16_224", "timm:beit_base_patch16_224", "timm:maxvit_tiny_tf_224"):
        with pytest.raises(UsageError, match=r"160x\d+ pixels \(") as caught:
            require_backbone(name, 160)
        assert "\n" not in str(caught.value)


class TestFreeze:
    @pytest.fixture
    def encoder(self, slim: None) -> Encoder:
        encoder = Encoder("resnet18", 8)
        encoder.freeze()
        return encoder

    def test_only_the_decoder_has_gradients(self, encoder: Encoder) -> None:
        encoder.train()(torch.randn(2, 3, 32, 32)).square().mean().backward()
        for name, value in encoder.named_parameters():
            assert (value.grad is not None) == name.startswith("decoder."), name

    def test_no_call_of_train_wakes_its_batch_statistics(self, encoder: Encoder) -> None:
        before = {name: value.clone() for name, value in encoder.backbone.state_dict().items()}
        for mode in (True, False, True):
            nn.Sequential(encoder).train(mode)
            assert encoder.training == mode
            assert not any(module.training for module in encoder.backbone.modules())
            encoder(torch.randn(2, 3, 32, 32))
        after = encoder.backbone.state_dict()
        assert all(torch.equal(value, before[name]) for name, value in after.items())


class TestDecoder:
    def test_layers_are_four_lateral_convolutions_with_bias(self) -> None:
        decoder = Decoder((64, 128, 256, 512), 128)
        assert {name: tuple(value.shape) for name, value in decoder.named_parameters()} == {
            f"laterals.{index}.{name}": shape
            for index, stage in enumerate((64, 128, 256, 512))
            for name, shape in (("weight", (128, stage, 1, 1)), ("bias", (128,)))
        }

    @pytest.mark.parametrize(
        "sizes", [[(8, 12), (4, 6), (2, 3), (1, 2)], [(7, 9), (4, 5), (2, 3), (1, 2)]]
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
    @pytest.mark.parametrize("name", STAGES)
    def test_sizes(self, name: str) -> None:
        with torch.device("meta"):
            fpn, res5 = Encoder(name, 24), Encoder(name, 24, "res5")
            assert fpn(torch.empty(1, 3, 64, 96)).shape == (1, 24, 16, 24)
            assert res5(torch.empty(1, 3, 64, 96)).shape == (1, res5.width, 2, 3)
        assert (fpn.width, res5.width) == (24, TORCHVISION[name].channels[-1])

    def test_any_size_is_rounded_up(self) -> None:
        with torch.device("meta"):
            assert Encoder("resnet18", 8)(torch.empty(1, 3, 70, 50)).shape == (1, 8, 18, 13)

    def test_backbones_of_timm(self) -> None:
        pytest.importorskip("timm")
        with torch.device("meta"):
            encoder = Encoder("timm:vit_tiny_patch16_224", 8)
            assert encoder.backbone.channels == (192,) * 4
            assert encoder(torch.empty(1, 3, 96, 64)).shape == (1, 8, 6, 4)
            assert Encoder("timm:vit_tiny_patch16_224", 8, "res5").width == 192

    def test_is_backbone_then_decoder(self, slim: None) -> None:
        encoder = Encoder("resnet18", 8).eval()
        images = random_images(1, 3, 32, 32)
        with torch.no_grad():
            stages = encoder.backbone(images)
            assert encoder.decoder is not None
            expected = encoder.decoder(stages)
            assert torch.equal(encoder(images), expected)
            assert torch.equal(encoder.dense(stages), expected)

    def test_features_of_res5_are_the_last_stage_itself(self, slim: None) -> None:
        encoder = Encoder("resnet18", 8, "res5").eval()
        images = random_images(1, 3, 64, 64)
        with torch.no_grad():
            stages = encoder.backbone(images)
            assert torch.equal(encoder(images), stages[-1])
            assert encoder.dense(stages) is stages[-1]
        assert {name.split(".")[0] for name in encoder.state_dict()} == {"backbone"}

    @pytest.mark.parametrize("name", ["resnet18", "convnext_tiny", "swin_t"])
    def test_gradients_reach_every_parameter(self, name: str) -> None:
        encoder = Encoder(name, 8).train()
        encoder(torch.randn(2, 3, 64, 64)).square().mean().backward()
        assert {name for name, value in encoder.named_parameters() if value.grad is None} == set()
