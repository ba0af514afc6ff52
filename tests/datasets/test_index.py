"""Which files of two folders, or of one, are images and which are their labels."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from densesiam_seg.datasets.declaration import Dataset, DatasetClass, Split
from densesiam_seg.datasets.index import Index, files_below, is_foreign, kinds, stem
from densesiam_seg.errors import InputError


def touch(folder: Path, *files: str) -> None:
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch()


def index(
    folder: Path,
    images: str = "images",
    labels: str = "labels",
    image_suffixes: tuple[str, ...] = (".jpg",),
    label_suffix: str = ".png",
) -> Index:
    declared = Dataset(
        name="x",
        title="x",
        classes=(DatasetClass(name="a", values=(0,)),),
        image_suffixes=image_suffixes,
        label_suffix=label_suffix,
        splits={"val": Split(images=("images",), labels=("labels",))},
    )
    return Index(declared, folder / images, folder / labels)


def pairs(found: Index) -> dict[str, str | None]:
    """Each image's file with its label's."""
    labels = {file: found.label(name) for name, file in found.images.items()}
    return {file: label.name if label else None for file, label in labels.items()}


def mixed(folder: Path, *files: str, suffix: str = "_mask.png") -> Index:
    """One folder with PNG for both."""
    touch(folder / "one", *files)
    return index(folder, "one", "one", (".png",), suffix)


def test_suffixes_in_any_letter_case(tmp_path: Path) -> None:
    touch(tmp_path, "images/a.jpg", "images/b.JPG", "images/sub/c.Jpg")
    touch(tmp_path, "labels/a.PNG", "labels/b.png", "labels/sub/c.pNg")
    found = pairs(index(tmp_path))
    assert found == {"a.jpg": "a.PNG", "b.JPG": "b.png", "sub/c.Jpg": "c.pNg"}


def test_names_that_differ_in_letter_case_or_unicode_alone(tmp_path: Path) -> None:
    accent = "caf\N{LATIN SMALL LETTER E WITH ACUTE}"
    touch(tmp_path, "images/IMG_1.jpg", f"images/{accent}.jpg")
    touch(tmp_path, "labels/img_1.png", f"labels/{unicodedata.normalize('NFD', accent)}.png")
    assert None not in pairs(index(tmp_path)).values()


def test_letter_case_counts_where_it_tells_two_images_apart(tmp_path: Path) -> None:
    touch(tmp_path, "images/a.jpg", "images/A.jpg", "labels/a.png")
    assert pairs(index(tmp_path)) == {"A.jpg": None, "a.jpg": "a.png"}


@pytest.mark.parametrize("labels", [("a.png", "a.PNG"), ("A.png", "a.PNG")])
def test_two_labels_of_one_name_are_both_named(tmp_path: Path, labels: tuple[str, str]) -> None:
    touch(tmp_path, "images/a.jpg", *(f"labels/{label}" for label in labels))
    if labels[0] == "a.png":
        with pytest.raises(InputError, match=r"labels/a\.PNG and .*labels/a\.png"):
            index(tmp_path).label("a")
    else:  # one has the very name
        assert pairs(index(tmp_path)) == {"a.jpg": "a.PNG"}


class TestOneFolder:
    def test_a_label_is_no_image(self, tmp_path: Path) -> None:
        found = mixed(tmp_path, "benign (1).png", "benign (1)_mask.png", "b.PNG", "b_MASK.png")
        assert pairs(found) == {"b.PNG": "b_MASK.png", "benign (1).png": "benign (1)_mask.png"}
        assert (found.further, found.unclaimed) == ([], [])

    def test_further_labels_are_neither(self, tmp_path: Path) -> None:
        found = mixed(
            tmp_path, "x.png", "x_mask.png", "x_mask_1.png", "x_mask_2.png", "x_mask (3).png"
        )
        assert pairs(found) == {"x.png": "x_mask.png"}
        assert found.further == ["x_mask (3).png", "x_mask_1.png", "x_mask_2.png"]

    def test_a_number_behind_what_is_no_image_is_a_name(self, tmp_path: Path) -> None:
        found = mixed(tmp_path, "gas_mask_1.png", "gas_mask_1_mask.png", "y_mask_1.png")
        assert pairs(found) == {"gas_mask_1.png": "gas_mask_1_mask.png", "y_mask_1.png": None}

    def test_an_image_whose_name_ends_like_a_label(self, tmp_path: Path) -> None:
        found = mixed(tmp_path, "face_mask.png", "face_mask_mask.png")
        assert pairs(found) == {"face_mask.png": "face_mask_mask.png"}

    def test_a_label_without_image_is_told(self, tmp_path: Path) -> None:
        found = mixed(tmp_path, "x.png", "x_mask.png", "gone_mask.png")
        assert (pairs(found), found.unclaimed) == ({"x.png": "x_mask.png"}, ["gone_mask.png"])

    def test_labels_with_a_suffix_that_images_may_have(self, tmp_path: Path) -> None:
        touch(tmp_path / "one", "x.jpg", "x.png")
        found = index(tmp_path, "one", "one", (".jpg", ".png"))
        assert pairs(found) == {"x.jpg": "x.png"}

    def test_under_two_names(self, tmp_path: Path) -> None:
        (tmp_path / "two").symlink_to("one")
        touch(tmp_path / "one", "x.png", "x_mask.png")
        assert pairs(index(tmp_path, "one", "two", (".png",), "_mask.png")) == {
            "x.png": "x_mask.png"
        }


@pytest.mark.parametrize(("images", "labels"), [(".", "masks"), ("photos", ".")])
def test_one_folder_inside_the_other(tmp_path: Path, images: str, labels: str) -> None:
    touch(tmp_path / images, "x.png")
    touch(tmp_path / labels, "x.png")
    found = index(tmp_path, images, labels, (".png",))
    assert pairs(found) == {"x.png": "x.png"}
    assert found.label("x") != found.image("x")


def test_what_is_not_data(tmp_path: Path) -> None:
    for name in ("@eaDir", "#recycle", "$Recycle.Bin", "lost+found", "__MACOSX", ".x", "._x"):
        assert is_foreign(name)
        touch(tmp_path, f"images/{name}/a.jpg", f"labels/{name}/a.png")
    touch(tmp_path, "images/System Volume Information/a.jpg", "images/._b.jpg", "images/c.jpg")
    assert not is_foreign("eaDir")
    assert list(index(tmp_path).images) == ["c"]


def test_links(tmp_path: Path) -> None:
    """Those to files are files; those to folders and to nothing are counted."""
    touch(tmp_path, "else/a.jpg", "else/b.jpg", "images/c.jpg")
    (tmp_path / "images/a.jpg").symlink_to(tmp_path / "else/a.jpg")
    (tmp_path / "images/d.jpg").symlink_to("nowhere")
    (tmp_path / "images/sub").symlink_to(tmp_path / "else")
    (tmp_path / "images/loop").symlink_to(tmp_path / "images")
    files = files_below(tmp_path / "images", tmp_path / "labels")
    assert (files.names, files.links) == (("a.jpg", "c.jpg", "d.jpg"), 2)
    assert files.dangling == {"d.jpg"}
    assert "2 linked folders not followed and 1 link to nothing" in files.unfollowed
    assert index(tmp_path).image("d") is None
    assert files_below(tmp_path / "none", tmp_path).names == ()


def test_labels_behind_a_linked_folder_are_found_by_name(tmp_path: Path) -> None:
    touch(tmp_path, "images/sub/a.jpg", "else/a.png")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/sub").symlink_to(tmp_path / "else")
    assert pairs(index(tmp_path)) == {"sub/a.jpg": "a.png"}


def test_stems_and_kinds(tmp_path: Path) -> None:
    assert [
        stem(name, (".jpg", "_b.png")) for name in ("a.JPG", "x/a_b.png", ".jpg", "x/.jpg")
    ] == [
        "a",
        "x/a",
        None,
        None,
    ]
    touch(tmp_path, "a.tif", "b.tif", "c.txt", "README")
    told = kinds(files_below(tmp_path, tmp_path / "x"))
    assert told.startswith("2 *.tif, ")
    assert "1 without a suffix" in told
