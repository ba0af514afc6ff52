"""GeoTIFF: where on earth the pixels of an image lie, taken over to its mask. The only module that imports rasterio.

The pixels themselves are read by `images`, upright; a georeference is of the stored ones, so it is turned with them.

Axes: H W of the upright image.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from densesiam_seg.errors import ImageError, UsageError
from densesiam_seg.images.decoding import Decoding, page_of
from densesiam_seg.images.pixels import turned
from densesiam_seg.images.tiff import Page, chosen_page
from densesiam_seg.io.files import replacing
from densesiam_seg.packed.members import as_shown, open_file, piece_of
from densesiam_seg.pictures.masks import LARGEST_8_BIT, Colour

TAGS = (33550, 33922, 34264, 34735)
"""Scale, tie points, transformation and keys of a GeoTIFF; any of them tells where pixels lie."""
BAND = 512
"""Rows whose missing pixels are read at once."""
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_TURNS = {
    2: (-1, 0, 1, 0, 1, 0),
    3: (-1, 0, 1, 0, -1, 1),
    4: (1, 0, 0, 0, -1, 1),
    5: (0, 1, 0, 1, 0, 0),
    6: (0, 1, 0, -1, 0, 1),
    7: (0, -1, 1, -1, 0, 1),
    8: (0, -1, 1, 1, 0, 0),
}
"""By orientation: upright x, y as shares of W, H → stored x (a, b, c) and y (d, e, f) as shares of theirs."""


@dataclass(frozen=True)
class Georeference:
    """What a GeoTIFF says of its pixels' place, for the upright image.

    `missing` (H, W) is true where it has no data; None where it has all.
    """

    transform: Any
    crs: Any
    points: Sequence[Any] = ()
    """Ground control points, where they are what it has instead of a transform."""
    missing: NDArray[np.bool_] | None = None


def require_rasterio(sources: Iterable[str]) -> None:
    """Raises UsageError where one of the sources is a GeoTIFF and rasterio is not installed."""
    if find_spec("rasterio") is not None:
        return
    for source in sources:
        if is_georeferenced(source):
            raise UsageError(
                f"{as_shown(source)}: is a GeoTIFF, whose place on earth needs one more package; "
                "pip install 'densesiam-seg[geo]', or give --format png"
            )


def is_georeferenced(source: str) -> bool:
    """Whether a file is a TIFF that says where it lies; false for what cannot be read, which is told when it is."""
    page = _page(source)
    return page is not None and _is_placed(source, page)


def read_georeference(source: str) -> Georeference | None:
    """The georeference of a TIFF (`FILE/3`: of its third page), None for any other file. Raises ImageError."""
    page = _page(source)
    if page is None or not _is_placed(source, page):
        return None
    import rasterio

    warnings.filterwarnings("ignore", category=rasterio.errors.NotGeoreferencedWarning)
    where = _for_gdal(page_of(source)[0])
    if page.index:
        where = f"GTIFF_DIR:{page.index + 1}:{where}"
    try:
        with rasterio.open(where) as file:
            return _read(file, page.orientation)
    except rasterio.errors.RasterioError as error:
        raise ImageError(
            as_shown(source),
            "corrupt",
            f"its georeference cannot be read ({error})",
            "give --format png",
        ) from error


def _page(source: str) -> Page | None:
    """The page that `images` shows, with its header read; None for no TIFF and for a damaged one."""
    where, number = page_of(source)
    try:
        with open_file(where) as file:
            if file.read(4) not in _TIFF:
                return None
            return chosen_page(file, where, Decoding(), number)
    except Exception:  # a malformed file raises what it likes; it fails where it is decoded
        return None


def _for_gdal(path: str) -> str:
    """What GDAL calls a file, or a piece of one where `path` is a member of a tar."""
    piece = piece_of(path)
    if piece is None:
        return path
    tar, start, size = piece
    return f"/vsisubfile/{start}_{size},{tar}"


def _is_placed(source: str, page: Page) -> bool:
    stem = os.path.splitext(page_of(source)[0])[0]  # noqa: PTH122 - asked for every image
    beside = any(os.path.isfile(stem + end) for end in (".tfw", ".tifw", ".wld"))  # noqa: PTH113
    return beside or any(tag in page.page.tags for tag in TAGS)


def _read(file: Any, orientation: int) -> Georeference | None:
    points, crs = file.gcps
    transform, crs = file.transform, file.crs or crs
    if transform.is_identity and not points and crs is None:
        return None
    turn = _turn(orientation, file.width, file.height)
    back = np.linalg.inv(turn)
    moved = []
    for point in points:
        column, row, _ = back @ (point.col, point.row, 1)
        moved.append(type(point)(float(row), float(column), point.x, point.y, point.z))
    missing = _missing(file)
    if missing is not None:
        missing = turned(missing[..., None], orientation)[..., 0]
    stored = np.reshape(transform, (3, 3))
    upright = type(transform)(*(stored @ turn).ravel()[:6].tolist())
    return Georeference(upright, crs, moved, missing)


def _turn(orientation: int, width: int, height: int) -> NDArray[np.float64]:
    """Upright pixel coordinates (x, y, 1) → those of the stored pixels, `width` × `height`: a matrix (3, 3)."""
    if orientation not in _TURNS:
        return np.eye(3)
    turn = np.array([*_TURNS[orientation], 0, 0, 1], np.float64).reshape(3, 3)
    across, down = (height, width) if orientation >= 5 else (width, height)
    matrix: NDArray[np.float64] = (
        np.diag([width, height, 1]) @ turn @ np.diag([1 / across, 1 / down, 1])
    )
    return matrix


def _missing(file: Any) -> NDArray[np.bool_] | None:
    """Where a file has no data: its value for that, its mask or its alpha say so."""
    from rasterio.enums import MaskFlags
    from rasterio.windows import Window

    if all(MaskFlags.all_valid in flags for flags in file.mask_flag_enums):
        return None
    missing = np.empty((file.height, file.width), np.bool_)
    for top in range(0, file.height, BAND):
        rows = min(BAND, file.height - top)
        missing[top : top + rows] = file.dataset_mask(window=Window(0, top, file.width, rows)) == 0
    return missing if missing.any() else None


def write_geotiff(
    path: Path,
    values: NDArray[np.integer],
    place: Georeference,
    colours: Sequence[Colour] | None = None,
    *,
    ids: bool = False,
) -> None:
    """Write (H, W) with its place on earth, compressed, whole or not at all. Raises OutputError.

    `colours` are a palette; of `ids` the largest value of their type means no cluster.
    """
    import rasterio

    nodata = {"nodata": int(np.iinfo(values.dtype).max)} if ids else {}
    height, width = values.shape
    with rasterio.MemoryFile() as memory:
        with memory.open(
            driver="GTiff",
            height=height,
            width=width,
            count=1,
            dtype=values.dtype.name,
            compress="deflate",
            **nodata,
        ) as file:
            if place.points:
                file.gcps = (list(place.points), place.crs)
            else:
                file.transform = place.transform
                if place.crs is not None:
                    file.crs = place.crs
            if colours is not None and len(colours) <= LARGEST_8_BIT:
                file.write_colormap(1, dict(enumerate(colours)))
            file.write(values, 1)
        with replacing(path, sync_name=False) as out:
            out.write(memory.getbuffer())
