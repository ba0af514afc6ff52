"""From a dataset's TOML file to a frozen `Dataset`; the file's format stands in the package's docstring."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal, get_args

from densesiam_seg.datasets.fields import (
    Colour,
    Table,
    colour,
    count,
    list_of,
    one_of,
    text,
    texts,
    whole,
)
from densesiam_seg.errors import InputError, UsageError

Kind = Literal["thing", "stuff"]
Protocol = Literal["picie", "stego", "full-image"]
Coding = Literal["values", "rgb"]

KINDS: tuple[Kind, ...] = get_args(Kind)
PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)
IGNORE = 255  # what `read_label` writes for a pixel of no class; so at most 255 classes


@dataclass(frozen=True)
class DatasetClass:
    """One class; `raw` are the label values that mean it, colours packed as R·2¹⁶ + G·2⁸ + B."""

    name: str
    kind: Kind | None
    colour: Colour | None
    raw: tuple[int, ...]


@dataclass(frozen=True)
class Split:
    """Where a split lies: folders and lists below the root, the first of each that exists counts."""

    images: tuple[str, ...]
    labels: tuple[str, ...]
    lists: tuple[str, ...]
    expected: int | None


@dataclass(frozen=True)
class Dataset:
    """A dataset as declared; class ids are positions in `classes`, `ignored` are raw values."""

    name: str
    title: str
    protocol: Protocol
    coding: Coding
    classes: tuple[DatasetClass, ...]
    ignored: tuple[int, ...]
    image_suffixes: tuple[str, ...]
    label_suffix: str
    splits: dict[str, Split]

    @property
    def ignore(self) -> int:
        """The value of ignored pixels in a label once read: always 255."""
        return IGNORE

    @property
    def names(self) -> tuple[str, ...]:
        """Class names in the order of their ids."""
        return tuple(each.name for each in self.classes)

    @property
    def kinds(self) -> tuple[Kind | None, ...]:
        """Thing, stuff or undeclared, in the order of the class ids."""
        return tuple(each.kind for each in self.classes)

    @property
    def colours(self) -> tuple[Colour | None, ...]:
        """Display colours in the order of the class ids; None where the file gives none."""
        return tuple(each.colour for each in self.classes)

    @property
    def default_split(self) -> str:
        """`val` where there is one, else the first that is declared."""
        return "val" if "val" in self.splits else next(iter(self.splits))


def built_in_datasets() -> tuple[str, ...]:
    """Names of the datasets that come with the package, sorted."""
    files = resources.files("densesiam_seg.datasets").iterdir()
    return tuple(sorted(f.name.removesuffix(".toml") for f in files if f.name.endswith(".toml")))


def load_dataset(name_or_path: str | Path) -> Dataset:
    """The dataset of a built-in name or of a user's `.toml` file.

    Raises `UsageError` for an unknown name, `InputError`, which names file and field, for a file
    that cannot be used.
    """
    given = str(name_or_path)
    if given.endswith(".toml"):
        try:
            return _parse(Path(given).read_bytes(), given)
        except OSError as error:
            raise InputError(f"{given}: {error.strerror}; give a readable dataset file") from error
    known = built_in_datasets()
    if given not in known:
        raise UsageError(f"no dataset is named {given!r}; give {', '.join(known)} or a .toml file")
    source = resources.files("densesiam_seg.datasets") / f"{given}.toml"
    return _parse(source.read_bytes(), f"{given}.toml")


def _parse(content: bytes, file: str) -> Dataset:
    try:
        top = Table(tomllib.loads(content.decode()), file)
    except (ValueError, RecursionError) as error:  # not UTF-8, not TOML, nested too deep
        detail = " ".join(str(error).split())
        raise InputError(f"{file}: not valid TOML ({detail}); mend the file") from error
    name = top.take("name", text, Path(file).stem)
    title = top.take("title", text, name)
    usual: Protocol = "full-image"
    protocol = top.take("protocol", one_of(PROTOCOLS), usual)
    classes, coding = _classes(top)
    dataset = Dataset(
        name=name,
        title=title,
        protocol=protocol,
        coding=coding,
        classes=classes,
        ignored=_raw(top, f"ignore_{coding}", coding),
        image_suffixes=top.take("image_suffixes", texts),
        label_suffix=top.take("label_suffix", text),
        splits=_splits(top),
    )
    top.finish()
    _check_meaning(dataset, top)
    return dataset


def _classes(top: Table) -> tuple[tuple[DatasetClass, ...], Coding]:
    rows = top.rows("classes")
    if not 1 <= len(rows) <= IGNORE:
        raise top.error("classes", f"must be 1 to {IGNORE} tables, not {len(rows)}")
    coding: Coding = "rgb" if rows[0].has("rgb") else "values"
    classes = []
    for row in rows:
        if not row.has(coding):
            raise row.error(coding, "missing; give all classes `values`, or all of them `rgb`")
        raw = _raw(row, coding, coding)
        if not raw:
            raise row.error(coding, "must not be empty, or the class could not occur")
        shown = colour_of(raw[0]) if coding == "rgb" else None
        classes.append(
            DatasetClass(
                name=row.take("name", text),
                kind=row.take("kind", one_of(KINDS), None),
                colour=row.take("colour", colour, shown),
                raw=raw,
            )
        )
        row.finish()
    return tuple(classes), coding


def _raw(place: Table, field: str, coding: Coding) -> tuple[int, ...]:
    if coding == "values":
        return place.take(field, list_of(whole), ())
    none: tuple[Colour, ...] = ()
    colours = place.take(field, list_of(colour), none)
    return tuple(red << 16 | green << 8 | blue for red, green, blue in colours)


def colour_of(raw: int) -> Colour:
    """The colour (R, G, B) of a packed label value."""
    return raw >> 16, raw >> 8 & 255, raw & 255


def _splits(top: Table) -> dict[str, Split]:
    splits = {}
    for name, row in top.named("splits").items():
        if "+" in name:
            raise top.error(f"splits.{name}", "a + joins splits; rename it")
        splits[name] = Split(
            images=row.take("images", texts),
            labels=row.take("labels", texts),
            lists=row.take("lists", texts, ()),
            expected=row.take("expected", count, None),
        )
        row.finish()
    if not splits:
        raise top.error("splits", "must declare at least one split")
    return splits


def _check_meaning(dataset: Dataset, top: Table) -> None:
    """Refuse a label value with two meanings and a class name that occurs twice."""
    meaning = dict.fromkeys(dataset.ignored, "ignored pixels")
    for number, each in enumerate(dataset.classes):
        if each.name in dataset.names[:number]:
            raise top.error(f"classes[{number}].name", f"{each.name!r} occurs twice; rename one")
        for raw in each.raw:
            if raw in meaning:
                shown = raw if dataset.coding == "values" else list(colour_of(raw))
                detail = f"{shown} stands for {meaning[raw]} already; let it stand for one"
                raise top.error(f"classes[{number}].{dataset.coding}", detail)
            meaning[raw] = repr(each.name)
