"""A label file as class ids.

Axes: H W (pixels of a label).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from densesiam_seg.datasets.declaration import IGNORE, Dataset, shown
from densesiam_seg.errors import ImageError, InputError
from densesiam_seg.images.decoding import Decoding
from densesiam_seg.images.labels import load_oriented_label
from densesiam_seg.images.opening import opened

_TABLE = 1 << 25  # entries of the largest look-up table: all colours, and all numbers of 24 bits


def read_label(dataset: Dataset, path: str | Path) -> NDArray[np.uint8]:
    """What `read_oriented_label` gives, without the orientation."""
    return read_oriented_label(dataset, path)[0]


def read_oriented_label(dataset: Dataset, path: str | Path) -> tuple[NDArray[np.uint8], int]:
    """A label file as class ids (H W), 255 where ignored; also the EXIF orientation in its header.

    Raises InputError for a colour label where values are declared, an index label where colours are, and a label value
    without a meaning or declared absent (named with its pixels); ImageError for a file that does not decode.
    """
    label, turned = load_oriented_label(Path(path))
    coding = "rgb" if label.ndim == 3 else "values"
    if coding != dataset.coding:
        kinds = {"rgb": "a colour label", "values": "an index label"}
        raise InputError(
            f"{path}: {kinds[coding]}, but {dataset.name} declares `{dataset.coding}`; "
            f"give other labels, or declare `{coding}` in a dataset file of your own"
        )
    raw: NDArray[Any] = label
    if coding == "rgb":
        raw = label.astype(np.int64)
        raw = raw[..., 0] << 16 | raw[..., 1] << 8 | raw[..., 2]
    meaning = dict.fromkeys(dataset.ignored, IGNORE)
    for number, each in enumerate(dataset.classes):
        meaning |= dict.fromkeys(each.raw, number)
    for value in dataset.absent_values:
        meaning.pop(value, None)
    ids, known = _looked_up(raw, meaning)
    if not known.all():
        raise InputError(f"{path}: {_complaint(raw, raw[~known], meaning, dataset)}")
    return ids, turned


def orientation(path: str | Path) -> int:
    """The EXIF orientation 1 to 8 in a file's header; 1 where there is none or the file cannot be read."""
    try:
        with opened(path, Decoding(None)) as image:
            return image.orientation
    except ImageError:  # who reads the pixels says what is wrong
        return 1


def _looked_up(
    raw: NDArray[Any], meaning: dict[int, int]
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """What each value means, and whether it means anything."""
    declared = np.array(sorted(meaning), np.int64)
    numbers = np.array([meaning[value] for value in declared.tolist()], np.uint8)
    first, size = int(declared[0]) - 1, int(declared[-1] - declared[0]) + 3
    if raw.dtype != np.uint8 and size > _TABLE:
        near = np.searchsorted(declared, raw).clip(max=len(declared) - 1)
        return numbers[near], declared[near] == raw
    # Look-up tables, ten times faster than a search, and for bytes Python's own are faster still. Other values below or
    # above all declared ones are clipped to the first or last entry, which stay unknown.
    if raw.dtype == np.uint8:
        first, size = 0, 256
    ids, known = np.zeros(size, np.uint8), np.zeros(size, np.bool_)
    inside = (declared >= first) & (declared < first + size)
    ids[declared[inside] - first], known[declared[inside] - first] = numbers[inside], True
    if raw.dtype == np.uint8:
        stored = raw.tobytes()
        found, sound = (stored.translate(table.tobytes()) for table in (ids, known))
        # A bytearray, as who reads a label may write to it.
        return (
            np.frombuffer(bytearray(found), np.uint8).reshape(raw.shape),
            np.frombuffer(sound, np.bool_).reshape(raw.shape),
        )
    places = np.clip(raw.astype(np.int64) - first, 0, size - 1)
    return ids[places], known[places]


def _complaint(
    raw: NDArray[Any], strange: NDArray[Any], meaning: dict[int, int], dataset: Dataset
) -> str:
    """What is wrong with values that have no meaning, and the remedy."""
    absent = strange[np.isin(strange, dataset.absent_values)]
    if len(absent):
        return (
            f"values that no label of {dataset.name} holds: {_listing(absent, dataset)}"
            f"{_shift(raw, meaning, least=1) or ', so the labels are numbered otherwise'}; "
            "give labels with the dataset's own ids, or declare theirs in a dataset file of your own"
        )
    remedy = f"declare them in the dataset file as a class or in ignore_{dataset.coding}"
    found = set(np.unique(strange).tolist())
    for bits in (8, 16, 32):
        wrapped = sorted(value for value in meaning if value < 0 and value + 2**bits in found)
        if wrapped:
            remedy += f" ({wrapped[0] + 2**bits} may be {wrapped[0]} in {bits} bits without a sign)"
    shift = _shift(raw, meaning, least=2) if dataset.coding == "values" else ""
    return (
        f"label values without a meaning in {dataset.name}: {_listing(strange, dataset)}{shift}; "
        f"correct the label, or {remedy}"
    )


def _shift(raw: NDArray[Any], meaning: dict[int, int], least: int) -> str:
    """Says so if `least` values or more all miss a declared one by one; 0 and ignored ones may stay as they are."""
    values = set(np.unique(raw).tolist())
    values -= {0, *(value for value, number in meaning.items() if number == IGNORE)}
    if len(values) < least:
        return ""
    above, below = (all(value - step in meaning for value in values) for step in (1, -1))
    if not (above or below):
        return ""
    where = "beside" if above and below else "above" if above else "below"
    return f"; the labels look shifted by one: each lies one {where} a declared value"


def _listing(raw: NDArray[Any], dataset: Dataset) -> str:
    """The first three of the values, and their pixels."""
    values, pixels = np.unique(raw, return_counts=True)
    told = [
        f"{shown(value, dataset.coding)} ({count} px)"
        for value, count in zip(values[:3].tolist(), pixels[:3].tolist(), strict=True)
    ]
    return ", ".join(told) + (f" and {len(values) - 3} more" if len(values) > 3 else "")
