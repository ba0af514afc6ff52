"""Pictures of a model's clusters: each image, its pseudo categories coloured, and the masks of chosen ones.

A pixel's pseudo category is the argmax over K of softmax(z), the supplement's Fig. A1, for either kind of run
and any read-out.

Axes: n images, K categories (the model's clusters), S side of a square, H W picture as it is drawn.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from densesiam_seg.errors import ImageError, UsageError
from densesiam_seg.images.decode import load_image
from densesiam_seg.images.decoding import Decoding
from densesiam_seg.inference.options import PLAIN
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.naming.clusters import Cluster, chosen
from densesiam_seg.pictures.masks import Colour, borders, colourise
from densesiam_seg.pictures.sheet import Legend, Tile, fitted, sheet

SIDE = 224
"""The longer side of a picture on the sheet."""
SHOWN = 4
"""Categories whose masks are drawn unless some are named: those that cover most."""
LEGEND = 24
"""Categories in the legend, those that cover most; more colours cannot be told apart."""
LARGEST = 2000
"""Pictures on a sheet, about 400 MB of pixels."""


@dataclass(frozen=True)
class Drawing:
    """The sheet, the ids of the categories whose masks are on it, and all K categories.

    A cluster's `share` is here that of the images drawn, each of which counts the same, whatever its size.
    """

    picture: Image.Image
    shown: tuple[int, ...]
    clusters: tuple[Cluster, ...]


@dataclass(frozen=True)
class _Segmented:
    """One image as it is drawn: picture (H, W, 3), categories (H, W)."""

    title: str
    picture: NDArray[np.uint8]
    categories: NDArray[np.integer]

    def shares(self, count: int) -> NDArray[np.float64]:
        """Share of the image that each of `count` categories has."""
        return np.bincount(self.categories.ravel(), minlength=count) / self.categories.size


def draw_files(
    segmenter: Segmenter,
    files: Sequence[str],
    *,
    shown: Sequence[str] = (),
    columns: int = 1,
    decoding: Decoding | None = None,
) -> tuple[Drawing | None, list[ImageError]]:
    """The drawing of those images that can be read, if any can, and why others cannot.

    `shown` names categories by id or name, several with commas between them, by default the largest; `columns` images
    stand side by side. Raises UsageError.
    """
    named = chosen(segmenter.clusters, shown, what="--clusters-shown")
    pictures = len(files) * (2 + (len(named) or SHOWN))
    if pictures > LARGEST:
        raise UsageError(
            f"a sheet of {pictures} pictures is too large; give a smaller --limit or fewer --clusters-shown"
        )
    segmented, failed = [], []
    for file in files:
        try:
            pixels = load_image(file, decoding or segmenter.decoding)
            segmented.append(_segment(segmenter, pixels, Path(file).name))
        except ImageError as error:
            failed.append(error)
    return _draw(segmenter, segmented, named, columns) if segmented else None, failed


def training_picture(segmenter: Segmenter, squares: Tensor) -> Image.Image:
    """The sheet of images in memory, uint8 (n, 3, S, S), with the masks of the largest categories."""
    pixels = enumerate(squares.cpu(), 1)
    images = [_segment(segmenter, square, f"image {number}") for number, square in pixels]
    return _draw(segmenter, images, (), 1).picture


def spread(count: int, limit: int) -> list[int]:
    """`limit` of `count` places, evenly spread; all where there are no more."""
    wanted = min(count, limit)
    return [place * count // wanted for place in range(wanted)]


def require_picture_target(out: Path, images: Sequence[str], *, overwrite: bool = False) -> None:
    """Raises UsageError unless `out` names a PNG file that is no input and, without `overwrite`, does not exist yet."""
    if out.suffix.lower() != ".png" or os.path.isdir(out):  # noqa: PTH112
        raise UsageError(f"--out {out}: the picture is a PNG; give a file name ending in .png")
    if os.path.realpath(out) in {os.path.realpath(image) for image in images}:
        raise UsageError(f"{out}: would overwrite an input image; give another --out")
    if os.path.exists(out) and not overwrite:  # noqa: PTH110
        raise UsageError(f"--out {out}: exists already; give --overwrite or another name")


def _segment(segmenter: Segmenter, pixels: Tensor, title: str) -> _Segmented:
    """uint8 (3, H', W') → the image and its categories, both at the size at which they are drawn."""
    size = fitted(pixels.shape[-2:], SIDE)
    picture = F.interpolate(pixels[None], size, mode="bilinear", antialias=True)[0]
    scores = segmenter.scores(segmenter.read(pixels)[0], PLAIN)[0]
    categories = segmenter.mask(scores, *size)
    return _Segmented(title, picture.permute(1, 2, 0).numpy(), categories)


def _draw(
    segmenter: Segmenter, images: Sequence[_Segmented], named: Sequence[int], columns: int
) -> Drawing:
    shares = np.mean([each.shares(len(segmenter.clusters)) for each in images], axis=0)
    clusters = tuple(
        replace(cluster, share=float(share))
        for cluster, share in zip(segmenter.clusters, shares, strict=True)
    )
    by_share = [clusters[k] for k in np.argsort(-shares, kind="stable") if shares[k] > 0]
    masks = [clusters[k] for k in named] or by_share[:SHOWN]
    groups = [_row(each, masks, segmenter.palette) for each in images]
    rows = [
        [tile for group in groups[first : first + columns] for tile in group]
        for first in range(0, len(groups), columns)
    ]
    page = sheet(rows, _legend(by_share), side=SIDE)
    return Drawing(page, tuple(cluster.id for cluster in masks), clusters)


def _legend(by_share: Sequence[Cluster]) -> Legend:
    """The largest categories, then how many more there are and what they have together."""
    first, others = by_share[:LEGEND], by_share[LEGEND:]
    entries = [(f"{each.name}: {_percent(each.share or 0)}", each.colour) for each in first]
    if not others:
        return entries
    rest = sum(each.share or 0 for each in others)
    return [*entries, (f"and {len(others)} more: {_percent(rest)}", None)]


def _row(image: _Segmented, masks: Sequence[Cluster], palette: Sequence[Colour]) -> list[Tile]:
    """One image's pictures: itself, its categories, and where each of those with a mask is."""
    shares = image.shares(len(palette))
    present = np.count_nonzero(shares)
    categories = f"{present} {'category' if present == 1 else 'categories'}"
    row = [Tile(image.picture, image.title), Tile(colourise(image.categories, palette), categories)]
    for cluster in masks:
        where = lit(image.picture, image.categories == cluster.id, cluster.colour)
        title = f"{cluster.name}: {_percent(shares[cluster.id])}"
        row.append(Tile(where, title, cluster.colour))
    return row


def lit(picture: NDArray[np.uint8], mask: NDArray[np.bool_], colour: Colour) -> NDArray[np.uint8]:
    """The picture (H, W, 3) where the mask (H, W) is on; elsewhere it is grey and faint, up to a line of `colour`."""
    # Light grey, from which black and white both stand out.
    faint = 160 + picture.mean(2, keepdims=True) / 6
    shown = np.where(mask[..., None], picture, faint.astype(np.uint8))
    shown[borders(mask)] = colour
    return shown


def _percent(share: float) -> str:
    return "<1 %" if 0 < share < 0.01 else f"{100 * share:.0f} %"
