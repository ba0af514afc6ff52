"""The files of one image: what is in each, and that none is left without the others."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from numpy.typing import NDArray
from photographs import photograph
from PIL import Image
from torch import Tensor

from densesiam_seg.errors import OutputError
from densesiam_seg.images.decoding import Decoding
from densesiam_seg.inference.confidence import grade
from densesiam_seg.inference.options import PLAIN
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.prediction.wanted import Wanted
from densesiam_seg.prediction.writing import Writer

SIZE = (31, 40)


@pytest.fixture
def scores() -> Tensor:
    return 3 * torch.randn(5, 8, 10, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def named(segmenter: Segmenter) -> Segmenter:
    """0 is called sky, and 2 is merged into it."""
    other = copy.copy(segmenter)
    other.clusters = tuple(
        replace(
            each, name="sky" if each.id == 0 else each.name, merged_into=0 if each.id == 2 else None
        )
        for each in segmenter.clusters
    )
    return other


def write(
    segmenter: Segmenter, folder: Path, scores: Tensor, source: str = "a.jpg", **wanted: Any
) -> dict[str, Path]:
    how = Wanted(**wanted)
    files = how.files(folder / f"a{how.suffix}")
    writer = Writer(segmenter, how, Decoding(), PLAIN)
    writer.write(files, source, lambda: photograph(*SIZE), scores, SIZE)
    return files


def pixels(path: Path) -> NDArray[Any]:
    with Image.open(path) as picture:
        return np.asarray(picture)


def test_all_of_them(named: Segmenter, scores: Tensor, tmp_path: Path) -> None:
    files = write(named, tmp_path, scores, overlay=True, confidence=True, entropy=True, npy=True)
    mask = named.mask(scores, *SIZE)
    expected = grade(named, scores, mask, refinement=PLAIN)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in files.values()}
    np.testing.assert_array_equal(pixels(files["mask"]), mask)
    np.testing.assert_array_equal(np.load(files["npy"]), mask)
    for kind in ("confidence", "entropy"):
        np.testing.assert_array_equal(pixels(files[kind]), expected[kind])
    assert pixels(files["overlay"]).shape == (*SIZE, 3)


def test_single_clusters(named: Segmenter, scores: Tensor, tmp_path: Path) -> None:
    """A cluster with all that is merged into it."""
    files = write(named, tmp_path, scores, only={0: "sky", 3: "x"})
    mask = named.mask(scores, *SIZE)
    assert {path.name for path in tmp_path.iterdir()} == {"a_sky.png", "a_x.png"}
    np.testing.assert_array_equal(pixels(files["only 0"]), 255 * (mask == 0))
    np.testing.assert_array_equal(pixels(files["only 3"]), 255 * (mask == 3))


def test_pixels_below_a_confidence(named: Segmenter, scores: Tensor, tmp_path: Path) -> None:
    """They are 255 in the mask and in the array, and in no cluster."""
    sure = grade(named, scores, named.mask(scores, *SIZE), refinement=PLAIN)["confidence"]
    files = write(named, tmp_path, scores, min_confidence=0.8, npy=True)
    mask = pixels(files["mask"])
    assert 0.1 < (mask == 255).mean() < 0.9
    assert (mask == 255)[sure < 203].all() and not (mask == 255)[sure > 205].any()
    np.testing.assert_array_equal(np.load(files["npy"]), mask)
    only = write(named, tmp_path, scores, min_confidence=0.8, only={0: "sky"})
    np.testing.assert_array_equal(pixels(only["only 0"]), 255 * (mask == 0))


def test_a_legend_has_the_clusters_of_this_image(
    named: Segmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that cover most come first."""
    from densesiam_seg.prediction import writing

    seen: list[Any] = []

    def note(picture: Image.Image, legend: Any) -> Image.Image:
        seen.append(legend)
        return picture

    monkeypatch.setattr(writing, "with_legend", note)
    scores = torch.full((5, 1, 10), -9.0)
    scores[3, :, :7] = scores[2, :, 7:] = 9.0
    write(named, tmp_path, scores, legend=True)
    palette = named.palette
    assert seen == [[(named.clusters[3].name, palette[3]), ("sky", palette[0])]]


def test_none_is_left_alone(named: Segmenter, scores: Tensor, tmp_path: Path) -> None:
    (tmp_path / "a.png").mkdir()
    with pytest.raises(OutputError):
        write(named, tmp_path, scores, overlay=True, confidence=True)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


class TestGeoreference:
    @pytest.fixture
    def source(self, tmp_path: Path) -> str:
        """Its upper ten rows have no data."""
        values = np.moveaxis(photograph(*SIZE), 2, 0).clip(1)
        values[:, :10] = 0
        with rasterio.open(
            tmp_path / "in.tif", "w", driver="GTiff", width=40, height=31, count=3, dtype="uint8",
            crs="EPSG:32632", transform=rasterio.Affine(10, 0, 5, 0, -10, 7), nodata=0,
        ) as file:  # fmt: skip
            file.write(values)
        return str(tmp_path / "in.tif")

    def test_goes_into_every_tiff(
        self, named: Segmenter, scores: Tensor, tmp_path: Path, source: str
    ) -> None:
        (tmp_path / "out").mkdir()
        files = write(named, tmp_path / "out", scores, source, form="tiff", confidence=True)
        for path in files.values():
            with rasterio.open(path) as file:
                assert file.crs.to_epsg() == 32632
                assert file.transform[:6] == (10, 0, 5, 0, -10, 7)
        mask, plain = pixels(files["mask"]), named.mask(scores, *SIZE)
        assert (mask[:10] == 255).all()
        np.testing.assert_array_equal(mask[10:], plain[10:])

    def test_is_told_of_where_masks_do_not_keep_it(
        self, named: Segmenter, scores: Tensor, tmp_path: Path, source: str
    ) -> None:
        decoding = Decoding()
        writer = Writer(named, Wanted(), decoding, PLAIN)
        files = {"mask": tmp_path / "m.png"}
        writer.write(files, source, lambda: photograph(*SIZE), scores, SIZE)
        (line,) = decoding.notes.lines()
        assert "--format tiff" in line and "in.tif" in line
