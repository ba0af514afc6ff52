"""`export masks`: images and their masks in the layout of another program, whole or not at all.

Axes: K clusters, H W image.
"""

from __future__ import annotations

import hashlib
import json
import os
import unicodedata
import zipfile
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from densesiam_seg.errors import ImageError, OutputError, UsageError
from densesiam_seg.events import Notice, Predicted
from densesiam_seg.exporting.dataset import IGNORED, IGNORED_16, UNLABELLED, Ids, Layout, Sample
from densesiam_seg.exporting.folders import HuggingFace, LightlyTrain, Mmseg
from densesiam_seg.exporting.labelling import Labelme, LabelStudio
from densesiam_seg.exporting.objects import Coco, Yolo
from densesiam_seg.exporting.voc import Cvat, Voc
from densesiam_seg.images.decode import image_size
from densesiam_seg.images.decoding import Decoding
from densesiam_seg.images.labels import load_label
from densesiam_seg.images.manifest import Manifest
from densesiam_seg.images.opening import SUFFIXES
from densesiam_seg.inference.options import AS_TRAINED, Refinement
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.io.files import (
    concerns_one_file,
    longest_name,
    means_a_file,
    new_folder,
    remove,
    replace_json,
    replacing,
    sync_folders,
    temporary_name,
)
from densesiam_seg.io.outputs import note_outputs
from densesiam_seg.io.parallel import on_own_cores
from densesiam_seg.io.signals import stop_requests
from densesiam_seg.naming.clusters import Cluster, grouping
from densesiam_seg.pictures.masks import LARGEST_8_BIT
from densesiam_seg.prediction.batching import Group, groups, in_order
from densesiam_seg.prediction.names import fitting_names, mask_names
from densesiam_seg.prediction.scoring import Scored, Scorer
from densesiam_seg.prediction.wanted import TILE

LAYOUTS: dict[str, type[Layout]] = {
    layout.name(): layout
    for layout in (
        Voc,
        Cvat,
        LabelStudio,
        Labelme,
        Coco,
        Yolo,
        Mmseg,
        LightlyTrain,
        HuggingFace,
    )
}
MARKER = ".densesiam-seg-export.json"
"""In a folder that an export wrote: its format, and what lies in the folder."""
_ILLEGIBLE = ("Cc", "Cs", "Zl", "Zp")
"""Unicode's categories of control characters, surrogates, and what separates lines."""
_SPARE = len(".json")
"""Bytes of a file's name that its suffix may take beyond a mask's."""


@dataclass(frozen=True)
class ExportPlan:
    """Which images go where, under which names."""

    out: Path
    layout: type[Layout]
    sources: tuple[str, ...]
    stems: tuple[str, ...]
    """Unique, with sub-folders."""
    masks: tuple[Path, ...] | None = None
    """Where the masks lie; None: they are predicted."""


def plan_masks(
    manifest: Manifest,
    out: Path,
    layout: str,
    *,
    masks: Path | None = None,
    overwrite: bool = False,
) -> ExportPlan:
    """Decide all names before any work.

    `masks` is a folder that `predict` wrote for these images. Raises UsageError for an output that exists already
    (unless `overwrite` and an export wrote it) or would overwrite an input, and for a format whose package is missing.
    """
    kind = LAYOUTS[layout]
    if kind is Coco and find_spec("pycocotools") is None:
        raise UsageError(
            "--format coco: needs the package pycocotools; pip install 'densesiam-seg[coco]'"
        )
    sources = tuple(manifest.path(index) for index in range(len(manifest)))
    names = mask_names(manifest.names)
    if masks is not None and not os.path.isdir(masks):  # noqa: PTH112
        raise UsageError(f"--masks {masks}: no such folder; give one that predict wrote")
    _require_place(out, kind, overwrite=overwrite)
    _require_apart(out, [*sources, *([] if masks is None else [str(masks)])])
    stems = fitting_names([_legible(name) for name in names], longest_name(out) - _SPARE)
    written = None
    if masks is not None:
        fitting = fitting_names(names, longest_name(masks))
        written = tuple(_written(masks / name) for name in fitting)
    return ExportPlan(
        out, kind, sources, tuple(stem.removesuffix(".png") for stem in stems), written
    )


def _legible(name: str) -> str:
    """A name that lists in UTF-8 can hold: with `_` for bytes that are no text and for ends of lines, and a digest."""
    found = "".join("_" if unicodedata.category(c) in _ILLEGIBLE else c for c in name)
    if found == name:
        return name
    return f"{found}-{hashlib.sha256(os.fsencode(name)).hexdigest()[:8]}"


def _written(mask: Path) -> Path:
    """Where predict wrote a mask: a PNG, or a TIFF where it was told so."""
    other = mask.with_suffix(".tif")
    return other if not os.path.exists(mask) and os.path.exists(other) else mask  # noqa: PTH110


def _require_place(out: Path, layout: type[Layout], *, overwrite: bool) -> None:
    """Raises UsageError for a place of another kind, and for one that is taken."""
    exists = os.path.lexists(out)
    if layout.archive:
        if out.suffix.lower() != ".zip" or os.path.isdir(out):  # noqa: PTH112
            raise UsageError(f"--out {out}: is one zip file; give a name ending in .zip")
        if exists and not overwrite:
            raise UsageError(f"--out {out}: exists already; give --overwrite or another name")
        return
    if means_a_file(out) or (exists and not os.path.isdir(out)):  # noqa: PTH112
        raise UsageError(f"--out {out}: --format {layout.name()} is a folder; give the name of one")
    if not exists or not any(out.iterdir()):
        return
    if not overwrite:
        raise UsageError(f"--out {out}: exists already; give --overwrite or another folder")
    if not (out / MARKER).is_file():
        raise UsageError(
            f"--out {out}: is not empty, and no export wrote it; move it away or give another folder"
        )


def _require_apart(out: Path, inputs: Sequence[str]) -> None:
    """Raises UsageError where the output would replace an input, or a folder that holds one."""
    place = os.path.realpath(out)
    for each in inputs:
        found = os.path.realpath(each)
        if found == place or found.startswith(place + os.sep):
            raise UsageError(f"--out {out}: would overwrite the input {each}; give another --out")


def export_masks(
    work: ExportPlan,
    clusters: Sequence[Cluster],
    segmenter: Segmenter | None,
    decoding: Decoding,
    *,
    refinement: Refinement = AS_TRAINED,
) -> Iterator[Notice | Predicted]:
    """Write the planned export; one event per image, in order, and notices of what was changed.

    `segmenter` is needed where masks are predicted. Images that cannot be used are reported and left out; without any
    other nothing is written. Raises UsageError for more clusters than the format holds, OutputError, and StoppedError
    when a signal asks to stop, which leaves nothing behind.
    """
    try:
        with _place(work) as folder:
            layout = work.layout(folder, clusters, decoding)
            yield from _changed(layout, clusters)
            found = yield from _samples(work, layout, clusters, segmenter, refinement)
            if not found:
                raise _NothingError
            layout.finish(found)
            _note(layout, work)
    except _NothingError:
        return


class _NothingError(Exception):
    """No image could be used: the folder is given up."""


@contextmanager
def _place(work: ExportPlan) -> Iterator[Path]:
    """An empty folder that becomes the output when the block ends, zipped or as it is."""
    if not work.layout.archive:
        before = _entries(work.out)
        with new_folder(work.out) as folder:
            yield folder
            after = {path.name for path in folder.iterdir()}
        for name in before - after:
            remove(work.out / name)
        return
    place = temporary_name(work.out)
    try:
        with new_folder(place) as folder:
            yield folder
        with (
            replacing(work.out) as file,
            zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive,
        ):
            for path in sorted(place.rglob("*")):
                if path.is_file():
                    archive.write(path, path.relative_to(place).as_posix())
    finally:
        remove(place)


def _entries(out: Path) -> set[str]:
    """What an earlier export wrote right in the folder."""
    try:
        content = json.loads((out / MARKER).read_text("utf-8"))
        return {
            name for name in content["entries"] if os.sep not in name and name not in ("", "..")
        }
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def _changed(layout: Layout, clusters: Sequence[Cluster]) -> Iterator[Notice]:
    """Tell of names that the format, or two clusters of one name, did not leave as they are."""
    changed = [
        f"{clusters[label.cluster].name!r} is {label.name!r}"
        for label in layout.labels.entries
        if clusters[label.cluster].name != label.name
    ]
    if changed:
        yield Notice(f"names that --format {layout.name()} cannot hold: {', '.join(changed)}")


def _samples(
    work: ExportPlan,
    layout: Layout,
    clusters: Sequence[Cluster],
    segmenter: Segmenter | None,
    refinement: Refinement,
) -> Generator[Predicted, None, list[Any]]:
    """Write all samples; returns what `Layout.finish` needs of those that went well."""
    scorer = None
    every: Iterator[Group] = (Group((place,), 1) for place in range(len(work.sources)))
    if segmenter is not None:
        # As in `predict` at its defaults, whose masks these are.
        scorer = Scorer(segmenter, layout.decoding, refinement, TILE, only_largest=True)
        every = groups(segmenter, work.sources, None, layout.decoding, TILE)
    job = _Job(work, layout, grouping(clusters), scorer)

    text = "stopped; nothing was written"
    found: list[Any] = []
    with stop_requests() as stop, closing(on_own_cores(job.do, stop.until(every, text))) as results:
        for event, result in in_order(results):
            yield event
            if event.error is None:
                found.append(result)
        stop.require_none(text)
    return found


@dataclass(frozen=True)
class _Job:
    """What is done with each group of images, in several threads at once."""

    work: ExportPlan
    layout: Layout
    table: NDArray[np.int64]
    """The cluster that each is shown as."""
    scorer: Scorer | None

    def do(self, group: Group) -> dict[int, tuple[Predicted, Any]]:
        """The results of a group by the places of its images."""
        if self.scorer is None:
            return {place: self._add(place, partial(self._read, place)) for place in group.places}
        found = self.scorer.of_group(self.work.sources, group)
        return {place: self._add(place, partial(self._mask, each)) for place, each in found}

    def _mask(self, found: Scored | ImageError) -> Ids:
        """The mask that is predicted. Raises ImageError."""
        if isinstance(found, ImageError):
            raise found
        assert self.scorer is not None
        return self.scorer.segmenter.mask(found.scores, *found.size).astype(np.int32)

    def _add(self, place: int, mask_of: Callable[[], Ids]) -> tuple[Predicted, Any]:
        source = self.work.sources[place]
        try:
            result = self.layout.add(Sample(self.work.stems[place], source, mask_of()))
        except ImageError as error:
            return Predicted(source, None, error), None
        except OutputError as error:
            if not concerns_one_file(error):
                raise
            return Predicted(source, None, error), None
        return Predicted(source, self.work.out), result

    def _read(self, place: int) -> Ids:
        """A mask that was predicted before, with the merges of now. Raises ImageError."""
        assert self.work.masks is not None
        path = self.work.masks[place]
        found = load_label(path)
        if found.ndim != 2:
            raise ImageError(
                str(path),
                "bad-values",
                "holds colours",
                "give a folder of masks that predict wrote",
            )
        height, width = image_size(self.work.sources[place], self.layout.decoding)
        if found.shape != (height, width):
            raise ImageError(
                str(path),
                "bad-size",
                f"has {found.shape[1]} x {found.shape[0]} pixels, and its image {width} x {height}",
                "predict it again",
            )
        return self._grouped(path, found)

    def _grouped(self, path: Path, found: np.ndarray[Any, Any]) -> Ids:
        count = len(self.table)
        ignored = IGNORED if count <= LARGEST_8_BIT else IGNORED_16
        bare = found == ignored
        unknown = found[~bare & ((found < 0) | (found >= count))]
        if unknown.size:
            raise ImageError(
                str(path),
                "unknown-cluster",
                f"holds the cluster {int(unknown[0])}, and the model has 0 to {count - 1}",
                "give the model that predicted it",
            )
        mask = self.table[np.where(bare, 0, found)].astype(np.int32)
        mask[bare] = UNLABELLED
        return mask


def _note(layout: Layout, work: ExportPlan) -> None:
    """Note what was written, so that no later run takes copies for photographs; then put all names on the disk."""
    folder = layout.folder
    below = [folder, *sorted(path for path in folder.rglob("*") if path.is_dir())]
    if not work.layout.archive:
        for each in below:
            names = [p.name for p in each.iterdir() if p.suffix.lower() in SUFFIXES]
            if names:
                note_outputs(each, names)
        entries = sorted({path.name for path in folder.iterdir()} | {MARKER})
        replace_json(folder / MARKER, {"format": layout.name(), "entries": entries})
    sync_folders(below)
