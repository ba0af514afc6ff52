"""`pretrain`: a folder of images → a run directory with a backbone, and pseudo categories to look at."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from densesiam_seg.config import PretrainConfig, RunConfig
from densesiam_seg.events import Event, Trained
from densesiam_seg.images.store import ImageStore
from densesiam_seg.methods.interface import Method
from densesiam_seg.methods.pretraining import Pretext
from densesiam_seg.network.model import Architecture, build_network
from densesiam_seg.presets import Preset, pretrain_preset
from densesiam_seg.training.run import run_events
from densesiam_seg.training.setup import Recipe


def pretrain(
    images: str | Path | Sequence[str | Path],
    out: str | Path | None = None,
    **options: Any,
) -> Trained:
    """Pre-train on unlabelled images and return where the model lies; options are those of `pretraining_events`."""
    inputs = [images] if isinstance(images, str | Path) else list(images)
    *_, last = deque(pretraining_events(inputs, out=out, **options), maxlen=1)
    assert isinstance(last, Trained)
    return last


def pretraining_events(images: Sequence[str | Path], **options: Any) -> Iterator[Event]:
    """Pre-train, one event at a time; the options are `run_events`'s and the fields of `PretrainConfig`."""
    return run_events(RECIPE, images, **options)


def _preset(
    name: Preset | None, images: int, gpu: bool, settings: Mapping[str, Any]
) -> tuple[Preset, PretrainConfig]:
    return pretrain_preset(name, images, gpu=gpu)


def _build(
    config: RunConfig, store: ImageStore, device: torch.device, precision: torch.dtype
) -> Method:
    assert isinstance(config, PretrainConfig)
    architecture = Architecture(
        config.backbone,
        config.channels,
        config.categories,
        over_clusters=0,
        features=config.features,
        image_head=bool(config.image_weight),
    )
    network = build_network(architecture, config.seed)
    if config.freeze:
        network.encoder.freeze()
    return Pretext(network, config, store.aspects)


RECIPE = Recipe("pretrain", PretrainConfig, _preset, "stretch", _build)
