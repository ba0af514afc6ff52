"""The network in inference form against its own layers one by one."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from densesiam_seg.network import inference_form as form
from densesiam_seg.network.architecture import Architecture
from densesiam_seg.network.efficientnet import Conv2dSame
from densesiam_seg.network.inference_form import Convolution, available, inference_form
from densesiam_seg.network.model import DenseSiam, build_network

FP32 = torch.float32


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def lived_in(network: nn.Module) -> nn.Module:
    """Batch norms as after a training: none of their numbers is 0 or 1."""
    for seed, module in enumerate(network.modules()):
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.copy_(0.3 * noise(module.num_features, seed=seed))  # type: ignore[union-attr]
            module.running_var.copy_(1 + noise(module.num_features, seed=seed).square())  # type: ignore[union-attr]
            if module.affine:
                with torch.no_grad():
                    module.weight.copy_(1 + 0.2 * noise(module.num_features, seed=seed))
                    module.bias.copy_(0.2 * noise(module.num_features, seed=seed))
    return network.eval()


def built(**architecture: object) -> DenseSiam:
    network = build_network(Architecture(clusters=5, channels=16, **architecture), 0)  # type: ignore[arg-type]
    lived_in(network)
    return network


@pytest.fixture(autouse=True)
def _needs_onednn() -> None:
    if not available(FP32):
        pytest.skip("this torch has no oneDNN")


class TestConvolution:
    @pytest.mark.parametrize("clip", ["Identity", "ReLU", "ReLU6"])
    @pytest.mark.parametrize(
        ("kernel", "stride", "groups", "dilation"),
        [(1, 1, 1, 1), (3, 1, 1, 1), (3, 2, 8, 1), (5, 2, 1, 1), (3, 1, 1, 2), (7, 2, 1, 1)],
    )
    def test_is_convolution_norm_and_clip(
        self, clip: str, kernel: int, stride: int, groups: int, dilation: int
    ) -> None:
        plain = nn.Conv2d(8, 16, kernel, stride, kernel // 2, dilation, groups)
        norm = nn.BatchNorm2d(16)
        lived_in(norm)
        maps = 3 * noise(2, 8, 13, 18)
        with torch.inference_mode():
            expected = getattr(nn, clip)()(norm(plain(maps)))
            found = Convolution(plain, FP32, norm, clip)(maps)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)

    def test_without_bias_or_norm(self) -> None:
        plain = nn.Conv2d(8, 16, 3, bias=False)
        maps = noise(1, 8, 9, 9)
        with torch.inference_mode():
            torch.testing.assert_close(
                Convolution(plain, FP32)(maps), plain(maps), atol=1e-5, rtol=1e-5
            )

    @pytest.mark.parametrize("size", [(16, 16), (15, 15), (15, 16), (1, 2), (32, 7)])
    @pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 2), (5, 1), (4, 2), (2, 2)])
    def test_tensorflows_padding(self, size: tuple[int, int], kernel: int, stride: int) -> None:
        plain = Conv2dSame(4, 4, kernel, stride, groups=4, bias=False)
        maps = noise(2, 4, *size)
        with torch.inference_mode():
            torch.testing.assert_close(
                Convolution(plain, FP32)(maps), plain(maps), atol=1e-5, rtol=1e-5
            )


class TestInferenceForm:
    @pytest.mark.parametrize(
        ("backbone", "features", "mixture"),
        [
            ("resnet18", "fpn", False),
            ("resnet50", "fpn", False),
            ("resnet18", "res5", False),
            ("timm:tf_efficientnet_lite0", "stages", True),
            ("timm:efficientnet_lite0", "fpn", False),
            ("convnext_tiny", "fpn", False),
        ],
    )
    def test_gives_the_same_scores(self, backbone: str, features: str, mixture: bool) -> None:
        network = built(backbone=backbone, features=features, mixture=mixture)
        images = noise(2, 3, 96, 64)
        with torch.inference_mode():
            expected = network.dense(images)
            own = inference_form(network, FP32)
            found = own.dense(images)
            assert own is not network
            scale = expected.abs().amax()
            torch.testing.assert_close(found / scale, expected / scale, atol=1e-4, rtol=0)
            scores = network.scores(expected)
            scale = scores.abs().amax()
            torch.testing.assert_close(own.scores(found) / scale, scores / scale, atol=1e-3, rtol=0)

    @pytest.mark.parametrize(
        ("backbone", "features"), [("resnet18", "fpn"), ("timm:tf_efficientnet_lite0", "stages")]
    )
    def test_no_batch_norm_is_left(self, backbone: str, features: str) -> None:
        """All that is known is folded: a new version of a library would not go unseen."""
        own = inference_form(built(backbone=backbone, features=features), FP32)
        for part in (own.encoder, own.projector):
            kinds = {type(each) for each in part.modules()}
            assert not any(issubclass(kind, nn.BatchNorm2d | nn.Conv2d) for kind in kinds)

    def test_the_network_stays_as_it_is(self) -> None:
        network = built(backbone="resnet18")
        before = copy.deepcopy(network.state_dict())
        inference_form(network, FP32)
        after = network.state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)

    def test_what_is_not_prepared_is_shared(self) -> None:
        network = built(backbone="resnet18")
        own = inference_form(network, FP32)
        assert own.predictor[0].weight is network.predictor[0].weight

    def test_no_random_number_is_drawn(self) -> None:
        """Whoever seeded torch gets the same numbers whether or not a model was read in between."""
        network = built(backbone="resnet18")
        form.available.cache_clear()
        before = torch.get_rng_state()
        inference_form(network, FP32)
        assert torch.equal(torch.get_rng_state(), before)

    def test_where_torch_cannot_do_it_the_network_is_read_itself(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        network = built(backbone="resnet18")

        def refuse(*_: object) -> Tensor:
            raise RuntimeError("no such layout")

        monkeypatch.setattr(torch._C._nn, "mkldnn_reorder_conv2d_weight", refuse)
        form.available.cache_clear()
        assert inference_form(network, FP32) is network
        monkeypatch.undo()
        form.available.cache_clear()
        with torch.autocast("cpu", torch.bfloat16):  # as in a step
            assert available(FP32)


def test_half_precision_is_as_near_as_the_layers_one_by_one() -> None:
    """Both round to eight bits; folded weights are not worse than rounded sums between layers."""
    if not available(torch.bfloat16):
        pytest.skip("this processor has no bf16")
    network = built(backbone="resnet18")
    images = noise(2, 3, 64, 64)
    with torch.inference_mode():
        exact = network.dense(images)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            plain = network.dense(images)
            folded = inference_form(network, torch.bfloat16).dense(images)
    error, usual = (F.mse_loss(each.float(), exact) for each in (folded, plain))
    assert error < 2 * usual
