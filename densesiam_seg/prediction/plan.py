"""Which images become which files, decided before any work."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from densesiam_seg.errors import UsageError
from densesiam_seg.images.manifest import Manifest
from densesiam_seg.io.files import longest_name, means_a_file
from densesiam_seg.prediction.earlier import is_whole, require_own_list
from densesiam_seg.prediction.georeference import require_rasterio
from densesiam_seg.prediction.names import fitting_names, mask_names
from densesiam_seg.prediction.video import frame_mask, is_video, require_av
from densesiam_seg.prediction.wanted import SUFFIXES, Wanted

FAILED = "failed.jsonl"


@dataclass(frozen=True)
class Plan:
    """Which images become which files; videos come last."""

    folder: Path
    sources: tuple[str, ...]
    targets: tuple[Path, ...]
    """The name of each image's mask, which others go by; of a video the folder of its frames."""
    wanted: Wanted
    done: int = 0
    """Images of an earlier run that `resume` leaves as they are."""
    damaged: int = 0
    """Those that it makes again, as some of their files are not whole."""
    failures: Path | None = None
    """Where a job of several images lists those that failed."""
    single: bool = False
    """Whether `out` was the name of the mask itself."""
    shortened: int = 0
    """Names of masks that had to be cut, as the disk takes none of their length."""
    resume: bool = False

    @property
    def noted(self) -> bool:
        """Whether folders keep a note of the files written there (`io.outputs`), so that they are no inputs later."""
        return not self.single

    @property
    def stills(self) -> int:
        """How many sources are images; the others are videos."""
        return sum(not is_video(source) for source in self.sources)

    def files(self, place: int) -> dict[str, Path]:
        """Where the files of an image lie, by what they are."""
        return self.wanted.files(self.targets[place], own_name=self.single)


def plan(
    manifest: Manifest,
    out: Path,
    *,
    overwrite: bool = False,
    resume: bool = False,
    wanted: Wanted | None = None,
) -> Plan:
    """Decide the name of every file before any work.

    `out` is the mask's own name for one image when it ends as masks do, else a folder that keeps sub-folders and stems.
    Raises UsageError for targets that exist already (unless `overwrite` or, where they are masks, `resume`), would
    overwrite an input, or need a package that is not there.
    """
    sources = [manifest.path(index) for index in range(len(manifest))]
    order = sorted(range(len(sources)), key=lambda index: is_video(sources[index]))
    sources = [sources[index] for index in order]
    names = [manifest.names[index] for index in order]
    single = out.suffix.lower() in SUFFIXES and not os.path.isdir(out)  # noqa: PTH112
    wanted = wanted or Wanted()
    shortened = 0
    if single:
        wanted = wanted.settled(SUFFIXES[out.suffix.lower()])
        _require_single(out, sources)
        folder, targets = out.parent, [out]
    else:
        _require_folder(out)
        folder = out
        targets, shortened = _targets(names, out, wanted)
    _require_packages(sources, wanted)
    kept, damaged = _kept(sources, targets, wanted, single, overwrite=overwrite, resume=resume)
    left = [place for place in range(len(sources)) if place not in kept]
    failures = folder / FAILED if len(sources) > 1 or any(map(is_video, sources)) else None
    if failures is not None:
        require_own_list(failures)
    return Plan(
        folder,
        tuple(sources[place] for place in left),
        tuple(targets[place] for place in left),
        wanted,
        done=len(kept),
        damaged=damaged,
        failures=failures,
        single=single,
        shortened=shortened,
        resume=resume,
    )


def _require_single(out: Path, sources: list[str]) -> None:
    """Raises UsageError where one file cannot hold what is to be written."""
    if len(sources) != 1:
        raise UsageError(
            f"--out {out}: is one file, but there are {len(sources)} images; give a folder"
        )
    if is_video(sources[0]):
        raise UsageError(f"--out {out}: is one file, but a video has many frames; give a folder")


def _require_folder(out: Path) -> None:
    """Raises UsageError for what is no folder and would not be meant as one."""
    remedy = "give a folder or a name ending in .png, .tif or .npy"
    if means_a_file(out):
        raise UsageError(f"--out {out}: masks are PNG, TIFF or NumPy arrays; {remedy}")
    if os.path.exists(out) and not os.path.isdir(out):  # noqa: PTH110, PTH112
        raise UsageError(f"--out {out}: is a file of another kind; {remedy}")


def _require_packages(sources: Iterable[str], wanted: Wanted) -> None:
    """Raises UsageError where a source needs a package that is not installed."""
    sources = list(sources)
    video = next(filter(is_video, sources), None)
    if video is not None:
        require_av(video)
    if wanted.form == "tiff":
        require_rasterio(source for source in sources if not is_video(source))


def _targets(names: list[str], out: Path, wanted: Wanted) -> tuple[list[Path], int]:
    """Where the masks lie below a folder, and how many of their names had to be cut."""
    stills = [name for name in names if not is_video(name)]
    videos = names[len(stills) :]
    ends = list(wanted.ends.values())
    found = mask_names(stills, ends)
    # Other files have longer names than the mask.
    longer = max(len(os.fsencode(end)) for end in ends) - len(wanted.suffix)
    longest = longest_name(out) - max(longer, 0)
    fitting = fitting_names(found, longest, wanted.suffix)
    shortened = sum(one + wanted.suffix != other for one, other in zip(found, fitting, strict=True))
    return [out / name for name in (*fitting, *videos)], shortened


def _kept(
    sources: list[str],
    targets: list[Path],
    wanted: Wanted,
    single: bool,
    *,
    overwrite: bool,
    resume: bool,
) -> tuple[set[int], int]:
    """The places whose files are all there and stay, and how many have some that are damaged. Raises UsageError."""
    inputs = {os.path.realpath(source) for source in sources}
    kept: set[int] = set()
    damaged = 0
    for place, (source, target) in enumerate(zip(sources, targets, strict=True)):
        if is_video(source):
            _require_new_video(target, inputs, allowed=overwrite or resume)
            continue
        written = wanted.files(target, own_name=single).values()
        for path in written:
            if os.path.realpath(path) in inputs:
                raise UsageError(f"{path}: would overwrite an input image; give another --out")
            # A folder in a mask's place is the failure of that image alone.
            if not (overwrite or resume) and _exists(path) and not os.path.isdir(path):  # noqa: PTH112
                raise UsageError(
                    f"{path}: exists already; give --overwrite, --resume or another --out"
                )
        found = [is_whole(path) for path in written if os.path.isfile(path)] if resume else []  # noqa: PTH113
        if len(found) == len(written) and all(found):
            kept.add(place)
        else:
            damaged += not all(found)
    return kept, damaged


def _require_new_video(folder: Path, inputs: set[str], *, allowed: bool) -> None:
    """Raises UsageError for a folder of frames that holds some already, or has the name of an input."""
    if os.path.realpath(folder) in inputs:
        raise UsageError(f"{folder}: is an input itself; give another --out")
    if not allowed and os.path.isdir(folder) and any(folder.glob(frame_mask("*"))):  # noqa: PTH112
        raise UsageError(
            f"{folder}: holds frames already; give --overwrite, --resume or another --out"
        )


def _exists(path: Path) -> bool:
    # `Path.exists` raises where a folder may not be entered or a name is too long.
    return os.path.lexists(path)
