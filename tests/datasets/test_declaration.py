"""A dataset's TOML file: what it means, and that each mistake is named with file and field."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import densesiam_seg.datasets
from densesiam_seg.config import MAX_TOML
from densesiam_seg.datasets.declaration import Dataset, DatasetClass, Split, load_dataset
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
FULL = """
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
"""


def written(folder: Path, content: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(content)
    return path


def test_a_small_file_and_its_defaults(tmp_path: Path) -> None:
    dataset = load_dataset(written(tmp_path, SMALL))
    assert dataset == Dataset(
        name="mine",
        title="mine",
        classes=(DatasetClass(name="road", values=(7, 8)), DatasetClass(name="car", values=(26,))),
        image_suffixes=(".jpg",),
        label_suffix=".png",
        splits={"first": Split(images=("images",), labels=("labels",))},
    )
    assert (dataset.protocol, dataset.coding, dataset.ignored) == ("full-image", "values", ())
    assert (dataset.kinds, dataset.colours) == ((None, None), (None, None))
    assert dataset.default_split == "first"
    assert dataset.splits["first"].lists == ()


def test_every_field(tmp_path: Path) -> None:
    dataset = load_dataset(written(tmp_path, FULL))
    assert (dataset.name, dataset.title, dataset.protocol) == ("scenes", "My scenes", "stego")
    assert dataset.coding == "rgb"
    assert dataset.ignored == (0,)
    assert dataset.classes[0].raw == (0x010203, 0x040506)
    assert dataset.names == ("road", "car")
    assert dataset.kinds == ("stuff", "thing")
    assert dataset.colours == ((1, 2, 3), (9, 9, 9))
    val = Split(images=("d",), labels=("e",), lists=("f", "g"), expected=118287)
    assert dataset.splits["val"] == val
    assert dataset.default_split == "val"


def test_the_example_in_the_docstring_is_valid(tmp_path: Path) -> None:
    text = densesiam_seg.datasets.__doc__ or ""
    block = text.split("expected:\n\n")[1].split("\n\nA sample's name")[0]
    dataset = load_dataset(written(tmp_path, block))
    assert dataset.names == ("road", "car")
    assert dataset.splits["val"].images == ("images/val", "val")


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ('[".jpg"]', "[", "not valid TOML"),
        ('label_suffix = ".png"', "", "label_suffix: missing"),
        ('label_suffix = ".png"', 'label_sufix = ".png"', "label_suffix: missing"),
        ('label_suffix = ".png"', 'label_suffix = ""', "label_suffix: "),
        ('label_suffix = ".png"', "label_suffix = 3", "label_suffix: .* string"),
        ('label_suffix = ".png"', 'label_suffix = ".png"\nsize = 3', "size: unknown field"),
        ('label_suffix = ".png"', 'label_suffix = ".png"\nname = 3', "name: .* string"),
        ('[".jpg"]', "[]", "image_suffixes: "),
        ('[".jpg"]', '[""]', r"image_suffixes\[0\]: "),
        ("[7, 8]", '"3"', r"classes\[0\]\.values: "),
        ("[7, 8]", "[7, 4294967296]", r"classes\[0\]\.values\[1\]: .* 4294967295"),
        ("[7, 8]", "[-2147483649]", r"classes\[0\]\.values\[0\]: .* -2147483648"),
        ("[7, 8]", "[true]", r"classes\[0\]\.values\[0\]: .* integer"),
        ("[7, 8]", "[1.0]", r"classes\[0\]\.values\[0\]: .* integer"),
        ("[7, 8]", "[]", r"classes\[0\]: give all classes `values`"),
        ("[7, 8]", "[7, 7]", r"classes\[0\]\.values: 7 stands for 'road' already"),
        ("[26]", "[8]", r"classes\[1\]\.values: 8 stands for 'road' already"),
        ("values = [26]", "rgb = [[1, 2, 3]]", r"classes\[1\]: give all classes `values`"),
        ("[26] }", "[26], rgb = [[1, 2, 3]] }", r"classes\[1\]: give all classes `values`"),
        ("[26] }", "[26], colour = [0, 0] }", r"classes\[1\]\.colour\[2\]: "),
        ("[26] }", "[26], colour = [0, 0, 256] }", r"classes\[1\]\.colour\[2\]: .* 255"),
        ("[26] }", "[26], colour = [0, 0, 0.5] }", r"classes\[1\]\.colour\[2\]: .* integer"),
        ("[26] }", '[26], colour = "red" }', r"classes\[1\]\.colour: "),
        ("[26] }", '[26], kind = "object" }', r"classes\[1\]\.kind: .*'thing' or 'stuff'"),
        ('{ name = "car", values = [26] }', "1", r"classes\[1\]: must be a table"),
        ('"car"', '"road"', r"classes\[1\]\.name: 'road' occurs twice"),
        ("[splits.first]", "[splits]", r"splits\.images: must be a table"),
        ("[splits.first]", '[splits."a+b"]', r"splits\.a\+b: .*rename"),
        ('images = "images"', "images = []", r"splits\.first\.images: "),
        ('images = "images"', "", r"splits\.first\.images: missing"),
        ('images = "images"', 'images = "a"\nexpected = 0', r"splits\.first\.expected: "),
        ("image_suffixes", 'protocol = "mine"\nimage_suffixes', "protocol: .*'picie'"),
        ("image_suffixes", "ignore_values = [7]\nimage_suffixes", "7 stands for ignored pixels"),
        (
            "image_suffixes",
            "ignore_values = [-1]\nabsent_values = [-1]\nimage_suffixes",
            "-1 is ignored",
        ),
        (
            "image_suffixes",
            "absent_values = [7, 8]\nimage_suffixes",
            r"classes\[0\]: all its values",
        ),
        ("image_suffixes", "ignore_rgb = [[0, 0, 0]]\nimage_suffixes", "ignore_rgb: .* remove it"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, old: str, new: str, complaint: str) -> None:
    assert SMALL.count(old) == 1
    path = written(tmp_path, SMALL.replace(old, new))
    with pytest.raises(InputError, match=complaint) as caught:
        load_dataset(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_colour_of_two_classes_is_shown_as_a_colour(tmp_path: Path) -> None:
    path = written(tmp_path, FULL.replace("[0, 0, 255]", "[4, 5, 6]"))
    with pytest.raises(InputError, match=r"\(4, 5, 6\) stands for 'road' already"):
        load_dataset(path)


def test_number_of_classes_and_splits(tmp_path: Path) -> None:
    start, end = SMALL.split("classes = [")[0], SMALL.split("]\n[splits")[1]

    def with_classes(number: int) -> Path:
        rows = "".join(f'{{ name = "c{n}", values = [{n}] }},\n' for n in range(number))
        return written(tmp_path, f"{start}classes = [{rows}]\n[splits{end}")

    assert len(load_dataset(with_classes(255)).classes) == 255
    for number in (0, 256):
        with pytest.raises(InputError, match=f"classes: .* not {number}"):
            load_dataset(with_classes(number))
    with pytest.raises(InputError, match="splits: "):
        load_dataset(written(tmp_path, SMALL.split("[splits")[0] + "[splits]\n"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"x = " + b"[" * 100_000, "not valid TOML"),
        (SMALL.encode("utf-16"), "UTF-16 .*save it as UTF-8"),
        (SMALL.encode("utf-16-le"), "UTF-16 .*save it as UTF-8"),
        ("a = 1\ntitle = '\xe9'".encode("latin-1"), "line 2 is not UTF-8"),
    ],
)
def test_bytes_that_are_no_toml(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"mine\.toml: not valid TOML.*{words}|{words}"):
        load_dataset(path)


def test_files_as_windows_writes_them(tmp_path: Path) -> None:
    path = written(tmp_path, SMALL)
    plain = load_dataset(path)
    path.write_bytes(b"\xef\xbb\xbf" + SMALL.replace("\n", "\r\n").encode())
    assert load_dataset(path) == plain


def test_values_of_all_label_files(tmp_path: Path) -> None:
    text = SMALL.replace("[7, 8]", "[-5, 4294967295]").replace("[26]", "[26, 27]")
    extra = "ignore_values = [-1, 65535, -2147483648]\nabsent_values = [27, 3]\n"
    dataset = load_dataset(written(tmp_path, extra + text))
    assert dataset.ignored == (-1, 65535, -(2**31))
    assert dataset.classes[0].raw == (-5, 2**32 - 1)
    assert dataset.absent_values == (27, 3)
    rgb = FULL.replace("ignore_rgb", "absent_values = [3]\nignore_rgb")
    with pytest.raises(InputError, match="absent_values: the classes have `rgb`; remove it"):
        load_dataset(written(tmp_path, rgb))


def test_unknown_names_list_the_built_in_ones() -> None:
    for name in ("coco", "../datasets/camvid", "", "__init__"):
        with pytest.raises(UsageError, match=r"camvid, cityscapes, coco-stuff, potsdam"):
            load_dataset(name)


def test_absent_file_and_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        load_dataset("none.toml")
    assert f"current folder {Path.cwd()}" in str(caught.value)
    with pytest.raises(InputError, match=r"none\.toml: No such file"):
        load_dataset(tmp_path / "none.toml")
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(InputError, match=r"folder\.toml: Not a regular file"):
        load_dataset(tmp_path / "folder.toml")


def test_a_file_that_is_none_or_too_large(tmp_path: Path) -> None:
    """A pipe would wait for ever, a device never end."""
    os.mkfifo(tmp_path / "pipe.toml")
    (tmp_path / "endless.toml").symlink_to("/dev/zero")
    (tmp_path / "large.toml").write_bytes(b"\n" * (MAX_TOML + 1))
    for name, words in (("pipe", "regular"), ("endless", "regular"), ("large", "larger than")):
        with pytest.raises(InputError, match=words):
            load_dataset(tmp_path / f"{name}.toml")
