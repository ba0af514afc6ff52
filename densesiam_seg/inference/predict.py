"""`predict`: images → masks at their own size, under their own names.

A core takes an image from the file to the mask on the disk; memory does not grow with the images or their number.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import torch
from PIL import Image
from torch import Tensor

from densesiam_seg.errors import (
    DenseSiamError,
    ImageError,
    InputError,
    PartialError,
    StoppedError,
    UsageError,
)
from densesiam_seg.events import Predicted
from densesiam_seg.images.decode import MAX_PIXELS, load_image
from densesiam_seg.images.manifest import Manifest, Skipped
from densesiam_seg.inference.batching import Group, groups
from densesiam_seg.inference.refinement import AS_TRAINED, Refinement
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.inference.upsampling import mask_bands, upsample_argmax
from densesiam_seg.io.files import make_folder, replace_file
from densesiam_seg.io.parallel import on_own_cores, turns
from densesiam_seg.io.records import Records
from densesiam_seg.io.signals import stop_requests
from densesiam_seg.pictures.masks import encode_jpeg, overlay, write_mask

FAILED = "failed.jsonl"
LARGEST_BATCH = 1024


@dataclass(frozen=True)
class Plan:
    """Which images become which files; `done` counts masks of an earlier run that `resume` leaves as they are.

    `failures` is where a job of several images lists those that failed.
    """

    folder: Path
    sources: tuple[str, ...]
    targets: tuple[Path, ...]
    done: int = 0
    failures: Path | None = None


def plan(
    manifest: Manifest,
    out: Path,
    *,
    overwrite: bool = False,
    resume: bool = False,
    overlays: bool = False,
) -> Plan:
    """Decide the name of every mask before any work.

    `out` is the mask's own name for one image when it ends in `.png`, else a folder that keeps sub-folders and stems;
    where two images share a stem both keep their full name before `.png`. Raises UsageError for targets that exist
    already (unless `overwrite` or `resume`) or that would overwrite an input.
    """
    if out.suffix.lower() == ".png" and not out.is_dir():
        if len(manifest) != 1:
            raise UsageError(
                f"--out {out}: is one file, but there are {len(manifest)} images; give a folder"
            )
        folder, targets = out.parent, [out]
    else:
        if out.exists() and not out.is_dir():
            raise UsageError(
                f"--out {out}: is a file of another kind; give a folder or a name ending in .png"
            )
        folder, targets = out, [out / name for name in mask_names(manifest.names)]
    sources = [manifest.path(index) for index in range(len(manifest))]
    inputs = {os.path.realpath(source) for source in sources}
    kept: set[Path] = set()
    for target in targets:
        written = (target, overlay_path(target)) if overlays else (target,)
        for path in written:
            if os.path.realpath(path) in inputs:
                raise UsageError(f"{path}: would overwrite an input image; give another --out")
            if path.exists() and not (overwrite or resume):
                raise UsageError(
                    f"{path}: exists already; give --overwrite, --resume or another --out"
                )
        if resume and all(path.exists() for path in written):
            kept.add(target)
    pairs = [pair for pair in zip(sources, targets, strict=True) if pair[1] not in kept]
    failures = folder / FAILED if len(manifest) > 1 else None
    return Plan(folder, tuple(s for s, _ in pairs), tuple(t for _, t in pairs), len(kept), failures)


def mask_names(names: Sequence[str]) -> list[str]:
    """`a/x.jpg` → `a/x.png`, but `a/x.jpg.png` where another image is called `a/x` too."""
    stems = [str(PurePosixPath(name).with_suffix("")) for name in names]
    # `x.jpg.jpg` must not become the `x.jpg.png` that `x.jpg` becomes beside `x.png`.
    taken = Counter([*stems, *names])
    return [
        f"{stem if taken[stem] == 1 else name}.png" for stem, name in zip(stems, names, strict=True)
    ]


def overlay_path(mask: Path) -> Path:
    """Where the overlay of a mask lies."""
    return mask.with_name(f"{mask.stem}_overlay.jpg")


def predict_events(
    segmenter: Segmenter,
    work: Plan,
    *,
    overlays: bool = False,
    max_pixels: int = MAX_PIXELS,
    batch_size: int | None = None,
    refinement: Refinement = AS_TRAINED,
) -> Iterator[Predicted]:
    """Write the planned masks (and overlays); one event per image, in the order of the plan.

    `batch_size` images of one working size pass the network together (None: `grouping.images_together`). A mask does
    not depend on the other images or the number of cores; another batch size may round its logits differently.

    Images that cannot be read are reported as events and listed in `failed.jsonl`; the others are done. Raises
    UsageError, OutputError, and StoppedError when a signal asks to stop: every mask on the disk is whole.
    """
    if batch_size is not None and not 1 <= batch_size <= LARGEST_BATCH:
        raise UsageError(f"--batch-size {batch_size}: must be 1 to {LARGEST_BATCH}, or auto")
    for folder in sorted({work.folder, *(target.parent for target in work.targets)}):
        make_folder(folder)
    if work.failures is not None:
        work.failures.unlink(missing_ok=True)

    def until_stopped() -> Iterator[Group]:
        for group in groups(segmenter, work.sources, batch_size):
            if stop:
                raise StoppedError("stopped; finish with --resume", stop.number)
            yield group

    job = _Job(segmenter, work, overlays, max_pixels, refinement, turns(segmenter.device))
    with stop_requests() as stop, closing(on_own_cores(job.do, until_stopped())) as found:
        for result in _in_order(found):
            if result.error is not None and work.failures is not None:
                with Records(work.failures) as records:
                    record = {
                        "path": result.image,
                        "reason": result.error.reason,
                        "message": str(result.error),
                    }
                    records.append(record)
            yield result


@dataclass(frozen=True)
class _Job:
    """What is done with each group of images, in several threads at once."""

    segmenter: Segmenter
    work: Plan
    overlays: bool
    max_pixels: int
    refinement: Refinement
    turn: AbstractContextManager[object]

    def do(self, group: Group) -> dict[int, Predicted]:
        """The results of a group by the places of its images."""
        results: dict[int, Predicted] = {}
        # All of one shape, unless a file has changed since its header was read.
        by_shape: dict[torch.Size, list[tuple[int, Tensor, tuple[int, int]]]] = {}
        for place in group.places:
            source = self.work.sources[place]
            try:
                image, size = self.segmenter.read(source, max_pixels=self.max_pixels)
            except ImageError as error:
                results[place] = Predicted(source, None, error)
            else:
                by_shape.setdefault(image.shape, []).append((place, image, size))
        for ready in by_shape.values():
            images = [image for _, image, _ in ready]
            # The last bits of a forward pass may depend on the size of its batch, so that is always the same.
            images += images[-1:] * (group.full - len(images))
            with self.turn:
                batch = torch.cat(images)
                logits = self.segmenter.scores(batch, self.refinement, len(ready)).cpu()
            for scores, (place, _, size) in zip(logits, ready, strict=False):
                results[place] = self._write(place, scores, size)
        return results

    def _write(self, place: int, logits: Tensor, size: tuple[int, int]) -> Predicted:
        """Logits (K, h, w) → the files of an image of that size (H, W)."""
        source, target = self.work.sources[place], self.work.targets[place]
        if not self.overlays:
            # Band by band, as a large mask need not be in memory.
            write_mask(target, mask_bands(logits, *size), self.segmenter.palette)
            return Predicted(source, target)
        try:
            image = load_image(source, max_pixels=self.max_pixels)
        except ImageError as error:
            return Predicted(source, None, error)
        mask = upsample_argmax(logits, *size).cpu().numpy()
        picture = overlay(image.permute(1, 2, 0).numpy(), mask, self.segmenter.palette)
        write_mask(target, mask, self.segmenter.palette)
        replace_file(overlay_path(target), encode_jpeg(Image.fromarray(picture)), sync=False)
        return Predicted(source, target)


def _in_order(results: Iterable[dict[int, Predicted]]) -> Iterator[Predicted]:
    """Results of groups by the places of their images → results in the order of the places."""
    waiting: dict[int, Predicted] = {}
    next_place = 0
    for found in results:
        waiting |= found
        while next_place in waiting:
            yield waiting.pop(next_place)
            next_place += 1


def predict(
    segmenter: Segmenter,
    manifest: Manifest,
    out: str | Path,
    *,
    overlays: bool = False,
    overwrite: bool = False,
    batch_size: int | None = None,
    refinement: Refinement = AS_TRAINED,
) -> list[Predicted]:
    """Write masks for all images of a manifest; the results of `predict_events` as a list."""
    work = plan(manifest, Path(out), overwrite=overwrite, overlays=overlays)
    events = predict_events(
        segmenter, work, overlays=overlays, batch_size=batch_size, refinement=refinement
    )
    return list(events)


def overall_error(
    results: Sequence[Predicted], skipped: Sequence[Skipped] = (), kept: int = 0
) -> DenseSiamError | None:
    """The error that the whole command ends with: none, the only one, or that some (or all) images failed.

    `kept` counts masks of an earlier run, which are done.
    """
    errors = [result.error for result in results if result.error is not None]
    messages = [item.message for item in skipped] + [str(error) for error in errors]
    if not messages:
        return None
    total = len(results) + len(skipped) + kept
    if total == 1 and errors:
        return errors[0]
    if len(messages) == total:
        return InputError(f"none of the {total} images could be read, first: {messages[0]}")
    return PartialError(
        f"{len(messages)} of {total} images failed, the others are done; first: {messages[0]}"
    )
