"""Rows about what the default recipe does around its network steps: by part, and how it grows with the images.

Every part is counted by the clocks of the whole process while the main thread is in it; work of a step lies in `steps`,
with what is read there of images that no fit has seen. The set is the same contents again and again, which cost
what others do.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from material import copies, jpegs
from measure import Row, in_new_process, peak_bytes

from densesiam_seg.clustering.mixture import Mixture
from densesiam_seg.images.store import ImageStore
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.methods import densesiam, described
from densesiam_seg.methods.described import Described
from densesiam_seg.network.description import Description
from densesiam_seg.training import loop, setup, train

SIDE = 64
"""The recipe's settings at a smaller size, so that ten thousand images are read in minutes."""
STEPPED = 1_000
"""From more images on there is no step (`--epochs 0`): what comes before the first is the same."""
STEPS = "steps"
PARTS: tuple[tuple[Any, str, str], ...] = (
    (train, "scan", "listing the images"),
    (ImageStore, "prepare", "decoding"),
    (setup, "build_method", "building the network"),
    (setup, "load_encoder", "loading weights"),
    (Described, "_read", "passes of the backbone"),
    (Description, "fit", "fitting the description"),
    (Described, "_sample", "describing and sampling"),
    (described, "find_directions", "clusters of learned features"),
    (described, "find_gaussians", "clusters of appearance"),
    (Described, "_teach", "shares of clusters"),
    (densesiam, "fit_mixture", "places of a mixture"),
    (Mixture, "fitting", "fits of a mixture"),
    (loop.Training, "_advance", STEPS),
    (train, "save_checkpoint", "checkpoints"),
    (Segmenter, "save", "saving the model"),
)
"""Who does it, by which name, and what the part is called."""


class Clocks:
    """Wall and processor seconds of each part, less those of the parts inside it."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}
        self._inside = ["all else"]
        self._since = _now()

    @contextmanager
    def of(self, part: str) -> Iterator[None]:
        """Count what is done in the block for this part."""
        self.note()
        self._inside.append(part)
        try:
            yield
        finally:
            self.note()
            self._inside.pop()

    def note(self) -> None:
        """Count what was done since the last note for the part that is being done."""
        now = _now()
        sums = self.seconds.setdefault(self._inside[-1], [0.0, 0.0])
        for place, (later, before) in enumerate(zip(now, self._since, strict=True)):
            sums[place] += later - before
        self._since = now


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def before_rows(scratch: Path, photos: Path | None, counts: tuple[int, ...]) -> Iterator[Row]:
    """Seconds an image outside the network steps: each set's over the smallest set's; the parts are in the notes."""
    sources = jpegs(scratch / "before", 100, (160, 120), photos)
    smallest = 0.0
    for count in counts:
        folder = copies(scratch / f"before-{count}", sources, count)
        settings = {"image_size": SIDE} | ({"epochs": 0} if count > STEPPED else {})
        out = str(scratch / f"run-{count}")
        parts, peak = in_new_process(profile, str(folder), out, settings)
        for name, (wall, processor) in sorted(parts.items(), key=lambda each: -each[1][1]):
            cores = processor / max(wall, 1e-9)
            print(
                f"    {count:>6,} images, {name:<30} {processor:8.2f} s of processor, {cores:4.1f} cores"
            )
        seconds = sum(processor for name, (_, processor) in parts.items() if name != STEPS) / count
        smallest = smallest or seconds
        yield Row(
            f"before the network: seconds an image, {count:,} images / {counts[0]:,}",
            seconds / smallest,
            seconds / smallest,
            seconds / smallest,
            limit=1.0 if count > counts[0] else None,
            note=f"{1e3 * seconds:.0f} ms of processor an image outside steps, size {SIDE}, peak {peak / 1e9:.1f} GB",
        )


def profile(images: str, out: str, settings: dict[str, Any]) -> tuple[dict[str, list[float]], int]:
    """Train with the default recipe: wall and processor seconds of each part, and the most memory."""
    clocks = Clocks()
    for owner, name, part in PARTS:
        setattr(owner, name, counted(getattr(owner, name), clocks, part))
    for _event in train.training_events(images, out=out, **settings):
        pass
    clocks.note()
    return clocks.seconds, peak_bytes()


def counted(work: Callable[..., Any], clocks: Clocks, part: str) -> Callable[..., Any]:
    """The same work, whether it returns or yields, under clocks."""

    @functools.wraps(work)
    def timed(*given: Any, **named: Any) -> Any:
        with clocks.of(part):
            result = work(*given, **named)
        return resumed(result, clocks, part) if isinstance(result, Generator) else result

    return timed


def resumed(
    steps: Generator[Any, None, Any], clocks: Clocks, part: str
) -> Generator[Any, None, Any]:
    """A generator whose every step is counted."""
    while True:
        with clocks.of(part):
            try:
                each = next(steps)
            except StopIteration as end:
                return end.value
        yield each
