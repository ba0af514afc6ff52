"""Pascal VOC's layout, and CVAT's `Segmentation mask 1.1`, which is the same without images in a zip file."""

from __future__ import annotations

import json
from collections.abc import Sequence

from PIL import Image

from densesiam_seg.exporting.dataset import Layout, Sample, png

BACKGROUND = "background"
_LISTS = "ImageSets/Segmentation"


def label_map(layout: Layout) -> str:
    """A line for each class: name, colour, and parts and actions, of which there are none. Black is the background."""
    lines = ["# label:color_rgb:parts:actions"]
    if all(label.name != BACKGROUND for label in layout.labels.entries):
        lines.append(f"{BACKGROUND}:0,0,0::")
    for label in layout.labels.entries:
        red, green, blue = label.colour
        lines.append(f"{label.name}:{red},{green},{blue}::")
    return "\n".join(lines) + "\n"


class Voc(Layout):
    """`JPEGImages/`, `SegmentationClass/` (a palette of ids, 255 for no cluster), lists and `labelmap.txt`.

    Readers look in `VOCdevkit/VOC2012`, and for images that are JPEG.
    """

    most = 255
    without = ":#"
    root = "VOCdevkit/VOC2012"

    @classmethod
    def name(cls) -> str:
        return "voc"

    def add(self, sample: Sample) -> str:
        self.put_image(sample, f"{self.root}/JPEGImages/{sample.stem}", jpeg=True)
        self.put_mask(sample, f"{self.root}/SegmentationClass/{sample.stem}.png", palette=True)
        return sample.stem

    def finish(self, found: Sequence[str]) -> None:
        names = "".join(f"{name}\n" for name in found)
        for subset in ("train", "val", "trainval"):
            self.put_text(f"{self.root}/{_LISTS}/{subset}.txt", names)
        self.put_text(f"{self.root}/labelmap.txt", label_map(self))
        self.put_classes()


class Cvat(Layout):
    """A zip of `SegmentationClass/` in colours, the list `default.txt`, `labelmap.txt`, and labels to paste."""

    without = ":#"
    archive = True

    @classmethod
    def name(cls) -> str:
        return "cvat"

    def add(self, sample: Sample) -> str:
        picture = Image.fromarray(self.labels.colours()[sample.mask])
        self.put(f"SegmentationClass/{sample.stem}.png", png(picture))
        return sample.stem

    def finish(self, found: Sequence[str]) -> None:
        self.put_text(f"{_LISTS}/default.txt", "".join(f"{name}\n" for name in found))
        self.put_text("labelmap.txt", label_map(self))
        labels = [
            {
                "name": each.name,
                "color": "#{:02x}{:02x}{:02x}".format(*each.colour),
                "attributes": [],
            }
            for each in self.labels.entries
        ]
        self.put_text("labels.json", json.dumps(labels, ensure_ascii=False, indent=1) + "\n")
