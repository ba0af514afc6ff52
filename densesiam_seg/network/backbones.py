"""Backbones by name: each model of torchvision that is known here as a value, and timm's by a prefix.

Nothing heavy is imported: a mistyped name is refused before torch is loaded.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches

from densesiam_seg.errors import UsageError

TIMM = "timm:"
"""What names of timm's models begin with, as in `timm:vit_small_patch14_dinov2.lvd142m`."""

# No slash and no colon: timm would take `hf-hub:USER/REPO` or a folder for a model of its own.
_TIMM_NAME = re.compile(r"timm:[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)?")


@dataclass(frozen=True)
class Declared:
    """How a torchvision model yields its stages res2 … res5, at strides 4, 8, 16 and 32."""

    channels: tuple[int, int, int, int]
    path: tuple[tuple[str, ...], ...]
    """For each stage the modules that lead to it from the one before, under torchvision's names."""
    channels_last: bool = False
    """Whether its stages come as (B, h, w, C)."""


_RESNET = (("conv1", "bn1", "relu", "maxpool", "layer1"), ("layer2",), ("layer3",), ("layer4",))
# Each of ConvNeXt's and Swin's four stages follows a module that makes the map smaller.
_PAIRS = tuple((f"features.{i}", f"features.{i + 1}") for i in (0, 2, 4, 6))


def _resnets(channels: tuple[int, int, int, int], *names: str) -> dict[str, Declared]:
    return {name: Declared(channels, _RESNET) for name in names}


def _convnexts(width: int, *names: str) -> dict[str, Declared]:
    channels = (width, 2 * width, 4 * width, 8 * width)
    return {name: Declared(channels, _PAIRS) for name in names}


def _swins(width: int, *names: str) -> dict[str, Declared]:
    channels = (width, 2 * width, 4 * width, 8 * width)
    return {name: Declared(channels, _PAIRS, channels_last=True) for name in names}


TORCHVISION: dict[str, Declared] = {
    **_resnets((64, 128, 256, 512), "resnet18", "resnet34"),
    **_resnets(
        (256, 512, 1024, 2048),
        "resnet50",
        "resnet101",
        "resnet152",
        "resnext50_32x4d",
        "resnext101_32x8d",
        "resnext101_64x4d",
        "wide_resnet50_2",
        "wide_resnet101_2",
    ),
    **_convnexts(96, "convnext_tiny", "convnext_small"),
    **_convnexts(128, "convnext_base"),
    **_convnexts(192, "convnext_large"),
    **_swins(96, "swin_t", "swin_s", "swin_v2_t", "swin_v2_s"),
    **_swins(128, "swin_b", "swin_v2_b"),
}


def is_timm(name: str) -> bool:
    """Whether a name is of one of timm's models, known or not."""
    return name.startswith(TIMM)


def plausible(name: str) -> bool:
    """Whether a backbone may have this name; only timm itself knows whether a name of its form is a model's."""
    return name in TORCHVISION or _TIMM_NAME.fullmatch(name) is not None


def require_plausible(name: str) -> None:
    """Refuse a name that no backbone has. Raises UsageError."""
    if not plausible(name):
        near = get_close_matches(name, TORCHVISION, n=3)
        meant = f"did you mean {' or '.join(near)}? " if near else ""
        raise UsageError(
            f"backbone = {name!r}: must be a model of torchvision or {TIMM}NAME; {meant}known are "
            f"{', '.join(TORCHVISION)}, and what timm.list_models() names"
        )
