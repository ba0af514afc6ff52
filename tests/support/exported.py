"""Exports of masks that are known to the pixel: odd names, turned images, merged and empty clusters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from image_files import turned
from numpy.typing import NDArray
from PIL import Image

from densesiam_seg.events import Predicted
from densesiam_seg.exporting.dataset import Labels, labels_of
from densesiam_seg.exporting.masks import LAYOUTS, export_masks, plan_masks
from densesiam_seg.images.decoding import Decoding
from densesiam_seg.images.scan import scan
from densesiam_seg.naming.clusters import Cluster, grouping, name_clusters
from densesiam_seg.pictures.masks import write_mask
from densesiam_seg.prediction.names import mask_names

NAMES = [
    "sky",
    "road: wet",
    "a, b",
    'say "hi" & <go>',
    "Bäume #1",
    "Ω{x}",
    "empty",
    "road: wet",
    "|",
]
"""Of clusters 0 to 8; 3 is merged into 1, none has a pixel of 6, and 7 has the name of 1."""
FILES = (
    "plain.jpg",
    "same.jpg",
    "same.png",
    "alpha.png",
    "turned.jpg",
    "a b/Übung, zwei.jpg",
    "images/plain.jpg",
    "images_/x.y.png",
)
Mask = NDArray[np.int64]


@dataclass(frozen=True)
class Exported:
    """An export, and the masks by image: ids of clusters as they are shown, -1 for none."""

    out: Path
    photos: Path
    labels: Labels
    masks: dict[str, Mask]
    """By the stem that the export gives the image."""
    events: Sequence[object]

    @property
    def cluster(self) -> dict[str, int]:
        """Clusters by the names of the classes."""
        return {label.name: label.cluster for label in self.labels.entries}

    def of_numbers(self, mask: NDArray[np.integer], offset: int = 0) -> Mask:
        """Class numbers back to ids; every other value is none."""
        found = np.full(mask.shape, -1, np.int64)
        for label in self.labels.entries:
            found[mask == label.number + offset] = label.cluster
        return found

    def size(self, stem: str) -> tuple[int, int]:
        height, width = self.masks[stem].shape
        return height, width


def odd_clusters(count: int = len(NAMES)) -> list[Cluster]:
    clusters = name_clusters(count)
    for index, name in enumerate(NAMES):
        clusters[index] = replace(clusters[index], name=name)
    clusters[3] = replace(clusters[3], merged_into=1)
    # Two colours alike, and black, by which some readers know the background.
    clusters[4] = replace(clusters[4], colour=clusters[0].colour)
    clusters[5] = replace(clusters[5], colour=(0, 0, 0))
    return clusters


def drawn_mask(draw: np.random.Generator, height: int, width: int, ids: Sequence[int]) -> Mask:
    """Blocks, with single pixels and holes in them."""
    coarse = draw.choice(ids, (height // 4 + 1, width // 4 + 1))
    mask = np.kron(coarse, np.ones((4, 4), np.int64))[:height, :width]
    speckled = draw.random(mask.shape) < 0.05
    return np.where(speckled, draw.choice(ids, mask.shape), mask)


def write_photos(folder: Path, clusters: Sequence[Cluster], masks: Path) -> dict[str, Mask]:
    """Images of different sizes, and what predict would have written for them; the masks by the images' names."""
    draw = np.random.default_rng(3)
    count = len(clusters)
    ids = [k for k in (*range(len(NAMES)), count - 1) if k != 6]
    found = {}
    for index, name in enumerate(FILES):
        height, width = 21 + index, 30 - index
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = draw.integers(0, 256, (height, width, 4), np.uint8)
        mask = drawn_mask(draw, height, width, ids)
        if name == "alpha.png":
            Image.fromarray(pixels).save(path)
        elif name == "turned.jpg":
            Image.fromarray(pixels[..., :3]).save(path, exif=turned(6))
            mask = mask.T.copy()
        else:
            Image.fromarray(pixels[..., :3]).save(path)
        if count <= 255 and index % 2 == 0:
            mask[:3, :5] = 255
        found[name] = mask
    for name, target in zip(sorted(FILES), mask_names(sorted(FILES)), strict=True):
        path = masks / f"{target}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_mask(path, found[name], [each.colour for each in clusters])
    return found


def export(folder: Path, layout: str, count: int = len(NAMES)) -> Exported:
    """The photographs and their masks, written into `folder`, in a layout."""
    clusters, photos, masks = odd_clusters(count), folder / "my photos", folder / "masks"
    by_name = write_photos(photos, clusters, masks)
    out = folder / ("out.zip" if LAYOUTS[layout].archive else "out")
    work = plan_masks(scan([photos], merge=False), out, layout, masks=masks)
    events = list(export_masks(work, clusters, None, Decoding()))
    assert [e.error for e in events if isinstance(e, Predicted)] == [None] * len(FILES)
    table = grouping(clusters)
    shown = {}
    for source, stem in zip(work.sources, work.stems, strict=True):
        mask = by_name[str(Path(source).relative_to(photos))]
        bare = (mask == 255) & (count <= 255)
        shown[stem] = np.where(bare, -1, table[np.where(bare, 0, mask)])
    kind = LAYOUTS[layout]
    labels = labels_of(clusters, consecutive=kind.consecutive, without=kind.without)
    return Exported(out, photos, labels, shown, events)
