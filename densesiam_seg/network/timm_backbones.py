"""Any model of timm as a backbone: pyramids by their stages, plain transformers by four of their depths.

Axes: B images, C channels, H W image size, h w = H W over the stride of a stage.

This is the one file that imports timm, and only for models that `efficientnet` does not have.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from torch import Tensor, nn

from densesiam_seg.backbones import TIMM
from densesiam_seg.clustering.resizing import opaque, resized, scaled
from densesiam_seg.errors import UsageError
from densesiam_seg.network import efficientnet
from densesiam_seg.network.weightless import weightless
from densesiam_seg.views.photometric import MEAN, STD

DEPTHS = 4
"""How many blocks of a plain transformer the decoder sees: evenly spaced, the last among them."""
COARSEST = 2
"""How many strides of a pyramid the description sees: 16 and 32."""
CLASSES = 1000
"""Of ImageNet, which published classifiers have."""


class TimmBackbone(nn.Module):
    """timm's model `name`, without its classifier and the blocks past the last one used.

    A plain transformer (ViT, register variants, DINO, DINOv2, DINOv3) has one stride, its patch: all stages are maps at
    that stride, each after the model's final norm, as DINOv2 evaluates its features.
    """

    def __init__(self, name: str, *, described: bool = False) -> None:
        """`described`: with the stages that a description reads, not those of a decoder.

        They are the last one of the second coarsest stride, and all that follow; of a plain transformer the last one.
        """
        super().__init__()
        self.name = name
        self.plain = _create(name)
        """The model itself, whose tensors have timm's own names."""
        stages = _stages(name, self.plain)
        strides = [int(stage["reduction"]) for stage in stages]
        self.one_stride = len(set(strides)) == 1
        self.multiple = max(strides)
        """The sides of the model's input are multiples of this."""
        if self.one_stride:
            depths = 1 if described else DEPTHS
            evenly = {len(strides) * (step + 1) // depths - 1 for step in range(depths)}
            self.indices = sorted(evenly - {-1})
        else:
            last_of_each = {s: index for index, s in enumerate(strides) if s >= 4}
            self.indices = sorted(last_of_each.values())
            if described:
                first, last = self.indices[-COARSEST:][0], self.indices[-1]
                self.indices = list(range(first, last + 1))
        self.plain.prune_intermediate_layers(self.indices, prune_norm=not self.one_stride)
        width = "num_chs_norm" if self.one_stride else "num_chs"
        self.channels = tuple(
            int(stages[index].get(width, stages[index]["num_chs"])) for index in self.indices
        )
        noted = getattr(self.plain, "pretrained_cfg", None) or {}
        mean, deviation = noted.get("mean", MEAN), noted.get("std", STD)
        # Of the pixels, as timm records them for a model's weights; ImageNet's where it records none.
        self.mean, self.deviation = (
            (tuple(mean), tuple(deviation)) if len(mean) == 3 else (MEAN, STD)
        )

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images (B, 3, H, W), normalised as everywhere here → stages (B, C, h, w), the finest first.

        Sides that are no multiples of the patch (or of a pyramid's largest stride) are resized to the nearest ones, so
        that the maps cover the image and nothing else; padding would leave an empty border.
        """
        sides = [
            opaque(scaled(side, 1, self.multiple)) * self.multiple for side in images.shape[-2:]
        ]
        stages = self.plain.forward_intermediates(
            self._renormalised(resized(images, sides, antialias=True)),
            indices=self.indices,
            norm=self.one_stride,
            intermediates_only=True,
        )
        return tuple(stages)

    def _renormalised(self, images: Tensor) -> Tensor:
        """The same images as the model's weights expect them: those of CLIP, SigLIP and others have other numbers."""
        if (self.mean, self.deviation) == (MEAN, STD):
            return images
        mean, deviation, own_mean, own_deviation = (
            images.new_tensor(values).view(3, 1, 1)
            for values in (MEAN, STD, self.mean, self.deviation)
        )
        return (images * deviation + mean - own_mean) / own_deviation

    def pad_constantly(self) -> None:
        """Put constants in place of paddings that are computed from the maps' sides, for a program that is exported.

        TensorFlow's `same` padding depends on what a side leaves over a stride; here that is nothing, as sides are
        multiples of them all.
        """
        # timm's class and that of `efficientnet` have one name.
        named = self.plain.named_modules()
        same = [name for name, each in named if type(each).__name__ == "Conv2dSame"]
        for name in same:
            layer = self.plain.get_submodule(name)
            sides = zip(layer.kernel_size, layer.dilation, layer.stride, strict=True)
            down, right = (max((k - 1) * d + 1 - step, 0) for k, d, step in sides)
            padding = (right // 2, right - right // 2, down // 2, down - down // 2)
            plain = nn.Conv2d(
                layer.in_channels,
                layer.out_channels,
                layer.kernel_size,
                layer.stride,
                dilation=layer.dilation,
                groups=layer.groups,
                bias=layer.bias is not None,
            )
            plain.weight, plain.bias = layer.weight, layer.bias
            self.plain.set_submodule(name, nn.Sequential(nn.ZeroPad2d(padding), plain))

    def fetch(self) -> None:
        """Take over the weights that timm publishes under this name; raises whatever timm and the Hub's library do."""
        source = _created_by_timm(self.name, pretrained=True)
        # timm numbers the stages of some networks otherwise, but the last is always used.
        last = len(_stages(self.name, source)) - 1
        source.prune_intermediate_layers([last], prune_norm=not self.one_stride)
        self.plain.load_state_dict(source.state_dict())

    def named_in_order(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state dict under timm's names, of a file with other names in timm's order. Raises ValueError."""
        architecture = self.name.partition(".")[0]
        with weightless():
            whole = (
                efficientnet.EfficientNetLite(architecture, CLASSES)
                if efficientnet.known(architecture)
                else _timm().create_model(architecture)
            )
        return dict(zip(whole.state_dict(), tensors.values(), strict=True))

    def translate(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state dict under timm's names, also of official checkpoints (DINOv2's, DINOv3's, …)."""
        # timm's own converter, which it calls for every download; a file of models that needs none has none.
        convert = getattr(sys.modules[type(self.plain).__module__], "checkpoint_filter_fn", None)
        return dict(tensors) if convert is None else dict(convert(dict(tensors), self.plain))


def _create(name: str) -> Any:
    """The model with first weights. Raises UsageError where timm has none of that name."""
    if efficientnet.known(name):
        return efficientnet.EfficientNetLite(name)
    return _created_by_timm(name)


def _created_by_timm(name: str, *, pretrained: bool = False) -> Any:
    timm = _timm()
    architecture, _, tag = name.partition(".")
    if not timm.is_model(name):
        raise _unknown(name, timm.list_models())
    if tag and name not in timm.list_pretrained():
        raise _unknown(name, timm.list_pretrained(f"{architecture}.*") or [architecture])
    try:
        # Tables of positions fit one size, and are resized to others only where the model is asked for that.
        return timm.create_model(name, pretrained, num_classes=0, dynamic_img_size=True)
    except TypeError:
        return timm.create_model(name, pretrained, num_classes=0)


def _timm() -> Any:
    # Importing it takes as long as importing torch, as it brings torchvision along.
    import timm

    return timm


def _unknown(name: str, known: Sequence[str]) -> UsageError:
    near = get_close_matches(name, known, n=3, cutoff=0.0)
    return UsageError(
        f"--backbone {TIMM}{name}: timm has no such model or weights; near are "
        f"{', '.join(TIMM + other for other in near)}; timm.list_models('vit*') and timm.list_pretrained() list them"
    )


def _stages(name: str, model: Any) -> list[dict[str, Any]]:
    """timm's description of each stage or block that it returns. Raises UsageError where it returns none."""
    needed = ("feature_info", "forward_intermediates", "prune_intermediate_layers")
    if not all(hasattr(model, attribute) for attribute in needed):
        raise UsageError(
            f"--backbone {TIMM}{name}: gives no features between its layers; choose another model"
        )
    return list(getattr(model.feature_info, "info", model.feature_info))
