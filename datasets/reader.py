"""What a declared dataset is on this disk: the samples of a split."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from densesiam_seg.datasets.declaration import Dataset
from densesiam_seg.errors import InputError, UsageError


@dataclass(frozen=True)
class Sample:
    """One image with its label; `name` is the image's path below its folder without the suffix."""

    name: str
    image: Path
    label: Path


@dataclass(frozen=True)
class Samples:
    """The samples of a split, sorted by name; `missing` are names that were asked for and passed over."""

    split: str
    items: tuple[Sample, ...]
    missing: tuple[str, ...]
    expected: int | None
    digest: str

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
) -> Samples:
    """The samples of `split` (None: the dataset's default) below the folder `root`.

    Names come from `list_file`, else from the split's list if it lies below the root, else they are all images of the
    split's folder. `a+b` joins two splits, whose names then begin with `a/` and `b/`. The digest covers the declaration
    and the names, not the place: where it is equal, the same samples were taken.

    Raises UsageError for a split that is not declared; InputError for folders or a list that are not there, an unusable
    list, no sample at all, two images of one name, and samples without image or label unless `allow_missing`.
    """
    split = dataset.default_split if split is None else split
    parts = _parts(dataset, split)
    if list_file is not None and len(parts) > 1:
        raise UsageError(f"a list file is for one split, not for {split}; give one split")
    items: list[Sample] = []
    missing: list[str] = []
    for part in parts:
        prefix = f"{part}/" if len(parts) > 1 else ""
        found, lacking = _find(dataset, part, Path(root), list_file, allow_missing)
        items += [Sample(prefix + each.name, each.image, each.label) for each in found]
        missing += [prefix + name for name in lacking]
    counts = [dataset.splits[part].expected for part in parts]
    expected = sum(count or 0 for count in counts) if None not in counts else None
    items.sort(key=lambda each: each.name)
    digest = _digest(dataset, split, items)
    return Samples(split, tuple(items), tuple(sorted(missing)), expected, digest)


def _parts(dataset: Dataset, split: str) -> list[str]:
    parts = split.split("+")
    for part in parts:
        if part not in dataset.splits or parts.count(part) > 1:
            known = ", ".join(dataset.splits)
            raise UsageError(f"{dataset.name} has no split {split!r}; give one of {known}")
    return parts


def _find(
    dataset: Dataset, part: str, root: Path, list_file: str | Path | None, allow_missing: bool
) -> tuple[list[Sample], list[str]]:
    """The samples of one split, and the names that lack an image or a label."""
    split = dataset.splits[part]
    if list_file is not None:
        listed: Path | None = Path(list_file)
    else:
        listed = next((root / each for each in split.lists if (root / each).is_file()), None)
    image_folder = _folder(root, split.images, f"images of {dataset.name} {part}")
    label_folder = _folder(root, split.labels, f"labels of {dataset.name} {part}")
    images = _scan(image_folder, dataset.image_suffixes)
    names = sorted(images) if listed is None else sorted(_names(listed, images, dataset))
    endings = ", ".join(f"*{suffix}" for suffix in dataset.image_suffixes)
    if not names:
        raise InputError(f"{image_folder}: no image in it ({endings}); check the root")
    labels = {name: label_folder / f"{name}{dataset.label_suffix}" for name in names}
    without_image = [name for name in names if name not in images]
    without_label = [name for name in names if name in images and not labels[name].is_file()]
    missing = {*without_image, *without_label}
    items = [Sample(name, images[name], labels[name]) for name in names if name not in missing]
    if missing and not allow_missing:
        few = ", ".join(map(repr, sorted(missing)[:3])) + (", ..." if len(missing) > 3 else "")
        raise InputError(
            f"{listed or image_folder}: of {len(names)} names, {len(without_image)} have no image "
            f"in {image_folder} and {len(without_label)} no label in {label_folder} ({few}); "
            "complete the data, or allow missing ones (--allow-missing)"
        )
    if not items:
        raise InputError(
            f"{listed or image_folder}: none of {len(names)} names has both an image "
            f"({endings}) and a label; check the root and the list"
        )
    return items, sorted(missing)


def _folder(root: Path, choices: tuple[str, ...], what: str) -> Path:
    for each in choices:
        if (root / each).is_dir():
            return root / each
    tried = " or ".join(choices)
    raise InputError(f"{root}: no folder {tried} for the {what}; give the folder that holds it")


def _scan(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """Images below `folder` by name; hidden files are left out and links to folders not followed."""

    def fail(error: OSError) -> None:
        raise InputError(f"{error.filename}: {error.strerror}; make it readable") from error

    found: dict[str, Path] = {}
    for place, folders, files in os.walk(folder, onerror=fail):
        folders[:] = [each for each in folders if not each.startswith(".")]
        for file in files:
            stem = _stem(file, suffixes)
            if stem is None or file.startswith("."):
                continue
            path = Path(place, file)
            name = Path(place, stem).relative_to(folder).as_posix()
            if name in found:
                raise InputError(
                    f"{path}: has the same name as {found[name].name}, and a label fits only one; "
                    "remove or rename one of them"
                )
            found[name] = path
    return found


def _stem(file: str, suffixes: tuple[str, ...]) -> str | None:
    for suffix in suffixes:
        if file.lower().endswith(suffix.lower()) and len(file) > len(suffix):
            return file[: -len(suffix)]
    return None


def _names(listed: Path, images: dict[str, Path], dataset: Dataset) -> list[str]:
    """The names of a list: one a line, bare or with the image's suffix; empty lines do not count."""
    if not listed.is_file():
        raise InputError(f"{listed}: no such list file; give a text file with one name a line")
    # Names of any bytes must survive, and file systems decode with the same handler.
    content = listed.read_text(encoding="utf-8-sig", errors="surrogateescape")
    lines: dict[str, int] = {}
    for number, line in enumerate(content.split("\n"), start=1):
        name = line.strip()
        if name not in images:
            name = _stem(name, dataset.image_suffixes) or name
        if name in lines:
            raise InputError(
                f"{listed}: line {number} repeats {name!r} of line {lines[name]}; remove one"
            )
        if name:
            lines[name] = number
    if not lines:
        raise InputError(f"{listed}: the list is empty; give one name a line")
    return list(lines)


def _digest(dataset: Dataset, split: str, items: list[Sample]) -> str:
    classes = [
        {"name": each.name, "kind": each.kind, "colour": each.display_colour, "raw": each.raw}
        for each in dataset.classes
    ]
    declared = [classes, dataset.ignored]
    content = [dataset.name, dataset.coding, declared, split, [each.name for each in items]]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
