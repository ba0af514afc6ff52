"""What differs between `train` and `pretrain`: settings, how images become squares, and the method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch

from densesiam_seg.config import PretrainConfig, RunConfig, TrainConfig, with_settings
from densesiam_seg.images.store import Fit, ImageStore
from densesiam_seg.methods.densesiam import DenseSiamMethod
from densesiam_seg.methods.method import Method
from densesiam_seg.methods.picie import PiCIE
from densesiam_seg.methods.pretraining import Pretext
from densesiam_seg.network.model import Architecture, build_network
from densesiam_seg.presets import Preset, pretrain_preset, train_preset

Command = Literal["train", "pretrain"]

CONFIGS: Mapping[Command, type[RunConfig]] = {"train": TrainConfig, "pretrain": PretrainConfig}
FITS: Mapping[Command, Fit] = {"train": "crop", "pretrain": "stretch"}


def choose_settings(
    command: Command, preset: Preset | None, images: int, gpu: bool, given: Mapping[str, Any]
) -> tuple[Preset, RunConfig]:
    """Name and settings of the preset for so many images, with what is `given` in place of its own.

    Raises UsageError for an unknown setting or a value out of range.
    """
    if command == "pretrain":
        name, pretraining = pretrain_preset(preset, images, gpu=gpu)
        return name, with_settings(pretraining, given)
    # `with_settings` refuses a method that is not a string.
    method = str(given.get("method", "densesiam"))
    # With pre-trained weights DenseSiam is trained without the mixture prior; a frozen backbone has them.
    prior = given.get("prior", "none" if given.get("freeze") else "mixture") != "none"
    name, training = train_preset(preset, images, gpu=gpu, method=method, prior=prior)
    return name, with_settings(training, given)


def build_method(
    config: RunConfig, store: ImageStore, device: torch.device, precision: torch.dtype
) -> Method:
    """The method with its network, whose initial weights are functions of the seed."""
    if isinstance(config, PretrainConfig):
        architecture = Architecture(
            config.backbone,
            config.channels,
            config.categories,
            over_clusters=0,
            features=config.features,
            image_head=bool(config.image_weight),
        )
    else:
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
    if isinstance(config, PretrainConfig):
        return Pretext(network, config, store.aspects)
    if config.clusters_features():
        return PiCIE(network, config, device, precision)
    return DenseSiamMethod(network, config)
