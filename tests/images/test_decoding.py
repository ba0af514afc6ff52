"""Choices of decoding, and notes that tell of a set what was noticed in its files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from image_files import saved
from tar_files import write_tar

from densesiam_seg.errors import ImageError
from densesiam_seg.images.decode import load_image
from densesiam_seg.images.decoding import Decoding, Notes, page_of


def test_a_file_is_noted_once_and_the_first_by_name_is_told() -> None:
    notes = Notes()
    assert notes.lines() == []
    for name in ("b.tif", "a.tif", "b.tif"):
        notes.add("pages", name, "3 of them")
    notes.add("nodata", "c.tif", "7 of 9 pixels")
    pages, nodata = notes.lines()
    assert pages.startswith("2 images have more than one page") and "first a.tif" in pages
    assert nodata.startswith("1 image has pixels without data") and "7 of 9" in nodata


def test_a_set_is_dark_where_most_of_it_is() -> None:
    notes = Notes()
    notes.range("a.png", 4095, 65535)
    (line,) = notes.lines()
    assert "4095 of 65535" in line and "--stretch" in line
    notes.range("b.png", 40000, 65535)
    assert notes.lines() == []
    notes.range("c.png", 900, 65535)
    notes.range("c.png", 900, 65535)
    assert notes.lines()[0].startswith("2 of 3 images")


def test_bands_and_pages_that_are_not_there() -> None:
    assert Decoding(bands=(4, 3, 2)).places("a.tif", 4) == [3, 2, 1]
    with pytest.raises(ImageError, match="has 3 bands, not 4"):
        Decoding(bands=(4, 3, 2)).places("a.tif", 3)
    noting = Decoding()
    assert [len(noting.places("a.tif", count)) for count in (1, 2, 3, 4)] == [1, 1, 3, 3]
    assert len(noting.notes.lines()) == 2
    assert noting.place("a.tif", 3, 2) == 1
    for page in (0, 4):
        with pytest.raises(ImageError, match="has 3 pages"):
            noting.place("a.tif", 3, page)


def test_a_page_is_named_below_its_file(tmp_path: Path) -> None:
    assert page_of(f"{tmp_path}/a.tif/2") == (f"{tmp_path}/a.tif/2", None)  # no such file
    path = saved(tmp_path, "a.tif", np.zeros((3, 4, 3), np.uint8))
    assert page_of(f"{path}/2") == (str(path), 2)
    assert page_of(str(path)) == (str(path), None)
    (tmp_path / "7").write_bytes(path.read_bytes())
    assert load_image(tmp_path / "7").shape == (3, 3, 4)


def test_a_page_is_named_below_a_member_of_a_tar(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "x.tar", {"a.tif": b""})
    for member in (f"{tar}/@0+5/a.tif", f"{tar}/@0+5/7/a.tif"):
        assert page_of(member) == (member, None)
        assert page_of(f"{member}/12") == (member, 12)
    assert page_of(f"{tar}/12") == (str(tar), 12)
    assert page_of(f"{tar}/@0+5/7") == (f"{tar}/@0+5/7", None)


def test_what_parts_of_a_set_noted_adds_up() -> None:
    """Two parts without a file in common say together what one would that read all of them."""
    one, two, both = Notes(), Notes(), Notes()
    for notes in (one, both):
        notes.add("pages", "b.tif", "3 of them")
        notes.add("clipped", "b.tif", "0 to 2")
        notes.range("b.png", 4095, 65535)
    for notes in (two, both):
        notes.add("nodata", "c.tif", "7 of 9 pixels")
        notes.add("pages", "a.tif", "2 of them")
        notes.range("c.png", 900, 65535)
        notes.range("d.png", 60000, 65535)
    assert one.noted() + two.noted() == two.noted() + one.noted() == both.noted()
    assert (one.noted() + two.noted()).lines() == both.lines()
    assert len(both.lines()) == 4
