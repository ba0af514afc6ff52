"""Pictures of a page, pixel by pixel."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from densesiam_seg.images.decoding import Decoding
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.pictures.masks import overlay
from densesiam_seg.reporting.observing import Crop
from densesiam_seg.reporting.pictures import (
    CROP,
    SIDE,
    address,
    crop_addresses,
    grown,
    outlined,
    show_images,
)


def pixels_of(text: str) -> NDArray[np.uint8]:
    """The picture of an address."""
    kind, _, data = text.partition(",")
    assert kind == "data:image/webp;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
        return np.asarray(picture.convert("RGB"))


def test_an_address_holds_the_picture() -> None:
    picture = np.full((20, 30, 3), (200, 40, 90), np.uint8)
    found = pixels_of(address(picture))
    assert found.shape == picture.shape
    assert np.abs(found.astype(int) - picture).max() < 8


def test_a_crop_is_outlined_and_paler_outside() -> None:
    """The right half of the image, of whose upper half the cluster has all."""
    image = torch.zeros(3, 100, 100, dtype=torch.uint8)
    image[:, :, 50:] = 40
    inside = np.zeros((50, 50), bool)
    inside[:25] = True
    crop = Crop(0, 1, (0, 0.5, 0.5, 0.5), 1.0, inside)
    found = outlined(image, crop, (255, 0, 0))
    assert found.shape == (CROP, CROP, 3)
    middle = CROP // 2
    assert (found[: middle - 3] == 40).all()
    assert (found[middle + 3 :] > 80).all()
    line = found[middle - 3 : middle + 3].reshape(-1, 3).tolist()
    assert [255, 0, 0] in line and [255, 255, 255] in line


def test_grown_masks_do_not_reach_around_the_edge() -> None:
    mask = np.zeros((4, 5), bool)
    mask[0, 0] = True
    assert np.argwhere(grown(mask)).tolist() == [[0, 0], [0, 1], [1, 0]]


def test_crops_of_files_and_of_one_that_is_gone(paths: list[str], segmenter: Segmenter) -> None:
    whole = np.ones((4, 4), bool)
    crops = [Crop(place, 2, (0, 0, 1, 1), 1.0, whole) for place in (1, 0, 1, 2)]
    names = {0: paths[0], 1: paths[1], 2: "gone.png"}
    found = list(crop_addresses(crops, names, segmenter.palette, Decoding()))
    assert [crop.place for crop, _ in found] == [0, 1, 1]
    with Image.open(paths[0]) as picture:
        wanted = np.asarray(picture.resize((CROP, CROP), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(pixels_of(found[0][1])[2:-2, 2:-2] - wanted[2:-2, 2:-2]).mean() < 6


def test_images_with_their_masks(paths: list[str], segmenter: Segmenter, tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"junk")
    first, bad = show_images(segmenter, [paths[1], str(tmp_path / "bad.jpg")], Decoding())
    assert (first.name, first.width, first.height) == ("01.png", SIDE, SIDE)
    assert (bad.name, bad.photograph, bad.masked) == ("bad.jpg", "", "")
    with Image.open(paths[1]) as picture:
        large = np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BILINEAR))
    scores = segmenter.scores(segmenter.read(paths[1])[0])[0]
    wanted = overlay(large, segmenter.mask(scores, SIDE, SIDE), segmenter.palette)
    assert np.abs(pixels_of(first.photograph) - large.astype(int)).mean() < 6
    assert np.abs(pixels_of(first.masked) - wanted.astype(int)).mean() < 12
