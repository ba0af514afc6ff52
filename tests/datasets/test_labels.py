"""A label file as class ids, on hand-made PNGs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from densesiam_seg.datasets import Dataset, DatasetClass, Split, read_label
from densesiam_seg.datasets.labels import coded
from densesiam_seg.errors import ImageError, InputError

VALUES = Dataset(
    name="by-values",
    title="By values",
    protocol="full-image",
    coding="values",
    classes=(
        DatasetClass("road", None, None, (7, 300)),
        DatasetClass("car", None, None, (0,)),
    ),
    ignored=(255, 1),
    image_suffixes=(".jpg",),
    label_suffix=".png",
    splits={"val": Split(("images",), ("labels",), (), None)},
)
COLOURS = replace(
    VALUES,
    name="by-colours",
    coding="rgb",
    classes=(
        DatasetClass("road", None, None, (0xFFFFFF, 0xFFFF00)),
        DatasetClass("building", None, None, (0x0000FF,)),
    ),
    ignored=(0x000000,),
)


def saved(path: Path, pixels: list[object], dtype: type = np.uint8) -> Path:
    Image.fromarray(np.array(pixels, dtype=dtype)).save(path)
    return path


def test_values_become_class_ids(tmp_path: Path) -> None:
    label = read_label(VALUES, saved(tmp_path / "a.png", [[7, 0, 255], [1, 7, 7]]))
    assert label.tolist() == [[0, 1, 255], [255, 0, 0]]
    assert label.dtype == np.uint8


def test_sixteen_bit_values(tmp_path: Path) -> None:
    label = read_label(VALUES, saved(tmp_path / "a.png", [[300, 7, 0]], np.uint16))
    assert label.tolist() == [[0, 0, 1]]


def test_palette_label_is_read_by_index(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1), color=0)
    image.putpalette([channel for n in range(256) for channel in (255 - n, n, 9)])
    image.putpixel((0, 0), 7)
    image.save(tmp_path / "a.png")
    assert read_label(VALUES, tmp_path / "a.png").tolist() == [[0, 1]]


def test_colours_become_class_ids(tmp_path: Path) -> None:
    white, yellow, blue, black = [255, 255, 255], [255, 255, 0], [0, 0, 255], [0, 0, 0]
    path = saved(tmp_path / "a.png", [[white, yellow], [blue, black]])
    assert read_label(COLOURS, path).tolist() == [[0, 0], [1, 255]]


def test_value_without_meaning_is_named_with_its_pixels(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", [[7, 8, 8], [6, 6, 6], [200, 201, 0]])
    with pytest.raises(InputError) as caught:
        read_label(VALUES, path)
    text = str(caught.value)
    assert text.startswith(f"{path}: label values without a meaning in by-values: 6 (3 px), ")
    assert "6 (3 px), 8 (2 px), 200 (1 px) and 1 more; correct" in text
    assert "ignore_values" in text


def test_values_beyond_all_declared_ones_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", [[300, 301]], np.uint16)
    with pytest.raises(InputError, match=r"by-values: 301 \(1 px\)"):
        read_label(VALUES, path)


def test_colour_without_meaning_is_named(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", [[[255, 255, 254], [0, 0, 255]]])
    with pytest.raises(InputError, match=r"\(255, 255, 254\) \(1 px\).* ignore_rgb"):
        read_label(COLOURS, path)


def test_the_other_kind_of_label_is_refused(tmp_path: Path) -> None:
    rgb = saved(tmp_path / "rgb.png", [[[255, 255, 255]]])
    index = saved(tmp_path / "index.png", [[0]])
    with pytest.raises(InputError, match=r"rgb\.png: a colour label.* by-values declares values"):
        read_label(VALUES, rgb)
    with pytest.raises(InputError, match=r"index\.png: an index label.* declares colours"):
        read_label(COLOURS, index)


def test_a_file_that_does_not_decode(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(ImageError):
        read_label(VALUES, tmp_path / "a.png")


@given(
    st.lists(st.integers(0, 65535), min_size=2, max_size=12, unique=True),
    st.data(),
)
def test_equals_a_lookup_in_a_dictionary(values: list[int], data: st.DataObject) -> None:
    cut = data.draw(st.integers(1, len(values) - 1))
    dataset = replace(
        VALUES,
        classes=tuple(DatasetClass(str(n), None, None, (v,)) for n, v in enumerate(values[:cut])),
        ignored=tuple(values[cut:]),
    )
    flat = data.draw(st.lists(st.sampled_from(values), min_size=1, max_size=20))
    raw: NDArray[np.int64] = np.array([flat], dtype=np.int64)
    slow = [values.index(v) if v in values[:cut] else 255 for v in flat]
    assert coded(dataset, raw, "x.png").tolist() == [slow]
    strange = data.draw(st.integers(-1, 70000).filter(lambda v: v not in values))
    with pytest.raises(InputError, match=rf": {strange} \(2 px\)"):
        coded(dataset, np.array([[*flat, strange, strange]]), "x.png")


@given(st.lists(st.sampled_from([0, 1, 7, 255]), min_size=1, max_size=20))
def test_the_table_of_eight_bit_labels_is_the_search(
    tmp_path_factory: pytest.TempPathFactory, values: list[int]
) -> None:
    raw = np.array([values], np.uint8)
    path = tmp_path_factory.mktemp("label") / "x.png"
    Image.fromarray(raw).save(path)
    expected = coded(VALUES, raw.astype(np.int64), path)
    assert np.array_equal(read_label(VALUES, path), expected)
