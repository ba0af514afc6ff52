"""A label file as class ids, on hand-made PNGs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image

from densesiam_seg.datasets.declaration import Dataset, DatasetClass, Split, load_dataset
from densesiam_seg.datasets.labels import orientation, read_label
from densesiam_seg.errors import ImageError, InputError

VALUES = Dataset(
    name="by-values",
    title="By values",
    classes=(
        DatasetClass(name="road", values=(7, 300)),
        DatasetClass(name="car", values=(0,)),
    ),
    ignore_values=(255, 1),
    image_suffixes=(".jpg",),
    label_suffix=".png",
    splits={"val": Split(images=("images",), labels=("labels",))},
)
WHITE, YELLOW, BLUE, BLACK = (255, 255, 255), (255, 255, 0), (0, 0, 255), (0, 0, 0)
COLOURS = VALUES.model_copy(
    update={
        "name": "by-colours",
        "classes": (
            DatasetClass(name="road", rgb=(WHITE, YELLOW)),
            DatasetClass(name="building", rgb=(BLUE,)),
        ),
        "ignore_values": (),
        "ignore_rgb": (BLACK,),
    }
)


def saved(path: Path, pixels: object, dtype: type = np.uint8) -> Path:
    Image.fromarray(np.array(pixels, dtype=dtype)).save(path)
    return path


@pytest.mark.parametrize(
    ("dataset", "dtype", "pixels", "ids"),
    [
        (VALUES, np.uint8, [[7, 0, 255], [1, 7, 7]], [[0, 1, 255], [255, 0, 0]]),
        (VALUES, np.uint16, [[300, 7, 0]], [[0, 0, 1]]),
        (COLOURS, np.uint8, [[WHITE, YELLOW], [BLUE, BLACK]], [[0, 0], [1, 255]]),
    ],
)
def test_values_and_colours_become_class_ids(
    tmp_path: Path, dataset: Dataset, dtype: type, pixels: object, ids: list[list[int]]
) -> None:
    label = read_label(dataset, saved(tmp_path / "a.png", pixels, dtype))
    assert label.tolist() == ids
    assert label.dtype == np.uint8


def test_value_without_meaning_is_named_with_its_pixels(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", [[7, 8, 8], [6, 6, 6], [200, 201, 0]])
    with pytest.raises(InputError, match="ignore_values") as caught:
        read_label(VALUES, path)
    assert str(caught.value).startswith(f"{path}: label values without a meaning in by-values")
    assert "6 (3 px), 8 (2 px), 200 (1 px) and 1 more; correct" in str(caught.value)


@pytest.mark.parametrize("strange", [301, -1, -(2**31), 2**31 - 1])
def test_values_beyond_all_declared_ones_are_refused(tmp_path: Path, strange: int) -> None:
    path = saved(tmp_path / "a.tif", [[300, strange]], np.int32)
    with pytest.raises(InputError, match=rf"by-values: {strange} \(1 px\)"):
        read_label(VALUES, path)


def test_colour_without_meaning_is_named(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", [[[255, 255, 254], [0, 0, 255]]])
    with pytest.raises(InputError, match=r"\(255, 255, 254\) \(1 px\).* ignore_rgb"):
        read_label(COLOURS, path)


def test_the_other_kind_of_label_is_refused(tmp_path: Path) -> None:
    rgb = saved(tmp_path / "rgb.png", [[[255, 255, 255]]])
    index = saved(tmp_path / "index.png", [[0]])
    with pytest.raises(InputError, match=r"rgb\.png: a colour label.* declares `values`"):
        read_label(VALUES, rgb)
    with pytest.raises(InputError, match=r"index\.png: an index label.* declares `rgb`"):
        read_label(COLOURS, index)


def test_a_file_that_does_not_decode(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(ImageError):
        read_label(VALUES, tmp_path / "a.png")


@pytest.mark.parametrize(
    ("declared", "pixels", "dtype"),
    [
        ((-1, 65535), [[7, -1, 65535, 0]], np.int32),
        ((-(2**31), 2**31 - 1), [[7, -(2**31), 2**31 - 1, 0]], np.int32),
        ((65535,), [[7, 65535, 0]], np.uint16),
    ],
)
def test_negative_and_deep_values(
    tmp_path: Path, declared: tuple[int, ...], pixels: list[list[int]], dtype: type
) -> None:
    dataset = VALUES.model_copy(update={"ignore_values": declared})
    label = read_label(dataset, saved(tmp_path / "a.tif", pixels, dtype))
    assert label.tolist() == [[0, *[255] * len(declared), 1]]
    strange = saved(tmp_path / "b.tif", [[7, 8]], dtype)
    with pytest.raises(InputError, match=r": 8 \(1 px\)"):
        read_label(dataset, strange)


@pytest.mark.parametrize(
    ("pixels", "dtype", "words"),
    [
        ([[0, 255]], np.uint8, r"255 may be -1 in 8 bits"),
        ([[0, 65535]], np.uint16, r"65535 may be -1 in 16 bits"),
    ],
)
def test_a_negative_value_that_lost_its_sign(
    tmp_path: Path, pixels: object, dtype: type, words: str
) -> None:
    dataset = VALUES.model_copy(update={"ignore_values": (-1,)})
    with pytest.raises(InputError, match=words):
        read_label(dataset, saved(tmp_path / "a.png", pixels, dtype))


def test_other_numberings(tmp_path: Path) -> None:
    """COCO-Stuff counts from 0 and leaves 11 (street sign) out; 182 is beyond its last class."""
    coco = load_dataset("coco-stuff")
    path = saved(tmp_path / "a.png", [[0, 1, 11, 157, 255]])
    with pytest.raises(InputError, match=r"11 \(1 px\); .*look shifted by one"):
        read_label(coco, path)
    with pytest.raises(InputError, match=r"without a meaning .* 182 .*look shifted by one"):
        read_label(coco, saved(path, [[0, 1, 157, 182]]))
    with pytest.raises(InputError, match=r"11 \(1 px\).* numbered otherwise"):
        read_label(coco, saved(path, [[11, 66, 68, 29]]))
    assert read_label(coco, saved(path, [[0, 10, 156, 255]])).tolist() == [[9, 8, 23, 255]]
    below = VALUES.model_copy(update={"classes": (DatasetClass(name="a", values=(1, 2, 3)),)})
    below = below.model_copy(update={"ignore_values": (255,)})
    with pytest.raises(InputError, match=r"shifted by one: .* below"):
        read_label(below, saved(path, [[0, 1, 2, 255]]))
    with pytest.raises(InputError, match="without a meaning") as caught:
        read_label(below, saved(path, [[0, 1, 9]]))
    assert "shifted" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
def test_the_orientation_in_a_header(tmp_path: Path, suffix: str) -> None:
    exif = Image.Exif()
    for value in range(1, 10):
        exif[ExifTags.Base.Orientation] = value
        path = tmp_path / f"{value}{suffix}"
        Image.new("RGB", (4, 2)).save(path, exif=exif)
        assert orientation(path) == (value if value < 9 else 1)
    Image.new("RGB", (4, 2)).save(tmp_path / f"x{suffix}")
    assert orientation(tmp_path / f"x{suffix}") == orientation(tmp_path / "none") == 1


@given(
    st.lists(st.integers(0, 65535), min_size=2, max_size=12, unique=True),
    st.data(),
)
def test_equals_a_lookup_in_a_dictionary(
    tmp_path_factory: pytest.TempPathFactory, values: list[int], data: st.DataObject
) -> None:
    cut = data.draw(st.integers(1, len(values) - 1))
    classes = tuple(DatasetClass(name=str(n), values=(v,)) for n, v in enumerate(values[:cut]))
    dataset = VALUES.model_copy(update={"classes": classes, "ignore_values": tuple(values[cut:])})
    flat = data.draw(st.lists(st.sampled_from(values), min_size=1, max_size=20))
    path = tmp_path_factory.mktemp("label") / "x.png"
    slow = [values.index(v) if v in values[:cut] else 255 for v in flat]
    assert read_label(dataset, saved(path, [flat], np.uint16)).tolist() == [slow]
    strange = data.draw(st.integers(0, 65535).filter(lambda v: v not in values))
    with pytest.raises(InputError, match=rf": {strange} \(2 px\)"):
        read_label(dataset, saved(path, [[*flat, strange, strange]], np.uint16))
