"""The files of one image: its mask and what is wanted beside it, all of them or none.

Axes: K clusters, h w scores, H W image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from densesiam_seg.images.decoding import Decoding
from densesiam_seg.inference.confidence import grade
from densesiam_seg.inference.options import Refinement
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.io.files import replace_file
from densesiam_seg.pictures.masks import (
    LARGEST_8_BIT,
    encode_jpeg,
    overlay,
    write_array,
    write_grey,
    write_mask,
)
from densesiam_seg.pictures.sheet import with_legend
from densesiam_seg.prediction.georeference import (
    Georeference,
    is_georeferenced,
    read_georeference,
    write_geotiff,
)
from densesiam_seg.prediction.wanted import Wanted

Ids = NDArray[np.integer]
Picture = Callable[[], NDArray[np.uint8]]
"""Gives the image (H, W, 3), which most files do not need."""


@dataclass(frozen=True)
class Writer:
    """Writes what is wanted of each image."""

    segmenter: Segmenter
    wanted: Wanted
    decoding: Decoding
    refinement: Refinement

    def write(
        self,
        files: Mapping[str, Path],
        source: str,
        picture: Picture,
        scores: Tensor,
        size: tuple[int, int],
    ) -> None:
        """Scores (K, h, w) → the files of an image of that size (H, W), its mask last.

        Where one cannot be written the others go too. Raises ImageError and OutputError.
        """
        mask = self.segmenter.mask(scores, *size)
        grades: Mapping[str, NDArray[np.uint8]] = {}
        if self.wanted.graded:
            kinds = [each for each in ("confidence", "entropy") if each in files]
            least = self.wanted.min_confidence
            grades = grade(self.segmenter, scores, mask, kinds, self.refinement, least=least)
        place = self._place(source, mask)
        written: list[Path] = []
        try:
            for what, path in files.items():
                self._write_one(what, path, picture, mask, grades, place)
                written.append(path)
        except Exception:
            for path in written:
                with suppress(OSError):
                    path.unlink()
            raise

    def _place(self, source: str, mask: Ids) -> Georeference | None:
        """The image's place on earth, if masks can tell it; what has no data there has no cluster."""
        if self.wanted.form != "tiff":
            if source.lower().endswith((".tif", ".tiff")) and is_georeferenced(source):
                self.decoding.notes.add("georeference", source, "GeoTIFF")
            return None
        place = read_georeference(source)
        if place is not None and place.missing is not None:
            mask[place.missing] = self._ignored
        return place

    @property
    def _ignored(self) -> int:
        """The id of pixels without a cluster."""
        return 255 if len(self.segmenter.clusters) <= LARGEST_8_BIT else 65535

    def _write_one(
        self,
        what: str,
        path: Path,
        picture: Picture,
        mask: Ids,
        grades: Mapping[str, NDArray[np.uint8]],
        place: Georeference | None,
    ) -> None:
        """One file, by what it is (`Wanted.ends`)."""
        if what == "overlay":
            replace_file(path, encode_jpeg(self._drawn(picture(), mask)), sync_name=False)
        elif what == "npy":
            write_array(path, mask.astype(self._type, copy=False))
        elif what == "mask":
            if place is None:
                write_mask(path, mask, self.segmenter.palette)
            else:
                ids = mask.astype(self._type, copy=False)
                write_geotiff(path, ids, place, self.segmenter.palette, ids=True)
        else:
            grey = grades[what] if what in grades else _only(what, mask)
            if place is None:
                write_grey(path, grey)
            else:
                write_geotiff(path, grey, place)

    @property
    def _type(self) -> type[np.unsignedinteger]:
        return np.uint8 if len(self.segmenter.clusters) <= LARGEST_8_BIT else np.uint16

    def _drawn(self, image: NDArray[np.uint8], mask: Ids) -> Image.Image:
        """The overlay; its legend names the clusters of this image, those that cover most first."""
        drawn = Image.fromarray(overlay(image, mask, self.segmenter.palette))
        # A large one takes hundreds of megabytes, and the legend makes a copy of the drawn one.
        del image
        if not self.wanted.legend:
            return drawn
        clusters = self.segmenter.clusters
        areas = np.zeros(len(clusters), np.int64)
        for row in mask:  # numpy makes wide integers of what it counts
            areas += np.bincount(row, minlength=len(clusters))[: len(clusters)]
        shown = [clusters[id_] for id_ in np.argsort(-areas, kind="stable") if areas[id_]]
        return with_legend(drawn, [(cluster.name, cluster.colour) for cluster in shown])


def _only(what: str, mask: Ids) -> NDArray[np.uint8]:
    """255 where the mask shows the cluster that `only ID` means."""
    return np.where(mask == int(what.removeprefix("only ")), np.uint8(255), np.uint8(0))
