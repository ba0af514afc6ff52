"""Every layout, read by the program that it is for: `make test-readers`, where these are installed.

Plain tests have torchvision and pycocotools alone; the others are skipped there.
"""

from __future__ import annotations

import json
import os
import sys
import types
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exported import Exported, Mask, export
from PIL import Image
from slow_readers import of_colours, read_label_map, same

pytestmark = [
    pytest.mark.readers,
    # Other people's programs warn of what is none of ours.
    pytest.mark.filterwarnings("ignore"),
]


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    home = str(tmp_path_factory.mktemp("home"))
    for name in ("HF_HOME", "YOLO_CONFIG_DIR", "HF_DATASETS_CACHE"):
        monkeypatch.setenv(name, home)
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "YOLO_OFFLINE"):
        monkeypatch.setenv(name, "1")


def test_voc_by_torchvision(tmp_path: Path) -> None:
    from torchvision.datasets import VOCSegmentation

    e = export(tmp_path, "voc")
    data = VOCSegmentation(str(e.out), year="2012", image_set="trainval", download=False)
    found = {}
    for stem, (image, mask) in zip(sorted(e.masks), data, strict=True):
        assert (image.height, image.width) == e.size(stem)
        found[stem] = e.of_numbers(np.asarray(mask))
    same(found, e)


def by_datumaro(root: Path, format: str, e: Exported, *, images: bool) -> dict[str, Mask]:
    dm = pytest.importorskip("datumaro")
    data = dm.Dataset.import_from(str(root), format)
    names = [label.name for label in data.categories()[dm.AnnotationType.label]]
    found: dict[str, Mask] = {}
    for item in data:
        size = e.size(item.id)
        mask = np.full(size, -1, np.int64)
        for each in item.annotations:
            assert each.type == dm.AnnotationType.mask
            mask[np.asarray(each.image, bool)] = e.cluster.get(names[each.label], -1)
        if images:
            assert item.media_as(dm.Image).size == size
        found.setdefault(item.id, mask)
    return found


def test_voc_by_datumaro(tmp_path: Path) -> None:
    e = export(tmp_path, "voc")
    same(by_datumaro(e.out / "VOCdevkit/VOC2012", "voc_segmentation", e, images=True), e)


def test_cvat_by_datumaro(tmp_path: Path) -> None:
    """CVAT reads a segmentation mask by datumaro, as a folder of VOC."""
    e = export(tmp_path, "cvat")
    with zipfile.ZipFile(e.out) as archive:
        archive.extractall(tmp_path / "unpacked")
    same(by_datumaro(tmp_path / "unpacked", "voc_segmentation", e, images=False), e)


def test_label_studio_by_its_converter(tmp_path: Path) -> None:
    brush = pytest.importorskip("label_studio_sdk.converter.brush")
    interface = pytest.importorskip("label_studio_sdk.label_interface")
    e = export(tmp_path, "label-studio")
    config = interface.LabelInterface((e.out / "labeling_config.xml").read_text("utf-8"))
    config.validate()
    assert set(config.get_control("label").labels) == set(e.cluster)
    found = {}
    for stem, task in zip(
        sorted(e.masks), json.loads((e.out / "tasks.json").read_text("utf-8")), strict=True
    ):
        mask = np.full(e.size(stem), -1, np.int64)
        for region in task["predictions"][0]["result"]:
            value = region["value"]
            values = brush.decode_rle(value["rle"])
            region_ = values.reshape(region["original_height"], region["original_width"], 4)[..., 3]
            mask[region_ == 255] = e.cluster[value["brushlabels"][0]]
        found[stem] = mask
    same(found, e)


def test_labelme_by_labelme(tmp_path: Path) -> None:
    pytest.importorskip("labelme")
    from labelme.utils import img_b64_to_arr, shapes_to_label

    files = pytest.importorskip("labelme._label_file")
    e = export(tmp_path, "labelme")
    values = {"_background_": 0, **{name: k + 1 for name, k in e.cluster.items()}}
    found = {}
    for stem in e.masks:
        path = e.out / f"{stem}.json"
        content = json.loads(path.read_text("utf-8"))
        shapes: list[Any] = []
        for shape in content["shapes"]:
            loaded = files._load_shape_json_obj(shape_json_obj=shape)
            assert loaded["shape_type"] == "mask" and img_b64_to_arr(shape["mask"]) is not None
            shapes.append(loaded)
        classes, _ = shapes_to_label((*e.size(stem), 3), shapes, values)
        found[stem] = np.asarray(classes, np.int64) - 1
    same(found, e)


def test_coco_by_pycocotools(tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")
    from pycocotools.coco import COCO

    e = export(tmp_path, "coco")
    data = COCO(str(e.out / "annotations.json"))
    names = {each["id"]: each["name"] for each in data.loadCats(data.getCatIds())}
    found = {}
    for image in data.loadImgs(data.getImgIds()):
        stem = image["file_name"].rpartition(".")[0]
        mask = np.full(e.size(stem), -1, np.int64)
        for each in data.loadAnns(data.getAnnIds(imgIds=[image["id"]])):
            mask[data.annToMask(each) == 1] = e.cluster[names[each["category_id"]]]
        found[stem] = mask
    same(found, e)


def by_ultralytics(e: Exported, monkeypatch: pytest.MonkeyPatch, resample: int) -> dict[str, Mask]:
    """Masks at the images' own sizes, as ultralytics fills polygons; `resample` points each, 0: as they are."""
    pytest.importorskip("ultralytics")
    from ultralytics.data.dataset import YOLODataset
    from ultralytics.data.utils import check_det_dataset, polygon2mask
    from ultralytics.utils.ops import resample_segments

    monkeypatch.chdir(e.out)
    text = (e.out / "data.yaml").read_text("utf-8").replace("path: .", f"path: {e.out}")
    (e.out / "here.yaml").write_text(text, "utf-8")
    about = check_det_dataset(str(e.out / "here.yaml"), autodownload=False)
    data = YOLODataset(img_path=about["train"], data=about, task="segment", augment=False)
    found = {}
    for label in data.labels:
        stem = os.path.relpath(label["im_file"], e.out / "images/train").rpartition(".")[0]
        stem = (
            stem.replace("images__/", "images_/")
            if "images__" in stem
            else stem.replace("images_/", "images/")
        )
        height, width = label["shape"]
        mask = np.full((height, width), -1, np.int64)
        segments = label["segments"]
        if resample:
            segments = resample_segments([each.copy() for each in segments], resample)
        for number, segment in zip(label["cls"].ravel(), segments, strict=True):
            filled = polygon2mask((height, width), [segment * [width, height]])
            mask[filled == 1] = e.cluster[about["names"][int(number)]]
        found[stem] = mask
    return found


def test_yolo_by_ultralytics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its check for images of less than 10 pixels there is nothing to leave out: ours are larger."""
    e = export(tmp_path, "yolo")
    same(by_ultralytics(e, monkeypatch, 0), e)


def test_yolo_resampled_as_for_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    e = export(tmp_path, "yolo")
    same(by_ultralytics(e, monkeypatch, 1000), e)


def test_mmseg_by_mmsegmentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mmcv")
    # mmcv's compiled operations have no wheel; its data sets use none of them, and one module names one.
    operations = types.ModuleType("mmcv.ops")
    operations.point_sample = None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mmcv.ops", operations)
    pytest.importorskip("mmseg")
    from mmengine import Config, DefaultScope
    from mmseg.datasets import BaseSegDataset, transforms  # noqa: F401

    e = export(tmp_path, "mmseg")
    monkeypatch.chdir(e.out)
    config = Config.fromfile("dataset_config.py")
    DefaultScope.get_instance("exports", scope_name="mmseg")  # as its configs say
    options = dict(config.train_dataset)
    assert options.pop("type") == "BaseSegDataset"
    data = BaseSegDataset(**options)
    assert list(data.metainfo["classes"]) == [label.name for label in e.labels.entries]
    found = {}
    for index in range(len(data)):
        sample = data[index]
        stem = os.path.relpath(sample["img_path"], "img_dir/train").rpartition(".")[0]
        assert sample["img"].shape[:2] == e.size(stem)
        found[stem] = e.of_numbers(sample["gt_seg_map"])
    same(found, e)


@pytest.mark.parametrize("count", [9, 300])
def test_lightly_train_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    module = pytest.importorskip("lightly_train._data.mask_semantic_segmentation_dataset")
    from lightly_train._data.file_helpers import ImageMode, open_image_numpy, open_mask_numpy

    e = export(tmp_path, "lightly-train", count)
    monkeypatch.chdir(e.out)
    content = json.loads((e.out / "data.json").read_text("utf-8"))
    data = module.MaskSemanticSegmentationDataArgs(**content)
    names = {name: label.name for name, label in data.classes.items()}
    assert {name: number for number, name in names.items()} == e.cluster
    args = module.MaskSemanticSegmentationDatasetArgs(
        image_dir=Path(data.train.images),
        mask_dir_or_file=str(data.train.masks),
        classes=data.classes,
        ignore_index=-100,
    )
    reader = module.MaskSemanticSegmentationDataset(args, [])
    found = {}
    for row in args.list_image_info():
        image = open_image_numpy(Path(row["image_filepaths"]), mode=ImageMode.RGB)
        mask = reader.map_mask_labels_to_class_ids(open_mask_numpy(Path(row["mask_filepaths"])))
        assert image.shape[:2] == mask.shape
        stem = os.path.relpath(row["image_filepaths"], "images").rpartition(".")[0]
        found[stem] = np.where(mask == -100, -1, mask)
    same(found, e)


def test_hf_by_datasets(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    if not hasattr(datasets, "load_dataset"):
        pytest.skip(
            "datasets is the folder of this repository here, and not Hugging Face's package"
        )
    e = export(tmp_path, "hf")
    data = datasets.load_dataset(str(e.out), split="train", cache_dir=str(tmp_path / "cache"))
    assert set(data.column_names) == {"image", "mask"}
    found = {}
    for stem, row in zip(sorted(e.masks), data, strict=True):
        assert isinstance(row["mask"], Image.Image)
        assert (row["image"].height, row["image"].width) == e.size(stem)
        found[stem] = e.of_numbers(np.asarray(row["mask"]))
    same(found, e)


def test_colours_of_cvat_are_those_of_its_labels(tmp_path: Path) -> None:
    e = export(tmp_path, "cvat")
    with zipfile.ZipFile(e.out) as archive:
        names = read_label_map(archive.read("labelmap.txt").decode())
    drawn = np.array([list(names)], np.uint8)
    ids = of_colours(drawn, names, e)[0].tolist()
    assert sorted(ids) == sorted([-1, *e.cluster.values()])
