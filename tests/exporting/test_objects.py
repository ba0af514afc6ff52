"""Facts of COCO and YOLO that readers depend on; `test_dataset` and `test_readers` read the masks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from exported import export

from densesiam_seg.exporting.objects import yaml_text


def test_no_number_of_coco_is_0(tmp_path: Path) -> None:
    content = json.loads((export(tmp_path, "coco").out / "annotations.json").read_text("utf-8"))
    for part in ("images", "annotations", "categories"):
        numbers = [each["id"] for each in content[part]]
        assert min(numbers) == 1 and len(set(numbers)) == len(numbers)
    assert [each["id"] for each in content["categories"]] == [1, 2, 3, 5, 6, 7, 8, 9]


def test_a_folder_called_images_does_not_mislead_yolo(tmp_path: Path) -> None:
    out = export(tmp_path, "yolo").out
    for kind, suffix in (("images", ".jpg"), ("labels", ".txt")):
        assert (out / kind / "train/images_/plain").with_suffix(suffix).is_file()
        assert (out / kind / "train/images__").is_dir()
    assert not (out / "images/train/images").exists()


@pytest.mark.parametrize("text", ["sky", 'a "b"', "\\n", "Ω: {x} #1", "yes"])
def test_a_text_in_yaml(text: str) -> None:
    assert json.loads(yaml_text(text)) == text  # JSON is YAML
