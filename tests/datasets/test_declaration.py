"""A dataset's TOML file: what it means, and that each mistake is named with file and field."""

from __future__ import annotations

from pathlib import Path

import pytest

from densesiam_seg.datasets import Dataset, DatasetClass, Split, load_dataset
from densesiam_seg.errors import InputError, UsageError

SMALL = """
image_suffixes = [".jpg"]
label_suffix = ".png"
classes = [
    { name = "road", values = [7, 8] },
    { name = "car", values = [26] },
]
[splits.first]
images = "images"
labels = "labels"
"""


def written(folder: Path, content: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(content)
    return path


def test_a_small_file_and_its_defaults(tmp_path: Path) -> None:
    assert load_dataset(written(tmp_path, SMALL)) == Dataset(
        name="mine",
        title="mine",
        protocol="full-image",
        coding="values",
        classes=(
            DatasetClass("road", None, None, (7, 8)),
            DatasetClass("car", None, None, (26,)),
        ),
        ignored=(),
        image_suffixes=(".jpg",),
        label_suffix=".png",
        splits={"first": Split(("images",), ("labels",), (), None)},
    )


def test_every_field(tmp_path: Path) -> None:
    dataset = load_dataset(
        written(
            tmp_path,
            """
            name = "scenes"
            title = "My scenes"
            protocol = "stego"
            image_suffixes = [".jpg", ".png"]
            label_suffix = "_label.png"
            ignore_rgb = [[0, 0, 0]]
            classes = [
                { name = "road", kind = "stuff", rgb = [[1, 2, 3], [4, 5, 6]] },
                { name = "car", kind = "thing", colour = [9, 9, 9], rgb = [[0, 0, 255]] },
            ]
            [splits.train]
            images = ["a", "b"]
            labels = ["c"]
            [splits.val]
            images = ["d"]
            labels = ["e"]
            lists = ["f", "g"]
            expected = 118287
            """,
        )
    )
    assert (dataset.name, dataset.title, dataset.protocol) == ("scenes", "My scenes", "stego")
    assert dataset.coding == "rgb"
    assert dataset.ignored == (0,)
    assert dataset.classes[0].raw == (0x010203, 0x040506)
    assert dataset.names == ("road", "car")
    assert dataset.kinds == ("stuff", "thing")
    assert dataset.colours == ((1, 2, 3), (9, 9, 9))
    assert dataset.splits["val"] == Split(("d",), ("e",), ("f", "g"), 118287)
    assert dataset.default_split == "val"
    assert dataset.ignore == 255


def test_default_split_is_the_first_without_val(tmp_path: Path) -> None:
    assert load_dataset(written(tmp_path, SMALL)).default_split == "first"


def test_the_schema_in_the_docstring_is_valid(tmp_path: Path) -> None:
    import densesiam_seg.datasets as package

    block = (package.__doc__ or "").split("expected:\n\n")[1].split("\n\nA sample's name")[0]
    dataset = load_dataset(written(tmp_path, block))
    assert dataset.names == ("road", "car")
    assert dataset.splits["val"].images == ("images/val", "val")


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ('[".jpg"]', "[", r"not valid TOML"),
        ('label_suffix = ".png"', "", r"label_suffix: missing"),
        ('label_suffix = ".png"', 'label_sufix = ".png"', r"label_suffix: missing"),
        ('label_suffix = ".png"', 'label_suffix = ".png"\nsize = 3', r"size: unknown field"),
        ("[7, 8]", "[7, 70000]", r"classes\[0\]\.values: must be a whole number"),
        ("[7, 8]", "[]", r"classes\[0\]\.values: must not be empty"),
        ("[7, 8]", "[7, 7]", r"classes\[0\]\.values: 7 stands for 'road' already"),
        ("[26]", "[8]", r"classes\[1\]\.values: 8 stands for 'road' already"),
        ("values = [26]", "rgb = [[1, 2, 3]]", r"classes\[1\]\.values: missing"),
        ("[26] }", "[26], rgb = [[1, 2, 3]] }", r"classes\[1\]\.rgb: unknown field"),
        ("[26] }", '[26], kind = "object" }', r"classes\[1\]\.kind: must be one of thing, stuff"),
        ('"car"', '"road"', r"classes\[1\]\.name: 'road' occurs twice"),
        ("[splits.first]", "[splits]", r"splits\.images: must be a table"),
        ("[splits.first]", '[splits."a+b"]', r"splits\.a\+b: .*rename"),
        ('images = "images"', "images = []", r"splits\.first\.images: must be a text or a list"),
        ('images = "images"', "", r"splits\.first\.images: missing"),
        ("image_suffixes", 'protocol = "mine"\nimage_suffixes', r"protocol: must be one of picie"),
        ("image_suffixes", "ignore_values = [7]\nimage_suffixes", r"7 stands for ignored pixels"),
        ("image_suffixes", "ignore_rgb = []\nimage_suffixes", r"ignore_rgb: unknown field"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, old: str, new: str, complaint: str) -> None:
    assert SMALL.count(old) == 1
    path = written(tmp_path, SMALL.replace(old, new))
    with pytest.raises(InputError, match=complaint) as caught:
        load_dataset(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_number_of_classes(tmp_path: Path) -> None:
    start, end = SMALL.split("classes = [")[0], SMALL.split("]\n[splits")[1]

    def with_classes(number: int) -> Path:
        rows = "".join(f'{{ name = "c{n}", values = [{n}] }},\n' for n in range(number))
        return written(tmp_path, f"{start}classes = [{rows}]\n[splits{end}")

    assert len(load_dataset(with_classes(255)).classes) == 255
    for number in (0, 256):
        with pytest.raises(InputError, match=f"must be 1 to 255 tables, not {number}"):
            load_dataset(with_classes(number))


def test_no_split(tmp_path: Path) -> None:
    content = SMALL.split("[splits")[0] + "[splits]\n"
    with pytest.raises(InputError, match="at least one split"):
        load_dataset(written(tmp_path, content))


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"x = " + b"[" * 100_000])
def test_bytes_that_are_no_toml(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(content)
    with pytest.raises(InputError, match="not valid TOML"):
        load_dataset(path)


def test_unknown_name_lists_the_built_in_ones() -> None:
    with pytest.raises(UsageError, match=r"'coco'.*camvid, cityscapes, coco-stuff, potsdam"):
        load_dataset("coco")


@pytest.mark.parametrize("name", ["../datasets/camvid", "", "__init__"])
def test_a_name_is_not_a_path(name: str) -> None:
    with pytest.raises(UsageError):
        load_dataset(name)


def test_absent_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.toml: No such file"):
        load_dataset(tmp_path / "none.toml")
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(InputError, match=r"folder\.toml: Is a directory"):
        load_dataset(tmp_path / "folder.toml")
