"""Masks: palettes, PNG files, overlays."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from densesiam_seg.pictures import masks
from densesiam_seg.pictures.masks import (
    Colour,
    colourise,
    encode_jpeg,
    encode_png,
    overlay,
    palette,
    write_grey,
    write_mask,
)

COLOURS: list[Colour] = [(250, 0, 0), (0, 200, 0), (0, 0, 150)]


class TestPalette:
    @pytest.mark.parametrize("count", [0, 1, 27, 256])
    def test_colours_are_distinct_and_not_the_black_of_ignored_pixels(self, count: int) -> None:
        colours = palette(count)
        assert len(colours) == len(set(colours)) == count
        assert all(max(colour) > 60 and max(colour) <= 255 for colour in colours)

    def test_a_cluster_keeps_its_colour_whatever_the_number(self) -> None:
        assert palette(5) == palette(300)[:5]

    def test_the_first_27_are_far_apart(self) -> None:
        colours = np.array(palette(27), float)
        distances = np.linalg.norm(colours[:, None] - colours[None], axis=-1)
        assert distances[~np.eye(27, dtype=bool)].min() > 20


class TestWriteMask:
    @pytest.mark.parametrize("dtype", [np.uint8, np.int32])
    @pytest.mark.parametrize("count", [1, 2, 16, 17, 27, 255])
    def test_ids_and_colours_come_back(
        self, count: int, dtype: type[np.integer], tmp_path: Path
    ) -> None:
        """With 8 bits whatever the number of clusters, and black for ignored pixels."""
        mask = np.random.default_rng(0).integers(0, count, (7, 9)).astype(dtype)
        mask[2, 3] = 255
        write_mask(tmp_path / "m.png", mask, palette(count))
        bit_depth, colour_type = (tmp_path / "m.png").read_bytes()[24:26]
        assert (bit_depth, colour_type) == (8, 3)
        with Image.open(tmp_path / "m.png") as picture:
            np.testing.assert_array_equal(np.asarray(picture), mask)
            colours = np.asarray(picture.convert("RGB"))
        np.testing.assert_array_equal(colours, colourise(mask, palette(count)))
        assert colours[2, 3].tolist() == [0, 0, 0]

    @pytest.mark.parametrize("count", [256, 4096])
    def test_more_ids_make_16_bit_grey(self, count: int, tmp_path: Path) -> None:
        mask = np.array([[0, 255, 256, count - 1]], np.int32)
        write_mask(tmp_path / "m.png", mask, palette(count))
        with Image.open(tmp_path / "m.png") as picture:
            assert picture.mode == "I;16"
            assert np.asarray(picture).tolist() == mask.tolist()

    def test_strided_masks(self, tmp_path: Path) -> None:
        mask = np.arange(12, dtype=np.uint8).reshape(3, 4).T
        write_mask(tmp_path / "m.png", mask, palette(12))
        with Image.open(tmp_path / "m.png") as picture:
            np.testing.assert_array_equal(np.asarray(picture), mask)


class TestPictures:
    def test_ids_take_their_colours(self) -> None:
        picture = colourise(np.array([[0, 2], [1, 1]], np.int32), COLOURS)
        assert picture.dtype == np.uint8
        assert picture.tolist() == [[[250, 0, 0], [0, 0, 150]], [[0, 200, 0], [0, 200, 0]]]

    @pytest.mark.parametrize("ignored", [3, 255])
    def test_ignored_ids_are_black(self, ignored: int) -> None:
        mask = np.array([[0, ignored]], np.uint8)
        assert colourise(mask, COLOURS).tolist() == [[[250, 0, 0], [0, 0, 0]]]

    def test_overlay_mixes_inside_and_draws_borders(self) -> None:
        """Columns 0, 0, 1, 1: the third column is a border, the others are the mean of image and colour."""
        image = np.full((2, 4, 3), 100, np.uint8)
        picture = overlay(image, np.array([[0, 0, 1, 1]] * 2, np.uint8), COLOURS)
        red, green, border = [175, 50, 50], [50, 150, 50], [0, 200, 0]
        assert picture.dtype == np.uint8
        assert picture.tolist() == [[red, red, border, green]] * 2
        assert (image == 100).all()

    def test_means_of_odd_sums_are_rounded_down(self) -> None:
        image = np.random.default_rng(0).integers(0, 256, (5, 6, 3), np.uint8)
        picture = overlay(image, np.zeros((5, 6), np.uint8), [(10, 37, 251)])
        np.testing.assert_array_equal(picture, np.add(image.astype(int), [10, 37, 251]) // 2)

    def test_borders_run_both_ways(self) -> None:
        mask = np.zeros((3, 3), np.uint8)
        mask[1:, 1:] = 1
        picture = overlay(np.zeros((3, 3, 3), np.uint8), mask, COLOURS)
        full = (picture == colourise(mask, COLOURS)).all(-1)
        assert full.tolist() == [[0, 0, 0], [0, 1, 1], [0, 1, 0]]

    @pytest.mark.parametrize(("encode", "name"), [(encode_png, "PNG"), (encode_jpeg, "JPEG")])
    def test_files_for_people(self, encode: Callable[[Image.Image], bytes], name: str) -> None:
        picture = Image.open(io.BytesIO(encode(Image.new("RGB", (20, 10), (200, 100, 50)))))
        assert (picture.format, picture.size) == (name, (20, 10))
        assert np.abs(np.asarray(picture).astype(int) - [200, 100, 50]).max() <= 3


class TestOtherFiles:
    IDS = np.arange(6000).reshape(60, 100) % 7

    @pytest.mark.parametrize("name", ["m.tif", "m.TIFF"])
    def test_a_tiff_with_its_colours(self, tmp_path: Path, name: str) -> None:
        write_mask(tmp_path / name, self.IDS, palette(7))
        with Image.open(tmp_path / name) as picture:
            assert (picture.mode, picture.info["compression"]) == ("P", "tiff_adobe_deflate")
            np.testing.assert_array_equal(np.asarray(picture), self.IDS)
            np.testing.assert_array_equal(
                np.asarray(picture.convert("RGB")), colourise(self.IDS, palette(7))
            )

    @pytest.mark.parametrize(("count", "kind"), [(7, np.uint8), (300, np.uint16)])
    def test_arrays_and_deep_tiffs(self, tmp_path: Path, count: int, kind: type) -> None:
        write_mask(tmp_path / "m.npy", self.IDS, palette(count))
        found = np.load(tmp_path / "m.npy")
        assert found.dtype == kind
        np.testing.assert_array_equal(found, self.IDS)
        write_mask(tmp_path / "m.tif", self.IDS, palette(count))
        with Image.open(tmp_path / "m.tif") as picture:
            np.testing.assert_array_equal(np.asarray(picture), self.IDS)

    @pytest.mark.parametrize("name", ["m.png", "m.tif"])
    def test_grey(self, tmp_path: Path, name: str) -> None:
        write_grey(tmp_path / name, self.IDS.astype(np.uint8))
        with Image.open(tmp_path / name) as picture:
            assert picture.mode == "L"
            np.testing.assert_array_equal(np.asarray(picture), self.IDS)


def test_an_overlay_of_many_bands_is_that_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Borders between two bands too."""
    draw = np.random.default_rng(0)
    image = draw.integers(0, 256, (60, 40, 3), np.uint8)
    mask = np.repeat(draw.integers(0, 5, (20, 40)), 3, 0)
    whole = overlay(image, mask, palette(5))
    monkeypatch.setattr(masks, "BAND", 7)
    np.testing.assert_array_equal(overlay(image, mask, palette(5)), whole)
