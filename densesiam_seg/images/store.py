"""Stored images → batches, in an order that is a function of (seed, epoch).

Axes: B images, S side of the stored square (two or three times the view's side).
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, MutableSequence, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal, TypeAlias, overload
from weakref import finalize

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from densesiam_seg.errors import ImageError, InputError, UsageError, WorkerError
from densesiam_seg.images.cache import cache_file, read_cache, writing_cache
from densesiam_seg.images.crew import Crew, Form, LostProcessError, may_start
from densesiam_seg.images.decode import load_square, load_stretched, load_values
from densesiam_seg.images.decoding import Decoding, Noted
from densesiam_seg.images.manifest import Manifest, Skipped
from densesiam_seg.io.devices import available_cores, free_memory, is_first_here
from densesiam_seg.io.files import free_space
from densesiam_seg.io.parallel import HungError, ahead
from densesiam_seg.io.randomness import Stream, generator
from densesiam_seg.peers.group import ALONE, Group
from densesiam_seg.peers.shard import Shard

MEMORY_SHARE = 0.25
"""Share of the machine's free memory that decoded images may take before they go to the disk."""
DISK_SHARE = 0.5
"""Share of a disk's free space that they may take there before they are decoded anew in every epoch."""
RANGE_IMAGES, RANGE_VALUES = 200, 4000
"""Images, evenly spread over a set, and values of each, that tell the range of a set."""
PATIENCE = 600.0
"""Seconds that a thread may take to read an image: a network disk that is gone answers never."""
PERCENTILES = (0.01, 0.99)
"""The part of the values that a stretch keeps apart."""
CACHES = Path("runs", "cache")
"""Where decoded images lie on the disk, for every run that starts in the same folder."""

Fit = Literal["crop", "stretch"]
"""How an image becomes a square: its centre, or the whole of it at another aspect."""
Keep = Literal["auto", "ram", "disk", "none"]
Square: TypeAlias = NDArray[np.uint8]
"""An image as (3, S, S)."""
Decoded: TypeAlias = tuple[Square, float] | ImageError
"""A square and width over height of what it shows, or what is wrong with its file."""
FEWEST_PROCESSES = 4
"""Workers from which on they are processes; threads keep fewer cores than that as busy."""


class UnreadError(ImageError):
    """An image that was taken for a good one until training read it; all that was trained counts it in."""

    @classmethod
    def of(cls, bad: Skipped) -> UnreadError:
        """The error for what would have been skipped."""
        error = cls(bad.path, bad.reason, "")
        error.args = (bad.message,)
        return error


@dataclass(frozen=True)
class Batch:
    """uint8 images (B, 3, S, S) and their positions in the manifest."""

    images: Tensor
    indices: tuple[int, ...]


class ImageStore:
    """The usable images of a manifest as uint8 squares: in memory, in a file, or decoded when needed.

    `keep` says which; `auto` is a file that an earlier run has left in the folder `caches`, else memory where they fit,
    else a new file where that fits.

    With `processes` images are decoded by other processes where there are more than a few workers.

    Of a `group` of processes each reads a part of the images first, so that all know which are usable. In memory it
    keeps those, and others from when it needs them on; the first process of each machine writes a file, if one is asked
    for.
    """

    def __init__(
        self,
        manifest: Manifest,
        side: int,
        *,
        fit: Fit = "crop",
        workers: int = -1,
        decoding: Decoding | None = None,
        keep: Keep = "auto",
        caches: Path = CACHES,
        group: Group = ALONE,
        processes: bool = False,
    ) -> None:
        self.manifest = manifest
        self.group = group
        self.side = side
        self.fit = fit
        self.aspects = torch.ones(len(manifest))
        """Width over height (N,) of what the squares show; known after `prepare`."""
        self.decoding = decoding or Decoding()
        self.notes: list[str] = []
        """What is worth telling of the files; known after `prepare`."""
        self.workers = available_cores() if workers < 0 else workers
        self.keep: Keep = keep
        self.caches = caches
        self.file: Path | None = None
        """Where the squares lie on the disk, if they do; known after `prepare`."""
        self._squares: Tensor | None = None
        self._missing: NDArray[np.bool_] | None = None
        """Whether an image (N,) has not been decoded by this process yet."""
        self.late = False
        """Whether most images are read by training, and not before."""
        self._crew: Crew | None = None
        if processes and self.workers >= FEWEST_PROCESSES and may_start():
            self._crew = Crew(Form(side, fit == "stretch", self.decoding), self.workers)
            finalize(self, self._crew.close)
        self.fallback: str | None = None
        """Why threads decode where processes should; known after `prepare`."""

    def __len__(self) -> int:
        return len(self.manifest)

    @property
    def unread(self) -> bool:
        """Whether there are images that nobody has decoded yet."""
        return self.late and self._missing is not None and bool(self._missing.any())

    def read(self) -> Sequence[int]:
        """Positions of the images that have been decoded by somebody."""
        if not self.unread:
            return range(len(self))
        assert self._missing is not None
        found: list[int] = np.flatnonzero(~self._missing).tolist()
        return found

    def prepare(self, first: Sequence[int] | None = None) -> Iterator[int]:
        """Read every image once; yields how many are done.

        Bad files move from the manifest to its list of skipped ones, so that positions never shift during training.

        Of images that are not kept on the disk only the `first` ones are read, if these are given, and all others when
        batches ask for them: training begins at once, and a bad file among them is an UnreadError.
        Raises UsageError where there is no room for what `keep` asks for.
        """
        if self._crew is not None:
            self.fallback = self._crew.begin()
            self._crew = None if self.fallback else self._crew
        path = cache_file(
            self.caches, self.manifest, side=self.side, fit=self.fit, decoding=self.decoding
        )
        if self.keep in ("auto", "disk"):
            known = read_cache(path, self.side)
            sound = known is not None and (yield from known.verify())
            # One host may have a file that another lacks, which waits while it is looked through.
            if all(self.group.gathered(sound)) and known is not None:
                self.file, self._squares = path, known.squares
                self._settle(known.aspects, known.skipped, known.notes)
                return
        keep = self._place()
        may = self.group.alone and self.fit == "crop" and keep != "disk"
        if may and first is not None and (yield from self._prepare_late(keep, first)):
            return
        if not self.group.alone and keep != "disk":
            yield from self._prepare_part(keep)
            return
        aspects = array("d")
        skipped: list[Skipped] = []
        if keep == "disk":
            if is_first_here():
                notes = self.decoding.notes
                with writing_cache(path, aspects, skipped, notes) as write:
                    yield from self._decode_all(write, aspects, skipped)
            aspects, skipped = max(
                self.group.gathered((aspects, skipped), patient=True), key=_known
            )
            if (known := read_cache(path, self.side)) is not None:
                self.file, self._squares = path, known.squares
        elif keep == "ram":
            squares = self._room(len(self))
            yield from self._decode_all(squares.numpy().__setitem__, aspects, skipped)
            self._squares = squares[: len(aspects)]
        else:
            yield from self._decode_all(lambda number, square: None, aspects, skipped)
        self._settle(aspects, skipped, self.decoding.notes.lines())

    def _prepare_late(self, keep: Keep, first: Sequence[int]) -> Generator[int, None, bool]:
        """Read the first images alone; returns whether all of them are good, else nothing is decided yet."""
        squares = self._room(len(self)) if keep == "ram" else None
        places = (
            (index, squares.numpy()[index] if squares is not None else None) for index in first
        )
        for done, result in enumerate(self._decode(places), 1):
            if isinstance(result, ImageError):
                return False
            yield done * len(self) // len(first)
        self._squares, self._missing, self.late = squares, np.ones(len(self), np.bool_), True
        self._missing[list(first)] = False
        self._settle([1.0] * len(self), [], [])
        return True

    def _prepare_part(self, keep: Keep) -> Iterator[int]:
        """The same where each process reads a part: what it finds there it tells the others."""
        group, total = self.group, len(self)
        part = group.shard.part(total)
        aspects = array("d")
        skipped: list[Skipped] = []
        decoded: list[Square] = []

        def take(number: int, square: Square) -> None:
            if keep == "ram":
                decoded.append(square)

        for done in self._decode_all(take, aspects, skipped, part):
            yield done * total // len(part)
        found = group.gathered((aspects, skipped, self.decoding.notes.noted()), patient=True)
        before = sum(len(other) for other, *_ in found[: group.index])
        whole = array("d", chain.from_iterable(other for other, *_ in found))
        if keep == "ram":
            self._squares = self._room(len(whole))
            self._missing = np.ones(len(whole), np.bool_)
            for place, square in enumerate(decoded, before):
                self._squares[place] = torch.from_numpy(square)
                self._missing[place] = False
        noted = sum((each for *_, each in found), Noted())
        self._settle(whole, list(chain.from_iterable(bad for _, bad, _ in found)), noted.lines())

    def batches(
        self, groups: Sequence[tuple[int, ...]], *, pinned: bool = False
    ) -> Iterator[Batch]:
        """One batch for each group of positions, read and decoded ahead of their use.

        With `pinned` they lie in memory that a GPU copies from by itself.
        """
        # As it is now: what is decoded in the meantime is still to come from `decoded`.
        missing = None if self._missing is None else self._missing.copy()
        squares = self._squares
        laid_out: deque[Tensor] = deque()
        """Batches whose images are being decoded."""

        def places() -> Iterator[tuple[int, Square]]:
            """Where each image that is to be decoded goes: to its place in memory, or straight into its batch."""
            for group in groups:
                if squares is not None:
                    assert missing is not None
                    yield from ((i, squares.numpy()[i]) for i in group if missing[i])
                else:
                    laid_out.append(self._room(len(group), pinned=pinned))
                    yield from zip(group, laid_out[-1].numpy(), strict=True)

        kept = squares is not None and (missing is None or not missing.any())
        if kept:
            self._end_crew()  # it would sit there to the end of the training
        decoded = iter(()) if kept else self._decode(places())

        def gather(group: tuple[int, ...]) -> Batch:
            for index in group:
                if squares is None or (missing is not None and missing[index]):
                    self._take(index, next(decoded))
            if squares is None:
                return Batch(laid_out.popleft(), group)
            images = self._room(len(group), pinned=pinned)
            # By numpy: torch's threads would spin between copies and take cores from the network. In one call without
            # Python's lock, into memory that is ready, which `squares[group]` does not have.
            np.take(squares.numpy(), group, axis=0, out=images.numpy(), mode="clip")
            return Batch(images, group)

        # Copies to pinned memory, reads of a file and waiting for images take time, so a thread makes batches ahead;
        # memory needs none.
        waits = pinned or self.file is not None or (self.workers > 0 and not kept)
        return ahead(gather, groups, 1 if waits else 0, max_waiting=2)

    def _take(self, index: int, result: Decoded) -> None:
        """Note that an image is decoded. Raises ImageError where it could not be."""
        if isinstance(result, ImageError):
            if self.unread:
                name = self.manifest.names[index]
                raise UnreadError.of(Skipped(name, result.reason, str(result)))
            raise result
        if self._missing is not None:
            self._missing[index] = False
            if self.late and not self.unread:
                self.notes = self.decoding.notes.lines()

    def _room(self, images: int, *, pinned: bool = False) -> Tensor:
        """Memory for so many squares."""
        shape = (images, 3, self.side, self.side)
        return torch.empty(shape, dtype=torch.uint8, pin_memory=pinned)

    def _place(self) -> Keep:
        """Where the squares go: `keep`, or the first place with room for them, the same in all processes."""
        places = self.group.gathered(self.group.by_each(self._own_place))
        return places[0] if len(set(places)) == 1 else "none"

    def _own_place(self) -> Keep:
        needed, memory = len(self) * 3 * self.side**2, free_memory()
        if self.keep == "ram" and needed > memory:
            raise UsageError(
                f"--cache ram: {needed / 1e9:.1f} GB are needed and {memory / 1e9:.1f} GB are free; use --cache disk"
            )
        if self.keep != "auto":
            return self.keep
        if needed <= MEMORY_SHARE * memory:
            return "ram"
        # A file has one writer, for which all others would wait.
        small = self.group.alone and needed <= DISK_SHARE * free_space(self.caches)
        return "disk" if small else "none"

    def _settle(self, aspects: Sequence[float], skipped: list[Skipped], notes: list[str]) -> None:
        self.notes = notes
        self.manifest = self.manifest.without(skipped)
        self.aspects = torch.tensor(aspects)

    def _decode_all(
        self,
        take: Callable[[int, Square], None],
        aspects: MutableSequence[float],
        skipped: list[Skipped],
        part: range | None = None,
    ) -> Iterator[int]:
        """Decode every image, or a part of them, once: call `take` with the number of each usable one and its square.

        Where that fails it is listed as skipped.
        """
        part = range(len(self)) if part is None else part
        results = self._decode((index, None) for index in part)
        for done, (index, result) in enumerate(zip(part, results, strict=True), 1):
            if isinstance(result, ImageError):
                name = self.manifest.names[index]
                skipped.append(Skipped(name, result.reason, str(result)))
            else:
                square, aspect = result
                take(len(aspects), square)
                aspects.append(aspect)
            yield done

    def _decode(self, places: Iterable[tuple[int, Square | None]]) -> Iterator[Decoded]:
        """Images by their positions, in this order, each in the memory that is given for it or in new memory."""
        try:
            yield from ahead(self._load, places, self.workers, patience=PATIENCE)
        except HungError as error:
            assert isinstance(error.item, tuple)
            self._end_crew()
            raise WorkerError(
                f"{self.manifest.shown(error.item[0])}: has not been read after {PATIENCE:.0f} s; "
                "look after the disk or network it lies on, then go on with --resume"
            ) from error

    def _load(self, place: tuple[int, Square | None]) -> Decoded:
        index, out = place
        path = self.manifest.path(index)
        try:
            if self._crew is not None:
                return self._crew.decode(path, out)
            if self.fit == "stretch":
                square, aspect = load_stretched(path, self.side, self.decoding)
            else:
                square, aspect = load_square(path, self.side, self.decoding), 1.0
        except ImageError as error:
            return error
        except MemoryError as error:
            raise WorkerError(
                f"{self.manifest.shown(index)}: memory ran out while it was read; "
                "give fewer --workers or a smaller --max-pixels"
            ) from error
        except LostProcessError as error:
            raise WorkerError(
                f"{self.manifest.shown(index)}: the process that read it has ended ({error}), as when memory runs out; "
                "give fewer --workers or a smaller --max-pixels, then go on with --resume"
            ) from error
        if out is None:
            return square.numpy(), aspect
        out[:] = square.numpy()
        return out, aspect

    def _end_crew(self) -> None:
        if self._crew is not None:
            self._crew.close()


def used_range(manifest: Manifest, decoding: Decoding) -> tuple[float, float]:
    """The range of values that the images use, for `Decoding.stretch`: percentiles over some of them, each alike.

    Raises InputError where floats and integers, or integers of several ranges, are mixed.
    """
    count = min(len(manifest), RANGE_IMAGES)
    found: list[NDArray[np.float64]] = []
    kinds: dict[float | None, str] = {}
    for place in range(count):
        try:
            path = manifest.path(place * len(manifest) // count)
            values, full = load_values(path, RANGE_VALUES, decoding)
        except ImageError:
            continue  # reported with all others when every image is decoded
        if values.size:
            found.append(values)
            kinds.setdefault(full, Path(path).name)
    if len(kinds) > 1:
        told = [
            f"{name} holds " + ("floats" if full is None else f"integers up to {full:g}")
            for full, name in kinds.items()
        ]
        raise InputError(
            f"--stretch: {', '.join(told)}, which have no range in common; train on one kind, or leave it out"
        )
    if not found:
        return 0.0, 1.0
    # A small image has as many votes as a large one.
    places = np.linspace(0, 1, RANGE_VALUES)
    alike = [np.quantile(values, places) for values in found]
    low, high = (float(value) for value in np.quantile(np.stack(alike), PERCENTILES))
    return (low, high) if high > low else (low, low + 1)


def on_device(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """The same batches on the network's device; a GPU copies the next one while it computes."""
    if device.type != "cuda":
        for batch in batches:
            yield Batch(batch.images.to(device), batch.indices)
        return
    side_stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    waiting: deque[tuple[Batch, torch.cuda.Event]] = deque()
    for batch in batches:
        with torch.cuda.stream(side_stream):
            images = batch.images.to(device, non_blocking=True)
            waiting.append((Batch(images, batch.indices), side_stream.record_event()))
        if len(waiting) > 1:
            yield _arrived(*waiting.popleft())
    while waiting:
        yield _arrived(*waiting.popleft())


def _arrived(batch: Batch, copied: torch.cuda.Event) -> Batch:
    """A batch that the current stream may use: it waits for the copy, and the memory waits for the stream."""
    stream = torch.cuda.current_stream(batch.images.device)
    stream.wait_event(copied)
    batch.images.record_stream(stream)
    return batch


def _known(found: tuple[Sequence[float], Sequence[Skipped]]) -> int:
    """How many images the lists of aspects and of skipped files tell of."""
    return len(found[0]) + len(found[1])


class EpochBatches(Sequence[tuple[int, ...]]):
    """Batches of positions, cut from one array when they are asked for: an epoch needs no object for each image."""

    def __init__(self, order: NDArray[np.int64], batch_size: int) -> None:
        """`order`: all positions, whole batches of them."""
        assert len(order) % batch_size == 0, "whole batches"
        self._order = order.reshape(-1, batch_size)

    def __len__(self) -> int:
        return len(self._order)

    @overload
    def __getitem__(self, place: int) -> tuple[int, ...]: ...

    @overload
    def __getitem__(self, place: slice) -> EpochBatches: ...

    def __getitem__(self, place: int | slice) -> tuple[int, ...] | EpochBatches:
        if isinstance(place, slice):
            return EpochBatches(self._order[place].reshape(-1), self._order.shape[1])
        return tuple(self._order[place].tolist())

    def part(self, shard: Shard) -> EpochBatches:
        """One process's part of every batch: the same places of it."""
        own = shard.part(self._order.shape[1])
        return EpochBatches(self._order[:, own.start : own.stop].reshape(-1), len(own))


def epoch_batches(images: int, batch_size: int, *, seed: int, epoch: int) -> EpochBatches:
    """Positions of each full batch of an epoch; the incomplete last batch is dropped."""
    order = generator(seed, Stream.ORDER, epoch).permutation(images)
    return EpochBatches(order[: images - images % batch_size], batch_size)


def left_out(images: int, batch_size: int, *, seed: int, epoch: int) -> list[int]:
    """Positions of the images of the incomplete last batch."""
    order = generator(seed, Stream.ORDER, epoch).permutation(images)
    rest: list[int] = order[images - images % batch_size :].tolist()
    return rest
