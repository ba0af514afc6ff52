"""Images → how many clusters a model should show: one pass over a sample of them, then `clustering.suggestion`.

Axes: K learned clusters, N places of an image, C channels, h w features.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from densesiam_seg.clustering.kmeans import require_bounded, unit_features
from densesiam_seg.clustering.suggestion import PARTS, Points, Suggestion, Tally, suggest
from densesiam_seg.errors import ImageError, InputError, PartialError, UsageError
from densesiam_seg.events import Notice, Progress
from densesiam_seg.images.manifest import Manifest
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.io.parallel import device_lock, on_own_cores
from densesiam_seg.io.randomness import Stream, generator

IMAGES = 200
"""Images that are looked at, evenly spread."""
SAMPLE = 20_000
"""Places whose features are compared with the clusters', the same number from each image."""
MAX_CLUSTERS = 1024
"""Of a model: a tree takes the cube of their number."""
TEMPERATURE = 0.1
"""Divides the scores of centroids, which are squared distances of unit features, before the softmax."""


@dataclass(frozen=True)
class Suggested:
    """What is suggested, and the images that could not be read."""

    best: Suggestion
    images: int
    """Those that were looked at, with those that could not be read."""
    failed: tuple[ImageError, ...]

    @property
    def error(self) -> PartialError | None:
        """What a command ends with."""
        if not self.failed:
            return None
        return PartialError(
            f"{len(self.failed)} of {self.images} images could not be read, the others are counted; "
            f"first: {self.failed[0]}"
        )


@dataclass(frozen=True)
class _Seen:
    """What an image tells: its tally and some of its places."""

    tally: Tally
    points: Points


def suggestion_events(
    segmenter: Segmenter, images: Manifest, *, seed: int = 0
) -> Iterator[Notice | Progress | Suggested]:
    """Score every number of clusters; the last event is what is suggested.

    The model's own clusters are looked at, whatever is merged already, as they are before edges are sharpened. Files
    that cannot be read are warned of and left out. Raises InputError where none can be read, and UsageError for more
    than `MAX_CLUSTERS` clusters.
    """
    clusters = segmenter.card.clusters
    if not 2 <= clusters <= MAX_CLUSTERS:
        raise UsageError(
            f"clusters: the model has {clusters}, and only 2 to {MAX_CLUSTERS} can be compared"
        )
    chosen = range(0, len(images), -(-len(images) // IMAGES) or 1)
    share = -(-SAMPLE // max(len(chosen), 1))
    lock = device_lock(segmenter.device)

    def look(index: int) -> _Seen | ImageError:
        try:
            pixels, _ = segmenter.read(images.path(index))
        except ImageError as error:
            return error
        with lock:
            return _seen(segmenter, pixels, generator(seed, Stream.PIXELS, 0, index), share)

    parts: list[Tally | None] = [None] * PARTS
    points: list[Points] = []
    failed: list[ImageError] = []
    with closing(on_own_cores(look, chosen)) as results:
        for done, seen in enumerate(results):
            if isinstance(seen, ImageError):
                failed.append(seen)
                yield Notice(f"left out: {seen}", warning=True)
            else:
                # Neighbours, such as frames of one video, are in one part: halves are to be unlike.
                part = done * PARTS // len(chosen)
                before = parts[part]
                parts[part] = seen.tally if before is None else before + seen.tally
                points.append(seen.points)
            yield Progress("comparing clusters", done + 1, len(chosen))
    if not points:
        raise InputError("clusters: none of the images can be read; give others")
    sample = Points(
        np.concatenate([each.features for each in points]),
        np.concatenate([each.clusters for each in points]),
    )
    found = suggest([part for part in parts if part is not None], sample, seed=seed)
    yield Suggested(found, len(chosen), tuple(failed))


@torch.inference_mode()
def _seen(segmenter: Segmenter, pixels: Tensor, draw: np.random.Generator, share: int) -> _Seen:
    features = segmenter.features(segmenter.normalised(pixels))
    scores = segmenter.read_out(features)
    learned = segmenter.learned(features)
    require_bounded(learned)
    units = unit_features(learned)[0].flatten(1).float().cpu()
    ids = scores[0].argmax(0).flatten().cpu()
    likely = _probabilities(segmenter, scores)[0].flatten(1).cpu().double()
    clusters = segmenter.card.clusters
    sums = torch.zeros(clusters, len(units), dtype=torch.float64)
    sums.index_add_(0, ids, units.T.double())
    places = torch.from_numpy(draw.permutation(len(ids))[:share])
    return _Seen(
        Tally(ids.bincount(minlength=clusters).numpy(), sums.numpy(), (likely @ likely.T).numpy()),
        Points(units.T[places].numpy(), ids[places].numpy()),
    )


def _probabilities(segmenter: Segmenter, scores: Tensor) -> Tensor:
    """Of all K clusters in scores (B, K, h, w), also of those that are merged."""
    warmth = 1.0 if segmenter.centroids is None else TEMPERATURE
    return (scores / warmth).softmax(1)
