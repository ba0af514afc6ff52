"""Layouts of two folders, images and masks: those of mmsegmentation, lightly-train and Hugging Face's datasets."""

from __future__ import annotations

import json
from collections.abc import Sequence

from densesiam_seg.exporting.dataset import Layout, Sample


class Mmseg(Layout):
    """`img_dir/train`, `ann_dir/train` (numbers without gaps, 255 is ignored) and `dataset_config.py` to copy."""

    consecutive = True
    most = 255

    @classmethod
    def name(cls) -> str:
        return "mmseg"

    def add(self, sample: Sample) -> None:
        # All images have one suffix there.
        self.put_image(sample, f"img_dir/train/{sample.stem}", jpeg=True)
        self.put_mask(sample, f"ann_dir/train/{sample.stem}.png", palette=True)

    def finish(self, found: Sequence[None]) -> None:
        names = tuple(label.name for label in self.labels.entries)
        colours = [list(label.colour) for label in self.labels.entries]
        self.put_text("dataset_config.py", _CONFIG.format(names=names, colours=colours))
        self.put_classes()


_CONFIG = """# For a config of mmsegmentation 1.x; data_root is the folder of this file.
data_root = "."
metainfo = dict(
    classes={names!r},
    palette={colours!r},
)
train_dataset = dict(
    type="BaseSegDataset",
    data_root=data_root,
    data_prefix=dict(img_path="img_dir/train", seg_map_path="ann_dir/train"),
    img_suffix=".jpg",
    seg_map_suffix=".png",
    metainfo=metainfo,
    ignore_index=255,
    reduce_zero_label=False,
    pipeline=[dict(type="LoadImageFromFile"), dict(type="LoadAnnotations")],
)
"""


class LightlyTrain(Layout):
    """`images/`, `masks/` (grey, ids) and `data.json`, the `data` of `train_semantic_segmentation`."""

    @classmethod
    def name(cls) -> str:
        return "lightly-train"

    def add(self, sample: Sample) -> None:
        self.put_image(sample, f"images/{sample.stem}")
        # A palette would be read as colours.
        self.put_mask(sample, f"masks/{sample.stem}.png")

    def finish(self, found: Sequence[None]) -> None:
        folders = {"images": "images", "masks": "masks"}
        names = {str(label.number): label.name for label in self.labels.entries}
        content = {"train": folders, "val": folders, "classes": names}
        self.put_text("data.json", json.dumps(content, ensure_ascii=False, indent=1) + "\n")
        self.put_classes()


class HuggingFace(Layout):
    """`train/` with `images/`, `masks/` and `metadata.jsonl`, and the card of the data set, `README.md`."""

    consecutive = True

    @classmethod
    def name(cls) -> str:
        return "hf"

    def add(self, sample: Sample) -> dict[str, str]:
        image = self.put_image(sample, f"train/images/{sample.stem}")
        mask = f"train/masks/{sample.stem}.png"
        self.put_mask(sample, mask)
        return {
            "image_file_name": image.removeprefix("train/"),
            "mask_file_name": mask.removeprefix("train/"),
        }

    def finish(self, found: Sequence[dict[str, str]]) -> None:
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found)
        self.put_text("train/metadata.jsonl", lines)
        names = {str(label.number): label.name for label in self.labels.entries}
        self.put_text("id2label.json", json.dumps(names, ensure_ascii=False, indent=1) + "\n")
        table = "\n".join(
            f"| {label.number} | {_cell(label.name)} | {label.cluster} |"
            for label in self.labels.entries
        )
        ignored = 65535 if self.labels.deep else 255
        self.put_text("README.md", _CARD.format(count=len(found), table=table, ignored=ignored))
        self.put_classes()


def _cell(name: str) -> str:
    return name.replace("\\", "\\\\").replace("|", "\\|")


_CARD = """---
task_categories:
- image-segmentation
configs:
- config_name: default
  data_files:
  - split: train
    path: train/**
---

# Masks by densesiam-seg

{count} images with semantic masks that a model made without labels: clusters, under the names that people gave them.
Nobody has checked the masks pixel by pixel.

`image` is the image, `mask` a PNG of class numbers; {ignored} is no class. `id2label.json` has the names.

| number | name | cluster of the model |
|---:|---|---:|
{table}
"""
