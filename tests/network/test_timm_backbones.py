"""timm's models as backbones, with random weights: shapes, sizes, official checkpoints, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from densesiam_seg.errors import UsageError
from densesiam_seg.network.timm_backbones import TimmBackbone
from densesiam_seg.views.photometric import normalise

timm = pytest.importorskip("timm")

SHAPES: dict[str, tuple[int, list[int], list[int]]] = {
    "vit_small_patch14_reg4_dinov2.lvd142m": (14, [384] * 4, [11] * 4),
    "vit_small_patch16_dinov3.lvd1689m": (16, [384] * 4, [10] * 4),
    "convnext_tiny.dinov3_lvd1689m": (32, [96, 192, 384, 768], [40, 20, 10, 5]),
    "swin_tiny_patch4_window7_224": (32, [96, 192, 384, 768], [40, 20, 10, 5]),
    "resnet18": (32, [64, 128, 256, 512], [40, 20, 10, 5]),
    "efficientnet_b0": (32, [24, 40, 112, 320], [40, 20, 10, 5]),
    "samvit_base_patch16": (16, [256] * 4, [10] * 4),
}
"""The multiple that sides are resized to, and each stage's channels and side, for images of 160 pixels."""
SMALL = {"embed_dim": 24, "depth": 4, "num_heads": 2}


def on_meta(name: str) -> TimmBackbone:
    with torch.device("meta"):
        return TimmBackbone(name)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every model that is created is a tiny one of its kind."""
    create: Callable[..., Any] = timm.create_model
    monkeypatch.setattr(
        timm, "create_model", lambda *given, **options: create(*given, **options, **SMALL)
    )


@pytest.mark.parametrize("name", list(SHAPES))
def test_stages(name: str) -> None:
    backbone = on_meta(name)
    multiple, channels, sides = SHAPES[name]
    assert backbone.multiple == multiple
    assert list(backbone.channels) == channels
    stages = backbone(torch.empty(2, 3, 160, 160, device="meta"))
    assert [tuple(stage.shape) for stage in stages] == [
        (2, width, side, side) for width, side in zip(channels, sides, strict=True)
    ]


def test_a_plain_transformer_gives_four_depths_evenly_spaced() -> None:
    assert on_meta("vit_small_patch16_dinov3").indices == [2, 5, 8, 11]


@pytest.mark.parametrize(
    ("name", "channels", "sides"),
    [
        ("tf_efficientnet_lite0", [112, 192, 320], [10, 5, 5]),
        ("convnext_tiny.dinov3_lvd1689m", [384, 768], [10, 5]),
        ("vit_small_patch16_dinov3.lvd1689m", [384], [10]),
    ],
)
def test_described_stages(name: str, channels: list[int], sides: list[int]) -> None:
    """Of a pyramid all from the end of stride 16 on: EfficientNet has two of stride 32."""
    with torch.device("meta"):
        backbone = TimmBackbone(name, described=True)
    assert list(backbone.channels) == channels
    stages = backbone(torch.empty(2, 3, 160, 160, device="meta"))
    assert [(each.shape[1], each.shape[2]) for each in stages] == list(
        zip(channels, sides, strict=True)
    )


def test_they_are_timms_own_after_its_last_norm(small: None) -> None:
    backbone = TimmBackbone("vit_small_patch16_224.dino").eval()
    images = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        stages = backbone(images)
        tokens = backbone.plain.forward_features(images)[:, 1:]
    assert len(stages) == 4
    torch.testing.assert_close(stages[-1], tokens.mT.reshape(2, 24, 2, 3))


@pytest.mark.usefixtures("small")
def test_models_see_the_normalisation_of_their_own_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A pixel of 0.75 is 0.5 to a model whose weights were trained with mean and deviation 0.5."""
    seen: list[Tensor] = []

    def forward(images: Tensor, **options: object) -> list[Tensor]:
        seen.append(images)
        return []

    for name, wanted in (("vit_base_patch16_siglip_224", 0.5), ("vit_small_patch16_dinov3", None)):
        backbone = TimmBackbone(name)
        monkeypatch.setattr(backbone.plain, "forward_intermediates", forward)
        images = normalise(torch.full((1, 3, 32, 32), 0.75))
        backbone(images)
        expected = images if wanted is None else torch.full_like(images, wanted)
        torch.testing.assert_close(seen[-1], expected)
        assert (seen[-1] is images) == (wanted is None)


@pytest.mark.usefixtures("small")
class TestSizes:
    def test_sides_go_to_the_nearest_multiple_of_the_patch(self) -> None:
        backbone = TimmBackbone("vit_small_patch14_dinov2").eval()
        for size, grid in (((160, 160), (11, 11)), ((41, 50), (3, 4)), ((5, 28), (1, 2))):
            with torch.no_grad():
                assert backbone(torch.randn(1, 3, *size))[0].shape[-2:] == grid

    def test_a_multiple_is_left_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delattr("densesiam_seg.clustering.resizing.F.interpolate")
        backbone = TimmBackbone("vit_small_patch16_dinov3").eval()
        with torch.no_grad():
            assert backbone(torch.randn(1, 3, 32, 64))[0].shape == (1, 24, 2, 4)

    def test_the_whole_image_is_seen(self) -> None:
        """The gradient reaches every pixel, the last row and column too."""
        backbone = TimmBackbone("vit_small_patch14_dinov2").eval()
        images = torch.randn(1, 3, 45, 45).requires_grad_()
        (gradient,) = torch.autograd.grad(backbone(images)[-1].square().sum(), images)
        assert (gradient.abs().sum(1) > 0).all()


@pytest.mark.usefixtures("small")
def test_training_reaches_every_parameter_and_draws_nothing() -> None:
    backbone = TimmBackbone("vit_small_patch16_dinov3").train()
    images = torch.randn(2, 3, 32, 32)
    before = torch.get_rng_state()
    stages, again = backbone(images), backbone(images)
    assert torch.equal(stages[-1], again[-1])
    assert torch.equal(torch.get_rng_state(), before)
    sum(stage.square().mean() for stage in stages).backward()
    assert {name for name, value in backbone.named_parameters() if value.grad is None} == set()


def official_dinov2(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names of Meta's own files: registers, a mask token and one table of positions with the class's place."""
    found = dict(tensors)
    if "reg_token" in found:
        found["register_tokens"] = found.pop("reg_token")
        positions = found["pos_embed"]
        found["pos_embed"] = torch.cat((torch.zeros_like(positions[:, :1]), positions), 1)
    return {**found, "mask_token": torch.zeros(1, 24)}


@pytest.mark.usefixtures("small")
class TestTranslate:
    @pytest.mark.parametrize("name", ["vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2"])
    def test_official_dinov2(self, name: str) -> None:
        backbone = TimmBackbone(name)
        wanted = backbone.plain.state_dict()
        found = backbone.translate(official_dinov2(wanted))
        assert found.keys() >= wanted.keys()
        assert all(found[key].shape == wanted[key].shape for key in wanted)
        weight = "blocks.0.attn.qkv.weight"
        assert torch.equal(found[weight], wanted[weight])

    def test_official_dinov3(self) -> None:
        backbone = TimmBackbone("vit_small_patch16_dinov3")
        wanted = backbone.plain.state_dict()
        official = {
            name.replace("reg_token", "storage_tokens").replace("gamma_1", "ls1.gamma")
            .replace("gamma_2", "ls2.gamma"): value
            for name, value in wanted.items()
        }  # fmt: skip
        official["rope_embed.periods"] = torch.ones(3)
        official["mask_token"] = torch.zeros(1, 24)
        found = backbone.translate(official)
        assert found.keys() >= wanted.keys()
        assert all(torch.equal(found[key], wanted[key]) for key in wanted)


@pytest.mark.usefixtures("small")
def test_fetched_weights_are_taken_over(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = TimmBackbone("vit_small_patch16_224.dino")
    create = timm.create_model

    def published(name: str, pretrained: bool, **options: Any) -> Any:
        assert (name, pretrained) == ("vit_small_patch16_224.dino", True)
        model = create(name, **options)
        for value in model.parameters():
            torch.nn.init.constant_(value, 0.5)
        return model

    monkeypatch.setattr(timm, "create_model", published)
    backbone.fetch()
    assert all((value == 0.5).all() for value in backbone.parameters())


class TestRefusals:
    @pytest.mark.parametrize(
        ("name", "near"),
        [
            ("vit_smal_patch16_224", "timm:vit_small_patch16_224"),
            ("vit_small_patch14_dinov2.lvd", "timm:vit_small_patch14_dinov2.lvd142m"),
            ("zzz", "timm:"),
        ],
    )
    def test_unknown_names(self, name: str, near: str) -> None:
        with pytest.raises(UsageError, match=f"no such model.*{near}.*timm.list_models"):
            on_meta(name)

    def test_models_without_features(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(timm, "create_model", lambda *given, **options: torch.nn.Identity())
        with pytest.raises(UsageError, match="gives no features between its layers"):
            on_meta("resnet18")
