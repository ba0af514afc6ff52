"""The built-in datasets: facts of each, by hand and against the shared maps and samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from densesiam_seg.datasets.declaration import IGNORE, Dataset, built_in_datasets, load_dataset
from densesiam_seg.datasets.labels import read_label
from densesiam_seg.datasets.reader import samples

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data are not here")


def ids(dataset: Dataset) -> dict[int, int]:
    """Class id of each raw value."""
    return {raw: n for n, each in enumerate(dataset.classes) for raw in each.raw}


def shared_json(name: str) -> Any:
    return json.loads((SHARED / name).read_text())


def test_names() -> None:
    assert built_in_datasets() == ("camvid", "cityscapes", "coco-stuff", "potsdam")


@pytest.mark.parametrize("name", built_in_datasets())
def test_every_one_is_complete(name: str) -> None:
    dataset = load_dataset(name)
    assert dataset.name == name
    assert dataset.title != name
    assert dataset.default_split == "val"
    assert {"train", "val"} <= set(dataset.splits)
    assert None not in dataset.colours


def test_coco_stuff() -> None:
    dataset = load_dataset("coco-stuff")
    assert len(dataset.classes) == 27
    assert dataset.kinds == ("thing",) * 12 + ("stuff",) * 15
    fine = ids(dataset)
    assert sorted(fine) == list(range(182))
    assert all((fine[raw] < 12) == (raw <= 90) for raw in fine)
    # person, bicycle, traffic light, bird, banana, chair, banner, sky, grass, wood (the last).
    known = {0: 9, 1: 11, 9: 8, 15: 7, 51: 2, 61: 3, 91: 17, 156: 23, 123: 22, 181: 24}
    assert {raw: fine[raw] for raw in known} == known
    assert dataset.names[9] == "person-things"
    assert [n for n, name in enumerate(dataset.names) if "food" in name] == [2, 14]
    assert [n for n, name in enumerate(dataset.names) if "furniture" in name] == [3, 15]
    assert dataset.ignored == (255,)
    assert dataset.absent_values == (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)
    assert dataset.protocol == "picie"
    assert {name: split.expected for name, split in dataset.splits.items()} == {
        "val": 2175,
        "train": 49629,
    }


def test_cityscapes() -> None:
    dataset = load_dataset("cityscapes")
    assert ids(dataset) == {raw: raw - 7 for raw in range(7, 34)}
    assert set(dataset.ignored) == {0, 1, 2, 3, 4, 5, 6, 255}
    assert (dataset.names[0], dataset.names[17], dataset.names[26]) == ("road", "person", "bicycle")
    assert dataset.kinds == ("stuff",) * 17 + ("thing",) * 10
    assert (dataset.splits["val"].expected, dataset.splits["train"].expected) == (500, 2975)


def test_potsdam() -> None:
    dataset = load_dataset("potsdam")
    assert dataset.coding == "rgb"
    # Road, car; building, clutter; low vegetation, tree.
    assert ids(dataset) == {
        0xFFFFFF: 0,
        0xFFFF00: 0,
        0x0000FF: 1,
        0xFF0000: 1,
        0x00FFFF: 2,
        0x00FF00: 2,
    }
    assert dataset.ignored == ()
    assert dataset.splits["val"].expected == 855


def test_camvid() -> None:
    dataset = load_dataset("camvid")
    assert ids(dataset) == {raw: raw for raw in range(11)}
    assert dataset.names[0] == "Sky"
    things = [
        name for name, kind in zip(dataset.names, dataset.kinds, strict=True) if kind != "stuff"
    ]
    assert things == ["Car", "Pedestrian", "Bicyclist"]
    assert dataset.splits["val"].expected == 101


@needs_data
@pytest.mark.parametrize(
    ("name", "file", "key"),
    [
        ("coco-stuff", "label_maps/cocostuff27.json", "coarse"),
        ("cityscapes", "label_maps/cityscapes27.json", "classes27"),
        ("camvid", "camvid/classes.json", "classes"),
    ],
)
def test_names_and_colours_equal_the_shared_ones(name: str, file: str, key: str) -> None:
    dataset, classes = load_dataset(name), shared_json(file)[key]
    assert list(dataset.names) == [each["name"] for each in classes]
    assert [list(colour or ()) for colour in dataset.colours] == [each["color"] for each in classes]


@needs_data
def test_maps_equal_the_shared_ones() -> None:
    dataset, shared = load_dataset("coco-stuff"), shared_json("label_maps/cocostuff27.json")
    fine = ids(dataset)
    assert [fine[raw] for raw in range(182)] == shared["fine_to_coarse"]
    removed = [each["fine_id"] for each in shared["fine"] if each["removed_in_coco"]]
    assert list(dataset.absent_values) == removed
    for split, listed in shared["curated_lists"].items():
        assert dataset.splits[split].lists == (listed["file"],)
        assert dataset.splits[split].expected == listed["count"]
    dataset, shared = load_dataset("cityscapes"), shared_json("label_maps/cityscapes27.json")
    wanted = {int(raw) % 256: each for raw, each in shared["labelId_to_27"].items()}
    assert dict.fromkeys(dataset.ignored, 255) | ids(dataset) == wanted


@needs_data
@pytest.mark.parametrize(
    ("name", "folder", "count"), [("camvid", "camvid", 101), ("coco-stuff", "coco", 79)]
)
def test_shared_samples_are_found_and_their_labels_read(name: str, folder: str, count: int) -> None:
    dataset = load_dataset(name)
    found = samples(dataset, SHARED / folder, "val")
    assert len(found) == count
    seen: set[int] = set()
    for sample in found:
        seen.update(np.unique(read_label(dataset, sample.label)).tolist())
    assert seen - {IGNORE} <= set(range(len(dataset.classes)))
    assert IGNORE in seen
    # Both sets show every class of CamVid, and nearly every one of COCO-Stuff.
    assert len(seen) > len(dataset.classes) - 2
