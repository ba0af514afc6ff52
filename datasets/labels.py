"""A label file as class ids.

Axes: H W (pixels of a label).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from densesiam_seg.datasets.declaration import IGNORE, Dataset, colour_of
from densesiam_seg.errors import InputError
from densesiam_seg.images.decode import load_label


def read_label(dataset: Dataset, path: str | Path) -> NDArray[np.uint8]:
    """A label file as class ids (H W), 255 where ignored.

    Raises `InputError` for a colour label where values are declared, an index label where colours
    are, and a raw value without a meaning (named with its pixels); `ImageError` for a file that
    does not decode.
    """
    label = load_label(Path(path))
    rgb = label.ndim == 3
    if rgb and dataset.coding == "values":
        raise InputError(
            f"{path}: a colour label, but {dataset.name} declares values; "
            "give index labels, or declare `rgb` in a dataset file of your own"
        )
    if not rgb and dataset.coding == "rgb":
        raise InputError(
            f"{path}: an index label, but {dataset.name} declares colours; "
            "give RGB labels, or declare `values` in a dataset file of your own"
        )
    if label.dtype == np.uint8 and not rgb:
        ids, known = _tables(dataset)
        if known[label].all():
            return ids[label]
    raw = label.astype(np.int64)
    if rgb:
        raw = raw[..., 0] << 16 | raw[..., 1] << 8 | raw[..., 2]
    return coded(dataset, raw, path)


def _tables(dataset: Dataset) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Of each value 0 to 255: its class id, and whether it has one. A look-up is ten times faster than a search."""
    ids, known = np.zeros(256, np.uint8), np.zeros(256, bool)
    for value, number in _meaning(dataset).items():
        if value < 256:
            ids[value], known[value] = number, True
    return ids, known


def _meaning(dataset: Dataset) -> dict[int, int]:
    """The class id of each declared raw value."""
    meaning = dict.fromkeys(dataset.ignored, IGNORE)
    for number, each in enumerate(dataset.classes):
        meaning.update(dict.fromkeys(each.raw, number))
    return meaning


def coded(dataset: Dataset, raw: NDArray[np.int64], path: str | Path) -> NDArray[np.uint8]:
    """Raw values (H W) to class ids (H W), by binary search among the declared ones."""
    meaning = _meaning(dataset)
    known = np.array(sorted(meaning), dtype=np.int64)
    ids = np.array([meaning[int(value)] for value in known], dtype=np.uint8)
    place = np.minimum(np.searchsorted(known, raw), len(known) - 1)
    strange = raw[known[place] != raw]
    if strange.size:
        raise InputError(
            f"{path}: label values without a meaning in {dataset.name}: "
            f"{_listing(dataset, strange)}; correct the label, or declare them in the dataset file "
            f"as a class or in ignore_{dataset.coding}"
        )
    return ids[place]


def _listing(dataset: Dataset, raw: NDArray[np.int64]) -> str:
    """The first three of the values, and their pixels."""
    values, pixels = np.unique(raw, return_counts=True)
    shown = [
        f"{value if dataset.coding == 'values' else colour_of(value)} ({count} px)"
        for value, count in zip(values[:3].tolist(), pixels[:3].tolist(), strict=True)
    ]
    return ", ".join(shown) + (f" and {len(values) - 3} more" if len(values) > 3 else "")
