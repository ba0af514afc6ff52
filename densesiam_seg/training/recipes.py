"""What differs between `train` and `pretrain`: settings, how images become squares, and the method."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Literal

import torch

from densesiam_seg.backbones import PACKAGED
from densesiam_seg.config import PretrainConfig, RunConfig, TrainConfig, with_settings
from densesiam_seg.images.store import Fit, ImageStore
from densesiam_seg.methods.densesiam import DenseSiamMethod
from densesiam_seg.methods.described import Described
from densesiam_seg.methods.method import Method
from densesiam_seg.methods.picie import PiCIE
from densesiam_seg.methods.pretraining import Pretext
from densesiam_seg.network.architecture import Architecture
from densesiam_seg.network.model import build_network
from densesiam_seg.peers.group import ALONE, Group
from densesiam_seg.presets import METHODS, Preset, Start, pretrain_preset, train_preset
from densesiam_seg.training.weights import expects_weights, packaged_file

Command = Literal["train", "pretrain"]

CONFIGS: Mapping[Command, type[RunConfig]] = {"train": TrainConfig, "pretrain": PretrainConfig}
FITS: Mapping[Command, Fit] = {"train": "crop", "pretrain": "stretch"}


def choose_settings(
    command: Command,
    preset: Preset | None,
    images: int,
    gpu: bool,
    given: Mapping[str, Any],
    *,
    learned: bool = False,
) -> tuple[Preset, RunConfig]:
    """Name and settings of the preset for so many images, with what is `given` in place of its own.

    `learned`: whether the backbone has pre-trained weights. Raises UsageError for an unknown setting or a value out of
    range.
    """
    if command == "pretrain":
        name, pretraining = pretrain_preset(preset, images, gpu=gpu)
        return name, with_settings(pretraining, given)
    # `with_settings` refuses a method that is not a string.
    method = str(given.get("method", "densesiam"))
    decoded = given.get("features") == "fpn"
    start: Start = "stages" if learned and not decoded else "mixture"
    plain = decoded if learned else given.get("freeze", False)
    if given.get("prior", "none" if plain else "mixture") == "none":
        start = "none"
    name, training = train_preset(preset, images, gpu=gpu, method=method, start=start)
    return name, with_settings(training, given)


def begun(
    command: Command, preset: Preset | None, given: Mapping[str, Any], initial: Architecture | None
) -> tuple[Mapping[str, Any], bool]:
    """Settings with what follows from the initial weights, and whether these are pre-trained.

    With an `initial` network its backbone is taken, and its way to start. Else, where neither backbone nor weights are
    named, `train` takes the backbone that has packaged weights, but for the paper's own recipe.
    """
    if command == "pretrain":
        return given, False
    if initial is not None:
        prior = {} if initial.mixture else {"prior": "none"}
        return {"backbone": initial.backbone, **prior, **given}, initial.features == "stages"
    weights, plain = str(given.get("weights", "auto")), given.get("prior") == "none"
    if os.path.isdir(weights):  # noqa: PTH112  (false where the current folder may not be entered)
        # A run of this program brings its decoder, which `stages` would leave out.
        return {"prior": "none", "features": "fpn", **given}, False
    own = METHODS.get(str(given.get("method", "densesiam")), {})
    small = preset != "paper" and not plain and own.get("prior") != "none"
    (packaged,) = PACKAGED
    if small and weights in ("auto", "packaged") and packaged_file(packaged):
        given = {"backbone": packaged, **given}
    backbone = str(given.get("backbone", TrainConfig.backbone))
    return given, expects_weights(backbone, weights)


def build_method(
    config: RunConfig,
    store: ImageStore,
    device: torch.device,
    precision: torch.dtype,
    group: Group = ALONE,
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
            # Nothing learns over-clusters of features that stay as they are.
            config.over_clusters if config.features == "fpn" else 0,
            features=config.features,
            image_head=bool(config.image_weight),
            mixture=config.prior == "mixture",
        )
    network = build_network(architecture, config.seed)
    if config.freeze:
        network.encoder.freeze()
    if isinstance(config, PretrainConfig):
        return Pretext(network, config, store.aspects, group=group)
    if config.clusters_features():
        return PiCIE(network, config, device, precision, group=group)
    if config.features == "stages":
        return Described(network, config, group=group)
    return DenseSiamMethod(network, config, group=group)
