"""ResNets (He et al., CVPR 2016), ResNeXts (Xie et al., CVPR 2017) and wide ones (Zagoruyko and Komodakis, BMVC 2016).

Axes: B images, C channels, H W image size, h w = H W over the stride of a stage.

torchvision has them too, and these are its networks: the same names and shapes of tensors, the same first weights of a
seed, the same numbers to the last bit (`tests/network/test_resnet.py` compares them all). But importing torchvision
brings torch's compiler along, which takes longer than torch itself and than everything that `predict` does with a
picture. Its other models, which are used less, still come from there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

STEM = 64
"""Channels before the first stage, and of a convolution of 3×3 in the first stage of the plain networks."""
EXPANSION = 4
"""How many times as many channels as its convolution of 3×3 a bottleneck gives."""
CLASSES = 1000


@dataclass(frozen=True)
class Size:
    """What tells one network from another."""

    depths: tuple[int, int, int, int]
    """Blocks of each stage."""
    bottlenecks: bool = True
    groups: int = 1
    width: int = 64
    """Channels of each group of a bottleneck's convolution of 3×3, in the first stage."""


SIZES = {
    "resnet18": Size((2, 2, 2, 2), bottlenecks=False),
    "resnet34": Size((3, 4, 6, 3), bottlenecks=False),
    "resnet50": Size((3, 4, 6, 3)),
    "resnet101": Size((3, 4, 23, 3)),
    "resnet152": Size((3, 8, 36, 3)),
    "resnext50_32x4d": Size((3, 4, 6, 3), groups=32, width=4),
    "resnext101_32x8d": Size((3, 4, 23, 3), groups=32, width=8),
    "resnext101_64x4d": Size((3, 4, 23, 3), groups=64, width=4),
    "wide_resnet50_2": Size((3, 4, 6, 3), width=128),
    "wide_resnet101_2": Size((3, 4, 23, 3), width=128),
}


class ResNet(nn.Module):
    """The modules of a network under torchvision's names, without the classifier; `Backbone` leads images through."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, STEM, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        channels = STEM
        for stage in range(len(size.depths)):
            blocks = list(_blocks(size, stage, channels))
            channels = (STEM << stage) * (EXPANSION if size.bottlenecks else 1)
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        # torchvision's classifier draws its first weights here: the draws after it are the same only if these are made.
        nn.Linear(channels, CLASSES)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def _blocks(size: Size, stage: int, channels: int) -> Iterator[nn.Module]:
    """Those of a stage whose input has so many channels."""
    inner = STEM << stage
    for number in range(size.depths[stage]):
        stride = 2 if stage and not number else 1
        if size.bottlenecks:
            width = inner * size.width // STEM * size.groups
            yield Bottleneck(channels, width, EXPANSION * inner, stride, size.groups)
            channels = EXPANSION * inner
        else:
            yield BasicBlock(channels, inner, stride)
            channels = inner


class BasicBlock(nn.Module):
    """Two convolutions of 3×3, added to their input."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        downsample = _shortcut(inputs, outputs, stride)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = downsample

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, h, w) → (B, outputs, h / stride, w / stride)."""
        residual: Tensor = self.relu(self.bn1(self.conv1(maps)))
        residual = self.bn2(self.conv2(residual))
        residual += maps if self.downsample is None else self.downsample(maps)
        result: Tensor = self.relu(residual)
        return result


class Bottleneck(nn.Module):
    """A convolution of 3×3 between two of 1×1, added to their input; torchvision's, whose stride is that of the 3×3."""

    def __init__(self, inputs: int, width: int, outputs: int, stride: int, groups: int) -> None:
        super().__init__()
        downsample = _shortcut(inputs, outputs, stride)
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, h, w) → (B, outputs, h / stride, w / stride)."""
        residual: Tensor = self.relu(self.bn1(self.conv1(maps)))
        residual = self.relu(self.bn2(self.conv2(residual)))
        residual = self.bn3(self.conv3(residual))
        residual += maps if self.downsample is None else self.downsample(maps)
        result: Tensor = self.relu(residual)
        return result


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    """What an input of another shape passes; made before its block, whose weights are drawn after its own."""
    if inputs == outputs and stride == 1:
        return None
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
