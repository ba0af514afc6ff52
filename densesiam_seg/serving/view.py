"""What the page shows: one model, its images, their masks, and the clusters as they are now.

Axes: K clusters, h w scores, H W image as it is shown.
"""

from __future__ import annotations

import copy
from functools import lru_cache
from pathlib import Path
from threading import BoundedSemaphore
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from densesiam_seg.errors import ModelError
from densesiam_seg.images.decode import image_size, load_reduced
from densesiam_seg.images.decoding import Decoding
from densesiam_seg.images.manifest import Manifest
from densesiam_seg.inference.confidence import grade
from densesiam_seg.inference.model_card import CONFIG
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.inference.upsampling import upsample_argmax
from densesiam_seg.naming import edits
from densesiam_seg.naming.clusters import CLUSTERS, ClusterFile, grouping, left, read_clusters
from densesiam_seg.pictures.masks import encode_jpeg
from densesiam_seg.serving.masks import Masks, Segmented

LONGEST = 1600
"""The longer side of a picture and its mask on the page, at most."""
THUMBNAIL = 120
_THUMBNAILS = 1024
"""Thumbnails that are kept, 5 kB each."""
_DECODED = 2
"""Files that are decoded at once, beside that of the mask: one may take a gigabyte."""


class View:
    """One model directory and the images it is tried on. All methods may be called by several threads."""

    def __init__(
        self, folder: Path, segmenter: Segmenter, images: Manifest, decoding: Decoding | None = None
    ) -> None:
        self.folder, self.segmenter, self.images = folder, segmenter, images
        self.decoding = decoding or segmenter.decoding
        self._config = (folder / CONFIG).read_bytes()
        self._masks = Masks(self._segmented)
        self._decoders = BoundedSemaphore(_DECODED)
        self._thumbnail = lru_cache(_THUMBNAILS)(self._small)

    def close(self) -> None:
        """Make no more masks."""
        self._masks.close()

    def state(self) -> dict[str, Any]:
        """The clusters as they are now. Raises ModelError, also where the model is no longer the one that is shown."""
        found = self._clusters()
        shares = {each.id: each.share for each in left(found.clusters)}
        shown_as = grouping(found.clusters).tolist()
        return {
            "model": str(self.folder),
            "images": len(self.images),
            "revision": found.revision,
            "undo": str(found.history[-1]["edit"]) if found.history else None,
            "clusters": [
                {
                    "id": each.id,
                    "name": each.name,
                    "colour": each.colour,
                    "share": shares.get(each.id, each.share),
                    "shownAs": root,
                }
                for each, root in zip(found.clusters, shown_as, strict=True)
            ],
        }

    def rename(self, cluster: int, name: str) -> dict[str, Any]:
        """Give a cluster a name; the state afterwards. Raises as `edits.rename`."""
        self._require_same_model()
        edits.rename(self.folder, {str(cluster): name})
        return self.state()

    def merge(self, clusters: list[int]) -> dict[str, Any]:
        """Show clusters as the first of them; the state afterwards. Raises as `edits.merge`."""
        self._require_same_model()
        edits.merge(self.folder, [str(each) for each in clusters])
        return self.state()

    def undo(self, revision: int) -> dict[str, Any]:
        """Take back the edit that led to `revision`; the state afterwards. Raises as `edits.undo`."""
        self._require_same_model()
        edits.undo(self.folder, seen=revision)
        return self.state()

    def names(self, first: int, count: int) -> list[str]:
        """Names of images, from `first` on."""
        return list(self.images.names[first : first + count])

    def picture(self, index: int) -> bytes:
        """An image as it is shown, JPEG. Raises ImageError."""
        return self._jpeg(index, LONGEST)

    def thumbnail(self, index: int) -> bytes:
        """The same, small."""
        return self._thumbnail(index)

    def mask(self, index: int) -> NDArray[np.integer]:
        """The learned cluster (H, W) of each pixel, before any merge. Raises ImageError and NumericError.

        The next image's is made while this one is looked at.
        """
        found = self._masks.get(index)
        if index + 1 < len(self.images):
            self._masks.ahead(index + 1)
        return found.ids

    def confidence(self, index: int) -> NDArray[np.uint8]:
        """How sure each pixel (H, W) is of the cluster shown now, 0 to 255. Raises as `mask`, and ModelError."""
        found = self._masks.get(index)
        now = copy.copy(self.segmenter)
        now.clusters = self._clusters().clusters
        maps = grade(now, found.scores, now.grouping[found.ids], ("confidence",))
        return maps["confidence"]

    def _clusters(self) -> ClusterFile:
        self._require_same_model()
        return read_clusters(self.folder / CLUSTERS, len(self.segmenter.clusters))

    def _require_same_model(self) -> None:
        """Raises ModelError where the model was replaced: ids now mean other clusters than those on the page."""
        try:
            same = (self.folder / CONFIG).read_bytes() == self._config
        except OSError:
            same = False
        if not same:
            raise ModelError(
                f"{self.folder}: the model was replaced or removed since; end this program and start it again"
            )

    def _segmented(self, index: int) -> Segmented:
        images, size = self.segmenter.read(self.images.path(index), decoding=self.decoding)
        scores = self.segmenter.scores(images)[0].cpu()
        return Segmented(scores, upsample_argmax(scores, *fitting(size, LONGEST)).numpy())

    def _small(self, index: int) -> bytes:
        return self._jpeg(index, THUMBNAIL)

    def _jpeg(self, index: int, longest: int) -> bytes:
        path = self.images.path(index)
        with self._decoders:
            height, width = fitting(image_size(path, self.decoding), longest)
            pixels, _ = load_reduced(path, min(height, width), self.decoding)
            picture = Image.fromarray(pixels.permute(1, 2, 0).numpy())
            return encode_jpeg(picture.resize((width, height), Image.Resampling.BILINEAR))


def fitting(size: tuple[int, int], longest: int) -> tuple[int, int]:
    """Height and width, made smaller where the longer of them exceeds `longest`."""
    scale = min(1.0, longest / max(size))
    return max(round(size[0] * scale), 1), max(round(size[1] * scale), 1)
