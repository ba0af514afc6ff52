"""Presets: which settings fit how many images, on which machine, with which method."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from itertools import product
from typing import Any, Literal

from densesiam_seg.config import PretrainConfig, RunConfig, TrainConfig

Preset = Literal["fast", "balanced", "paper"]
PAPER_IMAGES = 10_000
"""From this many images on, with a GPU, the preset is `paper` unless the user names one."""

_PICIE: Mapping[str, Any] = {
    "optimizer": "adam",
    "learning_rate": 1e-4,
    "rate_scaling": "none",
    "weight_decay": 0.0,
    "balance": "none",
    "prior": "none",
}
METHODS: Mapping[str, Mapping[str, Any]] = {
    "densesiam": {},
    "pixsim": {"region_weight": 0.0, "prior": "none"},
    "simsiam": {
        "image_weight": 1.0,
        "pixel_weight": 0.0,
        "over_cluster_weight": 0.0,
        "segmentation_weight": 0.0,
        "region_weight": 0.0,
        "prior": "none",
    },
    "picie": _PICIE,
    "mdc": _PICIE,
}
"""What each `method` changes in a preset: losses switched off, or PiCIE's own optimiser (PiCIE, section 4)."""


Start = Literal["stages", "mixture", "none"]
"""What training starts from: clusters of pre-trained stages or of appearance, those of appearance, or nothing."""
STEPS: Mapping[Start, Mapping[str, int]] = {
    "stages": {"fast": 100, "balanced": 100},
    "mixture": {"fast": 60, "balanced": 100},
    "none": {"fast": 160, "balanced": 500},
}
"""Learning clusters that are there from the start takes fewer steps than finding them."""
FROM_MIXTURE: Mapping[str, Any] = {
    "prior": "mixture",
    "pixel_weight": 0.0,
    "over_cluster_weight": 0.0,
    "segmentation_weight": 0.0,
    "region_weight": 0.0,
}
"""What the small presets change in the plain method: clusters that are there from the start need none of its losses to
be found, and gain nothing by them (docs/tried.md has the measurements)."""
FROM_STAGES: Mapping[str, Any] = {
    **FROM_MIXTURE,
    "features": "stages",
    "freeze": True,
    "optimizer": "adam",
    "learning_rate": 5e-3,
    "weight_decay": 0.0,
}
"""The same where there are pre-trained weights."""


def train_preset(
    name: Preset | None,
    images: int,
    *,
    gpu: bool,
    method: str = "densesiam",
    start: Start = "mixture",
) -> tuple[Preset, TrainConfig]:
    """The named preset for this many images; without a name `paper` for large sets on a GPU, else `balanced`.

    `fast` and `balanced` fit small sets and processors: smaller images, batches of 16, a learning rate that is not
    scaled down by the batch and as many epochs as make a fixed number of steps.
    They start from what `start` says. `method` has its own settings on top of it.
    """
    name = name or ("paper" if gpu and images >= PAPER_IMAGES else "balanced")
    own = METHODS.get(method, {})
    if name == "paper":
        return name, TrainConfig(**own)
    if own.get("prior") == "none":
        start = "none"
    small = _small(name, images, gpu=gpu, steps=STEPS[start][name])
    starts = {"stages": FROM_STAGES, "mixture": FROM_MIXTURE, "none": {}}
    return name, TrainConfig(**{**small, **starts[start], **own})


def pretrain_preset(
    name: Preset | None, images: int, *, gpu: bool
) -> tuple[Preset, PretrainConfig]:
    """The same for pre-training; the small presets take the decoder's features, which have stride 4 instead of 32."""
    name = name or ("paper" if gpu and images >= PAPER_IMAGES else "balanced")
    if name == "paper":
        return name, PretrainConfig(backbone="resnet50")
    small = _small(name, images, gpu=gpu, steps=STEPS["none"][name])
    return name, PretrainConfig(**small, features="fpn")


def _small(name: Preset, images: int, *, gpu: bool, steps: int) -> dict[str, Any]:
    """What `fast` and `balanced` change in the paper's recipe, for about so many steps."""
    batch_size = min(16, max(images, 1))
    longest, size = (40, 128) if name == "fast" else (60, 320 if gpu else 160)
    epochs = min(max(math.ceil(steps / max(images // batch_size, 1)), 2), longest)
    return {
        "image_size": size,
        "batch_size": batch_size,
        "epochs": epochs,
        "rate_scaling": "none",
    }


def changed_by_presets(config: type[RunConfig]) -> set[str]:
    """Names of the settings whose value depends on the preset or the method."""
    presets: tuple[Preset, ...] = ("fast", "balanced", "paper")
    found: list[RunConfig]
    if config is TrainConfig:
        starts: tuple[Start, ...] = ("stages", "mixture")
        kinds = product(presets, METHODS, starts)
        found = [train_preset(p, 100, gpu=False, method=m, start=s)[1] for p, m, s in kinds]
    else:
        found = [pretrain_preset(preset, 100, gpu=False)[1] for preset in presets]
    return {
        each.name
        for each in fields(config)
        if any(getattr(one, each.name) != each.default for one in found)
    }
