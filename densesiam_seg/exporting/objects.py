"""Layouts of objects: COCO's annotations in run lengths, and the polygons of ultralytics' YOLO."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from densesiam_seg.exporting.contours import outlines
from densesiam_seg.exporting.dataset import Layout, Sample

MOST_CORNERS = 998
"""Of a polygon of YOLO: ultralytics closes it, resamples it to 1,000 places, and keeps all corners of fewer."""


class Coco(Layout):
    """`images/` and `annotations.json`: for each image one annotation a cluster, a compressed run length.

    Categories have the number of the cluster + 1, since many readers take 0 for none.
    """

    @classmethod
    def name(cls) -> str:
        return "coco"

    def add(self, sample: Sample) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        from pycocotools import mask as coding

        image = self.put_image(sample, f"images/{sample.stem}")
        height, width = sample.mask.shape
        found = []
        for label in self.labels.entries:
            region = sample.mask == label.cluster
            if region.any():
                runs = coding.encode(np.asfortranarray(region.astype(np.uint8)))
                found.append(
                    {
                        "category_id": label.number + 1,
                        "segmentation": {
                            "size": [height, width],
                            "counts": runs["counts"].decode("ascii"),
                        },
                        "area": int(region.sum()),
                        "bbox": coding.toBbox(runs).tolist(),
                        "iscrowd": 0,
                    }
                )
        name = image.removeprefix("images/")
        return {"file_name": name, "width": width, "height": height}, found

    def finish(self, found: Sequence[tuple[dict[str, Any], list[dict[str, Any]]]]) -> None:
        images, annotations = [], []
        for number, (image, regions) in enumerate(found, 1):
            images.append({"id": number, **image})
            annotations += [{"image_id": number, **region} for region in regions]
        content = {
            "info": {"description": "masks by densesiam-seg"},
            "images": images,
            "annotations": [{"id": id_, **each} for id_, each in enumerate(annotations, 1)],
            "categories": [
                {"id": label.number + 1, "name": label.name, "supercategory": "cluster"}
                for label in self.labels.entries
            ],
        }
        self.put_text("annotations.json", json.dumps(content, ensure_ascii=False) + "\n")
        self.put_classes()


class Yolo(Layout):
    """`images/train`, `labels/train` with a polygon for each region, and `data.yaml`.

    A reader puts `labels` in place of the last folder called `images`, so that no sub-folder may be called so.
    """

    consecutive = True

    @classmethod
    def name(cls) -> str:
        return "yolo"

    def add(self, sample: Sample) -> None:
        stem = re.sub(r"(?=^|/)(images_*)(?=/)", r"\1_", sample.stem)
        self.put_image(sample, f"images/train/{stem}")
        numbers = {label.cluster: label.number for label in self.labels.entries}
        height, width = sample.mask.shape
        digits = len(str(max(height, width))) + 2
        lines = []
        for cluster, places in outlines(sample.mask, MOST_CORNERS):
            if cluster in numbers:
                shares = (places / [width, height]).ravel().tolist()
                text = " ".join(f"{share:.{digits}f}" for share in shares)
                lines.append(f"{numbers[cluster]} {text}\n")
        self.put_text(f"labels/train/{stem}.txt", "".join(lines))

    def finish(self, found: Sequence[None]) -> None:
        names = "".join(
            f"  {each.number}: {yaml_text(each.name)}\n" for each in self.labels.entries
        )
        # No split is made; ultralytics wants both.
        text = f"path: .\ntrain: images/train\nval: images/train\nnames:\n{names}"
        self.put_text("data.yaml", text)
        self.put_classes()


def yaml_text(text: str) -> str:
    """A string in double quotes; its letters are printable."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
