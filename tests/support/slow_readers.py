"""Exports read back slowly, as the formats' descriptions say: masks of cluster ids by the stems of their images."""

from __future__ import annotations

import ast
import base64
import io
import json
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
from exported import Exported, Mask
from numpy.typing import NDArray
from PIL import Image

Bits = NDArray[np.bool_]


def filled(places: NDArray[np.float64], height: int, width: int) -> Bits:
    """Pixels whose centres lie inside, by counting how often a line to the left crosses the outline."""
    y, x = np.mgrid[:height, :width] + 0.5
    inside = np.zeros((height, width), bool)
    for (ax, ay), (bx, by) in zip(places, np.roll(places, -1, 0), strict=True):
        if ay != by:
            inside ^= ((ay > y) != (by > y)) & (x < (bx - ax) * (y - ay) / (by - ay) + ax)
    return inside


def read_brush(data: list[int]) -> NDArray[np.uint8]:
    """The values, as the format's description says, one bit after the other."""
    bits = "".join(f"{byte:08b}" for byte in data)
    at = 0

    def take(count: int) -> int:
        nonlocal at
        at += count
        return int(bits[at - count : at], 2)

    count, width = take(32), take(5) + 1
    widths = [take(4) + 1 for _ in range(4)]
    values: list[int] = []
    while len(values) < count:
        same, length = take(1), take(widths[take(2)]) + 1
        values += [take(width)] * length if same else [take(width) for _ in range(length)]
    assert len(values) == count and len(bits) - at < 8
    return np.array(values, np.uint8)


def read_runs(counts: str, height: int, width: int) -> Bits:
    """COCO's compressed run lengths: six bits a letter, of which one tells whether more follow; columns come first."""
    numbers: list[int] = []
    at = 0
    while at < len(counts):
        value = place = 0
        more = True
        while more:
            letter = ord(counts[at]) - 48
            value |= (letter & 31) << 5 * place
            more = bool(letter & 32)
            at, place = at + 1, place + 1
            if not more and letter & 16:
                value |= -1 << 5 * place
        # From the third on, the difference to the one before the last.
        numbers.append(value + numbers[-2] if len(numbers) > 2 else value)
    values = [on % 2 for on, number in enumerate(numbers) for _ in range(number)]
    return np.array(values, bool).reshape(width, height).T


def opened(path: Path) -> Image.Image:
    return Image.open(io.BytesIO(path.read_bytes()))


def read_label_map(text: str) -> dict[tuple[int, ...], str]:
    """Names by colour."""
    rows = [line.split(":") for line in text.splitlines() if line and not line.startswith("#")]
    assert all(len(row) == 4 for row in rows)
    found = {tuple(map(int, colour.split(","))): name for name, colour, _, _ in rows}
    assert len(found) == len(rows) == len(set(found.values()))
    return found


def of_colours(picture: NDArray[np.uint8], names: dict[tuple[int, ...], str], e: Exported) -> Mask:
    found = np.full(picture.shape[:2], -1, np.int64)
    for colour, name in names.items():
        if name in e.cluster:
            found[(picture == colour).all(2)] = e.cluster[name]
        else:
            assert name == "background"
    return found


def read_voc(e: Exported) -> dict[str, Mask]:
    root = e.out / "VOCdevkit" / "VOC2012"
    stems = (root / "ImageSets/Segmentation/train.txt").read_text("utf-8").splitlines()
    names = read_label_map((root / "labelmap.txt").read_text("utf-8"))
    found = {}
    for stem in stems:
        assert (root / "JPEGImages" / f"{stem}.jpg").read_bytes()[:3] == b"\xff\xd8\xff"
        picture = opened(root / "SegmentationClass" / f"{stem}.png")
        found[stem] = e.of_numbers(np.asarray(picture))
        assert picture.mode == "P"
        colours = of_colours(np.asarray(picture.convert("RGB")), names, e)
        np.testing.assert_array_equal(colours, found[stem])
    return found


def read_cvat(e: Exported) -> dict[str, Mask]:
    found = {}
    with zipfile.ZipFile(e.out) as archive:
        names = read_label_map(archive.read("labelmap.txt").decode())
        for stem in archive.read("ImageSets/Segmentation/default.txt").decode().splitlines():
            data = io.BytesIO(archive.read(f"SegmentationClass/{stem}.png"))
            found[stem] = of_colours(np.asarray(Image.open(data)), names, e)
        assert {each["name"] for each in json.loads(archive.read("labels.json"))} == set(e.cluster)
    return found


def read_label_studio(e: Exported) -> dict[str, Mask]:
    found = {}
    for task in json.loads((e.out / "tasks.json").read_text("utf-8")):
        image = unquote(task["data"]["image"].removeprefix("/data/local-files/?d="))
        stem, size = image_stem(e.out, image, "images")
        mask = np.full(size, -1, np.int64)
        for region in task["predictions"][0]["result"]:
            value = region["value"]
            assert (region["original_height"], region["original_width"]) == size
            alpha = read_brush(value["rle"]).reshape(*size, 4)[..., 3]
            mask[alpha == 255] = e.cluster[value["brushlabels"][0]]
        found[stem] = mask
    return found


def image_stem(out: Path, name: str, below: str) -> tuple[str, tuple[int, int]]:
    """An image's stem, and its size as it is stored, which no reader turns."""
    with Image.open(out / name) as image:
        assert image.getexif().get(0x0112, 1) == 1 and image.format in ("JPEG", "PNG")
        stem = name.removeprefix(f"{below}/").rpartition(".")[0]
        return stem, (image.height, image.width)


def read_labelme(e: Exported) -> dict[str, Mask]:
    found = {}
    for path in e.out.rglob("*.json"):
        if path.name.startswith("."):
            continue
        content = json.loads(path.read_text("utf-8"))
        image = (path.parent / content["imagePath"]).relative_to(e.out).as_posix()
        stem, size = image_stem(e.out, image, "")
        assert (content["imageHeight"], content["imageWidth"]) == size
        mask = np.full(size, -1, np.int64)
        for shape in content["shapes"]:
            (left, top), (right, bottom) = shape["points"]
            part = np.asarray(Image.open(io.BytesIO(base64.b64decode(shape["mask"]))))
            assert part.dtype == bool and part.shape == (bottom - top + 1, right - left + 1)
            mask[top : bottom + 1, left : right + 1][part] = e.cluster[shape["label"]]
        found[stem] = mask
    return found


def read_coco(e: Exported) -> dict[str, Mask]:
    content = json.loads((e.out / "annotations.json").read_text("utf-8"))
    names = {each["id"]: each["name"] for each in content["categories"]}
    found: dict[str, Mask] = {}
    stems = {}
    for image in content["images"]:
        stem, size = image_stem(e.out, f"images/{image['file_name']}", "images")
        assert size == (image["height"], image["width"])
        found[stem], stems[image["id"]] = np.full(size, -1, np.int64), stem
    for each in content["annotations"]:
        mask = found[stems[each["image_id"]]]
        region = read_runs(each["segmentation"]["counts"], *each["segmentation"]["size"])
        rows, columns = np.nonzero(region)
        left, top = columns.min(), rows.min()
        box = [left, top, columns.max() - left + 1, rows.max() - top + 1]
        assert each["area"] == region.sum() and each["bbox"] == box
        mask[region] = e.cluster[names[each["category_id"]]]
    return found


def read_yolo(e: Exported) -> dict[str, Mask]:
    text = (e.out / "data.yaml").read_text("utf-8")
    names = {
        int(n): ast.literal_eval(name) for n, name in re.findall(r'^  (\d+): (".*")$', text, re.M)
    }
    assert list(names) == list(range(len(names)))
    found = {}
    for path in sorted((e.out / "images/train").rglob("*.*")):
        if path.name.startswith("."):
            continue
        stem, size = image_stem(e.out, path.relative_to(e.out).as_posix(), "images/train")
        # The last folder that is called images becomes labels.
        before, _, after = str(path).rpartition("/images/")
        lines = Path(f"{before}/labels/{after.rpartition('.')[0]}.txt").read_text().splitlines()
        mask = np.full(size, -1, np.int64)
        for line in lines:
            number, *places = line.split()
            shares = np.array(places, float).reshape(-1, 2)
            assert (shares > 0).all() and (shares < 1).all() and len(shares) >= 4
            region = filled(shares * [size[1], size[0]], *size)
            assert (mask[region] == -1).all()
            mask[region] = e.cluster[names[int(number)]]
        found[re.sub(r"(^|/)(images_*)_/", r"\1\2/", stem)] = mask
    return found


def read_folders(
    e: Exported, images: str, masks: str, pairs: Sequence[tuple[str, str]] = ()
) -> dict[str, Mask]:
    found = {}
    for path in sorted((e.out / masks).rglob("*.png")):
        stem = path.relative_to(e.out / masks).as_posix().removesuffix(".png")
        (image,) = [
            p for p in (e.out / images / stem).parent.iterdir() if p.stem == Path(stem).name
        ]
        _, size = image_stem(e.out, image.relative_to(e.out).as_posix(), images)
        mask = np.asarray(opened(path))
        assert mask.shape == size
        found[stem] = e.of_numbers(mask)
    return found


def read_mmseg(e: Exported) -> dict[str, Mask]:
    config: dict[str, Any] = {}
    exec((e.out / "dataset_config.py").read_text("utf-8"), {"dict": dict}, config)
    assert list(config["metainfo"]["classes"]) == [label.name for label in e.labels.entries]
    prefix = config["train_dataset"]["data_prefix"]
    return read_folders(e, prefix["img_path"], prefix["seg_map_path"])


def read_lightly_train(e: Exported) -> dict[str, Mask]:
    content = json.loads((e.out / "data.json").read_text("utf-8"))
    assert {name: int(number) for number, name in content["classes"].items()} == e.cluster
    return read_folders(e, content["train"]["images"], content["train"]["masks"])


def read_hf(e: Exported) -> dict[str, Mask]:
    names = json.loads((e.out / "id2label.json").read_text("utf-8"))
    assert list(names.values()) == [label.name for label in e.labels.entries]
    rows = (e.out / "train/metadata.jsonl").read_text("utf-8").splitlines()
    found = {}
    for row in map(json.loads, rows):
        stem, size = image_stem(e.out, f"train/{row['image_file_name']}", "train/images")
        mask = np.asarray(opened(e.out / "train" / row["mask_file_name"]))
        assert mask.shape == size
        found[stem] = e.of_numbers(mask)
    return found


READERS = {
    "voc": read_voc,
    "cvat": read_cvat,
    "label-studio": read_label_studio,
    "labelme": read_labelme,
    "coco": read_coco,
    "yolo": read_yolo,
    "mmseg": read_mmseg,
    "lightly-train": read_lightly_train,
    "hf": read_hf,
}


def same(found: dict[str, Mask], e: Exported) -> None:
    """All images are there, and every pixel is."""
    assert found.keys() == e.masks.keys()
    for stem, mask in e.masks.items():
        np.testing.assert_array_equal(found[stem], mask, err_msg=stem)
