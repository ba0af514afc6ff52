"""A label file as class ids.

Axes: H W (pixels of a label).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from densesiam_seg.datasets.declaration import IGNORE, Dataset, shown
from densesiam_seg.errors import InputError
from densesiam_seg.images.labels import load_label


def read_label(dataset: Dataset, path: str | Path) -> NDArray[np.uint8]:
    """A label file as class ids (H W), 255 where ignored.

    Raises InputError for a colour label where values are declared, an index label where colours are, and a label value
    without a meaning (named with its pixels); ImageError for a file that does not decode.
    """
    label = load_label(Path(path))
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
    # Look-up tables, ten times faster than a search. Bytes need no copy. Of others value + 1 is looked up, where values
    # below 0 or above all declared ones are clipped to the first or last entry, which stay unknown.
    size, shift, places = 256, 0, raw
    if raw.dtype != np.uint8:
        size, shift = max(meaning) + 3, 1
        places = np.clip(raw.astype(np.int64) + 1, 0, size - 1)
    ids, known = np.zeros(size, np.uint8), np.zeros(size, np.bool_)
    for value, number in meaning.items():
        if value + shift < size:
            ids[value + shift], known[value + shift] = number, True
    has_meaning = known[places]
    if not has_meaning.all():
        raise InputError(
            f"{path}: label values without a meaning in {dataset.name}: {_listing(raw[~has_meaning], dataset)}; "
            f"correct the label, or declare them in the dataset file as a class or in ignore_{coding}"
        )
    result: NDArray[np.uint8] = ids[places]
    return result


def _listing(raw: NDArray[Any], dataset: Dataset) -> str:
    """The first three of the values, and their pixels."""
    values, pixels = np.unique(raw, return_counts=True)
    told = [
        f"{shown(value, dataset.coding)} ({count} px)"
        for value, count in zip(values[:3].tolist(), pixels[:3].tolist(), strict=True)
    ]
    return ", ".join(told) + (f" and {len(values) - 3} more" if len(values) > 3 else "")
