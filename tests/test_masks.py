"""Masks: the argmax of upsampled logits in bands, palettes, PNG files, overlays."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from densesiam_seg import masks
from densesiam_seg.errors import OutputError
from densesiam_seg.masks import (
    Colour,
    colourise,
    encode_jpeg,
    encode_mask,
    overlay,
    palette,
    upsample_argmax,
    write_mask,
)


def random_logits(clusters: int, rows: int, columns: int) -> Tensor:
    draw = torch.Generator().manual_seed(clusters * 10_000 + rows * 100 + columns)
    return torch.randn(clusters, rows, columns, generator=draw)


def require_argmax(logits: Tensor, height: int, width: int) -> None:
    """The mask is the argmax of the whole upsampled logits, up to what float32 can tell apart."""
    mask = upsample_argmax(logits, height, width)
    whole = F.interpolate(logits[None].double(), (height, width), mode="bilinear")[0]
    assert mask.shape == (height, width)
    chosen = whole.gather(0, mask.long()[None])[0]
    assert (whole.amax(0) - chosen).max() < 1e-5
    assert (mask == whole.argmax(0)).double().mean() > 0.999


def decoded(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


class TestUpsampleArgmax:
    @pytest.mark.parametrize("size", [(8, 12), (33, 47), (7, 5), (1, 1), (101, 3), (1, 500)])
    @pytest.mark.parametrize("source", [(8, 12), (1, 1), (5, 1), (13, 9)])
    def test_equals_the_argmax_of_whole_logits(
        self, source: tuple[int, int], size: tuple[int, int]
    ) -> None:
        require_argmax(random_logits(5, *source), *size)

    @pytest.mark.parametrize("tile", [1, 5 * 47, 5 * 47 * 4, 5 * 47 * 32])
    def test_bands_do_not_show(self, tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
        whole = upsample_argmax(random_logits(5, 9, 11), 33, 47)
        monkeypatch.setattr(masks, "TILE", tile)
        assert torch.equal(upsample_argmax(random_logits(5, 9, 11), 33, 47), whole)
        require_argmax(random_logits(5, 9, 11), 33, 47)

    @given(
        clusters=st.integers(1, 6),
        source=st.tuples(st.integers(1, 6), st.integers(1, 6)),
        size=st.tuples(st.integers(1, 20), st.integers(1, 20)),
        tile=st.integers(1, 300),
    )
    def test_any_sizes_and_bands(
        self, clusters: int, source: tuple[int, int], size: tuple[int, int], tile: int
    ) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(masks, "TILE", tile)
            require_argmax(random_logits(clusters, *source), *size)

    def test_memory_is_bounded_by_the_tile(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(masks, "TILE", 1000)
        held: list[int] = []
        interpolate = F.interpolate

        def spy(*arguments: Tensor, **options: str) -> Tensor:
            result: Tensor = interpolate(*arguments, **options)  # type: ignore[arg-type]
            held.append(result.numel())
            return result

        monkeypatch.setattr(F, "interpolate", spy)
        upsample_argmax(random_logits(4, 6, 6), 90, 60)
        assert max(held) <= 1000
        assert sum(held) == 4 * 90 * 60

    def test_a_row_wider_than_the_tile_is_a_band(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(masks, "TILE", 10)
        require_argmax(random_logits(3, 2, 4), 6, 70)

    @pytest.mark.parametrize(
        ("clusters", "dtype"),
        [(1, torch.uint8), (255, torch.uint8), (256, torch.int32), (300, torch.int32)],
    )
    def test_dtype_holds_every_id(self, clusters: int, dtype: torch.dtype) -> None:
        logits = random_logits(clusters, 2, 3)
        logits[-1] = 50.0
        mask = upsample_argmax(logits, 5, 7)
        assert mask.dtype == dtype
        assert (mask == clusters - 1).all()

    def test_half_precision_logits(self) -> None:
        logits = random_logits(4, 5, 5).bfloat16()
        require_argmax(logits.float(), 16, 16)
        assert torch.equal(upsample_argmax(logits, 16, 16), upsample_argmax(logits.float(), 16, 16))


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
