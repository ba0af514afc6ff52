"""A few scored images, their truth, and every row's mask in the colours of the classes that its clusters match."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from report import Line
from tasks import Task

from densesiam_seg.evaluation.protocol import prepare_sample
from densesiam_seg.pictures.masks import Colour, colourise, palette
from densesiam_seg.pictures.sheet import comparison

SIDE = 128


def grid(task: Task, lines: Sequence[Line], folder: Path) -> Image.Image:
    """One column per row of the table, with its first seed; `folder` holds the masks that were kept.

    Rows of another protocol show other parts of the images and are left out.
    """
    drawn = [line for line in lines if not line.row.whole]
    masks = [_masks(folder / f"{line.name}-seed-{line.results[0]['seed']}.npz") for line in drawn]
    classes = [np.asarray(line.results[0]["cluster_to_class"]) for line in drawn]
    colours = _colours(task)
    pictures = []
    for place in sorted(masks[0], key=int):
        image, label = prepare_sample(
            task.scored.items[int(place)], task.dataset, task.protocol, task.side
        )
        row = [image.permute(1, 2, 0).numpy(), colourise(label, colours)]
        for found, known in zip(masks, classes, strict=True):
            row.append(_matched(found[place], known, colours))
        pictures.append(row)
    titles = ("image", "truth", *(line.row.short for line in drawn))
    legend = list(zip(task.dataset.names, colours, strict=True))
    return comparison(titles, pictures, legend, side=SIDE)


def _matched(
    mask: NDArray[Any], cluster_to_class: NDArray[Any], colours: Sequence[Colour]
) -> NDArray[np.uint8]:
    """Clusters in their classes' colours; black where a cluster has no class."""
    found = cluster_to_class[mask]
    return colourise(np.where(found < 0, len(colours), found), colours)


def _masks(path: Path) -> dict[str, NDArray[Any]]:
    with np.load(path) as file:
        return dict(file)


def _colours(task: Task) -> list[Colour]:
    own = palette(task.clusters)
    declared = task.dataset.colours
    return [given or drawn for given, drawn in zip(declared, own, strict=True)]
