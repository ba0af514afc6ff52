"""What a declared dataset is on this disk: the samples of a split."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from densesiam_seg.datasets.declaration import Dataset
from densesiam_seg.datasets.index import Index, kinds
from densesiam_seg.datasets.lists import Entry, ListReader
from densesiam_seg.errors import InputError, UsageError, counted, looked_for


@dataclass(frozen=True)
class Sample:
    """One image with its label; `name` is the image's path below its folder without the suffix."""

    name: str
    image: Path
    label: Path


@dataclass(frozen=True)
class _Found:
    """Of one split; `chosen` are names whose label is not the one that belongs to the name."""

    items: list[Sample] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    chosen: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Samples:
    """The samples of a split, sorted by name; `missing` are names that were asked for and passed over."""

    split: str
    items: tuple[Sample, ...]
    missing: tuple[str, ...]
    expected: int | None
    digest: str
    notes: tuple[str, ...] = ()
    """What was passed over that may be data, for the user."""

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.items)


def samples(
    dataset: Dataset,
    root: str | Path,
    split: str | None = None,
    *,
    list_file: str | Path | None = None,
    allow_missing: bool = False,
    allow_outside: bool = False,
) -> Samples:
    """The samples of `split` (None: the dataset's default) below the folder `root`.

    Names come from `list_file`, else from the split's list if it lies below the root, else they are all images of the
    split's folder. `a+b` joins two splits, whose names then begin with `a/` and `b/`. The digest covers the declaration
    and the names, not the place: where it is equal, the same samples were taken.

    A label that a list names counts, wherever it lies below the root, or anywhere with `allow_outside`; where it is not
    the one that belongs to the image, the digest covers its path too.

    Raises UsageError for a split that is not declared; InputError for folders or a list that are not there, an unusable
    list, no sample at all, two images or labels of one name, and samples without image or label unless `allow_missing`.
    """
    split = dataset.default_split if split is None else split
    parts = _parts(dataset, split)
    if list_file is not None and len(parts) > 1:
        raise UsageError(f"a list file is for one split, not for {split}; give one split")
    items: list[Sample] = []
    missing: list[str] = []
    chosen: list[tuple[str, str]] = []
    notes: list[str] = []
    for part in parts:
        prefix = f"{part}/" if len(parts) > 1 else ""
        found = _find(dataset, part, Path(root), list_file, allow_missing, allow_outside)
        items += [Sample(prefix + each.name, each.image, each.label) for each in found.items]
        missing += [prefix + name for name in found.missing]
        chosen += [(prefix + name, label) for name, label in found.chosen]
        notes += found.notes
    counts = [dataset.splits[part].expected for part in parts]
    expected = sum(count or 0 for count in counts) if None not in counts else None
    items.sort(key=lambda each: each.name)
    digest = _digest(dataset, split, items, chosen)
    return Samples(split, tuple(items), tuple(sorted(missing)), expected, digest, tuple(notes))


def _parts(dataset: Dataset, split: str) -> list[str]:
    parts = split.split("+")
    for part in parts:
        if part not in dataset.splits or parts.count(part) > 1:
            known = ", ".join(dataset.splits)
            raise UsageError(f"{dataset.name} has no split {split!r}; give one of {known}")
    return parts


def _find(
    dataset: Dataset,
    part: str,
    root: Path,
    list_file: str | Path | None,
    allow_missing: bool,
    allow_outside: bool,
) -> _Found:
    """The samples of one split, and the names that lack an image or a label."""
    split = dataset.splits[part]
    if list_file is not None:
        listed: Path | None = Path(list_file)
    else:
        # As `_is_folder`.
        lists = (root / each for each in split.lists)
        listed = next((each for each in lists if os.path.isfile(each)), None)  # noqa: PTH113
    index = Index(dataset, _folder(root, split.images), _folder(root, split.labels))
    reader = ListReader(dataset, index, root, allow_outside=allow_outside)
    entries = [Entry(0, each, each, index.image(each)) for each in index.images]
    if listed is not None:
        entries = reader.read(listed)
    found = _Found(notes=_notes(index, every_image=listed is None))
    lacking: list[Entry] = []
    overruled: list[Entry] = []
    for each in sorted(entries, key=lambda each: each.name):
        paired = index.label(each.name) if each.name in index.images else None
        label = each.label if each.pair else paired
        if each.pair and label and paired and _same(label, paired):
            label = paired
        if each.image is None or label is None:
            lacking.append(each)
            found.missing.append(each.name)
            continue
        if each.image == label:
            raise InputError(
                f"{label}: is both image and label; give a label_suffix or a label folder that tells them apart"
            )
        found.items.append(Sample(each.name, each.image, label))
        if label != paired:
            found.chosen.append((each.name, _below(label, root)))
            if paired is not None:
                overruled.append(each)
    if overruled:
        first = overruled[0]
        found.notes.append(
            f"{counted(len(overruled), 'image')} of {listed} with another label than that of the name, first line "
            f"{first.line}, {first.text!r}: taken as pairs"
        )
    if lacking or not entries:
        _require_folders(dataset, part, root)
    if not entries:
        raise InputError(
            f"{index.image_files.folder}: no image in it ({_endings(dataset)}) but {kinds(index.image_files)}"
            f"{_aside(index)}; check the root"
        )
    if not found.items or (lacking and not allow_missing):
        raise InputError(
            f"{listed or index.image_files.folder}: {_lack(lacking, len(entries), index, dataset, found)}"
            f"{_aside(index)}{_hint(lacking, reader)}; complete the data"
            + (", or allow missing ones (--allow-missing)" if found.items else " or check the root")
        )
    return found


def _lack(lacking: list[Entry], total: int, index: Index, dataset: Dataset, found: _Found) -> str:
    """How many names lack what, and the first of them."""
    images = sum(each.image is None for each in lacking)
    few = ", ".join(map(repr, found.missing[:3])) + (", ..." if len(lacking) > 3 else "")
    whole = f"of {total} names,"
    if not found.items:
        whole = f"none of {total} names has both an image ({_endings(dataset)}) and a label:"
    return (
        f"{whole} {images} have no image in {index.image_files.folder} and "
        f"{len(lacking) - images} no label in {index.label_files.folder} ({few})"
    )


def _hint(lacking: list[Entry], reader: ListReader) -> str:
    """What a list should look like, or what lies where labels should."""
    first = min(lacking, key=lambda each: each.line)
    if first.line:
        return f"; line {first.line} is {first.text!r}, expected is {reader.form()}"
    labels = reader.index.label_files
    return f"; {labels.folder} holds {kinds(labels)}, and labels end in {reader.index.suffix}"


def _folder(root: Path, choices: tuple[str, ...]) -> Path:
    """The first that exists, else the first."""
    return next((root / each for each in choices if _is_folder(root / each)), root / choices[0])


def _is_folder(path: Path) -> bool:
    # `Path.is_dir` raises for what can be no name at all: of a declaration, which is foreign.
    return os.path.isdir(path)  # noqa: PTH112


def _require_folders(dataset: Dataset, part: str, root: Path) -> None:
    split = dataset.splits[part]
    for choices, what in ((split.images, "images"), (split.labels, "labels")):
        if not any(_is_folder(root / each) for each in choices):
            raise InputError(
                f"{root}: no folder {' or '.join(choices)} for the {what} of {dataset.name} {part}"
                f"{looked_for(root)}; give the folder that holds it"
            )


def _endings(dataset: Dataset) -> str:
    return ", ".join(f"*{suffix}" for suffix in dataset.image_suffixes)


def _aside(index: Index) -> str:
    """What links may hide, to follow a clause of an error text."""
    told = {files.folder: files.unfollowed for files in (index.image_files, index.label_files)}
    return "".join(f"; {each}" for each in told.values() if each)


def _notes(index: Index, *, every_image: bool) -> list[str]:
    """What was passed over that may be data."""
    notes: list[str] = []
    if every_image and index.image_files.links:
        notes.append(f"{index.image_files.unfollowed}: images behind them are not scored")
    if index.further:
        notes.append(
            f"{counted(len(index.further), 'file')} in {index.label_files.folder} numbered like a further label of an "
            f"image, first {index.further[0]}: not read, since an image has one label; join them"
        )
    if index.unclaimed:
        notes.append(
            f"{counted(len(index.unclaimed), 'label')} in {index.label_files.folder} without an image, "
            f"first {index.unclaimed[0]}: passed over"
        )
    return notes


def _same(one: Path, other: Path) -> bool:
    """Whether two paths name one file; links are looked up only where the paths do not tell."""
    return any(name(one) == name(other) for name in (os.path.abspath, os.path.realpath))


def _below(path: Path, root: Path) -> str:
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()


def _digest(
    dataset: Dataset, split: str, items: list[Sample], chosen: list[tuple[str, str]]
) -> str:
    classes = [
        {"name": each.name, "kind": each.kind, "colour": each.display_colour, "raw": each.raw}
        for each in dataset.classes
    ]
    declared = [classes, dataset.ignored]
    names = [each.name for each in items]
    content: list[object] = [dataset.name, dataset.coding, declared, split, names]
    if chosen:  # labels that a list gave, where they are not those of the names
        content.append(chosen)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
