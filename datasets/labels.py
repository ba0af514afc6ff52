"""A label file as class ids.

Axes: H W (pixels of a label).
"""

from __future__ import annotations

from pathlib import Path

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
    raw = label.astype(np.intp)
    if coding == "rgb":
        raw = raw[..., 0] << 16 | raw[..., 1] << 8 | raw[..., 2]
    meaning = dict.fromkeys(dataset.ignored, IGNORE)
    for number, each in enumerate(dataset.classes):
        meaning |= dict.fromkeys(each.raw, number)
    # Look-up tables by value + 1, ten times faster than a search. Values below 0 or above all declared ones are clipped
    # to the first or last entry, which stay unknown.
    ids, known = np.zeros(max(meaning) + 3, np.uint8), np.zeros(max(meaning) + 3, np.bool_)
    for value, number in meaning.items():
        ids[value + 1], known[value + 1] = number, True
    has_meaning = known.take(raw + 1, mode="clip")
    if not has_meaning.all():
        raise InputError(
            f"{path}: label values without a meaning in {dataset.name}: {_listing(raw[~has_meaning], dataset)}; "
            f"correct the label, or declare them in the dataset file as a class or in ignore_{coding}"
        )
    result: NDArray[np.uint8] = ids.take(raw + 1)
    return result


def _listing(raw: NDArray[np.intp], dataset: Dataset) -> str:
    """The first three of the values, and their pixels."""
    values, pixels = np.unique(raw, return_counts=True)
    told = [
        f"{shown(value, dataset.coding)} ({count} px)"
        for value, count in zip(values[:3].tolist(), pixels[:3].tolist(), strict=True)
    ]
    return ", ".join(told) + (f" and {len(values) - 3} more" if len(values) > 3 else "")
