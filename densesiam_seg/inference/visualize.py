"""Pictures of what a model sees: each image, its pseudo categories coloured, and the masks of chosen ones.

A pixel's pseudo category is the argmax over K of softmax(z), the supplement's Fig. A1; the same for either kind of
run, and for a k-means read-out.

Axes: n images, K categories (the model's clusters), S side of a square, H W picture as it is drawn.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from densesiam_seg.errors import ImageError, UsageError
from densesiam_seg.images.decode import MAX_PIXELS
from densesiam_seg.inference.segmenter import Cluster, ImageLike, Segmenter, as_pixels
from densesiam_seg.inference.upsampling import upsample_argmax
from densesiam_seg.pictures.masks import Colour, colourise
from densesiam_seg.pictures.sheet import Tile, fitted, sheet

SIDE = 224
"""The longer side of a picture on the sheet."""
LIMIT = 8
"""Images that are drawn unless more are asked for."""
SHOWN = 4
"""Categories whose masks are drawn unless some are named: those that cover most."""
LEGEND = 24
"""Categories in the legend, those that cover most; of more colours an eye finds none again."""
LARGEST = 2000
"""Pictures on a sheet, about 400 MB of pixels."""


@dataclass(frozen=True)
class Drawn:
    """One image is done, or why it could not be read."""

    image: str
    error: ImageError | None = None


@dataclass(frozen=True)
class Drawing:
    """The sheet, the ids of the categories whose masks are on it, and all K categories.

    A cluster's `share` is here that of the images drawn, each of which counts the same, whatever its size.
    """

    picture: Image.Image
    shown: tuple[int, ...]
    clusters: tuple[Cluster, ...]


@dataclass(frozen=True)
class _Seen:
    """One image as it is drawn: picture (H, W, 3), categories (H, W)."""

    title: str
    picture: NDArray[np.uint8]
    categories: NDArray[np.integer]

    def shares(self, count: int) -> NDArray[np.float64]:
        """Share of the image that each of `count` categories has."""
        return np.bincount(self.categories.ravel(), minlength=count) / self.categories.size


def visualization_events(
    segmenter: Segmenter,
    images: Sequence[str],
    *,
    shown: Sequence[str] = (),
    columns: int = 1,
    max_pixels: int = MAX_PIXELS,
) -> Iterator[Drawn | Drawing]:
    """Look at each image; the last event is the `Drawing` of those that could be read, if any could.

    `shown` names categories by id or name, several with commas between them, by default the largest; `columns` images
    stand side by side. Raises UsageError.
    """
    named = chosen(segmenter.clusters, shown)
    pictures = len(images) * (2 + (len(named) or SHOWN))
    if pictures > LARGEST:
        raise UsageError(
            f"a sheet of {pictures} pictures is too large; give a smaller --limit or fewer --clusters-shown"
        )
    seen = []
    for image in images:
        try:
            pixels = as_pixels(image, max_pixels=max_pixels)
        except ImageError as error:
            yield Drawn(image, error)
            continue
        seen.append(_look(segmenter, pixels, Path(image).name))
        yield Drawn(image)
    if seen:
        yield _draw(segmenter, seen, named, columns)


def visualize(
    segmenter: Segmenter,
    images: Sequence[ImageLike],
    *,
    shown: Sequence[str] = (),
    columns: int = 1,
) -> Image.Image:
    """The sheet of images given as `Segmenter.predict` takes them. Raises UsageError, ImageError and InputError."""
    assert images, "a sheet shows at least one image"
    named = chosen(segmenter.clusters, shown)
    seen = [
        _look(
            segmenter,
            as_pixels(image),
            Path(image).name if isinstance(image, str | Path) else f"image {number}",
        )
        for number, image in enumerate(images, 1)
    ]
    return _draw(segmenter, seen, named, columns).picture


def training_picture(segmenter: Segmenter, squares: Tensor) -> Image.Image:
    """The sheet of images in memory, uint8 (n, 3, S, S), with the masks of the largest categories."""
    return visualize(segmenter, list(squares.cpu()))


def spread(count: int, limit: int) -> list[int]:
    """`limit` of `count` places, evenly spread; all where there are no more."""
    wanted = min(count, limit)
    return [place * count // wanted for place in range(wanted)]


def chosen(clusters: Sequence[Cluster], named: Sequence[str]) -> tuple[int, ...]:
    """The ids that are meant by ids and names, once each, in their order. Raises UsageError for one that is unknown."""
    ids = {cluster.name: cluster.id for cluster in clusters} | {
        str(cluster.id): cluster.id for cluster in clusters
    }
    # A name may hold a comma itself.
    parts = [part for text in named for part in ([text] if text in ids else text.split(","))]
    found: list[int] = []
    for part in map(str.strip, parts):
        if part not in ids:
            raise UsageError(
                f"--clusters-shown {part}: no such cluster; "
                f"give ids from 0 to {len(clusters) - 1} or names of the model's clusters.json"
            )
        found.append(ids[part])
    return tuple(dict.fromkeys(found))


def require_picture_target(out: Path, images: Sequence[str], *, overwrite: bool = False) -> None:
    """Raises UsageError unless `out` names a PNG file that is no input and, without `overwrite`, does not exist yet."""
    if out.suffix.lower() != ".png" or out.is_dir():
        raise UsageError(f"--out {out}: give a file name ending in .png")
    if os.path.realpath(out) in {os.path.realpath(image) for image in images}:
        raise UsageError(f"{out}: would overwrite an input image; give another --out")
    if out.exists() and not overwrite:
        raise UsageError(f"--out {out}: exists already; give --overwrite or another name")


def _look(segmenter: Segmenter, pixels: Tensor, title: str) -> _Seen:
    """uint8 (3, H', W') → the image and its categories, both at the size at which they are drawn."""
    size = fitted(pixels.shape[-2:], SIDE)
    picture = F.interpolate(pixels[None], size, mode="bilinear", antialias=True)[0]
    logits = segmenter.logits(segmenter.prepare(pixels))[0]
    categories = upsample_argmax(logits, *size).cpu().numpy()
    return _Seen(title, picture.permute(1, 2, 0).numpy(), categories)


def _draw(
    segmenter: Segmenter, seen: Sequence[_Seen], named: Sequence[int], columns: int
) -> Drawing:
    shares = np.mean([each.shares(len(segmenter.clusters)) for each in seen], axis=0)
    clusters = tuple(
        replace(cluster, share=float(share))
        for cluster, share in zip(segmenter.clusters, shares, strict=True)
    )
    by_share = [int(k) for k in np.argsort(-shares, kind="stable") if shares[k] > 0]
    shown = tuple(named or by_share[:SHOWN])
    groups = [_row(each, [clusters[k] for k in shown], segmenter.palette) for each in seen]
    rows = [
        [tile for group in groups[first : first + columns] for tile in group]
        for first in range(0, len(groups), columns)
    ]
    return Drawing(sheet(rows, _legend(clusters, by_share), side=SIDE), shown, clusters)


def _legend(
    clusters: Sequence[Cluster], by_share: Sequence[int]
) -> list[tuple[str, Colour | None]]:
    """The largest categories, then how many more there are and what they have together."""
    first, others = by_share[:LEGEND], by_share[LEGEND:]
    entries: list[tuple[str, Colour | None]] = [
        (f"{clusters[k].name}: {_percent(clusters[k].share or 0)}", clusters[k].colour)
        for k in first
    ]
    if others:
        rest = sum(clusters[k].share or 0 for k in others)
        entries.append((f"and {len(others)} more: {_percent(rest)}", None))
    return entries


def _row(seen: _Seen, shown: Sequence[Cluster], palette: Sequence[Colour]) -> list[Tile]:
    """One image's pictures: itself, its categories, and where each of those `shown` is."""
    shares = seen.shares(len(palette))
    present = int((shares > 0).sum())
    return [
        Tile(seen.picture, seen.title),
        Tile(
            colourise(seen.categories, palette),
            f"{present} {'category' if present == 1 else 'categories'}",
        ),
        *(
            Tile(
                lit(seen.picture, seen.categories == cluster.id, cluster.colour),
                f"{cluster.name}: {_percent(shares[cluster.id])}",
                cluster.colour,
            )
            for cluster in shown
        ),
    ]


def lit(picture: NDArray[np.uint8], mask: NDArray[np.bool_], colour: Colour) -> NDArray[np.uint8]:
    """The picture (H, W, 3) where the mask (H, W) is on; elsewhere it is grey and faint, up to a line of `colour`."""
    # Neither black nor white, so that both stand out from it.
    faint = 160 + picture.mean(2, keepdims=True) / 6
    shown = np.where(mask[..., None], picture, faint.astype(np.uint8))
    border = np.zeros_like(mask)
    border[:, 1:] |= mask[:, 1:] != mask[:, :-1]
    border[1:] |= mask[1:] != mask[:-1]
    shown[border] = colour
    return shown


def _percent(share: float) -> str:
    return "<1 %" if 0 < share < 0.01 else f"{100 * share:.0f} %"
