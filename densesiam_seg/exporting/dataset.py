"""What every layout of exported masks is made of: labels, samples, and files in a new folder.

Axes: K clusters, H W image.
"""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from densesiam_seg.errors import UsageError
from densesiam_seg.images.decoding import Decoding, page_of
from densesiam_seg.images.opening import opened
from densesiam_seg.images.pixels import rgb_planes
from densesiam_seg.io.files import make_folder, replace_file, to_json
from densesiam_seg.naming.clusters import Cluster
from densesiam_seg.packed.members import open_file
from densesiam_seg.pictures.masks import LARGEST_8_BIT, Colour

UNLABELLED = -1
"""In a sample's mask: a pixel of no cluster."""
IGNORED, IGNORED_16 = 255, 65535
"""The same in mask files of 8 and of 16 bits."""
QUALITY = 95
"""Of a JPEG that stands for a file of another kind."""

Ids = NDArray[np.int32]


@dataclass(frozen=True)
class Label:
    """A class of an export: a cluster that masks show, under the number that the layout gives it."""

    number: int
    cluster: int
    name: str
    colour: Colour


@dataclass(frozen=True)
class Labels:
    """The classes of an export, in the order of their numbers."""

    entries: tuple[Label, ...]
    clusters: int
    """K, merged ones too."""

    @property
    def deep(self) -> bool:
        """Whether mask files need 16 bits."""
        return self.entries[-1].number >= LARGEST_8_BIT

    def numbered(self, mask: Ids) -> NDArray[Any]:
        """A sample's mask of cluster ids as it is written to a file of 8 or 16 bits."""
        kind, ignored = (np.uint16, IGNORED_16) if self.deep else (np.uint8, IGNORED)
        table = np.full(self.clusters + 1, ignored, kind)  # its last entry is that of -1
        for label in self.entries:
            table[label.cluster] = label.number
        return table[mask]

    def colours(self) -> NDArray[np.uint8]:
        """Colours (K + 1, 3) by cluster id, the last one black for pixels of none."""
        table = np.zeros((self.clusters + 1, 3), np.uint8)
        for label in self.entries:
            table[label.cluster] = label.colour
        return table

    def listed(self) -> list[dict[str, Any]]:
        """What `classes.json` says."""
        return [
            {"number": e.number, "name": e.name, "colour": list(e.colour), "cluster": e.cluster}
            for e in self.entries
        ]


@dataclass(frozen=True)
class Sample:
    """One image and its mask (H, W) of cluster ids; `stem` is its name with sub-folders and without a suffix."""

    stem: str
    source: str
    mask: Ids


def labels_of(
    clusters: Sequence[Cluster], *, consecutive: bool = False, without: str = ""
) -> Labels:
    """The classes for the clusters of a model that masks show.

    Their numbers are the clusters' ids or, where a reader takes no gaps, `consecutive` ones from 0. Names are unique
    and printable, and have no character of `without`; colours are unique, and none is black but that of a cluster that
    is called background.
    """
    entries: list[Label] = []
    names: set[str] = set()
    colours: set[Colour] = {(0, 0, 0)}
    for cluster in clusters:
        if not cluster.left:
            continue
        name = _plain(cluster, without)
        while name in names:
            name = f"{name} ({cluster.id})"
        names.add(name)
        colour = (0, 0, 0) if name == "background" else _free(cluster.colour, colours)
        colours.add(colour)
        number = len(entries) if consecutive else cluster.id
        entries.append(Label(number, cluster.id, name, colour))
    return Labels(tuple(entries), len(clusters))


def _plain(cluster: Cluster, without: str) -> str:
    letters = (c if c.isprintable() and c not in without else "_" for c in cluster.name)
    return "".join(letters).strip() or f"cluster_{cluster.id:02}"


def _free(colour: Colour, taken: set[Colour]) -> Colour:
    """The colour itself, or the next one that is not taken."""
    red, green, blue = colour
    value = (red << 16) + (green << 8) + blue
    while (found := (value >> 16, value >> 8 & 255, value & 255)) in taken:
        value = (value + 1) % (1 << 24)
    return found


class Layout(ABC):
    """A format: where its files lie. `add` is called in several threads at once, `finish` at the end with its results.

    `folder` is new and empty.
    """

    consecutive: ClassVar[bool] = False
    """Whether its classes are numbered without gaps."""
    most: ClassVar[int | None] = None
    """The most classes that it can hold; None: any number."""
    without: ClassVar[str] = ""
    """Characters that names of its classes cannot have."""
    archive: ClassVar[bool] = False
    """Whether it is one zip file."""

    def __init__(self, folder: Path, clusters: Sequence[Cluster], decoding: Decoding) -> None:
        """Raises UsageError for more clusters than the format can hold."""
        self.folder = folder
        self.decoding = decoding
        self.labels = labels_of(clusters, consecutive=self.consecutive, without=self.without)
        if self.most is not None and self.labels.entries[-1].number >= self.most:
            raise UsageError(
                f"--format {self.name()}: holds class numbers up to {self.most - 1}, and this model has "
                f"{self.labels.entries[-1].number}; merge clusters or choose another format"
            )

    @classmethod
    @abstractmethod
    def name(cls) -> str:
        """As the command line has it."""

    @abstractmethod
    def add(self, sample: Sample) -> Any:
        """Write a sample's files; returns what `finish` needs of it. Raises ImageError and OutputError."""

    @abstractmethod
    def finish(self, found: Sequence[Any]) -> None:
        """Write what there is once, from the results of `add` in the order of the images. Raises OutputError."""

    def put(self, name: str, data: bytes) -> None:
        """Write a file below the folder. Raises OutputError."""
        path = self.folder / name
        make_folder(path.parent)
        replace_file(path, data, sync_name=False)

    def put_text(self, name: str, text: str) -> None:
        """The same for text, in UTF-8."""
        self.put(name, text.encode("utf-8"))

    def put_classes(self) -> None:
        """`classes.json`: each class with its cluster."""
        self.put_text("classes.json", to_json(self.labels.listed(), indent=1) + "\n")

    def put_image(self, sample: Sample, name: str, *, jpeg: bool = False) -> str:
        """Write an image below the folder; returns its name, with the suffix of what it is.

        JPEG and PNG files that every program shows alike are copied as they are. Others become a PNG as the network
        sees them: upright, in 8-bit RGB, without alpha; with `jpeg` all that is no JPEG becomes one.
        """
        data, suffix = image_file(sample.source, self.decoding, jpeg=jpeg)
        self.put(name + suffix, data)
        return name + suffix

    def put_mask(self, sample: Sample, name: str, *, palette: bool = False) -> None:
        """Write a mask as a PNG of class numbers, grey or with the classes' colours as its palette."""
        picture = Image.fromarray(self.labels.numbered(sample.mask))
        if palette and not self.labels.deep:
            entries = np.zeros((256, 3), np.uint8)
            for label in self.labels.entries:
                entries[label.number] = label.colour
            picture.putpalette(entries.tobytes())
        self.put(name, png(picture))


def png(picture: Image.Image) -> bytes:
    """The bytes of a PNG of few colours."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()


def image_file(source: str, decoding: Decoding, *, jpeg: bool = False) -> tuple[bytes, str]:
    """The bytes and the suffix of an image as every program reads it. Raises ImageError."""
    kinds = {"JPEG": ".jpg"} if jpeg else {"JPEG": ".jpg", "PNG": ".png"}
    with opened(source, decoding) as image:
        picture = image.picture()  # a file that breaks off is refused here
        chosen = decoding.bands or decoding.stretch or decoding.page or page_of(source)[1]
        if image.format in kinds and not chosen and getattr(image, "ordinary", False):
            with open_file(source) as file:
                return file.read(), kinds[image.format]
        planes = rgb_planes(picture, image.name, decoding)
    upright, buffer = Image.fromarray(np.moveaxis(planes, 0, -1)), io.BytesIO()
    if jpeg:
        upright.save(buffer, "JPEG", quality=QUALITY, subsampling=0)
        return buffer.getvalue(), ".jpg"
    upright.save(buffer, "PNG", compress_level=3)
    return buffer.getvalue(), ".png"
