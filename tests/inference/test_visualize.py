"""The sheet of pseudo categories: what each picture on it shows, which categories are chosen, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from densesiam_seg.datasets.scenes import scene
from densesiam_seg.errors import ImageError, InputError, UsageError
from densesiam_seg.inference import visualize as visualization
from densesiam_seg.inference.segmenter import Segmenter, name_clusters
from densesiam_seg.inference.visualize import (
    SHOWN,
    SIDE,
    Drawing,
    Drawn,
    chosen,
    lit,
    require_picture_target,
    spread,
    training_picture,
    visualization_events,
    visualize,
)
from densesiam_seg.pictures.masks import Colour, colourise
from densesiam_seg.pictures.sheet import GAP, LINE, Tile

Pixels = NDArray[np.uint8]
Legend = list[tuple[str, Colour | None]]


def picture(index: int, height: int = SIDE, width: int = SIDE) -> Pixels:
    """A scene, which no resize changes on its way to the sheet."""
    pixels, _ = scene(0, index, SIDE)
    return np.ascontiguousarray(pixels[:height, :width])


def place(
    page: Image.Image, row: int, column: int, height: int = SIDE, width: int = SIDE
) -> Pixels:
    """The pixels of one picture of a sheet whose rows are all `height` high."""
    top, left = (row + 1) * (GAP + LINE) + row * height, GAP + column * (SIDE + GAP)
    return np.asarray(page)[top : top + height, left : left + width]


def by_share(masks: Sequence[NDArray[np.integer]], count: int) -> list[int]:
    """Ids from the largest mean share to the smallest that is there, counted one by one."""
    shares = [sum((mask == k).mean() for mask in masks) for k in range(count)]
    return [k for k in sorted(range(count), key=lambda k: -shares[k]) if shares[k]]


class TestSheet:
    def test_a_row_is_the_picture_its_categories_and_the_masks_of_the_largest(
        self, segmenter: Segmenter
    ) -> None:
        pictures = [picture(0), picture(1)]
        masks = [segmenter.predict(pixels) for pixels in pictures]
        largest = by_share(masks, 5)[:SHOWN]
        assert len(largest) == SHOWN
        page = visualize(segmenter, pictures)
        assert page.width == (2 + SHOWN) * (SIDE + GAP) + GAP
        for row, (pixels, mask) in enumerate(zip(pictures, masks, strict=True)):
            np.testing.assert_array_equal(place(page, row, 0), pixels)
            np.testing.assert_array_equal(place(page, row, 1), colourise(mask, segmenter.palette))
            for column, k in enumerate(largest, 2):
                wanted = lit(pixels, mask == k, segmenter.palette[k])
                np.testing.assert_array_equal(place(page, row, column), wanted)

    def test_categories_that_are_named_in_their_order(self, segmenter: Segmenter) -> None:
        pixels = picture(0)
        mask = segmenter.predict(pixels)
        page = visualize(segmenter, [pixels], shown=["4,0", "cluster_02"])
        assert page.width == 5 * (SIDE + GAP) + GAP
        for column, k in enumerate((4, 0, 2), 2):
            wanted = lit(pixels, mask == k, segmenter.palette[k])
            np.testing.assert_array_equal(place(page, 0, column), wanted)

    def test_pictures_keep_their_shape(self, segmenter: Segmenter) -> None:
        pixels = picture(0, height=100)
        page = visualize(segmenter, [pixels])
        np.testing.assert_array_equal(place(page, 0, 0, height=100), pixels)
        found = place(page, 0, 1, height=100)
        np.testing.assert_array_equal(
            found, colourise(segmenter.predict(pixels), segmenter.palette)
        )

    def test_large_images_are_looked_at_in_full_and_drawn_small(self, segmenter: Segmenter) -> None:
        """Twice the size, every pixel doubled: the picture that a box of two pixels gives, and the same categories."""
        pixels = picture(0)
        page = visualize(segmenter, [pixels.repeat(2, 0).repeat(2, 1)])
        assert page.width == visualize(segmenter, [pixels]).width
        error = np.abs(place(page, 0, 0).astype(int) - pixels)
        assert error.mean() < 6
        same = place(page, 0, 1) == colourise(segmenter.predict(pixels), segmenter.palette)
        assert same.all(-1).mean() > 0.95

    def test_images_side_by_side(self, segmenter: Segmenter) -> None:
        pictures = [picture(k) for k in range(3)]
        page = visualize(segmenter, pictures, shown=["1"], columns=2)
        assert page.width == 6 * (SIDE + GAP) + GAP
        for pixels, (row, column) in zip(pictures, ((0, 0), (0, 3), (1, 0)), strict=True):
            np.testing.assert_array_equal(place(page, row, column), pixels)

    def test_any_read_out(self, segmenter: Segmenter) -> None:
        """Argmax over K of whatever the read-out scores."""
        pixels = picture(0)

        class Upside(Segmenter):
            def read_out(self, features: Tensor) -> Tensor:
                return -super().read_out(features)

        other = Upside(segmenter.network, segmenter.card, device="cpu", precision="fp32")
        found = place(visualize(other, [pixels]), 0, 1)
        np.testing.assert_array_equal(found, colourise(other.predict(pixels), other.palette))
        assert (found != place(visualize(segmenter, [pixels]), 0, 1)).any()

    def test_images_in_memory_are_those_that_predict_takes(self, segmenter: Segmenter) -> None:
        with pytest.raises(InputError, match="uint8"):
            visualize(segmenter, [np.zeros((4, 4, 3))])  # type: ignore[list-item]


class TestText:
    """What is written on the sheet, as it is handed to the one who writes it."""

    @pytest.fixture
    def written(
        self, segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch
    ) -> list[tuple[list[list[str]], Legend]]:
        calls: list[tuple[list[list[str]], Legend]] = []

        def record(rows: list[list[Tile]], legend: Legend, *, side: int) -> Image.Image:
            calls.append(([[tile.title for tile in row] for row in rows], legend))
            return Image.new("RGB", (1, 1))

        monkeypatch.setattr(visualization, "sheet", record)
        return calls

    def test_titles_and_legend(
        self,
        segmenter: Segmenter,
        image_folder: Path,
        written: list[tuple[list[list[str]], Legend]],
    ) -> None:
        path = image_folder / "01.png"
        visualize(segmenter, [path, picture(3)])
        masks = [segmenter.predict(each) for each in (path, picture(3))]
        ((rows, legend),) = written
        assert [row[0] for row in rows] == ["01.png", "image 2"]
        for row, mask in zip(rows, masks, strict=True):
            assert row[1] == f"{len(np.unique(mask))} categories"
        # The second mask has the size at which it is drawn.
        order = by_share(masks, 5)
        for title, k in zip(rows[1][2:], order, strict=False):
            assert title == f"cluster_{k:02}: {visualization._percent((masks[1] == k).mean())}"
        names = [name.split(":")[0] for name, _ in legend]
        assert names == [f"cluster_{k:02}" for k in order]
        assert [colour for _, colour in legend] == [segmenter.palette[k] for k in order]

    def test_one_category(
        self,
        segmenter: Segmenter,
        written: list[tuple[list[list[str]], Legend]],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Categories that are nowhere have no mask unless they are named, and no place in the legend."""
        monkeypatch.setattr(
            segmenter, "logits", lambda images: torch.eye(5)[2].view(1, 5, 1, 1).expand(1, 5, 8, 8)
        )
        visualize(segmenter, [picture(0)])
        visualize(segmenter, [picture(0)], shown=["0"])
        titles = ["image 1", "1 category"]
        assert written[0] == ([[*titles, "cluster_02: 100 %"]], [
            ("cluster_02: 100 %", segmenter.palette[2])
        ])  # fmt: skip
        assert written[1][0] == [[*titles, "cluster_00: 0 %"]]

    def test_a_legend_of_many_ends_in_a_sum(
        self,
        segmenter: Segmenter,
        written: list[tuple[list[list[str]], Legend]],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(visualization, "LEGEND", 2)
        pixels = picture(0)
        mask = segmenter.predict(pixels)
        visualize(segmenter, [pixels])
        ((_, legend),) = written
        order = by_share([mask], 5)
        rest = sum((mask == k).mean() for k in order[2:])
        assert len(legend) == 3
        assert legend[-1] == (f"and {len(order) - 2} more: {visualization._percent(rest)}", None)

    @pytest.mark.parametrize(
        ("share", "text"),
        [
            (0.0, "0 %"),
            (0.0001, "<1 %"),
            (0.0099, "<1 %"),
            (0.01, "1 %"),
            (0.126, "13 %"),
            (1, "100 %"),
        ],
    )
    def test_shares(self, share: float, text: str) -> None:
        assert visualization._percent(share) == text


class TestTrainingPicture:
    def test_is_the_sheet_of_those_images(self, segmenter: Segmenter) -> None:
        squares = torch.stack([torch.from_numpy(picture(k)).movedim(-1, 0) for k in range(2)])
        found = training_picture(segmenter, squares)
        wanted = visualize(segmenter, [picture(0), picture(1)])
        np.testing.assert_array_equal(np.asarray(found), np.asarray(wanted))

    def test_of_squares_smaller_than_the_sheets_pictures(self, segmenter: Segmenter) -> None:
        squares = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
        assert training_picture(segmenter, squares).height > 3 * (SIDE + GAP)


class TestEvents:
    def test_images_that_cannot_be_read_are_left_out(
        self, segmenter: Segmenter, image_folder: Path, tmp_path: Path
    ) -> None:
        bad = tmp_path / "bad.png"
        bad.write_bytes(b"junk")
        good = [str(image_folder / name) for name in ("00.jpg", "01.png")]
        *drawn, drawing = visualization_events(segmenter, [good[0], str(bad), good[1]])
        assert isinstance(drawing, Drawing)
        assert [(each.image, each.error is None) for each in drawn if isinstance(each, Drawn)] == [
            (good[0], True),
            (str(bad), False),
            (good[1], True),
        ]
        wanted = visualize(segmenter, good)
        np.testing.assert_array_equal(np.asarray(drawing.picture), np.asarray(wanted))
        with pytest.raises(ImageError):
            visualize(segmenter, [str(bad)])

    def test_nothing_to_draw(self, segmenter: Segmenter, tmp_path: Path) -> None:
        (tmp_path / "bad.png").touch()
        (only,) = visualization_events(segmenter, [str(tmp_path / "bad.png")])
        assert isinstance(only, Drawn) and only.error is not None

    def test_the_shares_of_all_categories(self, segmenter: Segmenter, tmp_path: Path) -> None:
        """Every image counts the same, also one of half the area."""
        pictures = [picture(0), picture(1, height=SIDE // 2)]
        paths = [str(tmp_path / f"{k}.png") for k in range(2)]
        for path, pixels in zip(paths, pictures, strict=True):
            Image.fromarray(pixels).save(path)
        *_, drawing = visualization_events(segmenter, paths, shown=["3"])
        assert isinstance(drawing, Drawing)
        assert drawing.shown == (3,)
        masks = [segmenter.predict(pixels) for pixels in pictures]
        for cluster, own in zip(drawing.clusters, segmenter.clusters, strict=True):
            assert replace(cluster, share=own.share) == own
            share = sum((mask == cluster.id).mean() for mask in masks) / 2
            assert cluster.share == pytest.approx(share)

    def test_a_sheet_too_large_is_refused_before_any_image_is_read(
        self, segmenter: Segmenter
    ) -> None:
        with pytest.raises(UsageError, match=r"a sheet of 2004 pictures .* smaller --limit"):
            next(visualization_events(segmenter, ["none.png"] * 334))
        with pytest.raises(UsageError, match="2001 pictures"):
            next(visualization_events(segmenter, ["none.png"] * 667, shown=["0"]))

    def test_too_many_pixels(self, segmenter: Segmenter, image_folder: Path) -> None:
        image = str(image_folder / "01.png")
        (only,) = visualization_events(segmenter, [image], max_pixels=4095)
        assert isinstance(only, Drawn) and "--max-pixels" in str(only.error)


class TestChosen:
    CLUSTERS = tuple(
        replace(cluster, name=name)
        for cluster, name in zip(
            name_clusters(5), ("sky", "a road, wet", "3", "tree", "sky 2"), strict=True
        )
    )

    @pytest.mark.parametrize(
        ("named", "ids"),
        [
            ([], ()),
            (["3", "0"], (3, 0)),
            (["3,0"], (3, 0)),
            (["sky", "tree"], (0, 3)),
            (["sky 2 , tree,1"], (4, 3, 1)),
            (["a road, wet"], (1,)),
            (["1", "a road, wet", "1,1"], (1,)),
        ],
    )
    def test_ids_and_names(self, named: list[str], ids: tuple[int, ...]) -> None:
        """An id wins over a name that looks like one."""
        assert chosen(self.CLUSTERS, named) == ids

    @pytest.mark.parametrize("named", ["5", "-1", "", "1,", "Sky", "01", "1.0"])
    def test_unknown_ones(self, named: str) -> None:
        with pytest.raises(UsageError, match=r"no such cluster; give ids from 0 to 4 or names"):
            chosen(self.CLUSTERS, [named])


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


class TestTarget:
    @pytest.mark.parametrize("name", ["sheet", "sheet.jpg", "folder.png"])
    def test_what_is_no_png_file(self, tmp_path: Path, name: str) -> None:
        (tmp_path / "folder.png").mkdir()
        with pytest.raises(UsageError, match=r"give a file name ending in \.png"):
            require_picture_target(tmp_path / name, [])

    def test_one_that_exists(self, tmp_path: Path) -> None:
        out = tmp_path / "sheet.PNG"
        require_picture_target(out, [])
        out.touch()
        with pytest.raises(UsageError, match="exists already; give --overwrite"):
            require_picture_target(out, [])
        require_picture_target(out, [], overwrite=True)

    def test_an_input_whatever_it_is_called(self, tmp_path: Path) -> None:
        (tmp_path / "image.png").touch()
        (tmp_path / "link.png").symlink_to("image.png")
        with pytest.raises(UsageError, match="would overwrite an input image"):
            require_picture_target(
                tmp_path / "link.png", [str(tmp_path / "image.png")], overwrite=True
            )
