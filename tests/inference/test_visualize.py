"""The sheet of pseudo categories: what each picture on it shows, which categories are chosen, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from photographs import junk
from PIL import Image

from densesiam_seg.datasets.scenes import scene
from densesiam_seg.errors import UsageError
from densesiam_seg.images.decoding import Decoding
from densesiam_seg.inference import visualize as visualization
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.inference.visualize import (
    SHOWN,
    SIDE,
    Drawing,
    draw_files,
    lit,
    require_picture_target,
    spread,
    training_picture,
)
from densesiam_seg.pictures.masks import colourise
from densesiam_seg.pictures.sheet import GAP, LINE, Legend, Tile

Pixels = NDArray[np.uint8]


def picture(index: int, height: int = SIDE) -> Pixels:
    """A scene, which no resize changes on its way to the sheet."""
    return np.ascontiguousarray(scene(0, index, SIDE)[0][:height])


def drawn(segmenter: Segmenter, folder: Path, *pictures: Pixels, **options: Any) -> Drawing:
    paths = [str(folder / f"{index}.png") for index in range(len(pictures))]
    for path, pixels in zip(paths, pictures, strict=True):
        Image.fromarray(pixels).save(path)
    drawing, failed = draw_files(segmenter, paths, **options)
    assert drawing is not None and not failed
    return drawing


def place(drawing: Drawing, row: int, column: int) -> Pixels:
    """The pixels of one picture of a sheet."""
    top, left = (row + 1) * (GAP + LINE) + row * SIDE, GAP + column * (SIDE + GAP)
    return np.asarray(drawing.picture)[top : top + SIDE, left : left + SIDE]


def by_share(masks: Sequence[NDArray[np.integer]], count: int) -> list[int]:
    """Ids from the largest mean share to the smallest that is there, counted one by one."""
    shares = [sum((mask == k).mean() for mask in masks) for k in range(count)]
    return [k for k in sorted(range(count), key=lambda k: -shares[k]) if shares[k]]


class TestSheet:
    def test_a_row_is_the_picture_its_categories_and_the_masks_of_the_largest(
        self, segmenter: Segmenter, tmp_path: Path
    ) -> None:
        pictures = [picture(0), picture(1)]
        masks = [segmenter.predict(pixels) for pixels in pictures]
        largest = by_share(masks, 5)[:SHOWN]
        drawing = drawn(segmenter, tmp_path, *pictures)
        assert drawing.shown == tuple(largest)
        assert drawing.picture.width == (2 + SHOWN) * (SIDE + GAP) + GAP
        for row, (pixels, mask) in enumerate(zip(pictures, masks, strict=True)):
            colours = [lit(pixels, mask == k, segmenter.palette[k]) for k in largest]
            for column, wanted in enumerate([pixels, colourise(mask, segmenter.palette), *colours]):
                np.testing.assert_array_equal(place(drawing, row, column), wanted)

    def test_named_categories_and_images_side_by_side(
        self, segmenter: Segmenter, tmp_path: Path
    ) -> None:
        pictures = [picture(k) for k in range(3)]
        options = {"shown": ["4,0", "cluster_02"], "columns": 2}
        drawing = drawn(segmenter, tmp_path, *pictures, **options)
        assert drawing.shown == (4, 0, 2)
        assert drawing.picture.width == 10 * (SIDE + GAP) + GAP
        for pixels, (row, column) in zip(pictures, ((0, 0), (0, 5), (1, 0)), strict=True):
            np.testing.assert_array_equal(place(drawing, row, column), pixels)
            mask = segmenter.predict(pixels)
            wanted = lit(pixels, mask == 0, segmenter.palette[0])
            np.testing.assert_array_equal(place(drawing, row, column + 3), wanted)

    def test_large_images_are_looked_at_in_full_and_drawn_small(
        self, segmenter: Segmenter, tmp_path: Path
    ) -> None:
        """Twice the size, every pixel doubled: the picture that a box of two pixels gives, and the same categories."""
        pixels = picture(0)
        drawing = drawn(segmenter, tmp_path, pixels.repeat(2, 0).repeat(2, 1))
        assert np.abs(place(drawing, 0, 0).astype(int) - pixels).mean() < 6
        same = place(drawing, 0, 1) == colourise(segmenter.predict(pixels), segmenter.palette)
        assert same.all(-1).mean() > 0.95

    def test_in_training(self, segmenter: Segmenter, tmp_path: Path) -> None:
        pictures = [picture(0), picture(1)]
        squares = torch.stack([torch.from_numpy(pixels).movedim(-1, 0) for pixels in pictures])
        found = np.asarray(training_picture(segmenter, squares))
        wanted = np.asarray(drawn(segmenter, tmp_path, *pictures).picture)
        # All but the titles, which are names of files here.
        np.testing.assert_array_equal(found[GAP + LINE :][:SIDE], wanted[GAP + LINE :][:SIDE])
        assert training_picture(segmenter, squares[..., :32, :32]).height > 2 * (SIDE + GAP)

    def test_the_shares_of_all_categories(self, segmenter: Segmenter, tmp_path: Path) -> None:
        """Every image counts the same, also one of half the area."""
        pictures = [picture(0), picture(1, height=SIDE // 2)]
        drawing = drawn(segmenter, tmp_path, *pictures)
        masks = [segmenter.predict(pixels) for pixels in pictures]
        for cluster, own in zip(drawing.clusters, segmenter.clusters, strict=True):
            assert replace(cluster, share=own.share) == own
            share = sum((mask == cluster.id).mean() for mask in masks) / 2
            assert cluster.share == pytest.approx(share)


class TestText:
    """What is written on the sheet, as it is handed to the one who writes it."""

    @pytest.fixture
    def written(self, monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[list[str]], Legend]]:
        calls: list[tuple[list[list[str]], Legend]] = []

        def record(rows: list[list[Tile]], legend: Legend, *, side: int) -> Image.Image:
            calls.append(([[tile.title for tile in row] for row in rows], legend))
            return Image.new("RGB", (1, 1))

        monkeypatch.setattr(visualization, "sheet", record)
        return calls

    def test_titles_and_legend(
        self,
        segmenter: Segmenter,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        written: list[tuple[list[list[str]], Legend]],
    ) -> None:
        """A legend of many ends in a sum."""
        pictures = [picture(0), picture(3)]
        drawn(segmenter, tmp_path, *pictures)
        monkeypatch.setattr(visualization, "LEGEND", 2)
        drawn(segmenter, tmp_path, *pictures)
        (rows, legend), (_, short) = written
        masks = [segmenter.predict(pixels) for pixels in pictures]
        order = by_share(masks, 5)
        shares = {k: visualization._percent(sum((m == k).mean() for m in masks) / 2) for k in order}
        for index, (row, mask) in enumerate(zip(rows, masks, strict=True)):
            assert row[:2] == [f"{index}.png", f"{len(np.unique(mask))} categories"]
            own = [visualization._percent((mask == k).mean()) for k in order[:SHOWN]]
            assert row[2:] == [f"cluster_{k:02}: {p}" for k, p in zip(order, own, strict=False)]
        names = [(f"cluster_{k:02}: {shares[k]}", segmenter.palette[k]) for k in order]
        assert list(legend) == names
        rest = sum((mask == k).mean() for mask in masks for k in order[2:]) / 2
        more = (f"and {len(order) - 2} more: {visualization._percent(rest)}", None)
        assert list(short) == [*names[:2], more]

    def test_one_category(
        self,
        segmenter: Segmenter,
        written: list[tuple[list[list[str]], Legend]],
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
    ) -> None:
        """Categories that are nowhere have no mask unless they are named, and no place in the legend."""
        monkeypatch.setattr(
            segmenter, "logits", lambda images: torch.eye(5)[2].view(1, 5, 1, 1).expand(1, 5, 8, 8)
        )
        drawn(segmenter, tmp_path, picture(0))
        drawn(segmenter, tmp_path, picture(0), shown=["0"])
        titles = ["0.png", "1 category"]
        (rows, legend), (named, _) = written
        assert rows == [[*titles, "cluster_02: 100 %"]]
        assert list(legend) == [("cluster_02: 100 %", segmenter.palette[2])]
        assert named == [[*titles, "cluster_00: 0 %"]]

    @pytest.mark.parametrize(
        ("share", "text"),
        [(0.0, "0 %"), (0.0001, "<1 %"), (0.0099, "<1 %"), (0.01, "1 %"), (1, "100 %")],
    )
    def test_shares(self, share: float, text: str) -> None:
        assert visualization._percent(share) == text


class TestFiles:
    def test_images_that_cannot_be_read_are_left_out(
        self, segmenter: Segmenter, paths: list[str], tmp_path: Path
    ) -> None:
        bad = str(junk(tmp_path / "bad.png"))
        drawing, failed = draw_files(segmenter, [paths[0], bad, paths[1]])
        assert [error.path for error in failed] == [bad]
        wanted, _ = draw_files(segmenter, paths[:2])
        assert drawing is not None and wanted is not None
        np.testing.assert_array_equal(np.asarray(drawing.picture), np.asarray(wanted.picture))
        drawing, failed = draw_files(segmenter, [bad, paths[1]], decoding=Decoding(4095))
        assert drawing is None
        assert [error.reason for error in failed] == ["not-an-image", "too-large"]

    def test_a_sheet_too_large_is_refused_before_any_image_is_read(
        self, segmenter: Segmenter
    ) -> None:
        with pytest.raises(UsageError, match=r"a sheet of 2004 pictures .* smaller --limit"):
            draw_files(segmenter, ["none.png"] * 334)
        with pytest.raises(UsageError, match="2001 pictures"):
            draw_files(segmenter, ["none.png"] * 667, shown=["0"])


class TestLit:
    RED = (255, 0, 0)

    def test_the_picture_where_the_mask_is_on_and_faint_grey_elsewhere(self) -> None:
        pixels = np.zeros((4, 6, 3), np.uint8)
        pixels[...] = (10, 200, 90)
        mask = np.zeros((4, 6), bool)
        mask[1:3, 2:4] = True
        found = lit(pixels, mask, self.RED)
        grey = 160 + 300 / 3 / 6
        expected = np.full((4, 6, 3), int(grey), np.uint8)
        expected[1:3, 2:4] = (10, 200, 90)
        # A line lies where a pixel differs from the one above or before it.
        expected[1, 2:4] = expected[3, 2:4] = expected[1:3, 2] = expected[1:3, 4] = self.RED
        np.testing.assert_array_equal(found, expected)

    @pytest.mark.parametrize("value", [0, 255])
    def test_neither_black_nor_white_is_lost_on_the_grey(self, value: int) -> None:
        pixels = np.full((2, 2, 3), value, np.uint8)
        faint = lit(pixels, np.zeros((2, 2), bool), self.RED)
        assert (np.abs(faint.astype(int) - value) > 40).all()
        np.testing.assert_array_equal(lit(pixels, np.ones((2, 2), bool), self.RED), pixels)


class TestSpread:
    @given(st.integers(1, 500), st.integers(1, 500))
    def test_distinct_places_in_order(self, count: int, limit: int) -> None:
        found = spread(count, limit)
        assert len(found) == min(count, limit)
        assert found[0] == 0
        assert found[-1] < count
        steps = np.diff([*found, count])
        assert steps.min() >= 1
        assert steps.max() - steps.min() <= 1

    def test_by_hand(self) -> None:
        assert spread(10, 4) == [0, 2, 5, 7]
        assert spread(3, 8) == [0, 1, 2]


def test_targets(tmp_path: Path) -> None:
    """A PNG file that is no input under any name, and does not exist unless it may be overwritten."""
    (tmp_path / "folder.png").mkdir()
    for name in ("sheet", "sheet.jpg", "folder.png"):
        with pytest.raises(UsageError, match=r"give a file name ending in \.png"):
            require_picture_target(tmp_path / name, [])
    out, link = tmp_path / "sheet.PNG", tmp_path / "link.png"
    require_picture_target(out, [])
    out.touch()
    with pytest.raises(UsageError, match="exists already; give --overwrite"):
        require_picture_target(out, [])
    require_picture_target(out, [], overwrite=True)
    link.symlink_to("sheet.PNG")
    with pytest.raises(UsageError, match="would overwrite an input image"):
        require_picture_target(link, [str(out)], overwrite=True)
