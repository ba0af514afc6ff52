"""Stored images → batches, in an order that is a function of (seed, epoch).

Axes: B images, S side of the stored square (twice the view's side).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Literal, TypeVar

import torch
from torch import Tensor

from densesiam_seg.devices import available_cores, free_memory
from densesiam_seg.errors import ImageError
from densesiam_seg.images import load_square, load_stretched
from densesiam_seg.manifest import Manifest, Skipped
from densesiam_seg.randomness import permutation

MEMORY_SHARE = 0.25
"""Share of the machine's free memory that decoded images may take before they are decoded anew in every epoch."""

Fit = Literal["crop", "stretch"]
"""How an image becomes a square: its centre, or the whole of it at another aspect."""

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Batch:
    """uint8 images (B, 3, S, S) and their positions in the manifest."""

    images: Tensor
    indices: tuple[int, ...]


class ImageStore:
    """The usable images of a manifest as uint8 squares: all in memory where they fit, else decoded when asked for."""

    def __init__(
        self,
        manifest: Manifest,
        side: int,
        *,
        fit: Fit = "crop",
        workers: int = -1,
        max_pixels: int,
    ) -> None:
        self.manifest = manifest
        self.side = side
        self.fit = fit
        self.aspects = torch.ones(len(manifest))
        """Width over height (N,) of what the squares show; known after `prepare`."""
        self.max_pixels = max_pixels
        self.workers = available_cores() if workers < 0 else workers
        self._squares: Tensor | None = None

    def __len__(self) -> int:
        return len(self.manifest)

    def prepare(self) -> Iterator[int]:
        """Decode every image once; yields how many are done.

        Bad files leave the manifest for its list of skipped ones, so that positions never shift during training. The
        decoded squares are kept where they fit into memory.
        """
        count = len(self.manifest)
        keep = count * 3 * self.side**2 <= MEMORY_SHARE * free_memory()
        squares = torch.empty((count if keep else 0, 3, self.side, self.side), dtype=torch.uint8)
        aspects: list[float] = []
        bad: list[Skipped] = []
        for done, (index, decoded) in enumerate(
            zip(range(count), self._decode(range(count)), strict=True), 1
        ):
            if isinstance(decoded, ImageError):
                bad.append(Skipped(self.manifest.names[index], decoded.reason, str(decoded)))
            else:
                square, aspect = decoded
                if keep:
                    squares[len(aspects)] = square
                aspects.append(aspect)
            yield done
        self.manifest = self.manifest.without(bad)
        self.aspects = torch.tensor(aspects)
        if keep:
            self._squares = squares[: len(aspects)]

    def batches(self, groups: Sequence[tuple[int, ...]]) -> Iterator[Batch]:
        """One batch for each group of positions, decoded ahead of their use."""
        flat = [index for group in groups for index in group]
        squares = self._decode(flat) if self._squares is None else None
        for group in groups:
            if squares is None:
                assert self._squares is not None
                yield Batch(self._squares[list(group)], group)
            else:
                yield Batch(
                    torch.stack([_sound(square) for square in islice(squares, len(group))]), group
                )

    def _decode(self, indices: Sequence[int]) -> Iterator[tuple[Tensor, float] | ImageError]:
        def load(index: int) -> tuple[Tensor, float] | ImageError:
            path = self.manifest.path(index)
            try:
                if self.fit == "stretch":
                    return load_stretched(path, self.side, max_pixels=self.max_pixels)
                return load_square(path, self.side, max_pixels=self.max_pixels), 1.0
            except ImageError as error:
                return error

        return ahead(load, indices, self.workers)


def ahead(
    work: Callable[[Item], Result], items: Iterable[Item], workers: int, *, each: int = 8
) -> Iterator[Result]:
    """`work` of each item, in order, done by threads ahead of its use; 0 workers: when it is asked for.

    At most `each` times `workers` results wait, so that large ones do not fill the memory. Threads are enough for
    decoding and writing images: Pillow works outside Python's lock.
    """
    if workers == 0:
        yield from map(work, items)
        return
    with ThreadPoolExecutor(workers, thread_name_prefix="ahead") as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > each * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _sound(decoded: tuple[Tensor, float] | ImageError) -> Tensor:
    if isinstance(decoded, ImageError):
        raise decoded
    return decoded[0]


def epoch_batches(images: int, batch_size: int, *, seed: int, epoch: int) -> list[tuple[int, ...]]:
    """Positions of each full batch of an epoch; the remainder of the permutation waits for another epoch."""
    order = permutation(seed, epoch, images).tolist()
    return [tuple(order[i : i + batch_size]) for i in range(0, images - batch_size + 1, batch_size)]
