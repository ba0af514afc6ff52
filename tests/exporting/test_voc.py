"""The label maps of VOC and CVAT; `test_dataset` and `test_readers` read their masks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from exported import odd_clusters

from densesiam_seg.exporting.dataset import Layout
from densesiam_seg.exporting.voc import Cvat, Voc, label_map
from densesiam_seg.images.decoding import Decoding
from densesiam_seg.naming.clusters import name_clusters


@pytest.mark.parametrize("layout", [Voc, Cvat])
def test_a_label_map(layout: type[Layout], tmp_path: Path) -> None:
    sky, road, car = name_clusters(3)
    clusters = [
        replace(sky, name="sky: blue", colour=(1, 2, 3)),
        replace(road, merged_into=0),
        replace(car, name="car", colour=(0, 0, 0)),
    ]
    assert label_map(layout(tmp_path, clusters, Decoding())).splitlines() == [
        "# label:color_rgb:parts:actions",
        "background:0,0,0::",
        "sky_ blue:1,2,3::",
        "car:0,0,1::",
    ]


def test_a_cluster_that_is_the_background(tmp_path: Path) -> None:
    clusters = [replace(name_clusters(1)[0], name="background")]
    lines = label_map(Cvat(tmp_path, clusters, Decoding())).splitlines()
    assert lines[1:] == ["background:0,0,0::"]


def test_every_line_has_four_parts(tmp_path: Path) -> None:
    lines = label_map(Voc(tmp_path, odd_clusters(), Decoding())).splitlines()
    assert {line.count(":") for line in lines[1:]} == {3}
