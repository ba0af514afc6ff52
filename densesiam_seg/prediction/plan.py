"""Which images become which files, decided before any work.

A job may be done in parts (`Plan.part`) by several processes; which part does what is a pure function of the list of
images. The names of all masks are decided first, so the parts together write the very files of a single process.
"""

from __future__ import annotations

import hashlib
import os
from array import array
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from pathlib import Path

import numpy as np

from densesiam_seg.errors import UsageError
from densesiam_seg.images.manifest import Manifest
from densesiam_seg.io.files import longest_name, means_a_file
from densesiam_seg.peers.shard import Shard
from densesiam_seg.prediction.earlier import require_own_list
from densesiam_seg.prediction.georeference import require_rasterio
from densesiam_seg.prediction.names import Derived, Fitting, fitting_names, mask_names
from densesiam_seg.prediction.video import frame_mask, is_video, require_av
from densesiam_seg.prediction.wanted import SUFFIXES, Wanted

FAILED = "failed.jsonl"


@dataclass(frozen=True)
class Plan:
    """Which images become which files; videos come last. It can be pickled, and holds no object per image."""

    manifest: Manifest
    """All images of the job."""
    folder: Path
    order: Sequence[int]
    """Their numbers in the manifest: images, then videos."""
    names: Sequence[str]
    """The names of the masks of all images below the folder."""
    wanted: Wanted
    places: Sequence[int]
    """Those of `order` that are this part's."""
    shard: Shard | None = None
    """Which part it is of a job in shards; None for a job in one process."""
    single: bool = False
    """Whether `out` was the name of the mask itself."""
    shortened: int = 0
    """Names of masks that had to be cut, as the disk takes none of their length."""
    overwrite: bool = False
    resume: bool = False

    @property
    def sources(self) -> Sequence[str]:
        """Where the images and videos lie."""
        return Derived(self._source, self.places)

    @property
    def targets(self) -> Sequence[Path]:
        """The name of each image's mask, which others go by; of a video the folder of its frames."""
        return Derived(self._target, self.places)

    def _source(self, place: int) -> str:
        return self.manifest.path(self.order[place])

    def _target(self, place: int) -> Path:
        if place < len(self.names):
            return self.folder / self.names[place]
        return self.folder / self.manifest.names[self.order[place]]

    def stamp(self, place: int) -> int:
        """When an image or video was changed last, in milliseconds."""
        return self.manifest.mtimes_ms[self.order[self.places[place]]]

    @property
    def noted(self) -> bool:
        """Whether folders keep a note of the files written there (`io.outputs`), so that they are no inputs later."""
        return not self.single

    @property
    def stills(self) -> int:
        """How many sources are images; the others are videos."""
        return bisect_left(self.places, len(self.names))

    def files(self, place: int) -> dict[str, Path]:
        """Where the files of an image lie, by what they are."""
        return self.wanted.files(self.targets[place], own_name=self.single)

    @property
    def keeps(self) -> bool:
        """Whether files of an earlier run stay that are as this one would make them."""
        return self.resume or self.shard is not None

    @property
    def failures(self) -> Path | None:
        """Where a job of several images lists those that failed."""
        if self.shard is not None:
            return self.folder / f"failed-{self.shard.index}-of-{self.shard.count}.jsonl"
        several = len(self.order) > 1 or len(self.order) > len(self.names)
        return self.folder / FAILED if several else None

    @property
    def note(self) -> str:
        """What tells the notes of outputs (`io.outputs`) of this process from others'; empty for a single process."""
        return "" if self.shard is None else f"{self.shard.index}-of-{self.shard.count}"

    @cached_property
    def images(self) -> str:
        """SHA-256 of the names of all images: shards of unlike lists would leave some out."""
        total = hashlib.sha256()
        for name in self.manifest.names:
            total.update(f"{name}\0".encode("utf-8", "surrogatepass"))
        return total.hexdigest()

    def part(self, shard: Shard) -> Plan:
        """A shard of the job: neighbours in the list of images, and neighbours in that of videos."""
        stills = len(self.names)
        own = shard.part(stills)
        videos = [stills + number for number in shard.part(len(self.order) - stills)]
        return replace(self, shard=shard, places=array("q", chain(own, videos)) if videos else own)

    def left(self, places: Sequence[int]) -> Plan:
        """The same with these of its places alone."""
        return replace(self, places=array("q", (self.places[place] for place in places)))


def plan(
    manifest: Manifest,
    out: Path,
    *,
    overwrite: bool = False,
    resume: bool = False,
    wanted: Wanted | None = None,
    shard: Shard | None = None,
) -> Plan:
    """Decide the name of every file before any work.

    `out` is the mask's own name for one image when it ends as masks do, else a folder that keeps sub-folders and stems.
    With `shard` it is the plan of that part of the job; `Shard()` is all of it, to be dealt out by `Plan.part`.

    Raises UsageError for targets that exist already (unless `overwrite`, `resume` or a shard's, which are looked at
    once it is known what would be made), would overwrite an input, or need a package that is not there.
    """
    videos = [index for index, name in enumerate(manifest.names) if is_video(name)]
    order: Sequence[int] = range(len(manifest))
    if videos:
        stills = np.setdiff1d(np.arange(len(manifest)), videos, assume_unique=True)
        order = array("q", chain(stills.tolist(), videos))
    single = out.suffix.lower() in SUFFIXES and not os.path.isdir(out)  # noqa: PTH112
    wanted = wanted or Wanted()
    if single:
        wanted = wanted.settled(SUFFIXES[out.suffix.lower()])
        _require_single(out, manifest, videos, shard)
        folder, names, shortened = out.parent, Fitting([out.stem], out.suffix, {}), 0
    else:
        _require_folder(out)
        folder = out
        names = _names(manifest, order[: len(order) - len(videos)], out, wanted)
        shortened = len(names.cut)
    whole = range(len(order))
    work = Plan(manifest, folder, order, names, wanted, whole, None, single, shortened, overwrite, resume)  # fmt: skip
    work = work if shard is None else work.part(shard)
    _require_packages(work)
    _require_places(work)
    return work


def _require_single(
    out: Path, manifest: Manifest, videos: Sequence[int], shard: Shard | None
) -> None:
    """Raises UsageError where one file cannot hold what is to be written."""
    if len(manifest) != 1:
        raise UsageError(
            f"--out {out}: is one file, but there are {len(manifest)} images; give a folder"
        )
    if videos:
        raise UsageError(f"--out {out}: is one file, but a video has many frames; give a folder")
    if shard is not None:
        raise UsageError(f"--out {out}: is one file, and cannot be made in shards; give a folder")


def _require_folder(out: Path) -> None:
    """Raises UsageError for what is no folder and would not be meant as one."""
    remedy = "give a folder or a name ending in .png, .tif or .npy"
    if means_a_file(out):
        raise UsageError(f"--out {out}: masks are PNG, TIFF or NumPy arrays; {remedy}")
    if os.path.exists(out) and not os.path.isdir(out):  # noqa: PTH110, PTH112
        raise UsageError(f"--out {out}: is a file of another kind; {remedy}")


def _require_packages(work: Plan) -> None:
    """Raises UsageError where a source needs a package that is not installed."""
    for video in work.sources[work.stills :][:1]:
        require_av(video)
    if work.wanted.form == "tiff":
        require_rasterio(work.sources[: work.stills])


def _names(manifest: Manifest, stills: Sequence[int], out: Path, wanted: Wanted) -> Fitting:
    """What the masks of images are called below a folder."""
    names: Sequence[str] = manifest.names
    if len(stills) < len(names):
        names = Derived(names.__getitem__, stills)
    ends = list(wanted.ends.values())
    # Other files have longer names than the mask.
    longer = max(len(os.fsencode(end)) for end in ends) - len(wanted.suffix)
    longest = longest_name(out) - max(longer, 0)
    return fitting_names(mask_names(names, ends), longest, wanted.suffix)


def _require_places(work: Plan) -> None:
    """Raises UsageError for files that may not be written where they would lie."""
    if work.failures is not None:
        require_own_list(work.failures)
    if not os.path.isdir(work.folder):  # noqa: PTH112
        return
    for tar in () if work.single else work.manifest.tars:
        if os.path.isfile(work.folder / tar):  # noqa: PTH113
            raise UsageError(
                f"{work.folder / tar}: is a file where a folder for the masks of its images would be; "
                "give another --out"
            )
    allowed = work.overwrite or work.keeps
    inputs = _Inputs(work.manifest)
    for place, target in enumerate(work.targets):
        if place >= work.stills:
            _require_new_video(target, inputs, allowed=allowed)
            continue
        for path in work.files(place).values():
            # `Path.exists` raises where a folder may not be entered or a name is too long.
            if not os.path.lexists(path):
                continue
            if path in inputs:
                raise UsageError(f"{path}: would overwrite an input image; give another --out")
            # A folder in a mask's place is the failure of that image alone.
            if not allowed and not os.path.isdir(path):  # noqa: PTH112
                raise UsageError(
                    f"{path}: exists already; give --overwrite, --resume or another --out"
                )


def _require_new_video(folder: Path, inputs: _Inputs, *, allowed: bool) -> None:
    """Raises UsageError for a folder of frames that holds some already, or has the name of an input."""
    if os.path.lexists(folder) and folder in inputs:
        raise UsageError(f"{folder}: is an input itself; give another --out")
    if not allowed and os.path.isdir(folder) and any(folder.glob(frame_mask("*"))):  # noqa: PTH112
        raise UsageError(
            f"{folder}: holds frames already; give --overwrite, --resume or another --out"
        )


@dataclass
class _Inputs:
    """Tells whether a file that is there is one of the inputs, by any name; they are looked up when that is asked."""

    manifest: Manifest
    _folders: dict[str, str] = field(default_factory=dict)

    def __contains__(self, path: Path) -> bool:
        place = np.searchsorted(self._known, (sought := hash(self._real(str(path)))))
        return bool(place < len(self._known) and self._known[place] == sought)

    @cached_property
    def _known(self) -> np.ndarray:
        """Hashes of 64 bits, sorted."""
        paths = (self.manifest.path(index) for index in range(len(self.manifest)))
        return np.sort(np.frombuffer(array("q", (hash(self._real(path)) for path in paths)), "q"))

    def _real(self, path: str) -> str:
        """`os.path.realpath`, with each folder looked up once."""
        if os.path.islink(path):  # noqa: PTH114
            return os.path.realpath(path)
        folder, name = os.path.split(path)
        if folder not in self._folders:
            self._folders[folder] = os.path.realpath(folder)
        return os.path.join(self._folders[folder], name)  # noqa: PTH118
