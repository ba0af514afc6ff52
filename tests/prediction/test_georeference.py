"""GeoTIFF: what rasterio wrote into the image, it finds in the mask; turned images by their corners."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.control import GroundControlPoint
from tar_files import pack

from densesiam_seg.errors import UsageError
from densesiam_seg.images.scan import scan
from densesiam_seg.pictures.masks import palette
from densesiam_seg.prediction import georeference
from densesiam_seg.prediction.georeference import (
    is_georeferenced,
    read_georeference,
    require_rasterio,
    write_geotiff,
)

PLACE = rasterio.Affine(10, 0, 500_000, 0, -20, 5_400_000)


def geotiff(path: Path, values: np.ndarray | None = None, **options: Any) -> Path:
    """Three bands of 4 × 6 pixels in UTM."""
    values = np.full((3, 4, 6), 90, np.uint8) if values is None else values
    given = {"crs": "EPSG:32632", "transform": PLACE} | options
    bands, height, width = values.shape
    with rasterio.open(
        path, "w", driver="GTiff", width=width, height=height, count=bands, dtype="uint8", **given
    ) as file:
        file.write(values)
    return path


class TestReading:
    def test_place_and_system(self, tmp_path: Path) -> None:
        found = read_georeference(str(geotiff(tmp_path / "a.tif")))
        assert found is not None
        assert found.transform == PLACE and found.crs.to_epsg() == 32632
        assert found.missing is None

    @pytest.mark.parametrize("name", ["a.tif", "a.png"])
    def test_pictures_without_one(self, tmp_path: Path, name: str) -> None:
        Image.new("RGB", (6, 4)).save(tmp_path / name)
        assert not is_georeferenced(str(tmp_path / name))
        assert read_georeference(str(tmp_path / name)) is None

    def test_in_a_tar(self, tmp_path: Path) -> None:
        """Also one that turns up behind others, one of several pages, and what has no place."""
        values = np.full((3, 4, 6), 90, np.uint8)
        values[:, 1, 2:] = 7
        geotiff(tmp_path / "a.tif", values, nodata=7)
        Image.new("RGB", (6, 4)).save(tmp_path / "b.tif")
        pages = [geotiff(tmp_path / f"{page}.tif").read_bytes() for page in (1, 2)]
        with rasterio.open(tmp_path / "2.tif") as file:
            assert file.transform == PLACE
        tar = pack(
            tmp_path / "x, y.tar", *(tmp_path / name for name in ("b.tif", "a.tif", "1.tif"))
        )
        files = scan([tar])
        assert files.names[1:] == ("x, y.tar/a.tif", "x, y.tar/b.tif") and pages[0] == pages[1]
        for place in (0, 1):
            path, alone = files.path(place), str(tmp_path / files.names[place][9:])
            found, expected = read_georeference(path), read_georeference(alone)
            assert is_georeferenced(path) and found is not None and expected is not None
            assert (found.transform, found.crs) == (expected.transform, expected.crs)
            np.testing.assert_array_equal(found.missing, expected.missing)
        assert not is_georeferenced(files.path(2)) and read_georeference(files.path(2)) is None

    def test_damaged_files_fail_where_they_are_decoded(self, tmp_path: Path) -> None:
        (tmp_path / "a.tif").write_bytes(b"II*\0junk")
        assert not is_georeferenced(str(tmp_path / "a.tif"))
        assert not is_georeferenced(str(tmp_path / "none.tif"))

    def test_missing_pixels(self, tmp_path: Path) -> None:
        """Those of the value for no data in all bands."""
        values = np.full((3, 4, 6), 90, np.uint8)
        values[:, 1, 2:] = 7
        values[0, 3, 3] = 7
        found = read_georeference(str(geotiff(tmp_path / "a.tif", values, nodata=7)))
        assert found is not None and found.missing is not None
        assert np.argwhere(found.missing).tolist() == [[1, x] for x in (2, 3, 4, 5)]

    @pytest.mark.filterwarnings("ignore:Dataset has no geotransform")
    def test_control_points(self, tmp_path: Path) -> None:
        path = tmp_path / "a.tif"
        points = [GroundControlPoint(row, col, 7 + col, 50 - row) for row, col in ((0, 0), (0, 6))]
        values = np.full((3, 4, 6), 90, np.uint8)
        with rasterio.open(
            path, "w", driver="GTiff", width=6, height=4, count=3, dtype="uint8"
        ) as file:
            file.gcps = (points, "EPSG:4326")
            file.write(values)
        found = read_georeference(str(path))
        assert found is not None
        assert [(p.row, p.col, p.x, p.y) for p in found.points] == [(0, 0, 7, 50), (0, 6, 13, 50)]

    def test_a_world_file_beside(self, tmp_path: Path) -> None:
        Image.new("RGB", (6, 4)).save(tmp_path / "a.tif")
        (tmp_path / "a.tfw").write_text("2\n0\n0\n-3\n101\n198.5\n")
        found = read_georeference(str(tmp_path / "a.tif"))
        assert found is not None and found.transform.to_gdal() == (100, 2, 0, 200, 0, -3)

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_turned_images(self, tmp_path: Path, orientation: int) -> None:
        """A pixel that only one place has is found, upright, at the same place on earth."""
        values = np.zeros((3, 4, 6), np.uint8)
        values[:, 1, 4] = 200
        plain = geotiff(tmp_path / "a.tif", values, nodata=200)
        stored = (500_045, 5_399_970)
        _mark(plain, orientation)
        found = read_georeference(str(plain))
        assert found is not None and found.missing is not None
        assert found.missing.shape == ((6, 4) if orientation >= 5 else (4, 6))
        ((row, column),) = np.argwhere(found.missing).tolist()
        a, b, c, d, e, f = found.transform[:6]
        x, y = column + 0.5, row + 0.5
        assert (a * x + b * y + c, d * x + e * y + f) == pytest.approx(stored)


def _mark(path: Path, orientation: int) -> None:
    """Write an orientation into the tags, which rasterio does not do."""
    from tifffile import TiffFile

    with TiffFile(path, mode="r+") as tiff:
        tag = tiff.pages.first.tags.get(274)
        if tag is not None:
            tag.overwrite(orientation)
            return
        # GDAL writes none: the place of its planar configuration, whose default is what it says, is taken.
        entry = tiff.pages.first.tags[284]
        offset, order = entry.offset, tiff.byteorder
    number = np.dtype(f"{order}u2")
    data = bytearray(path.read_bytes())
    data[offset : offset + 2] = np.array(274, number).tobytes()
    data[offset + 8 : offset + 10] = np.array(orientation, number).tobytes()
    path.write_bytes(data)


class TestWriting:
    @pytest.mark.parametrize(("count", "kind", "free"), [(5, "uint8", 255), (300, "uint16", 65535)])
    def test_ids(self, tmp_path: Path, count: int, kind: str, free: int) -> None:
        place = read_georeference(str(geotiff(tmp_path / "a.tif")))
        assert place is not None
        ids = (np.arange(24).reshape(4, 6) % count).astype(kind)
        write_geotiff(tmp_path / "m.tif", ids, place, palette(count), ids=True)
        with rasterio.open(tmp_path / "m.tif") as file:
            assert file.transform == PLACE and file.crs.to_epsg() == 32632
            assert (file.nodata, file.compression.value) == (free, "DEFLATE")
            np.testing.assert_array_equal(file.read(1), ids)
            if count == 5:
                assert file.colormap(1)[3][:3] == palette(5)[3]

    def test_grey_values_have_no_hole(self, tmp_path: Path) -> None:
        place = read_georeference(str(geotiff(tmp_path / "a.tif")))
        assert place is not None
        write_geotiff(tmp_path / "m.tif", np.full((4, 6), 255, np.uint8), place)
        with rasterio.open(tmp_path / "m.tif") as file:
            assert file.nodata is None and file.transform == PLACE


class TestWithoutRasterio:
    @pytest.fixture(autouse=True)
    def _absent(self, monkeypatch: pytest.MonkeyPatch) -> None:
        real = importlib.util.find_spec
        monkeypatch.setattr(
            georeference, "find_spec", lambda name: None if name == "rasterio" else real(name)
        )

    def test_a_geotiff_is_refused_with_the_remedy(self, tmp_path: Path) -> None:
        Image.new("RGB", (6, 4)).save(tmp_path / "plain.tif")
        paths = [str(tmp_path / "plain.tif"), str(geotiff(tmp_path / "a.tif"))]
        with pytest.raises(UsageError, match=r"a\.tif: .*densesiam-seg\[geo\]"):
            require_rasterio(paths)
        require_rasterio(paths[:1])
