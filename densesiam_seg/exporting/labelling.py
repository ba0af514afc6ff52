"""Pre-annotations for labelling tools: Label Studio (brush) and labelme (masks)."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import numpy as np
from PIL import Image

from densesiam_seg.exporting.brush import brush
from densesiam_seg.exporting.dataset import Layout, Sample, png


class LabelStudio(Layout):
    """`tasks.json` with a prediction for each image, `labeling_config.xml` to paste, and `images/` to serve.

    Tasks name their images as Label Studio serves local files with this folder as its document root.
    """

    @classmethod
    def name(cls) -> str:
        return "label-studio"

    def add(self, sample: Sample) -> dict[str, Any]:
        image = self.put_image(sample, f"images/{sample.stem}")
        height, width = sample.mask.shape
        result = []
        for label in self.labels.entries:
            region = sample.mask == label.cluster
            if region.any():
                result.append(
                    {
                        "id": f"cluster-{label.cluster}",
                        "type": "brushlabels",
                        "from_name": "label",
                        "to_name": "image",
                        "original_width": width,
                        "original_height": height,
                        "image_rotation": 0,
                        "value": {
                            "format": "rle",
                            "rle": brush(region),
                            "brushlabels": [label.name],
                        },
                    }
                )
        return {
            "data": {"image": f"/data/local-files/?d={quote(image)}"},
            "predictions": [{"model_version": "densesiam-seg", "result": result}],
        }

    def finish(self, found: Sequence[dict[str, Any]]) -> None:
        self.put_text("tasks.json", json.dumps(found, ensure_ascii=False) + "\n")
        labels = "".join(
            f"    <Label value={quoteattr(label.name)} background={_hex(label.colour)}/>\n"
            for label in self.labels.entries
        )
        self.put_text("labeling_config.xml", _CONFIG.format(labels=labels))


_CONFIG = """<View>
  <Image name="image" value="$image" zoom="true"/>
  <BrushLabels name="label" toName="image">
{labels}  </BrushLabels>
</View>
"""


def _hex(colour: Sequence[int]) -> str:
    return '"#{:02x}{:02x}{:02x}"'.format(*colour)


class Labelme(Layout):
    """Each image with a JSON file beside it: a shape of the type `mask` for each cluster, exact to the pixel."""

    @classmethod
    def name(cls) -> str:
        return "labelme"

    def add(self, sample: Sample) -> None:
        image = self.put_image(sample, sample.stem)
        height, width = sample.mask.shape
        content = {
            "version": "5.5.0",
            "flags": {},
            "shapes": [
                _shape(label.name, sample.mask == label.cluster)
                for label in self.labels.entries
                if (sample.mask == label.cluster).any()
            ],
            "imagePath": PurePosixPath(image).name,
            "imageData": None,
            "imageHeight": height,
            "imageWidth": width,
        }
        self.put_text(f"{sample.stem}.json", json.dumps(content, ensure_ascii=False) + "\n")

    def finish(self, found: Sequence[None]) -> None:
        self.put_text("labels.txt", "".join(f"{each.name}\n" for each in self.labels.entries))


def _shape(name: str, region: np.ndarray[Any, np.dtype[np.bool_]]) -> dict[str, Any]:
    """The part of a mask inside the box around it, whose corners are pixels of it."""
    rows, columns = np.flatnonzero(region.any(1)), np.flatnonzero(region.any(0))
    top, bottom, left, right = (int(each) for each in (rows[0], rows[-1], columns[0], columns[-1]))
    part = region[top : bottom + 1, left : right + 1]
    return {
        "label": name,
        "points": [[left, top], [right, bottom]],
        "group_id": None,
        "description": "",
        "shape_type": "mask",
        "flags": {},
        "mask": base64.b64encode(png(Image.fromarray(part))).decode("ascii"),
    }
