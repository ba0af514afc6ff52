"""Any model of timm as a backbone: pyramids by their stages, plain transformers by four of their depths.

Axes: B images, C channels, H W image size, h w = H W over the stride of a stage.

This is the one file that imports timm, and it does so only where a backbone is one of timm's.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from densesiam_seg.errors import UsageError
from densesiam_seg.network.backbones import TIMM
from densesiam_seg.views.photometric import MEAN, STD

DEPTHS = 4
"""Blocks of a plain transformer whose outputs the decoder sees, evenly spaced, with the last among them."""


class TimmBackbone(nn.Module):
    """timm's model `name`, without its classifier and the blocks past the last one that is looked at.

    A plain transformer (ViT, register variants, DINO, DINOv2, DINOv3) has one stride, its patch: all stages are maps at
    that stride, each after the model's final norm, as DINOv2 evaluates its features.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.plain = _create(name)
        """The model itself, whose tensors have timm's own names."""
        self.mean, self.deviation = _normalisation(self.plain)
        stages = _stages(name, self.plain)
        strides = [int(stage["reduction"]) for stage in stages]
        self.one_stride = len(set(strides)) == 1
        self.multiple = max(strides)
        """The sides of the model's input are multiples of this."""
        self.indices = _evenly(len(strides)) if self.one_stride else _last_of_each(strides)
        self.plain.prune_intermediate_layers(self.indices, prune_norm=not self.one_stride)
        width = "num_chs_norm" if self.one_stride else "num_chs"
        self.channels = tuple(
            int(stages[index].get(width, stages[index]["num_chs"])) for index in self.indices
        )

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images (B, 3, H, W), normalised as everywhere here → stages (B, C, h, w), the finest first.

        Images whose sides are no multiples of the patch (or of a pyramid's largest stride) are resized to the nearest
        ones, so that the maps cover the whole image and nothing else. Padding would leave a border of nothing.
        """
        sides = [max(round(side / self.multiple), 1) * self.multiple for side in images.shape[-2:]]
        if sides != list(images.shape[-2:]):
            images = F.interpolate(images, sides, mode="bilinear", antialias=True)
        stages = self.plain.forward_intermediates(
            self._renormalised(images),
            indices=self.indices,
            norm=self.one_stride,
            intermediates_only=True,
        )
        return tuple(stages)

    def _renormalised(self, images: Tensor) -> Tensor:
        """The same images as the model's weights expect them: CLIP's, SigLIP's and others have numbers of their own."""
        if (self.mean, self.deviation) == (MEAN, STD):
            return images
        mean, deviation, own_mean, own_deviation = (
            images.new_tensor(values).view(3, 1, 1)
            for values in (MEAN, STD, self.mean, self.deviation)
        )
        return (images * deviation + mean - own_mean) / own_deviation

    def fetch(self) -> None:
        """Take over the weights that timm publishes under this name, from the Hub's cache or its network.

        Raises whatever timm and the Hub's library raise where they cannot be had.
        """
        source = _create(self.name, pretrained=True)
        source.prune_intermediate_layers(self.indices, prune_norm=not self.one_stride)
        self.plain.load_state_dict(source.state_dict())

    def translate(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state dict under timm's names; timm knows those of official checkpoints (DINOv2's, DINOv3's, …) too."""
        module = sys.modules[type(self.plain).__module__]
        # timm calls it for every download; each file of models has one under this name, or needs none.
        convert = getattr(module, "checkpoint_filter_fn", None)
        return dict(tensors) if convert is None else dict(convert(dict(tensors), self.plain))


def require_any_size(backbone: TimmBackbone, side: int) -> None:
    """Refuse a model that does not take images of `side` and of other shapes; `backbone` is on the meta device."""
    for height, width in ((side, side), (side, 2 * side)):
        try:
            with torch.no_grad():
                backbone(torch.empty(1, 3, height, width, device="meta"))
        except Exception as error:  # each model has its own way to refuse
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UsageError(
                f"--backbone {TIMM}{backbone.name}: does not take images of {height}x{width} pixels ({reason}); "
                "give another --image-size, or a model for any size"
            ) from error


def _create(name: str, *, pretrained: bool = False) -> Any:
    """Raises UsageError where timm or the model is not there."""
    try:
        import timm
    except ModuleNotFoundError as error:
        raise UsageError(
            f"--backbone {TIMM}{name}: timm is not installed; pip install 'densesiam-seg[timm]'"
        ) from error
    if not timm.is_model(name):
        raise UsageError(_unknown(name, timm.list_models()))
    tag = name.partition(".")[2]
    if tag and name not in timm.list_pretrained():
        architecture = name.partition(".")[0]
        raise UsageError(
            _unknown(name, timm.list_pretrained(f"{architecture}.*") or [architecture])
        )
    try:
        # Tables of positions fit one size, and are resized to others only where the model is asked for that.
        return timm.create_model(name, pretrained, num_classes=0, dynamic_img_size=True)
    except TypeError:
        return timm.create_model(name, pretrained, num_classes=0)


def _unknown(name: str, known: Sequence[str]) -> str:
    near = get_close_matches(name, known, n=3, cutoff=0.0)
    return (
        f"--backbone {TIMM}{name}: timm has no such model or weights; near are "
        f"{', '.join(TIMM + other for other in near)}; timm.list_models('vit*') and timm.list_pretrained() list them"
    )


def _stages(name: str, model: Any) -> list[dict[str, Any]]:
    """What timm says of each stage or block that it can give."""
    needed = ("feature_info", "forward_intermediates", "prune_intermediate_layers")
    if not all(hasattr(model, attribute) for attribute in needed):
        raise UsageError(
            f"--backbone {TIMM}{name}: gives no features between its layers; choose another model"
        )
    return list(getattr(model.feature_info, "info", model.feature_info))


def _normalisation(model: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of the pixels that timm notes beside a model's weights; ImageNet's where it notes none."""
    noted = getattr(model, "pretrained_cfg", None) or {}
    mean, deviation = noted.get("mean", MEAN), noted.get("std", STD)
    return (MEAN, STD) if len(mean) != 3 else (tuple(mean), tuple(deviation))


def _evenly(count: int) -> list[int]:
    return sorted({count * (step + 1) // DEPTHS - 1 for step in range(DEPTHS)} - {-1})


def _last_of_each(strides: Sequence[int]) -> list[int]:
    """The last stage of each stride from 4 on."""
    return sorted({stride: index for index, stride in enumerate(strides) if stride >= 4}.values())
