"""Frozen dense features → two numbers: a linear probe, which learns from labels, and a k-means probe, which does not.

Axes: B images, C channels, h w features, H W label size, P sampled pixels, N classes, K clusters.

Both learn from one sample of the train split's features and are scored in one pass over another split. Which pixels
are sampled never depends on the labels, so that k-means stays label-free.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from densesiam_seg.clustering.kmeans import kmeans, unit_features
from densesiam_seg.datasets.declaration import IGNORE
from densesiam_seg.datasets.reader import Sample, Samples, samples
from densesiam_seg.errors import InputError, NumericError, UsageError
from densesiam_seg.evaluation.evaluate import (
    Benchmark,
    Reading,
    benchmark,
    known_classes,
    scoring_events,
)
from densesiam_seg.evaluation.job import Evaluation
from densesiam_seg.evaluation.protocol import (
    ReadOut,
    Turned,
    dense_features,
    prepare_sample,
    read_masks,
)
from densesiam_seg.events import Notice, Progress
from densesiam_seg.inference.centroids import SAMPLE
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.io.devices import available_cores
from densesiam_seg.io.parallel import ahead
from densesiam_seg.io.randomness import Stream, generator

KINDS = ("both", "linear", "kmeans")
VALUES = 2**27
"""Most numbers in the sample of features: a million pixels of 128 channels, 512 MiB in fp32."""
BATCH = 2**20
"""Image pixels that pass the network together: ten images of 320×320."""
STEPS = 1000
PIXELS = 2048
"""Labelled pixels of a step."""
RATE = 0.1
DECAY = 1e-4
REPORT = 50
"""Steps between two reports of progress."""


@dataclass(frozen=True)
class Probe:
    """Both scores (None: not asked for) and the processor seconds of all; each `readout` says if it used labels."""

    linear: Evaluation | None
    kmeans: Evaluation | None
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """A JSON object."""
        return {
            "linear": self.linear and {"supervised": True, **self.linear.to_dict()},
            "kmeans": self.kmeans and {"supervised": False, **self.kmeans.to_dict()},
            "seconds": self.seconds,
        }


def ready_probe(
    model: str | Path | Segmenter,
    dataset: str | Path,
    root: str | Path,
    *,
    train_split: str = "train",
    split: str | None = None,
    protocol: str | None = None,
    image_size: int | None = None,
    kind: str = "both",
    clusters: int | None = None,
    allow_outside: bool = False,
    seed: int = 0,
    device: str = "auto",
    precision: str = "auto",
) -> Iterator[Notice | Progress | Probe]:
    """Check and load everything that `probe_events` needs; returns its events.

    `dataset` is a built-in name or a TOML file, `root` the folder that holds it. None is the dataset's default `split`
    and `protocol`, and the model's own `image_size`. `allow_outside` lets lists name files outside `root`. Raises
    UsageError for options without a meaning, InputError for splits without labels, and ModelError for a model that is
    refused.
    """
    if kind not in KINDS:
        raise UsageError(f"--kind {kind}: give one of {', '.join(KINDS)}")
    if clusters is not None and kind == "linear":
        raise UsageError("--clusters belongs to the k-means probe; give --kind both or kmeans")
    if clusters is not None and not 1 <= clusters <= 4096:
        raise UsageError(f"--clusters {clusters}: must be 1 to 4096")
    try:
        task = benchmark(
            dataset,
            root,
            split,
            protocol=protocol,
            image_size=image_size,
            allow_outside=allow_outside,
        )
        train = samples(task.dataset, root, train_split, allow_outside=allow_outside)
    except InputError as error:
        raise InputError(f"probe needs labelled images: {error}") from error
    require_apart(train, task.samples)
    segmenter = model
    if not isinstance(segmenter, Segmenter):
        segmenter = Segmenter.load(segmenter, device=device, precision=precision)
    return probe_events(segmenter, task, train, kind=kind, clusters=clusters, seed=seed)


def require_apart(train: Samples, scored: Samples) -> None:
    """Raises UsageError for an image or a label of both sets."""
    for kind in ("image", "label"):
        shared = {getattr(each, kind) for each in train} & {getattr(each, kind) for each in scored}
        if shared:
            raise UsageError(
                f"--train-split {train.split} and --split {scored.split} share {len(shared)} {kind}s ({min(shared)}); "
                "a probe scored on what it has learned from means nothing, give splits that share none"
            )


def probe_events(
    segmenter: Segmenter,
    task: Benchmark,
    train: Samples,
    *,
    kind: str = "both",
    clusters: int | None = None,
    seed: int = 0,
) -> Iterator[Notice | Progress | Probe]:
    """Learn one of `KINDS` of probes from `train` and score it on a task; the last event is the `Probe`.

    The linear probe's class ids are scored as they are. The k-means probe has `clusters` clusters (None: as many as
    there are classes), which are matched with the classes on the scored set: no label of `train` has a part in it.

    Raises InputError for a train set without a labelled pixel or with fewer pixels than clusters, and NumericError for
    features that are not finite.
    """
    started = time.process_time()
    yield from (Notice(note, warning=True) for note in train.notes)
    classes, side = len(task.dataset.classes), task.side(segmenter)
    features, labels = yield from sample_points(segmenter, task, train, seed=seed)
    read_outs: list[ReadOut] = []
    readings: list[Reading] = []
    if kind != "kmeans":
        weight, bias = yield from fit_linear(features, labels, classes)
        read_outs.append(lambda maps: F.conv2d(segmenter.learned(maps).float(), weight, bias))
        name = f"linear probe, supervised: uses the labels of the {train.split} split"
        readings.append(Reading(classes, name, known_classes(classes)))
    if kind != "linear":
        count = clusters or classes
        yield Progress("k-means", 0, 1)
        # `fit_readout` starts with as many pixels; its second pass over the images is left out.
        every = -(-len(features) // SAMPLE)
        centroids = kmeans(unit_features(features[::every]), count, seed=seed)
        read_outs.append(segmenter.with_centroids(centroids).read_out)
        yield Progress("k-means", 1, 1)
        readings.append(Reading(count, "k-means probe, label-free: labels only match and score"))
    del features, labels
    scores: list[Evaluation] = []
    for event in scoring_events(task, read_masks(segmenter, read_outs), readings, side):
        if isinstance(event, Evaluation):
            scores.append(event)
        else:
            yield event
    yield Probe(
        linear=scores[0] if kind != "kmeans" else None,
        kmeans=scores[-1] if kind != "linear" else None,
        seconds=time.process_time() - started,
    )


def sample_points(
    segmenter: Segmenter, task: Benchmark, train: Samples, *, seed: int
) -> Generator[Notice | Progress, None, tuple[Tensor, Tensor]]:
    """Returns features (P, C) and their labels (P,) uint8 of all images, or an equal share of each image's.

    A share is taken where all features would exceed `VALUES` numbers. The pixels of an image come in an order drawn by
    (seed, image). Raises NumericError for features that are not finite.
    """

    turned: dict[Sample, Turned] = {}

    def load(sample: Sample) -> tuple[Tensor, NDArray[np.uint8]]:
        turned[sample] = Turned.of(sample)
        return prepare_sample(
            sample,
            task.dataset,
            task.protocol,
            task.side(segmenter),
            segmenter.network.encoder.zoom,
            segmenter.decoding,
        )

    features: list[Tensor] = []
    labels: list[Tensor] = []
    for group in _groups(ahead(load, train.items, available_cores())):
        pictures = torch.stack([image for image, _ in group])
        maps = segmenter.learned(dense_features(segmenter, pictures, task.protocol))
        finite = maps.isfinite().flatten(1).all(1)
        if not finite.all():
            bad = train.items[len(features) + int(finite.int().argmin())]
            raise NumericError(
                f"{bad.image}: its features are not finite; the model has diverged, train it with a lower rate"
            )
        _, channels, height, width = maps.shape
        share = max(VALUES // (channels * len(train)), 1)
        for each, (_, label) in zip(maps, group, strict=True):
            draw = generator(seed, Stream.PIXELS, 0, len(features))
            chosen = torch.from_numpy(draw.permutation(height * width)[:share])
            cells = torch.from_numpy(cell_labels(label, height, width)).flatten()
            features.append(each.permute(1, 2, 0).flatten(0, 1)[chosen.to(each.device)])
            labels.append(cells[chosen])
        yield Progress("features", len(features), len(train))
    yield from sum(turned.values(), Turned()).notices()
    return torch.cat(features), torch.cat(labels)


def cell_labels(label: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Label (H, W) → the label at the centre of each of (h, w) feature cells; of two equally near the later one."""
    rows, columns = (
        (2 * np.arange(count) + 1) * pixels // (2 * count)
        for count, pixels in zip((height, width), label.shape, strict=True)
    )
    cells: NDArray[np.uint8] = label[rows[:, None], columns]
    return cells


def fit_linear(
    features: Tensor, labels: Tensor, classes: int
) -> Generator[Progress, None, tuple[Tensor, Tensor]]:
    """Returns weight (N, C, 1, 1) and bias (N,) of the 1×1 convolution that tells labels (P,) from features (P, C).

    Softmax cross-entropy over the pixels whose label is not 255, and a weight decay of `DECAY`, both on features of
    zero mean and unit deviation (over all P), minimised by Adam with a cosine-decayed rate; the standardisation is
    folded into the convolution. Raises InputError where every label is 255.
    """
    known = (labels != IGNORE).nonzero()[:, 0]
    if not len(known):
        raise InputError(
            "probe: no pixel of the train split has a label, all are ignored; check the split, the labels and "
            "ignored values"
        )
    known, labels = known.to(features.device), labels.to(features.device)
    mean, deviation = _moments(features)
    weight = torch.zeros(classes, features.shape[1], device=features.device, requires_grad=True)
    bias = torch.zeros(classes, device=features.device, requires_grad=True)
    groups: list[dict[str, Any]] = [{"params": [weight], "weight_decay": DECAY}, {"params": [bias]}]
    optimiser = torch.optim.Adam(groups, lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, STEPS)
    # Every n-th pixel: they are in random order within an image, and a step sees all images alike.
    parts = -(-len(known) // PIXELS)
    for step in range(STEPS):
        part = known[step % parts :: parts]
        standard = (features.index_select(0, part).float() - mean) / deviation
        with torch.enable_grad():
            loss = F.cross_entropy(F.linear(standard, weight, bias), labels[part].long())
            loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        optimiser.zero_grad()
        schedule.step()
        if (step + 1) % REPORT == 0:
            yield Progress("linear probe", step + 1, STEPS)
    scaled = weight.detach() / deviation
    return scaled[:, :, None, None], bias.detach() - scaled @ mean


def _groups(
    pairs: Iterable[tuple[Tensor, NDArray[np.uint8]]],
) -> Iterator[list[tuple[Tensor, NDArray[np.uint8]]]]:
    """Consecutive images of one size with their labels, `BATCH` pixels of them together."""
    for (_, height, width), same in groupby(pairs, key=lambda pair: pair[0].shape):
        while group := list(islice(same, max(BATCH // (height * width), 1))):
            yield group


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation (C,) over the pixels; constant channels, whose deviation is rounding, count as 1."""
    variance, mean = torch.var_mean(features.float(), 0, correction=0)
    real = variance > 1e-8 * (variance + mean.square())
    return mean, torch.where(real, variance, 1.0).sqrt()
