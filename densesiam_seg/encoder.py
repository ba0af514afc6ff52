"""Backbone and decoder: image → dense features.

Axes: B images, C feature channels, H W image size, h w = H/4 W/4 (H/32 W/32 for features of res5).
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

BACKBONES = {
    "resnet18": (64, 128, 256, 512),
    "resnet34": (64, 128, 256, 512),
    **dict.fromkeys(
        (
            "resnet50",
            "resnet101",
            "resnet152",
            "resnext50_32x4d",
            "resnext101_32x8d",
            "resnext101_64x4d",
            "wide_resnet50_2",
            "wide_resnet101_2",
        ),
        (256, 512, 1024, 2048),
    ),
}
"""Names of torchvision's ResNets and the channels of their stages res2 … res5."""

Features = Literal["fpn", "res5"]


class Backbone(nn.Module):
    """A torchvision ResNet without its classifier; parameter names are torchvision's."""

    def __init__(self, name: str) -> None:
        super().__init__()
        # torchvision brings torch's compiler along, a second that only those wait for who build a network.
        import torchvision

        resnet = getattr(torchvision.models, name)(weights=None)
        self.conv1, self.bn1 = resnet.conv1, resnet.bn1
        self.layer1, self.layer2 = resnet.layer1, resnet.layer2
        self.layer3, self.layer4 = resnet.layer3, resnet.layer4

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(B, 3, H, W) → stages res2 … res5 at strides 4, 8, 16, 32."""
        stem = F.max_pool2d(F.relu(self.bn1(self.conv1(images))), 3, 2, 1)
        res2 = self.layer1(stem)
        res3 = self.layer2(res2)
        res4 = self.layer3(res3)
        return res2, res3, res4, self.layer4(res4)


class Decoder(nn.Module):
    """FPN: a 1×1 convolution per stage, each level added to the bilinearly upsampled sum of the coarser ones."""

    def __init__(self, stages: tuple[int, ...], channels: int) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(stage, channels, 1) for stage in stages)

    def forward(self, stages: tuple[Tensor, ...]) -> Tensor:
        """res2 … res5 → (B, C, h, w)."""
        levels = [lateral(stage) for lateral, stage in zip(self.laterals, stages, strict=True)]
        total: Tensor = levels.pop()
        while levels:
            level = levels.pop()
            total = level + F.interpolate(total, level.shape[-2:], mode="bilinear")
        return total


class Encoder(nn.Module):
    """Backbone + decoder; without a decoder the last stage is the features."""

    def __init__(self, backbone: str, channels: int, features: Features = "fpn") -> None:
        super().__init__()
        stages = BACKBONES[backbone]
        self.backbone = Backbone(backbone)
        self.decoder = Decoder(stages, channels) if features == "fpn" else None
        self.width = channels if features == "fpn" else stages[-1]
        """Channels C of the features."""

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) → features (B, C, h, w)."""
        return self.dense(self.backbone(images))

    def dense(self, stages: tuple[Tensor, ...]) -> Tensor:
        """res2 … res5 → features (B, C, h, w)."""
        if self.decoder is None:
            return stages[-1]
        features: Tensor = self.decoder(stages)
        return features
