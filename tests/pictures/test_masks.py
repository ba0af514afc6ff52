"""Masks: palettes, PNG files, overlays."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from densesiam_seg.errors import OutputError
from densesiam_seg.pictures.masks import (
    Colour,
    colourise,
    encode_jpeg,
    encode_mask,
    overlay,
    palette,
    write_mask,
)


def decoded(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


class TestPalette:
    @pytest.mark.parametrize("count", [0, 1, 27, 256])
    def test_colours_are_distinct(self, count: int) -> None:
        colours = palette(count)
        assert len(colours) == len(set(colours)) == count
        assert all(0 <= value <= 255 for colour in colours for value in colour)

    def test_a_cluster_keeps_its_colour_whatever_the_number(self) -> None:
        assert palette(5) == palette(300)[:5]

    def test_none_is_the_black_of_ignored_pixels(self) -> None:
        assert all(max(colour) > 60 for colour in palette(256))

    def test_the_first_27_are_far_apart(self) -> None:
        colours = np.array(palette(27), float)
        distances = np.linalg.norm(colours[:, None] - colours[None], axis=-1)
        assert distances[~np.eye(27, dtype=bool)].min() > 20


class TestPng:
    @pytest.mark.parametrize("count", [1, 2, 5, 16, 17, 27, 255])
    def test_ids_and_colours_come_back(self, count: int, tmp_path: Path) -> None:
        mask = np.random.default_rng(0).integers(0, count, (7, 9), np.uint8)
        write_mask(tmp_path / "m.png", mask, palette(count))
        with Image.open(tmp_path / "m.png") as picture:
            assert (picture.format, picture.mode, picture.size) == ("PNG", "P", (9, 7))
            np.testing.assert_array_equal(np.asarray(picture), mask)
            colours = np.asarray(picture.convert("RGB"))
        np.testing.assert_array_equal(colours, np.array(palette(count), np.uint8)[mask])

    @pytest.mark.parametrize("count", [2, 5, 255])
    def test_it_is_8_bit_and_ignored_pixels_stay(self, count: int) -> None:
        mask = np.array([[0, 1, 255]], np.uint8)
        data = encode_mask(mask, palette(count))
        bit_depth, colour_type = data[24], data[25]
        assert (bit_depth, colour_type) == (8, 3)
        picture = decoded(data)
        assert np.asarray(picture).tolist() == [[0, 1, 255]]
        assert np.asarray(picture.convert("RGB"))[0, 2].tolist() == [0, 0, 0]

    @pytest.mark.parametrize("count", [256, 300, 4096])
    def test_more_ids_make_16_bit_grey(self, count: int) -> None:
        mask = np.array([[0, 255, 256, count - 1]], np.int32)
        data = encode_mask(mask, palette(count))
        bit_depth, colour_type = data[24], data[25]
        assert (bit_depth, colour_type) == (16, 0)
        picture = decoded(data)
        assert picture.mode == "I;16"
        assert np.asarray(picture).tolist() == mask.tolist()

    def test_strided_masks(self) -> None:
        mask = np.arange(12, dtype=np.uint8).reshape(3, 4).T
        np.testing.assert_array_equal(np.asarray(decoded(encode_mask(mask, palette(12)))), mask)

    @pytest.mark.parametrize("count", [27, 300])
    def test_bands_are_written_as_the_whole_mask(self, count: int, tmp_path: Path) -> None:
        mask = np.random.default_rng(0).integers(0, count, (50, 40)).astype(np.int32)
        write_mask(
            tmp_path / "m.png", (mask[top : top + 7] for top in range(0, 50, 7)), palette(count)
        )
        assert (tmp_path / "m.png").read_bytes() == encode_mask(mask, palette(count))

    def test_a_band_that_cannot_be_made_leaves_the_old_file(self, tmp_path: Path) -> None:
        def bands() -> Iterator[NDArray[np.integer]]:
            yield np.zeros((5, 5), np.uint8)
            raise ValueError("no more memory")

        (tmp_path / "m.png").write_text("old")
        with pytest.raises(ValueError, match="no more memory"):
            write_mask(tmp_path / "m.png", bands(), palette(2))
        assert [path.name for path in tmp_path.iterdir()] == ["m.png"]
        assert (tmp_path / "m.png").read_text() == "old"

    def test_no_place_to_write(self, tmp_path: Path) -> None:
        with pytest.raises(OutputError, match=r"absent.*cannot be written"):
            write_mask(tmp_path / "absent" / "m.png", np.zeros((1, 1), np.uint8), palette(2))

    def test_nothing_else_is_left_behind(self, tmp_path: Path) -> None:
        for _ in range(2):
            write_mask(tmp_path / "m.png", np.zeros((2, 2), np.uint8), palette(2))
        assert [path.name for path in tmp_path.iterdir()] == ["m.png"]


class TestPictures:
    colours: tuple[Colour, ...] = ((250, 0, 0), (0, 200, 0), (0, 0, 150))

    def test_ids_take_their_colours(self) -> None:
        picture = colourise(np.array([[0, 2], [1, 1]], np.int32), self.colours)
        assert picture.dtype == np.uint8
        assert picture.tolist() == [[[250, 0, 0], [0, 0, 150]], [[0, 200, 0], [0, 200, 0]]]

    @pytest.mark.parametrize("ignored", [3, 255])
    def test_ignored_ids_are_black(self, ignored: int) -> None:
        mask = np.array([[0, ignored]], np.uint8)
        assert colourise(mask, self.colours).tolist() == [[[250, 0, 0], [0, 0, 0]]]

    def test_an_empty_mask(self) -> None:
        assert colourise(np.zeros((0, 4), np.uint8), self.colours).shape == (0, 4, 3)

    def test_overlay_mixes_inside_and_draws_borders(self) -> None:
        """Columns 0, 0, 1, 1: the third column is a border, the others are the mean of image and colour."""
        image = np.full((2, 4, 3), 100, np.uint8)
        mask = np.array([[0, 0, 1, 1]] * 2, np.uint8)
        picture = overlay(image, mask, self.colours)
        red, green, border = [175, 50, 50], [50, 150, 50], [0, 200, 0]
        assert picture.dtype == np.uint8
        assert picture.tolist() == [[red, red, border, green]] * 2
        assert (image == 100).all()

    def test_borders_run_both_ways(self) -> None:
        image = np.zeros((3, 3, 3), np.uint8)
        mask = np.zeros((3, 3), np.uint8)
        mask[1:, 1:] = 1
        full = (overlay(image, mask, self.colours) == colourise(mask, self.colours)).all(-1)
        assert full.tolist() == [[0, 0, 0], [0, 1, 1], [0, 1, 0]]

    @pytest.mark.parametrize("opacity", [0.0, 1.0])
    def test_opacity(self, opacity: float) -> None:
        image = np.random.default_rng(0).integers(0, 256, (5, 6, 3), np.uint8)
        mask = np.zeros((5, 6), np.uint8)
        expected: NDArray[np.uint8] = colourise(mask, self.colours) if opacity else image
        np.testing.assert_array_equal(overlay(image, mask, self.colours, opacity), expected)

    def test_overlay_of_one_pixel(self) -> None:
        one = overlay(np.zeros((1, 1, 3), np.uint8), np.zeros((1, 1), np.uint8), self.colours)
        assert one.tolist() == [[[125, 0, 0]]]

    def test_jpeg_for_people(self) -> None:
        picture = decoded(encode_jpeg(Image.new("RGB", (20, 10), (200, 100, 50))))
        assert (picture.format, picture.size) == ("JPEG", (20, 10))
        assert np.abs(np.asarray(picture).astype(int) - [200, 100, 50]).max() <= 3
