"""`compare`: which clusters of two models correspond, and where the models differ.

Axes: K clusters of the first model, L of the second, H W map.

Both models segment each image at one size. Clusters are paired one to one so that most pixels agree. A place where the
two have clusters that are no pair is a difference.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from densesiam_seg.clustering.agreement import best_pairs, normalised_mutual_information
from densesiam_seg.errors import ImageError, InputError
from densesiam_seg.events import Progress
from densesiam_seg.images.decode import image_size
from densesiam_seg.images.decoding import Decoding
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.io.files import make_folder, replace_text
from densesiam_seg.io.parallel import device_lock, on_own_cores
from densesiam_seg.naming.clusters import Cluster
from densesiam_seg.packed.members import as_shown
from densesiam_seg.pictures.masks import Colour, overlay
from densesiam_seg.pictures.sheet import fitted
from densesiam_seg.reporting.pictures import address, masked
from densesiam_seg.reporting.templates import css_colour, render

SIDE = 480
"""Pixels of the longer side at which masks are compared."""
LIMIT = 20
PICTURED = 24
"""Images on the page."""

ALONE = (125, 125, 125)
"""The colour of clusters of the second model that correspond to none."""

Joint = NDArray[np.int64]


@dataclass(frozen=True)
class Pair:
    """Two clusters that correspond: their overlap over their union, and the share of all pixels that is in both."""

    first: Cluster
    second: Cluster
    iou: float
    share: float

    def to_dict(self) -> dict[str, Any]:
        """A JSON object."""
        return {
            "first": {"id": self.first.id, "name": self.first.name},
            "second": {"id": self.second.id, "name": self.second.name},
            "iou": self.iou,
            "share": self.share,
        }


@dataclass(frozen=True)
class Difference:
    """An image and the share of its pixels on which both models agree."""

    image: str
    agreement: float


@dataclass(frozen=True)
class Compared:
    """What two models have in common."""

    pairs: tuple[Pair, ...]
    """The largest overlap first."""
    only_first: tuple[Cluster, ...]
    """Clusters that correspond to none, although they occur."""
    only_second: tuple[Cluster, ...]
    agreement: float
    """Share of the pixels on which both agree."""
    information: float
    """Normalised mutual information, 0 to 1: how much either clustering tells of the other, whatever the pairs."""
    differences: tuple[Difference, ...]
    """Every image, the one with least agreement first."""
    failed: tuple[ImageError, ...]

    def to_dict(self, limit: int) -> dict[str, Any]:
        """A JSON object."""
        return {
            "agreement": self.agreement,
            "normalised_mutual_information": self.information,
            "pairs": [pair.to_dict() for pair in self.pairs],
            "only_first": [{"id": each.id, "name": each.name} for each in self.only_first],
            "only_second": [{"id": each.id, "name": each.name} for each in self.only_second],
            "images": [
                {**vars(each), "image": as_shown(each.image)} for each in self.differences[:limit]
            ],
            "looked_at": len(self.differences),
            "failed": [{"image": each.path, "message": str(each)} for each in self.failed],
        }


def compare_events(
    first: Segmenter,
    second: Segmenter,
    sources: Sequence[str],
    decodings: tuple[Decoding, Decoding] | None = None,
) -> Iterator[Progress | Compared]:
    """Segment each image with both models; the last event is `Compared`. Raises InputError where none can be read."""
    how = decodings or (first.new_decoding(), second.new_decoding())
    lock = device_lock(first.device)

    def work(source: str) -> Joint | ImageError:
        try:
            size = fitted(image_size(source, how[0]), SIDE)
            one = _mask(first, source, how[0], size, lock)
            two = _mask(second, source, how[1], size, lock)
        except ImageError as error:
            return error
        return joint_of(one, two, len(first.clusters), len(second.clusters))

    found: list[tuple[str, Joint]] = []
    failed: list[ImageError] = []
    yield Progress("comparing images", 0, len(sources))
    with closing(on_own_cores(work, sources)) as results:
        for done, (source, result) in enumerate(zip(sources, results, strict=True), 1):
            if isinstance(result, ImageError):
                failed.append(result)
            else:
                found.append((source, result))
            yield Progress("comparing images", done, len(sources))
    if not found and len(failed) == 1:
        raise failed[0]
    if not found:
        raise InputError(f"none of the {len(failed)} images could be read, first: {failed[0]}")
    yield compared(first, second, found, failed)


def _mask(
    segmenter: Segmenter, source: str, decoding: Decoding, size: tuple[int, int], lock: Any
) -> NDArray[np.integer]:
    images, _ = segmenter.read(source, decoding=decoding)
    with lock, torch.inference_mode():
        return segmenter.mask(segmenter.scores(images, only_largest=True)[0], *size)


def joint_of(
    first: NDArray[np.integer], second: NDArray[np.integer], rows: int, columns: int
) -> Joint:
    """Masks of one size → the pixels that each pair of their clusters shares, (K, L)."""
    cells = first.ravel().astype(np.int64) * columns + second.ravel()
    return np.bincount(cells, minlength=rows * columns).reshape(rows, columns)


def pairs_of(joint: Joint) -> list[tuple[int, int]]:
    """The clusters of both models paired one to one so that most pixels agree; those that share none are left out."""
    wide = joint if joint.shape[0] <= joint.shape[1] else joint.T
    found = enumerate(best_pairs(wide).tolist())
    pairs = list(found) if wide is joint else [(row, column) for column, row in found]
    return [(row, column) for row, column in pairs if joint[row, column]]


def compared(
    first: Segmenter,
    second: Segmenter,
    found: Sequence[tuple[str, Joint]],
    failed: Sequence[ImageError] = (),
) -> Compared:
    """What joint histograms of images tell of two models."""
    total = np.sum([joint for _, joint in found], axis=0)
    chosen = pairs_of(total)
    rows, columns = total.sum(1), total.sum(0)
    pixels = int(total.sum())
    pairs = []
    for row, column in chosen:
        both = int(total[row, column])
        iou = both / int(rows[row] + columns[column] - both)
        pairs.append(Pair(first.clusters[row], second.clusters[column], iou, both / pixels))
    paired = ({row for row, _ in chosen}, {column for _, column in chosen})
    differences = [Difference(source, _agreement(joint, chosen)) for source, joint in found]
    return Compared(
        tuple(sorted(pairs, key=lambda pair: -pair.share)),
        tuple(each for each in first.clusters if rows[each.id] and each.id not in paired[0]),
        tuple(each for each in second.clusters if columns[each.id] and each.id not in paired[1]),
        _agreement(total, chosen),
        normalised_mutual_information(total),
        tuple(sorted(differences, key=lambda each: each.agreement)),
        tuple(failed),
    )


def _agreement(joint: Joint, chosen: Sequence[tuple[int, int]]) -> float:
    """The share of the pixels that are in pairs."""
    return float(sum(int(joint[pair]) for pair in chosen)) / max(int(joint.sum()), 1)


def write_comparison(
    path: Path, names: tuple[str, str], first: Segmenter, second: Segmenter, found: Compared
) -> None:
    """Write the page: the pairs, and the images where the models differ most. Raises OutputError.

    Clusters of the second model have the colours of those that they correspond to, and grey where there is none.
    """
    colours = matched_colours(found.pairs, len(second.clusters))
    lock = device_lock(first.device)
    models = ((first, first.palette), (second, colours))

    def show(each: Difference) -> tuple[Difference, list[str]]:
        try:
            pictures = [_pictures(model, palette, each.image, lock) for model, palette in models]
        except ImageError:
            return each, []
        return each, [pictures[0][0], pictures[0][1], pictures[1][1]]

    with closing(on_own_cores(show, found.differences[:PICTURED])) as results:
        looks = list(results)
    page = render(
        "comparison.html",
        title=" and ".join(names),
        names=names,
        found=found,
        looks=looks,
        colour=css_colour,
        second_colours=colours,
        file_name=lambda source: Path(source).name,
    )
    make_folder(path.parent)
    replace_text(path, page)


def matched_colours(pairs: Sequence[Pair], clusters: int) -> list[Colour]:
    """The colours of the second model's clusters by id."""
    colours: list[Colour] = [ALONE] * clusters
    for pair in pairs:
        colours[pair.second.id] = pair.first.colour
    return colours


def _pictures(
    segmenter: Segmenter, colours: Sequence[Colour], source: str, lock: Any
) -> tuple[str, str]:
    pixels, mask = masked(segmenter, source, segmenter.new_decoding(), lock)
    return address(pixels), address(overlay(pixels, mask, colours))
