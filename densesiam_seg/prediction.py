"""`predict`: images → masks at their own size, under their own names.

Decoding and writing run in threads beside the network.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from densesiam_seg.batches import ahead
from densesiam_seg.devices import available_cores
from densesiam_seg.errors import (
    DenseSiamError,
    ImageError,
    InputError,
    PartialError,
    StoppedError,
    UsageError,
)
from densesiam_seg.files import make_folder, replace_file
from densesiam_seg.images import MAX_PIXELS, load_image
from densesiam_seg.manifest import Manifest, Skipped
from densesiam_seg.masks import encode_jpeg, overlay, write_mask
from densesiam_seg.records import Records
from densesiam_seg.segmenter import Segmenter
from densesiam_seg.signals import stop_requests

FAILED = "failed.jsonl"


@dataclass(frozen=True)
class Predicted:
    """One image is done: where its mask lies, or why there is none."""

    image: str
    mask: Path | None
    error: ImageError | None = None


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
    segmenter: Segmenter, work: Plan, *, overlays: bool = False, max_pixels: int = MAX_PIXELS
) -> Iterator[Predicted]:
    """Write the planned masks (and overlays), one event per image.

    Images that cannot be read are reported as events and listed in `failed.jsonl`; the others are done. Raises
    OutputError, and StoppedError when a signal asks to stop: every mask on the disk is whole.
    """
    for folder in sorted({work.folder, *(target.parent for target in work.targets)}):
        make_folder(folder)

    def load(source: str) -> Tensor | ImageError:
        try:
            return load_image(source, max_pixels=max_pixels)
        except ImageError as error:
            return error

    def masks() -> Iterator[tuple[str, Path, Tensor | ImageError, NDArray[np.integer] | None]]:
        images = ahead(load, work.sources, available_cores(), each=1)
        for source, target, image in zip(work.sources, work.targets, images, strict=True):
            if stop:
                raise StoppedError("stopped; finish with --resume", stop.number)
            yield (
                source,
                target,
                image,
                segmenter.predict(image) if isinstance(image, Tensor) else None,
            )

    def write(item: tuple[str, Path, Tensor | ImageError, NDArray[np.integer] | None]) -> Predicted:
        source, target, image, mask = item
        if isinstance(image, ImageError) or mask is None:
            assert isinstance(image, ImageError)
            return Predicted(source, None, image)
        write_mask(target, mask, segmenter.palette)
        if overlays:
            _write_overlay(target, image, mask, segmenter)
        return Predicted(source, target)

    if work.failures is not None:
        work.failures.unlink(missing_ok=True)
    with stop_requests() as stop:
        for result in ahead(write, masks(), available_cores(), each=1):
            if result.error is not None and work.failures is not None:
                with Records(work.failures) as records:
                    record = {
                        "path": result.image,
                        "reason": result.error.reason,
                        "message": str(result.error),
                    }
                    records.append(record)
            yield result


def predict(
    segmenter: Segmenter,
    manifest: Manifest,
    out: str | Path,
    *,
    overlays: bool = False,
    overwrite: bool = False,
) -> list[Predicted]:
    """Write masks for all images of a manifest; the results of `predict_events` as a list."""
    work = plan(manifest, Path(out), overwrite=overwrite, overlays=overlays)
    return list(predict_events(segmenter, work, overlays=overlays))


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


def _write_overlay(
    target: Path, image: Tensor, mask: NDArray[np.integer], segmenter: Segmenter
) -> None:
    picture = overlay(image.permute(1, 2, 0).numpy(), mask, segmenter.palette)
    replace_file(overlay_path(target), encode_jpeg(Image.fromarray(picture)), sync=False)
