"""Labelled images → confusion matrices: groups of samples one by one, and what they add up to.

Axes: N classes, K clusters, H W label size.

Groups are the same however many processes share them, as the last bits of a forward pass may depend on its batch.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import chain, islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from densesiam_seg.datasets.declaration import Dataset
from densesiam_seg.datasets.reader import Sample
from densesiam_seg.errors import DenseSiamError, ImageError, InputError
from densesiam_seg.evaluation.metrics import Counts, confusion
from densesiam_seg.evaluation.protocol import MasksOf, Protocol, Turned, prepare_turned
from densesiam_seg.events import Notice, Progress
from densesiam_seg.images.decoding import Decoding, Noted, Notes
from densesiam_seg.io.parallel import on_own_cores
from densesiam_seg.peers.group import Group

BATCH = 4
"""Images of one size in a forward pass: loading the network's weights takes as long as an image of 160 px."""
ROUND = 32
"""Groups of each process after which the processes of a launcher tell each other how far they are."""


@dataclass(frozen=True)
class Counted:
    """A group of samples: of each the matrices of all its masks, or why it has none."""

    results: list[list[Counts] | InputError]
    turned: Turned
    noted: Noted


@dataclass(frozen=True)
class Counting:
    """How samples are counted; for several threads at once."""

    dataset: Dataset
    protocol: Protocol
    side: int
    masks_of: MasksOf
    clusters: tuple[int, ...]
    """K of each mask."""
    decoding: Decoding = field(default_factory=Decoding)
    allow_missing: bool = False
    """Count images that cannot be read as missing; else they are errors."""

    def of_group(self, samples: Sequence[Sample]) -> Counted:
        """A group of at most `BATCH` samples."""
        decoding = replace(self.decoding, notes=Notes())
        turned = Turned()
        pairs: list[tuple[Tensor, NDArray[np.uint8]] | InputError] = []
        for sample in samples:
            try:
                image, label, apart = prepare_turned(
                    sample, self.dataset, self.protocol, self.side, self.masks_of.zoom, decoding
                )
                pairs.append((image, label))
                turned += apart
            except InputError as error:
                pairs.append(error)
        sound = [pair for pair in pairs if not isinstance(pair, InputError)]
        alike = len({image.shape for image, _ in sound}) == 1
        together = [sound] if alike else [[pair] for pair in sound]
        counted = chain.from_iterable(map(self._counts, together))
        results = [pair if isinstance(pair, InputError) else next(counted) for pair in pairs]
        return Counted(results, turned, decoding.notes.noted())

    def _counts(self, pairs: Sequence[tuple[Tensor, NDArray[np.uint8]]]) -> Iterator[list[Counts]]:
        images = [image for image, _ in pairs]
        if len(images) > 1:
            # The last bits of a forward pass may depend on the size of its batch, so there are two sizes: 1 and BATCH.
            images += images[-1:] * (BATCH - len(images))
        sizes = [(label.shape[0], label.shape[1]) for _, label in pairs]
        masked = self.masks_of(torch.stack(images), self.protocol, sizes)
        classes = len(self.dataset.classes)
        for (_, label), masks in zip(pairs, masked, strict=True):
            yield [
                confusion(label, mask, classes, clusters)
                for clusters, mask in zip(self.clusters, masks, strict=True)
            ]


@dataclass(frozen=True)
class SampleTally:
    """What some samples came to; that of others is added to it."""

    counts: tuple[Counts, ...]
    """A matrix (N K) for each mask of an image."""
    images: int = 0
    """How many were looked at."""
    unreadable: tuple[str, ...] = ()
    """Names of those that count as missing, sorted."""
    turned: Turned = field(default_factory=Turned)
    noted: Noted = field(default_factory=Noted)

    def notices(self) -> list[Notice]:
        """Warnings of data that may not be what they seem."""
        lines = self.noted.lines()
        return [*self.turned.notices(), *(Notice(line, warning=True) for line in lines)]

    def __add__(self, other: SampleTally) -> SampleTally:
        pairs = zip(self.counts, other.counts, strict=True)
        return SampleTally(
            tuple(one + two for one, two in pairs),
            self.images + other.images,
            tuple(sorted((*self.unreadable, *other.unreadable))),
            self.turned + other.turned,
            self.noted + other.noted,
        )


def nothing(counting: Counting) -> SampleTally:
    """The tally of no sample."""
    classes = len(counting.dataset.classes)
    return SampleTally(
        tuple(np.zeros((classes, clusters), np.int64) for clusters in counting.clusters)
    )


def groups_of(samples: int) -> int:
    """How many groups they make."""
    return -(-samples // BATCH)


class Tallying:
    """Groups of samples, one after the other, and their sum so far."""

    def __init__(
        self, counting: Counting, samples: Sequence[Sample], groups: Sequence[int] | None = None
    ) -> None:
        """`groups` are the places of those that are counted; None: all."""
        self.counting = counting
        self.samples = samples
        self.groups = range(groups_of(len(samples))) if groups is None else groups
        self.done = 0
        """Groups of them that are."""
        self.images = 0
        self._counts = nothing(counting).counts
        self._unreadable: list[str] = []
        self._turned, self._noted = Turned(), Noted()

    @property
    def tally(self) -> SampleTally:
        """The sum so far."""
        unreadable = tuple(sorted(self._unreadable))
        return SampleTally(self._counts, self.images, unreadable, self._turned, self._noted)

    def run(self) -> Generator[int, None, None]:
        """Count; yields after each group how many samples it had. Raises the first sample's error that has one.

        Close it if you stop early.
        """
        groups = (self._group(place) for place in self.groups)
        with closing(on_own_cores(self.counting.of_group, groups)) as found:
            for place, counted in zip(self.groups, found, strict=True):
                samples = self._group(place)
                for sample, result in zip(samples, counted.results, strict=True):
                    self._add(sample, result)
                self._turned += counted.turned
                self._noted += counted.noted
                self.images += len(samples)
                self.done += 1
                yield len(samples)

    def failure(self, steps: Iterator[int]) -> tuple[int, DenseSiamError] | None:
        """Take all the steps: returns None, or the first group that has an error with this."""
        try:
            for _ in steps:
                pass
        except DenseSiamError as error:
            return self.groups[self.done], error
        return None

    def _group(self, place: int) -> Sequence[Sample]:
        return self.samples[place * BATCH : (place + 1) * BATCH]

    def _add(self, sample: Sample, result: list[Counts] | InputError) -> None:
        if isinstance(result, InputError):
            unusable = not isinstance(result, ImageError) or result.path == str(sample.label)
            if unusable or not self.counting.allow_missing:
                raise result
            self._unreadable.append(sample.name)
        else:
            for total, more in zip(self._counts, result, strict=True):
                total += more


def tally_events(
    counting: Counting, samples: Sequence[Sample], group: Group
) -> Generator[Progress, None, SampleTally]:
    """Count all samples, with the other processes of a group, if any; returns their tally.

    Raises the error of the first sample that has one, in all processes.
    """
    if not group.alone:
        return (yield from _shared_events(counting, samples, group))
    work = Tallying(counting, samples)
    with closing(work.run()) as steps:
        for count in steps:
            for done in range(work.images - count, work.images):
                yield Progress("scoring", done + 1, len(samples))
    return work.tally


def _shared_events(
    counting: Counting, samples: Sequence[Sample], group: Group
) -> Generator[Progress, None, SampleTally]:
    """Every process takes each `group.count`-th group of samples, so that none is far behind the others."""
    every = groups_of(len(samples))
    work = Tallying(counting, samples, range(group.index, every, group.count))
    with closing(work.run()) as steps:
        for _ in range(0, -(-every // group.count), ROUND):
            failure = work.failure(islice(steps, ROUND))
            told = group.gathered((work.images, failure))
            raise_first((failure for _, failure in told), told=not group.first)
            yield Progress("scoring", sum(done for done, _ in told), len(samples))
    tally = work.tally
    counts = tuple(group.total(torch.from_numpy(each)).numpy() for each in tally.counts)
    rest = group.gathered(replace(tally, counts=()))
    return replace(sum(rest[1:], rest[0]), counts=counts)


def raise_first(
    failures: Iterable[tuple[int, DenseSiamError] | None], *, told: bool = False
) -> None:
    """Raises the error of the first group that has one, if any has; `told`, where another process tells it."""
    found = [each for each in failures if each is not None]
    if found:
        _, error = min(found, key=lambda each: each[0])
        error.told = told
        raise error
