"""Backbone and decoder: image → dense features.

Axes: B images, C feature channels, H W image size, h w = H/4 W/4 (H/32 W/32 for features of res5; H/16 W/16 for those
of stages; H W over the patch for a plain transformer).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from densesiam_seg.backbones import TIMM, TORCHVISION
from densesiam_seg.clustering.resizing import resized, scaled
from densesiam_seg.errors import UsageError
from densesiam_seg.network import efficientnet, resnet
from densesiam_seg.network.architecture import Features
from densesiam_seg.network.description import Description
from densesiam_seg.network.timm_backbones import COARSEST, TimmBackbone
from densesiam_seg.network.weightless import weightless
from densesiam_seg.views.geometric import enlarged

PYRAMID_ZOOM = 3
"""The largest size in which a pyramid's stages are described, in image sizes."""


class Backbone(nn.Module):
    """A torchvision model without its classifier; parameter names are torchvision's."""

    def __init__(self, name: str) -> None:
        super().__init__()
        stages = TORCHVISION[name]
        model = resnet.ResNet(resnet.SIZES[name]) if name in resnet.SIZES else _torchvisions(name)
        # `features` of ConvNeXt and Swin holds all stages.
        for part in dict.fromkeys(part.partition(".")[0] for path in stages.path for part in path):
            setattr(self, part, getattr(model, part))
        self.path = stages.path
        self.channels: tuple[int, ...] = stages.channels
        self.channels_last = stages.channels_last

    @property
    def plain(self) -> nn.Module:
        """The module whose tensors have the library's own names."""
        return self

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) → stages res2 … res5 (B, C, h, w) at strides 4, 8, 16, 32."""
        stages = []
        features = images
        for stage in self.path:
            for part in stage:
                features = self.get_submodule(part)(features)
            stages.append(features.movedim(-1, 1) if self.channels_last else features)
        return tuple(stages)


def _torchvisions(name: str) -> nn.Module:
    """A model of torchvision with first weights, in which nothing is dropped."""
    # Importing torchvision takes longer than importing torch, as it brings torch's compiler along.
    import torchvision

    model: nn.Module = getattr(torchvision.models, name)(weights=None)
    for module in model.modules():
        # torch's own generator draws which layers are dropped; a resumed run could not repeat that.
        if isinstance(module, torchvision.ops.StochasticDepth | nn.Dropout):
            module.p = 0.0
    return model


def require_backbone(name: str, side: int) -> None:
    """Refuse a backbone that is not there or does not take images of `side`. Raises UsageError."""
    if not name.startswith(TIMM) or efficientnet.known(name.removeprefix(TIMM)):
        return
    with weightless():
        backbone = TimmBackbone(name.removeprefix(TIMM))
    for height, width in ((side, side), (side, 2 * side)):
        try:
            with torch.no_grad():
                backbone(torch.empty(1, 3, height, width, device="meta"))
        except Exception as error:  # each model has its own way to refuse
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UsageError(
                f"--backbone {name}: does not take images of {height}x{width} pixels ({reason}); "
                "give another --image-size, or a model for any size"
            ) from error


class Decoder(nn.Module):
    """FPN: a 1×1 convolution per stage, each level added to the bilinearly upsampled sum of the coarser ones.

    The stages of a plain transformer have one size; there it is a sum of 1×1 convolutions.
    """

    def __init__(self, stages: tuple[int, ...], channels: int) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(stage, channels, 1) for stage in stages)

    def forward(self, stages: tuple[Tensor, ...]) -> Tensor:
        """Stages, the finest first → (B, C, h, w) of the finest one's size."""
        levels = [lateral(stage) for lateral, stage in zip(self.laterals, stages, strict=True)]
        total: Tensor = levels.pop()
        while levels:
            level = levels.pop()
            total = level + _upsampled(total, level.shape[-2:])
        return total


def _upsampled(maps: Tensor, size: torch.Size) -> Tensor:
    """Bilinear; in training on a GPU with a gradient that repeats."""
    if maps.is_cuda and maps.requires_grad and maps.dtype != torch.float32:
        return enlarged(maps, (size[0], size[1]))
    return F.interpolate(maps, size, mode="bilinear")


class Encoder(nn.Module):
    """Backbone + decoder: an FPN, the last stage alone, or the description of pre-trained stages."""

    def __init__(self, backbone: str, channels: int, features: Features = "fpn") -> None:
        super().__init__()
        self.backbone = (
            TimmBackbone(backbone.removeprefix(TIMM), described=features == "stages")
            if backbone.startswith(TIMM)
            else Backbone(backbone)
        )
        stages = self.backbone.channels
        self.decoder = Decoder(stages, channels) if features == "fpn" else None
        self.description = None
        self.zoom = 1
        """So many times the model's image size is what the sides of its input have."""
        if features == "stages":
            if isinstance(self.backbone, TimmBackbone):
                used, one_stride = stages, self.backbone.one_stride
            else:
                used, one_stride = stages[-COARSEST:], False
            # A pyramid reads the image in its size, twice and three times that: the large ones show small things.
            self.zoom = 1 if one_stride else PYRAMID_ZOOM
            self.description = Description(used, channels)
        self.width = stages[-1] if features == "res5" else channels
        """Channels C of the features."""
        self.frozen = False

    def freeze(self) -> None:
        """From now on the backbone has no gradients and works as in inference: its batch statistics stay."""
        self.frozen = True
        self.backbone.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """As torch's, for all but a frozen backbone."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) → features (B, C, h, w)."""
        return self.settled(self.local(images))

    def local(self, images: Tensor) -> Tensor:
        """The part of `forward` that sees only what is near a place: of tiles it can be put together again."""
        if self.description is None:
            return self.dense(self.backbone(images))
        sizes = self.described_stages(images)
        return self.description.projected(sizes, self.grid(sizes[0]))

    def settled(self, local: Tensor) -> Tensor:
        """The part that compares the places of a whole image: `local` → features (B, C, h, w)."""
        return local if self.description is None else self.description.smoothed(local)

    def dense(self, stages: tuple[Tensor, ...]) -> Tensor:
        """The backbone's stages → features (B, C, h, w)."""
        if self.decoder is None:
            return stages[-1]
        features: Tensor = self.decoder(stages)
        return features

    def described_stages(self, images: Tensor) -> list[list[Tensor]]:
        """What the description reads of normalised images (B, 3, H, W): the stages of each size, the smallest first."""
        found = []
        for size in range(1, self.zoom):
            sides = [scaled(side, size, self.zoom) for side in images.shape[-2:]]
            found.append(self.coarsest_stages(resized(images, sides, antialias=True)))
        return [*found, self.coarsest_stages(images)]

    def coarsest_stages(self, images: Tensor) -> list[Tensor]:
        """Those that the description reads, of normalised images (B, 3, H, W) in one size."""
        assert self.description is not None
        used = len(self.description.stages)
        return [stage.float() for stage in self.backbone(images)[-used:]]

    def grid(self, stages: Sequence[Tensor]) -> tuple[int, int]:
        """The description's, by the stages of the smallest size: stride 8 of a pyramid, the patch of a transformer."""
        height, width = stages[0].shape[-2:]
        finer = 2 if self.zoom > 1 else 1
        return finer * height, finer * width
