"""One pass over images that gathers all that `report` and `review` tell of them.

Axes: n images, K clusters, C channels.

Memory grows by a few hundred numbers an image. Of crops only the best few of each cluster are held.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from densesiam_seg.clustering.kmeans import unit_features
from densesiam_seg.errors import ImageError, InputError
from densesiam_seg.events import Progress
from densesiam_seg.images.decoding import Decoding
from densesiam_seg.inference.options import AS_TRAINED, Refinement
from densesiam_seg.inference.refinement import refined
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.io.parallel import device_lock, on_own_cores
from densesiam_seg.prediction.batching import Group, groups, read_batches
from densesiam_seg.reporting.novelty import REFERENCE, Reference
from densesiam_seg.reporting.observing import Crop, Observation, observe

SHOWN = 6
"""Crops of each kind for each cluster."""
NOTICED = 0.01
"""Share of an image from which on a cluster counts as occurring in it."""


class Best:
    """The best crops of one cluster, spread over the list of images.

    The best of each of `SHOWN` stretches of the list come first, then the best that are left: neighbours in a list are
    often pictures of one scene.
    """

    def __init__(self, images: int) -> None:
        self._images = images
        self._of_stretch: dict[int, Crop] = {}
        self._others: list[Crop] = []

    def add(self, crop: Crop) -> None:
        stretch = crop.place * SHOWN // self._images
        held = self._of_stretch.get(stretch)
        if held is None or crop.score > held.score:
            self._of_stretch[stretch] = crop
            if held is not None:
                self._others.append(held)
        else:
            self._others.append(crop)
        self._others = sorted(self._others, key=lambda each: -each.score)[:SHOWN]

    def crops(self) -> list[Crop]:
        """At most `SHOWN` of them, the best first."""
        missing = SHOWN - len(self._of_stretch)
        found = [*self._of_stretch.values(), *self._others[:missing]]
        return sorted(found, key=lambda each: -each.score)


@dataclass
class Survey:
    """What was found in n images; lists and arrays have the images that could be read, in the order given."""

    sources: tuple[str, ...]
    shares: NDArray[np.float64]
    """Of each image, (n, K)."""
    confidence: NDArray[np.float64]
    """The mean of each image, (n,)."""
    entropy: NDArray[np.float64]
    descriptions: NDArray[np.float32]
    """(n, C)."""
    sureness: NDArray[np.float64]
    """Mean confidence of each cluster, (K,); 0 where it has no pixel."""
    doubts: NDArray[np.float64]
    """Mean probability, over the pixels of a (row), of the second cluster where that is b (column), (K, K)."""
    typical: list[list[Crop]]
    """Of each cluster (K)."""
    doubtful: list[list[Crop]]
    failed: list[ImageError] = field(default_factory=list)

    @property
    def share(self) -> NDArray[np.float64]:
        """Of the pixels, every image counting the same, (K,)."""
        mean: NDArray[np.float64] = self.shares.mean(0)
        return mean

    @property
    def occurrence(self) -> NDArray[np.float64]:
        """The share of the images in which each cluster has at least `NOTICED` of the pixels, (K,)."""
        found: NDArray[np.float64] = (self.shares >= NOTICED).mean(0)
        return found

    def reference(self) -> Reference:
        """Some of the images, evenly spread, as those that others are compared with."""
        rows = np.unique(np.linspace(0, len(self.sources) - 1, REFERENCE).round().astype(int))
        return Reference(tuple(self.sources[row] for row in rows), self.descriptions[rows])


def survey_events(
    segmenter: Segmenter,
    sources: Sequence[str],
    decoding: Decoding | None = None,
    refinement: Refinement = AS_TRAINED,
) -> Iterator[Progress | Survey]:
    """Look at each image once, on all cores; the last event is the `Survey`. Masks are those of `predict`.

    Images that cannot be read are listed in it. Raises InputError where none can be read.
    """
    how = refinement.settled(segmenter.card.refine)
    look = _Look(segmenter, sources, decoding or segmenter.new_decoding(), how)
    gathering = _Gathering(len(sources), len(segmenter.clusters))
    work = groups(segmenter, sources, None, look.decoding)
    done = 0
    yield Progress("looking at images", 0, len(sources))
    with closing(on_own_cores(look.at, work, max_waiting=2)) as found:
        for results in found:
            for place, result in results:
                gathering.add(place, result)
            done += len(results)
            yield Progress("looking at images", done, len(sources))
    yield gathering.survey(sources)


def described_events(
    segmenter: Segmenter, sources: Sequence[str]
) -> Generator[Progress, None, tuple[tuple[str, ...], NDArray[np.float32]]]:
    """The descriptions (n, C) of images without their masks, and the files of those that could be read."""
    lock = device_lock(segmenter.device)
    decoding = segmenter.new_decoding()

    def describe(source: str) -> NDArray[np.float32] | None:
        try:
            image, _ = segmenter.read(source, decoding=decoding)
        except ImageError:
            return None
        with lock:
            return (
                means_of(segmenter, segmenter.features(segmenter.normalised(image)))[0]
                .cpu()
                .numpy()
            )

    kept: list[tuple[str, NDArray[np.float32]]] = []
    with closing(on_own_cores(describe, sources)) as results:
        for done, (source, found) in enumerate(zip(sources, results, strict=True), 1):
            if found is not None:
                kept.append((source, found))
            yield Progress("comparing with training images", done, len(sources))
    described = np.stack([found for _, found in kept]) if kept else np.zeros((0, 1), np.float32)
    return tuple(source for source, _ in kept), described


def means_of(segmenter: Segmenter, features: Tensor) -> Tensor:
    """What `Segmenter.features` gives (B, C, h, w) → the means of its L2-normalised channels (B, C)."""
    return unit_features(segmenter.learned(features)).mean((-2, -1))


class _Look:
    """What is done with each group of images, in several threads at once."""

    def __init__(
        self, segmenter: Segmenter, sources: Sequence[str], decoding: Decoding, how: Refinement
    ) -> None:
        self.segmenter, self.sources, self.decoding, self.how = segmenter, sources, decoding, how
        self.lock = device_lock(segmenter.device)

    def at(self, group: Group) -> list[tuple[int, Observation | ImageError]]:
        batches, failed = read_batches(self.segmenter, self.sources, group, self.decoding)
        results: list[tuple[int, Observation | ImageError]] = [*failed.items()]
        for batch in batches:
            count = len(batch.places)
            with self.lock, torch.inference_mode():
                scores, described = seen(self.segmenter, batch.images, self.how, count)
            results += [
                (place, observe(self.segmenter, place, own.cpu(), means.cpu(), self.how))
                for place, own, means in zip(batch.places, scores, described, strict=False)
            ]
        return results


def seen(
    segmenter: Segmenter, images: Tensor, how: Refinement, count: int
) -> tuple[Tensor, Tensor]:
    """uint8 images (B, 3, H, W) → the scores that `Segmenter.scores` gives, and means of unit features (B, C)."""
    means: list[Tensor] = []

    def scores_of(shown: Tensor) -> Tensor:
        features = segmenter.features(segmenter.normalised(shown))
        means.append(means_of(segmenter, features))
        scores = segmenter.read_out(features)
        return scores if how.plain else segmenter.soft(scores)

    if how.plain:
        scores = scores_of(images)
    else:
        scores = refined(images, scores_of, how, count, zoom=segmenter.network.encoder.zoom)
    return scores, torch.stack(means).mean(0)


class _Gathering:
    """Observations → sums over all images and what is kept of each."""

    def __init__(self, images: int, clusters: int) -> None:
        self.kept: dict[int, Observation | ImageError] = {}
        self.sureness = np.zeros(clusters)
        self.doubts = np.zeros((clusters, clusters))
        self.typical = [Best(images) for _ in range(clusters)]
        self.doubtful = [Best(images) for _ in range(clusters)]

    def add(self, place: int, found: Observation | ImageError) -> None:
        if isinstance(found, Observation):
            self.sureness += found.sureness
            self.doubts += found.doubts
            for best, crops in ((self.typical, found.typical), (self.doubtful, found.doubtful)):
                for crop in crops:
                    best[crop.cluster].add(crop)
            found = _light(found)
        self.kept[place] = found

    def survey(self, sources: Sequence[str]) -> Survey:
        ordered = [self.kept[place] for place in sorted(self.kept)]
        failed = [each for each in ordered if isinstance(each, ImageError)]
        found = [each for each in ordered if isinstance(each, Observation)]
        if not found and len(failed) == 1:
            raise failed[0]
        if not found:
            raise InputError(f"none of the {len(failed)} images could be read, first: {failed[0]}")
        shares = np.stack([each.shares for each in found])
        pixels = np.maximum(shares.sum(0), 1e-12)
        return Survey(
            tuple(sources[each.place] for each in found),
            shares,
            np.array([each.confidence for each in found]),
            np.array([each.entropy for each in found]),
            np.stack([each.description for each in found]),
            self.sureness / pixels,
            self.doubts / pixels[:, None],
            [best.crops() for best in self.typical],
            [best.crops() for best in self.doubtful],
            failed,
        )


def _light(found: Observation) -> Observation:
    """The same without what is summed up already."""
    nothing = np.zeros((0, 0))
    return replace(found, sureness=nothing, doubts=nothing, typical=(), doubtful=())
