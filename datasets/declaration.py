"""From a dataset's TOML file to a frozen `Dataset`; the file's format stands in the package's docstring."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from densesiam_seg.config import MAX_TOML, parse_toml
from densesiam_seg.errors import InputError, UsageError, looked_for
from densesiam_seg.io.files import open_regular

Kind = Literal["thing", "stuff"]
Protocol = Literal["picie", "stego", "full-image"]

IGNORE = 255  # what `read_label` writes for a pixel of no class; so at most 255 classes

Text = Annotated[str, Field(min_length=1, pattern=r"^[^\x00]*$")]
Texts = Annotated[
    tuple[Text, ...],
    Field(min_length=1),
    BeforeValidator(lambda given: [given] if isinstance(given, str) else given),
]
Count = Annotated[int, Field(strict=True, ge=1)]
Value = Annotated[int, Field(strict=True, ge=-(2**31), le=2**32 - 1)]  # what label files can hold
Values = Annotated[
    tuple[Value, ...],
    BeforeValidator(lambda given: [given] if isinstance(given, int) else given),
]
Channel = Annotated[int, Field(strict=True, ge=0, le=255)]
Colour = tuple[Channel, Channel, Channel]


class Table(BaseModel):
    """A table of the file; a field that it does not declare is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class DatasetClass(Table):
    """One class, given by values of an index label or by colours of an RGB label."""

    name: Text
    kind: Kind | None = None
    colour: Colour | None = None
    values: Values = ()
    rgb: tuple[Colour, ...] = ()

    @property
    def raw(self) -> tuple[int, ...]:
        """The label values that mean this class, colours packed."""
        return self.values + tuple(map(packed, self.rgb))

    @property
    def display_colour(self) -> Colour | None:
        """The declared colour, else the first of an RGB label, else None."""
        return self.colour or next(iter(self.rgb), None)


class Split(Table):
    """Where a split lies: folders and lists below the root, the first of each that exists counts."""

    images: Texts
    labels: Texts
    lists: Texts = ()
    expected: Count | None = None


class Dataset(Table):
    """A dataset as declared; class ids are positions in `classes`."""

    name: Text
    title: Text
    protocol: Protocol = "full-image"
    classes: Annotated[tuple[DatasetClass, ...], Field(min_length=1, max_length=IGNORE)]
    ignore_values: Values = ()
    ignore_rgb: tuple[Colour, ...] = ()
    absent_values: Values = ()
    """Values that no label of the dataset holds, even where a class names them."""
    image_suffixes: Texts
    label_suffix: Text
    splits: Annotated[dict[str, Split], Field(min_length=1)]

    @property
    def coding(self) -> Literal["values", "rgb"]:
        """Whether labels hold values or colours."""
        return "rgb" if self.classes[0].rgb else "values"

    @property
    def ignored(self) -> tuple[int, ...]:
        """The label values of no class, colours packed."""
        return self.ignore_values + tuple(map(packed, self.ignore_rgb))

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
        return tuple(each.display_colour for each in self.classes)

    @property
    def default_split(self) -> str:
        """`val` where there is one, else the first that is declared."""
        return "val" if "val" in self.splits else next(iter(self.splits))


def packed(colour: Colour) -> int:
    """A colour (R, G, B) as one number R·2¹⁶ + G·2⁸ + B."""
    red, green, blue = colour
    return red << 16 | green << 8 | blue


def shown(raw: int, coding: Literal["values", "rgb"]) -> str:
    """A label value for an error text: itself, or the colour (R, G, B) it packs."""
    return str(raw if coding == "values" else (raw >> 16, raw >> 8 & 255, raw & 255))


def built_in_datasets() -> tuple[str, ...]:
    """Names of the datasets that come with the package, sorted."""
    files = resources.files("densesiam_seg.datasets").iterdir()
    return tuple(sorted(f.name.removesuffix(".toml") for f in files if f.name.endswith(".toml")))


def load_dataset(name_or_path: str | Path) -> Dataset:
    """The dataset of a built-in name or of a user's `.toml` file.

    Raises UsageError for an unknown name, InputError, which names file and field, for a file that cannot be used.
    """
    given = str(name_or_path)
    if given.lower().endswith(".toml"):
        try:
            with open_regular(Path(given)) as file:
                return _parse(file.read(MAX_TOML + 1), given)
        except OSError as error:
            raise InputError(
                f"{given}: {error.strerror}{looked_for(given)}; give a readable dataset file"
            ) from error
    known = built_in_datasets()
    if given not in known:
        raise UsageError(f"no dataset is named {given!r}; give {', '.join(known)} or a .toml file")
    source = resources.files("densesiam_seg.datasets") / f"{given}.toml"
    return _parse(source.read_bytes(), f"{given}.toml")


def _parse(content: bytes, file: str) -> Dataset:
    try:
        table = {"name": Path(file).stem} | parse_toml(content)
        dataset = Dataset.model_validate({"title": table["name"]} | table)
    except ValidationError as error:
        raise InputError(f"{file}: {_first_mistake(error)}") from error
    except ValueError as error:
        raise InputError(f"{file}: {error}") from error
    _check_meaning(dataset, file)
    return dataset


def _first_mistake(error: ValidationError) -> str:
    """Place, mistake and remedy, such as `classes[3].name: missing; add it`."""
    mistake = error.errors()[0]
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in mistake["loc"])
    match mistake["type"]:
        case "missing":
            detail = "missing; add it"
        case "extra_forbidden":
            detail = "unknown field; remove or correct it"
        case "model_type":
            detail = "must be a table; correct it"
        case _:
            detail = f"{mistake['msg']}; correct it"
    return f"{place.removeprefix('.')}: {detail}"


def _check_meaning(dataset: Dataset, file: str) -> None:
    """Refuse classes that mix values and colours, a label value with two meanings, and names that occur twice."""
    coding = dataset.coding
    other = "values" if coding == "rgb" else "rgb"
    meaning = dict.fromkeys(dataset.ignored, "ignored pixels")
    for number, each in enumerate(dataset.classes):
        place = f"{file}: classes[{number}]"
        if not getattr(each, coding) or getattr(each, other):
            raise InputError(f"{place}: give all classes `values`, or all of them `rgb`")
        if each.name in dataset.names[:number]:
            raise InputError(f"{place}.name: {each.name!r} occurs twice; rename one")
        for raw in each.raw:
            if raw in meaning:
                raise InputError(
                    f"{place}.{coding}: {shown(raw, coding)} stands for {meaning[raw]} already; let it stand for one"
                )
            meaning[raw] = repr(each.name)
        if set(each.raw) <= set(dataset.absent_values):
            raise InputError(f"{place}: all its values are in absent_values; correct one of both")
    foreign = ["ignore_rgb"] if coding == "values" else ["ignore_values", "absent_values"]
    for field in foreign:
        if getattr(dataset, field):
            raise InputError(f"{file}: {field}: the classes have `{coding}`; remove it")
    for value in dataset.absent_values:
        if value in dataset.ignore_values:
            raise InputError(
                f"{file}: absent_values: {value} is ignored too; let it be one of both"
            )
    for name in dataset.splits:
        if "+" in name:
            raise InputError(f"{file}: splits.{name}: a + joins splits; rename it")
