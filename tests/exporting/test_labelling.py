"""The labelling configuration, addresses and shapes; `test_dataset` and `test_readers` read the masks."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

from exported import export


def test_the_configuration_names_every_class_as_it_is(tmp_path: Path) -> None:
    e = export(tmp_path, "label-studio")
    root = ElementTree.parse(e.out / "labeling_config.xml").getroot()
    names = [label.attrib["value"] for label in root.iter("Label")]
    assert names == [label.name for label in e.labels.entries]
    assert "a, b" in names and "|" in names


def test_addresses_of_images_are_escaped(tmp_path: Path) -> None:
    e = export(tmp_path, "label-studio")
    tasks = json.loads((e.out / "tasks.json").read_text("utf-8"))
    address = "/data/local-files/?d=images/a%20b/%C3%9Cbung%2C%20zwei.jpg"
    assert address in [task["data"]["image"] for task in tasks]


def test_a_shape_is_no_larger_than_its_region(tmp_path: Path) -> None:
    e = export(tmp_path, "labelme")
    content = json.loads((e.out / "plain.json").read_text("utf-8"))
    mask = e.masks["plain"]
    for shape in content["shapes"]:
        (left, top), (right, bottom) = shape["points"]
        region = mask == e.cluster[shape["label"]]
        assert region.sum() == region[top : bottom + 1, left : right + 1].sum()
        assert region[[top, bottom]].any(1).all() and region[:, [left, right]].any(0).all()
