"""What a run was asked for, kept in its `run.json`: enough to begin it again, and to see which images came since."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

from densesiam_seg.backbones import WORDS
from densesiam_seg.errors import InputError, ModelError, UsageError
from densesiam_seg.images.manifest import Manifest
from densesiam_seg.images.scan import scan
from densesiam_seg.io.run_directory import read_status
from densesiam_seg.presets import Preset

OF_THE_MACHINE = (
    "device",
    "precision",
    "compile",
    "threads",
    "workers",
    "cache",
    "cache_dir",
    "visualize_every",
)
"""Settings that a resumed run may change: other last bits may follow, which it tells, but no other method."""
_MOST = 100_000
"""Characters of inputs that are kept; a program that names more keeps its own list."""


@dataclass(frozen=True)
class Request:
    """The options of `run_events` that a run begins with; paths are absolute."""

    images: tuple[str, ...]
    """Empty where they cannot be had again: from the standard input, or far too many."""
    preset: Preset | None = None
    max_bad: float = 1.0
    init_from: str | None = None
    follow_links: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        images: Sequence[str | Path],
        settings: Mapping[str, Any],
        init_from: str | Path | None,
        **options: Any,
    ) -> Request:
        """The request in a form that does not depend on the current folder."""
        kept = tuple(map(os.path.abspath, images))
        if "-" in images or sum(map(len, kept)) > _MOST:
            kept = ()
        return cls(
            kept,
            init_from=None if init_from is None else os.path.abspath(init_from),  # noqa: PTH100
            settings=anywhere(settings),
            **options,
        )

    def to_dict(self) -> dict[str, Any]:
        """A JSON object."""
        return asdict(self)


def anywhere(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings with a file of weights as it is called from any folder."""
    weights = settings.get("weights")
    if isinstance(weights, str) and weights not in WORDS and os.path.exists(weights):  # noqa: PTH110
        return {**settings, "weights": os.path.abspath(weights)}  # noqa: PTH100
    return settings


def request_of(folder: Path) -> Request | None:
    """The request in a run's `run.json`; None for a run that has none, or none that is sound."""
    found: Any = read_status(folder).get("request")
    try:
        request = Request(**{**found, "images": tuple(map(str, found["images"]))})
    except (TypeError, KeyError):
        return None
    sound = isinstance(request.settings, dict) and request.preset in (None, *get_args(Preset))
    return request if sound else None


def repeatable(folder: Path, command: str, given: Mapping[str, Any]) -> Request:
    """The request of a run that stopped before its first checkpoint, with the settings `given` of the machine.

    Raises ModelError where it cannot be repeated, and UsageError for other settings.
    """
    request = request_of(folder)
    if request is None or not request.images:
        raise ModelError(
            f"{folder}: stopped before its first checkpoint, and its images cannot be found again; "
            f"begin it again with densesiam-seg {command} IMAGES --out {folder} --overwrite"
        )
    require_same(request.settings, given, folder)
    return replace(request, settings={**request.settings, **given})


def require_repeated(folder: Path, request: Request) -> None:
    """Raises UsageError where a run that is to go on was begun with another preset, or from another model."""
    own = request_of(folder)
    if own is None:
        return
    for option, before, now in (
        ("--preset", own.preset, request.preset),
        ("--init-from", own.init_from, request.init_from),
    ):
        if now is not None and now != before:
            raise UsageError(
                f"--resume: the run in {folder} was begun with {option} {before or 'left out'}, not {now}; "
                "leave that option out or choose another --out"
            )


def require_same(settings: Mapping[str, Any], given: Mapping[str, Any], folder: Path) -> None:
    """Raises UsageError for settings `given` to a resumed run that are not its own, but for those of the machine."""
    for name, value in given.items():
        own = settings.get(name)
        if own != value and name not in OF_THE_MACHINE:
            raise UsageError(
                f"--resume: {name} is {'by default' if own is None else repr(own)} in {folder}; a resumed run keeps "
                "its settings, so leave that option out or start a new run with --init-from"
            )


def added(manifest: Manifest, folder: Path) -> list[str]:
    """Images that the inputs of the run in `folder` mean now and did not mean when it began."""
    request = request_of(folder)
    if request is None or not request.images:
        return []
    try:
        pages = request.settings.get("page") == "all"
        now = scan(request.images, follow_links=request.follow_links, out=folder, pages=pages)
    except InputError:  # there is nothing any more, which `Manifest.changed` tells
        return []
    known = {manifest.shown(index) for index in range(len(manifest))}
    known |= {str(Path(manifest.root, item.path)) for item in manifest.skipped}
    found = (now.shown(index) for index in range(len(now)))
    return [path for path in found if path not in known]
