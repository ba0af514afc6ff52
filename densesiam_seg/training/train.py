"""`train`: a folder of images → a run directory with a model that segments."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from densesiam_seg.config import RunConfig, TrainConfig
from densesiam_seg.events import Event, Trained
from densesiam_seg.images.store import ImageStore
from densesiam_seg.methods.densesiam import Siamese
from densesiam_seg.methods.interface import Method
from densesiam_seg.methods.picie import PiCIE
from densesiam_seg.network.model import Architecture, build_network
from densesiam_seg.presets import Preset, train_preset
from densesiam_seg.training.run import run_events
from densesiam_seg.training.setup import Recipe


def train(
    images: str | Path | Sequence[str | Path],
    out: str | Path | None = None,
    **options: Any,
) -> Trained:
    """Train on unlabelled images and return where the model lies; options are those of `training_events`."""
    inputs = [images] if isinstance(images, str | Path) else list(images)
    *_, last = deque(training_events(inputs, out=out, **options), maxlen=1)
    assert isinstance(last, Trained)
    return last


def training_events(images: Sequence[str | Path], **options: Any) -> Iterator[Event]:
    """Train to segment, one event at a time; the options are `run_events`'s and the fields of `TrainConfig`."""
    return run_events(RECIPE, images, **options)


def _preset(
    name: Preset | None, images: int, gpu: bool, settings: Mapping[str, Any]
) -> tuple[Preset, TrainConfig]:
    # A method that is no word is refused with the other settings.
    method = str(settings.get("method", "densesiam"))
    # A backbone worth freezing knows more than colours do.
    prior = settings.get("prior", "none" if settings.get("freeze") else "mixture") != "none"
    return train_preset(name, images, gpu=gpu, method=method, prior=prior)


def _build(
    config: RunConfig, store: ImageStore, device: torch.device, precision: torch.dtype
) -> Method:
    assert isinstance(config, TrainConfig)
    architecture = Architecture(
        config.backbone,
        config.channels,
        config.clusters,
        config.over_clusters,
        image_head=bool(config.image_weight),
        mixture=config.prior == "mixture",
    )
    network = build_network(architecture, config.seed)
    if config.freeze:
        network.encoder.freeze()
    if config.method in ("picie", "mdc"):
        return PiCIE(network, config, device, precision)
    return Siamese(network, config)


RECIPE = Recipe(
    "train",
    TrainConfig,
    _preset,
    "crop",
    _build,
    # Weights know more than colours do, and the plain method is what is published for them.
    with_weights={"prior": "none"},
)
