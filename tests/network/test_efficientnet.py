"""EfficientNet-Lite against timm's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from densesiam_seg.network.efficientnet import MULTIPLIERS, Conv2dSame, EfficientNetLite, known
from densesiam_seg.network.timm_backbones import TimmBackbone

timm = pytest.importorskip("timm")

LITE = "tf_efficientnet_lite0"
STAGES = [1, 2, 3, 4]
"""Those at strides 4, 8, 16 and 32, as timm numbers them."""
OWN_STAGES = [1, 2, 4, 6]


def timms(name: str, **options: Any) -> Any:
    return timm.create_model(name, **{"num_classes": 0} | options)


def pruned(name: str) -> tuple[EfficientNetLite, Any]:
    """Both, as they are used, with the same weights."""
    own, reference = EfficientNetLite(name), timms(name)
    own.prune_intermediate_layers(OWN_STAGES)
    reference.prune_intermediate_layers(STAGES, prune_norm=True)
    reference.load_state_dict(own.state_dict())
    return own, reference


def test_what_is_known() -> None:
    assert all(map(known, MULTIPLIERS)) and known(f"{LITE}.in1k")
    others = ("efficientnet_lite0", "tf_efficientnet_b0", f"{LITE}.other", "resnet18")
    assert not any(map(known, others))
    assert [each.partition(".")[2] for each in timm.list_pretrained(f"{LITE}*")] == ["in1k"]


@pytest.mark.parametrize("name", MULTIPLIERS)
def test_names_shapes_and_stages(name: str) -> None:
    """Also with the classifier, by whose names a file's order is read."""
    for classes in (0, 1000):
        with torch.device("meta"):
            own, reference = EfficientNetLite(name, classes), timms(name, num_classes=classes)
        shapes = [
            [(key, each.shape) for key, each in of.state_dict().items()] for of in (own, reference)
        ]
        assert shapes[0] == shapes[1]
    told = [{key: each[key] for key in own.feature_info[0]} for each in reference.feature_info]
    last_of_each = {each["reduction"]: each for each in own.feature_info}
    assert list(last_of_each.values()) == told and len(own.feature_info) == len(own.blocks)
    noted = reference.pretrained_cfg
    assert own.pretrained_cfg == {"mean": noted["mean"], "std": noted["std"]}


@pytest.mark.parametrize("name", [LITE, "tf_efficientnet_lite4"])
def test_a_seed_gives_the_same_first_weights(name: str) -> None:
    """And leaves the generator where timm leaves it."""
    torch.manual_seed(1)
    own, after = EfficientNetLite(name), torch.get_rng_state()
    torch.manual_seed(1)
    reference = timms(name).state_dict()
    assert torch.equal(after, torch.get_rng_state())
    assert all(torch.equal(each, reference[key]) for key, each in own.state_dict().items())


@pytest.mark.parametrize("size", [(64, 96), (65, 33)])
def test_the_same_numbers_to_the_last_bit(size: tuple[int, int]) -> None:
    """Of stages, gradients and batch statistics; also where a side leaves something over a stride."""
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    own, reference = pruned(LITE)
    outputs: list[list[Tensor]] = [
        each.train().forward_intermediates(
            images, indices=stages, norm=False, intermediates_only=True
        )
        for each, stages in ((own, OWN_STAGES), (reference, STAGES))
    ]
    assert all(map(torch.equal, *outputs))
    for stages in outputs:
        sum(stage.square().mean() for stage in stages).backward()  # type: ignore[union-attr]
    gradients = dict(reference.named_parameters())
    for key, value in own.named_parameters():
        assert value.grad is not None and torch.equal(value.grad, gradients[key].grad)
    after = reference.state_dict()
    assert list(after) == list(own.state_dict())
    assert all(torch.equal(value, after[key]) for key, value in own.state_dict().items())


def test_fewer_stages() -> None:
    own = EfficientNetLite(LITE)
    own.prune_intermediate_layers([1, 2])
    assert len(own.blocks) == 3
    found = own.eval().forward_intermediates(torch.randn(1, 3, 32, 32), [2])
    assert [tuple(each.shape) for each in found] == [(1, 40, 4, 4)]


def test_same_padding_by_hand() -> None:
    """Ones of 5×5 by a kernel of ones: of the two rows and columns that a stride of 2 lacks one is at each side."""
    layer = Conv2dSame(1, 1, 3, 2, bias=False)
    nn.init.ones_(layer.weight)
    with torch.no_grad():
        found = layer(torch.ones(1, 1, 5, 5))
    assert found[0, 0].tolist() == [[4, 6, 4], [6, 9, 6], [4, 6, 4]]


@pytest.mark.parametrize("name", [LITE, f"{LITE}.in1k"])
def test_a_backbone_needs_no_timm(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.randn(2, 3, 70, 50, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    with monkeypatch.context() as patch:
        patch.setattr("densesiam_seg.network.timm_backbones._timm", None)
        own = TimmBackbone(name).eval()
    torch.manual_seed(1)
    with monkeypatch.context() as patch:
        patch.setattr("densesiam_seg.network.efficientnet.MULTIPLIERS", {})
        reference = TimmBackbone(name).eval()
    assert isinstance(own.plain, EfficientNetLite) and not isinstance(
        reference.plain, EfficientNetLite
    )
    for what in ("channels", "multiple", "one_stride", "mean", "deviation"):
        assert getattr(own, what) == getattr(reference, what), what
    with torch.no_grad():
        found, wanted = own(images), reference(images)
        assert all(map(torch.equal, found, wanted))
        for each in (own, reference):
            each.pad_constantly()
        for result in (own(images), reference(images)):
            assert all(map(torch.equal, result, wanted))
    assert own.plain.state_dict().keys() == reference.plain.state_dict().keys()


def test_published_weights_come_from_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    create, asked = timm.create_model, []

    def published(name: str, pretrained: bool, **options: Any) -> Any:
        asked.append((name, pretrained))
        return create(name, **options)

    monkeypatch.setattr(timm, "create_model", published)
    backbone = TimmBackbone(LITE)
    torch.manual_seed(7)
    backbone.fetch()
    torch.manual_seed(7)
    source = create(LITE, num_classes=0).state_dict()
    assert set(asked) == {(LITE, True)}
    assert all(torch.equal(each, source[key]) for key, each in backbone.plain.state_dict().items())
