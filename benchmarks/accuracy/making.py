"""How the masks of a row are made, from a task and a seed: each maker's whole work counts as the row's training."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from tasks import Task
from torch import Tensor
from torch.nn import functional as F

import densesiam_seg
from densesiam_seg.backbones import PACKAGED
from densesiam_seg.clustering.kmeans import kmeans
from densesiam_seg.config import TrainConfig
from densesiam_seg.evaluation.baselines import (
    Points,
    kmeans_masks,
    mixture_masks,
    position_masks,
)
from densesiam_seg.evaluation.evaluate import Reading, known_classes
from densesiam_seg.evaluation.protocol import (
    MasksOf,
    masks_made_by,
    one_by_one,
    prepare_image,
    prepare_sample,
    read_masks,
)
from densesiam_seg.images.decode import load_image
from densesiam_seg.inference.centroids import fit_readout
from densesiam_seg.inference.model_card import ModelCard
from densesiam_seg.inference.options import Refinement
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.io.files import discard
from densesiam_seg.network.architecture import Architecture
from densesiam_seg.network.description import Description, Stages
from densesiam_seg.network.model import DenseSiam, build_network
from densesiam_seg.training.recipes import begun, choose_settings
from densesiam_seg.training.weights import load_encoder
from densesiam_seg.views.photometric import normalise

TEMPERATURE = 0.15
"""Divides the squared distances of k-means before the softmax that PAMR refines."""
QUICK = 5
"""`--quick` trains for this part of the steps, and for no more than `QUICK_STEPS`."""
QUICK_STEPS = 44
MACHINE = ("seed", "device", "threads", "workers", "cache", "cache_dir", "visualize_every")
"""Settings that are no part of a recipe."""


@dataclass(frozen=True)
class Setting:
    """What a row is made for, and with what means; `folder` is its own, for the run of a training."""

    task: Task
    seed: int
    folder: Path
    quick: bool = False
    device: str = "cpu"
    threads: int = 1


@dataclass(frozen=True)
class Made:
    """Masks of a finished row and what their ids mean."""

    masks_of: MasksOf
    reading: Reading


Maker = Callable[[Setting], Made]


def one_class(setting: Setting) -> Made:
    """One cluster everywhere, with the class that suits it best."""
    masks = one_by_one(lambda _, height, width: np.zeros((height, width), np.int32))
    return Made(masks, Reading(1, "none"))


def frequent_labels(setting: Setting) -> Made:
    """The label most frequent at each position of the training split: ids are class ids."""
    task = setting.task
    labels = (
        prepare_sample(each, task.dataset, task.protocol, task.side)[1] for each in task.train
    )
    masks = position_masks(labels, len(task.dataset.classes))
    known = known_classes(len(task.dataset.classes))
    return Made(masks, Reading(task.clusters, "labels of the training split", known))


def kmeans_of(points: Points, readout: str) -> Maker:
    """k-means over the training images' pixels."""

    def make(setting: Setting) -> Made:
        task = setting.task
        images = task.training_images()
        masks = kmeans_masks(points, lambda: images, len(images), task.clusters, seed=setting.seed)
        return Made(masks, Reading(task.clusters, readout))

    return make


def untrained(setting: Setting) -> Made:
    """k-means of what a ResNet-18-FPN makes of the training images before it has learned anything."""
    task, seed = setting.task, setting.seed
    images = task.training_images()
    architecture = Architecture(clusters=task.clusters)
    card = ModelCard(architecture, task.side, clusters=task.clusters)
    segmenter = Segmenter(build_network(architecture, seed), card, device=setting.device)
    return _read_out(fit_readout(segmenter, lambda: images, len(images), task.clusters, seed=seed))


def described_network(clusters: int, seed: int, *, mixture: bool) -> DenseSiam:
    """What ours starts from, before anything is fitted: the packaged weights, and what describes their stages."""
    (backbone,) = PACKAGED
    architecture = Architecture(
        backbone, clusters=clusters, over_clusters=0, features="stages", mixture=mixture
    )
    network = build_network(architecture, seed).eval()
    load_encoder(network.encoder, backbone, "packaged")
    return network


class PlainDescription(Description):
    """The stages as they are usually clustered: the last of each stride side by side, of the image in its own size."""

    def fit(self, images: Sequence[Sequence[Stages]], grid: tuple[int, int], **rest: Any) -> None:
        """See `Description.fit`."""
        super().fit([sizes[:1] for sizes in images], grid, **rest)

    def projected(self, sizes: Sequence[Stages], grid: tuple[int, int]) -> Tensor:
        """See `Description.projected`."""
        return super().projected(sizes[:1], grid)

    def smoothed(self, total: Tensor) -> Tensor:
        """The places as they are."""
        return F.normalize(total, dim=1)

    def _normalised(self, stages: Stages) -> list[Tensor]:
        finer, middle, last = super()._normalised(stages)
        return [finer, torch.zeros_like(middle), last]


@dataclass(frozen=True)
class FeatureKmeans:
    """k-means of frozen features, its centroids as the K-way layer, refined as ours is."""

    description: type[Description]
    pretrained: ClassVar = True

    def __call__(self, setting: Setting) -> Made:
        task, seed = setting.task, setting.seed
        network = described_network(task.clusters, seed, mixture=False)
        encoder = network.encoder
        assert encoder.description is not None
        described = self.description(encoder.description.stages, encoder.width)
        encoder.description = described
        images = [
            prepare_image(load_image(each.image), task.protocol, encoder.zoom * task.side)
            for each in task.train
        ]
        with torch.no_grad():
            stages = [
                encoder.described_stages(normalise(image[None].float() / 255)) for image in images
            ]
            grid = encoder.grid(stages[0][0])
            described.fit(stages, grid)
            points = torch.cat([described(each, grid)[0].flatten(1).T for each in stages])
            found = kmeans(points, task.clusters, seed=seed, restarts=3).classifier()
            for own, each in zip(network.projector.parameters(), found, strict=True):
                own.copy_(each / TEMPERATURE)
        card = ModelCard(network.architecture, task.side, clusters=task.clusters, refine="pamr")
        return _read_out(Segmenter(network, card, device=setting.device))


def mixture_of(readout: str, **options: Any) -> Maker:
    """What training starts from, without any; `options` are those of `mixture_masks`."""

    def make(setting: Setting) -> Made:
        task = setting.task
        images = task.training_images()
        masks = mixture_masks(
            lambda: images, len(images), task.clusters, seed=setting.seed, **options
        )
        return Made(masks, Reading(task.clusters, readout))

    return make


@dataclass(frozen=True)
class Recipe:
    """A run of `train`: a preset with settings changed, the last checkpoint with its own read-out.

    It starts from scratch unless the settings name weights.

    `steps` is the length of the run on any data set; None: the preset's own.
    """

    preset: Literal["fast", "balanced", "paper"]
    settings: Mapping[str, Any] = field(default_factory=dict)
    steps: int | None = None
    alone: bool = False
    """Read out by the network's head alone where there is a mixture too."""
    refine: str = "auto"

    @property
    def pretrained(self) -> bool:
        """Whether the settings name weights."""
        return self.settings.get("weights", "none") != "none"

    def __call__(self, setting: Setting) -> Made:
        task = setting.task
        trained = densesiam_seg.train(
            [each.image for each in task.train],
            setting.folder,
            preset=self.preset,
            overwrite=True,
            seed=setting.seed,
            device=setting.device,
            threads=setting.threads,
            # One thread does everything, so that two rows at once leave each other alone.
            workers=0 if setting.threads == 1 else -1,
            cache="ram",
            **self.changes(task, quick=setting.quick),
        )
        if (trained.run / "checkpoints").exists():
            discard(trained.run / "checkpoints")
        segmenter = Segmenter.load(trained.model, device=setting.device)
        if not self.alone:
            return _read_out(segmenter, self.refine)

        def head(features: Tensor) -> Tensor:
            scores: Tensor = segmenter.network.projector(segmenter.learned(features))
            return scores.float()

        return Made(read_masks(segmenter, [head]), Reading(segmenter.card.clusters, "head alone"))

    def changes(self, task: Task, *, quick: bool) -> dict[str, Any]:
        """The settings that are given to `train`."""
        given = {
            "image_size": task.side,
            "clusters": task.clusters,
            "weights": "none",
            **self.settings,
        }
        config = self._config(task, given)
        an_epoch = max(len(task.train) // config.batch_size, 1)
        steps = self.steps or an_epoch * config.epochs
        if quick:
            steps = min(math.ceil(steps / QUICK), QUICK_STEPS)
        if quick or self.steps:
            given["epochs"] = max(round(steps / an_epoch), 1)
        return given

    def facts(self, task: Task, *, quick: bool) -> dict[str, Any]:
        """Every setting that the result depends on, whether changed or the preset's."""
        config = asdict(self._config(task, self.changes(task, quick=quick)))
        return {name: value for name, value in config.items() if name not in MACHINE}

    def _config(self, task: Task, given: Mapping[str, Any]) -> TrainConfig:
        settled, learned = begun("train", self.preset, given, None)
        count = len(task.train)
        _, config = choose_settings("train", self.preset, count, False, settled, learned=learned)
        assert isinstance(config, TrainConfig)
        return config


def _read_out(segmenter: Segmenter, refine: str = "auto") -> Made:
    how = Refinement(refine=refine).settled(segmenter.card.refine)
    readout = f"{segmenter.card.readout}{how.describe()}"
    reading = Reading(segmenter.card.clusters, readout)
    return Made(masks_made_by(segmenter, how), reading)
