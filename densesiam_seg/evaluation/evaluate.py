"""Segmenter + labelled data → scores, under one of the field's three protocols.

Axes: N classes, K clusters, H W label size.

Scores are comparable only within a protocol, so every result states its own in full.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from densesiam_seg.datasets.declaration import Dataset, load_dataset
from densesiam_seg.datasets.reader import Sample, Samples, samples
from densesiam_seg.errors import ImageError, InputError, UsageError
from densesiam_seg.evaluation.metrics import Counts, Matching, Scores, confusion, match, score
from densesiam_seg.evaluation.protocol import (
    MasksOf,
    Protocol,
    masks_made_by,
    pick_protocol,
    prepare_sample,
    turned_apart,
    turned_notice,
)
from densesiam_seg.events import Notice, Progress
from densesiam_seg.images.decoding import Decoding
from densesiam_seg.inference.options import AS_TRAINED, Refinement
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.io.parallel import on_own_cores

BATCH = 4
"""Images of one size in a forward pass: loading the network's weights takes as long as an image of 160 px."""


@dataclass(frozen=True)
class Reading:
    """The ids of a mask: their number, the read-out that made them, and their classes if known."""

    clusters: int
    readout: str
    matching: Matching | None = None
    """None: the best matching for the whole set (`metrics.match`)."""
    left: tuple[int, ...] | None = None
    """The ids that occur where others are merged into them; None: all."""


@dataclass(frozen=True)
class Benchmark:
    """What models are scored on; checked before any of them is loaded."""

    dataset: Dataset
    samples: Samples
    protocol: Protocol
    image_size: int | None = None
    """None: the model's own."""
    allow_missing: bool = False
    """Count images that cannot be read as missing; else they are errors."""

    def side(self, segmenter: Segmenter) -> int:
        """The shorter side of the images as the network gets them."""
        return self.image_size or segmenter.card.image_size


@dataclass(frozen=True)
class Evaluation:
    """A score with everything that it depends on."""

    dataset: str
    split: str
    protocol: str
    images: int
    expected: int | None
    missing: tuple[str, ...]
    digest: str
    clusters: int
    readout: str
    matching: Matching
    scores: Scores
    counts: NDArray[np.int64]
    notes: tuple[str, ...] = ()
    """What may be wrong with the data: the texts of the warnings that were given."""

    def to_dict(self) -> dict[str, Any]:
        """A JSON object."""
        return {**asdict(self), "counts": self.counts.tolist()}


def evaluate(
    dataset: str | Path,
    root: str | Path,
    model: str | Path | Segmenter,
    *,
    split: str | None = None,
    protocol: str | None = None,
    image_size: int | None = None,
    list_file: str | Path | None = None,
    allow_missing: bool = False,
    allow_outside: bool = False,
    refinement: Refinement = AS_TRAINED,
    device: str = "auto",
) -> Evaluation:
    """Score a model on a labelled dataset: a built-in name or a TOML file, and the folder `root` that holds it.

    `refinement` adds passes and an edge filter to the protocol; the result's protocol names them. `allow_outside` lets
    lists name files outside `root`.
    """
    task = benchmark(
        dataset,
        root,
        split,
        protocol=protocol,
        image_size=image_size,
        list_file=list_file,
        allow_missing=allow_missing,
        allow_outside=allow_outside,
    )
    segmenter = model if isinstance(model, Segmenter) else Segmenter.load(model, device=device)
    *_, result = segmenter_events(segmenter, task, refinement)
    assert isinstance(result, Evaluation)
    return result


def benchmark(
    dataset: str | Path,
    root: str | Path,
    split: str | None = None,
    *,
    protocol: str | None = None,
    image_size: int | None = None,
    list_file: str | Path | None = None,
    allow_missing: bool = False,
    allow_outside: bool = False,
) -> Benchmark:
    """A split of a labelled dataset under a protocol (None: the dataset's own). Raises UsageError or InputError."""
    declared = load_dataset(dataset)
    chosen = pick_protocol(declared.protocol if protocol is None else protocol)
    if image_size is not None and not 32 <= image_size <= 4096:
        raise UsageError(f"--image-size {image_size}: must be 32 to 4096")
    scored = samples(
        declared,
        root,
        split,
        list_file=list_file,
        allow_missing=allow_missing,
        allow_outside=allow_outside,
    )
    return Benchmark(declared, scored, chosen, image_size, allow_missing)


def segmenter_events(
    segmenter: Segmenter, task: Benchmark, refinement: Refinement = AS_TRAINED
) -> Iterator[Notice | Progress | Evaluation]:
    """Score a segmenter as it is read out; the last event is the `Evaluation`."""
    how = refinement.settled(segmenter.card.refine)
    left = tuple(cluster.id for cluster in segmenter.left)
    reading = Reading(segmenter.card.clusters, segmenter.readout, left=left)
    masks = masks_made_by(segmenter, how)
    zoom = segmenter.network.encoder.zoom
    return scoring_events(
        task,
        masks,
        [reading],
        task.side(segmenter),
        how.describe(),
        zoom=zoom,
        decoding=segmenter.new_decoding(),
    )


def scoring_events(
    task: Benchmark,
    masks_of: MasksOf,
    readings: Sequence[Reading],
    side: int,
    on_top: str = "",
    *,
    zoom: int = 1,
    decoding: Decoding | None = None,
) -> Iterator[Notice | Progress | Evaluation]:
    """Score several masks of each image in one pass; the last events are an `Evaluation` for each of `readings`.

    Before them come warnings of data that may not be what they seem.

    Labels are resized to the shorter side `side`, images, read as `decoding` says, to `zoom` times that. `on_top`
    describes what `masks_of` does beyond the protocol.

    `masks_of` is called from several threads at once, with `BATCH` images where these are of one size (the last one
    repeated where there are fewer), else with one. Raises ImageError for an image that cannot be read (counted as
    missing with `allow_missing`) and InputError for a label that does not fit its image or its dataset, always the
    first such error in the order of the samples.
    """
    dataset, scored, protocol = task.dataset, task.samples, task.protocol
    classes = len(dataset.classes)
    decoding = decoding or Decoding()

    turned: dict[Sample, str] = {}

    def read(sample: Sample) -> tuple[Tensor, NDArray[np.uint8]] | InputError:
        try:
            pair = prepare_sample(sample, dataset, protocol, side, zoom, decoding)
        except InputError as error:
            return error
        if apart := turned_apart(sample):
            turned[sample] = apart
        return pair

    def count(pairs: Sequence[tuple[Tensor, NDArray[np.uint8]]]) -> Iterator[list[Counts]]:
        images = [image for image, _ in pairs]
        if len(images) > 1:
            # The last bits of a forward pass may depend on the size of its batch, so there are two sizes: 1 and BATCH.
            images += images[-1:] * (BATCH - len(images))
        sizes = [(label.shape[0], label.shape[1]) for _, label in pairs]
        masked = masks_of(torch.stack(images), protocol, sizes)
        for (_, label), masks in zip(pairs, masked, strict=True):
            yield [
                confusion(label, mask, classes, reading.clusters)
                for reading, mask in zip(readings, masks, strict=True)
            ]

    def work(group: Sequence[Sample]) -> list[list[Counts] | InputError]:
        pairs = [read(sample) for sample in group]
        sound = [pair for pair in pairs if not isinstance(pair, InputError)]
        alike = len({image.shape for image, _ in sound}) == 1
        counted = chain.from_iterable(map(count, [sound] if alike else [[pair] for pair in sound]))
        return [pair if isinstance(pair, InputError) else next(counted) for pair in pairs]

    notices = [Notice(note, warning=True) for note in scored.notes]
    yield from notices
    counts = [np.zeros((classes, reading.clusters), np.int64) for reading in readings]
    unreadable: list[str] = []
    groups = (scored.items[first : first + BATCH] for first in range(0, len(scored), BATCH))
    with closing(on_own_cores(work, groups)) as results:
        one_by_one = zip(scored.items, chain.from_iterable(results), strict=True)
        for done, (sample, result) in enumerate(one_by_one, 1):
            if isinstance(result, InputError):
                unusable = not isinstance(result, ImageError) or result.path == str(sample.label)
                if unusable or not task.allow_missing:
                    raise result
                unreadable.append(sample.name)
            else:
                for total, more in zip(counts, result, strict=True):
                    total += more
            yield Progress("scoring", done, len(scored))
    more_notices = [turned_notice(turned)] if turned else []
    more_notices += [Notice(line, warning=True) for line in decoding.notes.lines()]
    yield from more_notices
    for reading, total in zip(readings, counts, strict=True):
        matching = reading.matching or match(total, reading.left)
        yield Evaluation(
            dataset=dataset.title,
            split=scored.split,
            protocol=protocol.describe(side, zoom) + on_top,
            images=len(scored) - len(unreadable),
            expected=scored.expected,
            missing=(*scored.missing, *unreadable),
            digest=scored.digest,
            clusters=reading.clusters if reading.left is None else len(reading.left),
            readout=reading.readout,
            matching=matching,
            scores=score(total, matching, dataset.names, dataset.kinds),
            counts=total,
            notes=tuple(notice.text for notice in (*notices, *more_notices)),
        )


def known_classes(classes: int) -> Matching:
    """The matching of masks whose ids are class ids already."""
    return Matching(tuple(range(classes)), "identity")
