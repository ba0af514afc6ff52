"""The samples of a split on disk: where they are looked for, and what happens when they are not there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from densesiam_seg.datasets.declaration import Dataset, DatasetClass, Split, load_dataset
from densesiam_seg.datasets.reader import Sample, Samples, samples
from densesiam_seg.errors import InputError, UsageError

DATASET = Dataset(
    name="tiny",
    title="Tiny",
    classes=(DatasetClass(name="road", kind="stuff", values=(0,)),),
    ignore_values=(255,),
    image_suffixes=(".jpg", ".png"),
    label_suffix="_ids.png",
    splits={
        "val": Split(
            images=("images/val", "val"),
            labels=("labels/val",),
            lists=("val.txt", "lists/val.txt"),
            expected=2,
        ),
        "train": Split(images=("images/train",), labels=("labels/train",)),
        "test": Split(images=("images/test",), labels=("labels/test",), expected=5),
    },
)


def touch(root: Path, *files: str) -> None:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()


def names(found: Samples) -> list[str]:
    return [each.name for each in found]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three samples in val, of which one is in a sub-folder, and one in train."""
    touch(tmp_path, "images/val/b.jpg", "images/val/a.png", "images/val/city/c.JPG")
    touch(tmp_path, "labels/val/b_ids.png", "labels/val/a_ids.png", "labels/val/city/c_ids.png")
    touch(tmp_path, "images/train/a.jpg", "labels/train/a_ids.png")
    return tmp_path


def test_whole_folder_sorted_by_name(root: Path) -> None:
    found = samples(DATASET, root, "val")
    assert names(found) == ["a", "b", "city/c"]
    assert found.items[2].image == root / "images/val/city/c.JPG"
    assert found.items[2].label == root / "labels/val/city/c_ids.png"
    assert (found.split, found.missing, found.expected) == ("val", (), 2)
    assert len(found) == 3
    assert samples(DATASET, str(root)) == found, "val is the default"


def test_what_is_no_image_and_links_to_folders_are_left_out(root: Path) -> None:
    touch(root, "images/val/notes.txt", "images/val/._a.jpg", "images/val/.thumbs/x.jpg")
    touch(root, "images/val/.jpg", "labels/val/unused_ids.png")
    (root / "images/val/loop").symlink_to(root / "images")
    assert names(samples(DATASET, root, "val")) == ["a", "b", "city/c"]


def test_first_existing_folder_wins(root: Path) -> None:
    touch(root, "val/z.jpg", "labels/val/z_ids.png")
    assert names(samples(DATASET, root, "val")) == ["a", "b", "city/c"]
    (root / "images/val").rename(root / "images/else")
    assert names(samples(DATASET, root, "val")) == ["z"]


def test_the_given_list_else_the_first_one_below_the_root(root: Path) -> None:
    touch(root, "lists/val.txt")
    (root / "lists/val.txt").write_bytes(b"\xef\xbb\xbfcity/c\r\n\r\n  b.jpg \r\n")
    assert names(samples(DATASET, root, "val")) == ["b", "city/c"]
    (root / "val.txt").write_text("a\n")
    assert names(samples(DATASET, root, "val")) == ["a"]
    (root / "mine.txt").write_text("b")
    assert names(samples(DATASET, root, "val", list_file=root / "mine.txt")) == ["b"]


def test_names_of_any_bytes(root: Path) -> None:
    name = os.fsdecode(b"caf\xe9 [/red]")
    touch(root, f"images/val/{name}.jpg", f"labels/val/{name}_ids.png")
    (root / "val.txt").write_bytes(os.fsencode(name) + b"\n")
    assert names(samples(DATASET, root, "val")) == [name]


def test_missing_files_are_counted_and_named(root: Path) -> None:
    (root / "val.txt").write_text("a\nb\nx\ny\nz\n")
    (root / "labels/val/b_ids.png").unlink()
    with pytest.raises(InputError) as caught:
        samples(DATASET, root, "val")
    text = str(caught.value)
    assert text.startswith(f"{root / 'val.txt'}: of 5 names, 3 have no image in {root}/images/val")
    assert "1 no label" in text and "'b', 'x', 'y', ..." in text and "--allow-missing" in text
    assert "\n" not in text
    found = samples(DATASET, root, "val", allow_missing=True)
    assert (names(found), found.missing) == (["a"], ("b", "x", "y", "z"))


def test_image_without_label_is_an_error_without_a_list_too(root: Path) -> None:
    touch(root, "images/val/new.jpg")
    with pytest.raises(InputError, match=r"images/val: of 4 names, 0 have no image .* 1 no label"):
        samples(DATASET, root, "val")
    assert samples(DATASET, root, "val", allow_missing=True).missing == ("new",)


def test_a_label_that_is_a_folder_or_a_dangling_link_is_missing(root: Path) -> None:
    (root / "labels/val/a_ids.png").unlink()
    (root / "labels/val/a_ids.png").mkdir()
    (root / "labels/val/b_ids.png").unlink()
    (root / "labels/val/b_ids.png").symlink_to("nowhere")
    assert samples(DATASET, root, "val", allow_missing=True).missing == ("a", "b")


def test_nothing_left(root: Path) -> None:
    (root / "val.txt").write_text("x\n../../secret\n/etc/secret\n")
    with pytest.raises(InputError, match=r"none of 3 names has both an image \(\*\.jpg, \*\.png\)"):
        samples(DATASET, root, "val", allow_missing=True)
    (root / "images/test").mkdir()
    (root / "labels/test").mkdir()
    with pytest.raises(InputError, match=r"images/test: no image in it \(\*\.jpg, \*\.png\)"):
        samples(DATASET, root, "test")


def test_unusable_lists(root: Path) -> None:
    for content, complaint in (
        ("\n \n", "is empty"),
        ("a\nb\na\n", "line 3 repeats 'a' of line 1"),
        ("a\na.png", "line 2 repeats 'a' of line 1"),
    ):
        (root / "val.txt").write_text(content)
        with pytest.raises(InputError, match=rf"val\.txt: .*{complaint}"):
            samples(DATASET, root, "val")


def test_absent_list(root: Path) -> None:
    for path in (root / "none.txt", root / "images"):
        with pytest.raises(InputError, match="no such list file"):
            samples(DATASET, root, "val", list_file=path)


def test_wrong_root_names_the_folders_tried(root: Path) -> None:
    with pytest.raises(
        InputError, match=r"nowhere: no folder images/val or val for the images of tiny val"
    ):
        samples(DATASET, root / "nowhere", "val")
    (root / "labels/val").rename(root / "labels/else")
    with pytest.raises(InputError, match=r"no folder labels/val for the labels of tiny val"):
        samples(DATASET, root, "val")


def test_a_name_longer_than_any_is_a_folder_that_is_not_there(root: Path) -> None:
    with pytest.raises(InputError, match="no folder images/val or val for the images"):
        samples(DATASET, root / ("a" * 300), "val")


def test_two_images_of_one_name(root: Path) -> None:
    touch(root, "images/val/a.jpg")
    with pytest.raises(InputError, match=r"same name as a\.(jpg|png)"):
        samples(DATASET, root, "val")


@pytest.mark.parametrize("split", ["dev", "", "val+dev", "val+val", "val+"])
def test_unknown_split(root: Path, split: str) -> None:
    with pytest.raises(UsageError, match="give one of val, train, test"):
        samples(DATASET, root, split)


def test_joined_splits(root: Path) -> None:
    found = samples(DATASET, root, "train+val")
    assert samples(DATASET, root, "val+train").items == found.items
    assert names(found) == ["train/a", "val/a", "val/b", "val/city/c"]
    assert found.items[0].image == root / "images/train/a.jpg"
    assert found.expected is None
    touch(root, "images/test/t.jpg", "labels/test/t_ids.png", "images/val/new.jpg")
    joined = samples(DATASET, root, "val+test", allow_missing=True)
    assert (joined.expected, joined.missing) == (7, ("val/new",))
    with pytest.raises(UsageError, match="for one split"):
        samples(DATASET, root, "train+val", list_file=root / "val.txt")


def test_digest_is_of_names_and_declaration_not_of_the_place(root: Path) -> None:
    digest = samples(DATASET, root, "val").digest
    moved = root.rename(root.with_name("moved"))
    assert samples(DATASET, moved, "val").digest == digest
    ignoring = DATASET.model_copy(update={"ignore_values": (254,)})
    assert samples(ignoring, moved, "val").digest != digest
    (moved / "val.txt").write_text("a\nb\n")
    assert samples(DATASET, moved, "val").digest != digest


@pytest.mark.parametrize(
    ("dataset", "name", "image", "label"),
    [
        ("coco-stuff", "0139", "val2017/{}.jpg", "stuffthingmaps/val2017/{}.png"),
        ("coco-stuff", "0139", "images/val2017/{}.jpg", "annotations/val2017/{}.png"),
        (
            "cityscapes",
            "ulm/ulm_0_2",
            "leftImg8bit/val/{}_leftImg8bit.png",
            "gtFine/val/{}_gtFine_labelIds.png",
        ),
        ("camvid", "0016E5_07959", "val/{}.png", "valannot/{}.png"),
    ],
)
def test_official_layouts(tmp_path: Path, dataset: str, name: str, image: str, label: str) -> None:
    files = [image.format(name), label.format(name)]
    touch(tmp_path, *files, f"gtFine/val/{name}_gtFine_color.png")
    (found,) = samples(load_dataset(dataset), tmp_path)
    assert found == Sample(name, *(tmp_path / file for file in files))


def test_the_curated_list_of_coco_stuff(tmp_path: Path) -> None:
    for name in ("000000000139", "000000000285"):
        touch(tmp_path, f"val2017/{name}.jpg", f"stuffthingmaps/val2017/{name}.png")
    touch(tmp_path, "curated/val2017/Coco164kFull_Stuff_Coarse_7.txt")
    (tmp_path / "curated/val2017/Coco164kFull_Stuff_Coarse_7.txt").write_text("000000000285\n")
    found = samples(load_dataset("coco-stuff"), tmp_path, "val")
    assert (names(found), found.expected) == (["000000000285"], 2175)


def test_digests_stay_as_they_were(root: Path) -> None:
    """Benchmarks name them, so that no change of the code may change them."""
    digest = "b7cf8c7fa78453eb5f47554c5d93c30b8a319866de57eb8bf312fc7500e3b257"
    assert samples(DATASET, root, "val").digest == digest
    absent = DATASET.model_copy(update={"absent_values": (7,)})
    assert samples(absent, root, "val").digest == digest


def test_labels_of_a_list_count_and_are_in_the_digest(root: Path) -> None:
    digest = samples(DATASET, root, "val").digest
    (root / "val.txt").write_text(
        "a\nb images/../labels/val/b_ids.png\ncity/c labels/val/city/c_ids.png"
    )
    found = samples(DATASET, root, "val")
    assert found.digest == digest, "the labels of the names"
    touch(root, "other/x.png")
    (root / "val.txt").write_text("a\nb other/x.png\ncity/c")
    found = samples(DATASET, root, "val")
    assert found.items[1] == Sample("b", root / "images/val/b.jpg", root / "other/x.png")
    assert found.digest != digest
    (root / "labels").rename(root / "else")
    (root / "val.txt").write_text("b other/x.png")
    assert names(samples(DATASET, root, "val")) == ["b"], "no label folder is needed"


def test_the_first_line_that_is_not_understood(root: Path) -> None:
    (root / "val.txt").write_text("a\nwhat is this\nb\nx.jpg\n")
    with pytest.raises(InputError, match=r"line 2 is 'what is this', expected is one name a line"):
        samples(DATASET, root, "val")
    (root / "val.txt").write_text("image,label\n")
    with pytest.raises(InputError, match=r"none of 1 names .*line 1 .*image and label"):
        samples(DATASET, root, "val")


def test_what_lies_there_instead_is_told(root: Path) -> None:
    for name in ("a", "b", "city/c"):
        (root / f"labels/val/{name}_ids.png").rename(root / f"labels/val/{name}.tif")
    with pytest.raises(
        InputError, match=r"labels/val holds 3 \*\.tif, and labels end in _ids\.png"
    ):
        samples(DATASET, root, "val")
    touch(root, "images/test/a.bmp", "labels/test/a_ids.png")
    with pytest.raises(InputError, match=r"no image in it .* but 1 \*\.bmp"):
        samples(DATASET, root, "test")


def test_links_that_are_not_followed_are_told(root: Path) -> None:
    (root / "images/test").mkdir()
    (root / "labels/test").mkdir()
    (root / "images/test/sub").symlink_to(root / "images/val")
    with pytest.raises(InputError, match=r"images/test has 1 linked folder not followed"):
        samples(DATASET, root, "test")
    touch(root, "images/test/t.jpg", "labels/test/t_ids.png")
    (note,) = samples(DATASET, root, "test").notes
    assert "1 linked folder not followed" in note
    (root / "images/test/u.jpg").symlink_to("nowhere")
    with pytest.raises(InputError, match=r"1 have no image .*1 link to nothing"):
        samples(DATASET, root, "test")


def test_images_and_labels_in_one_folder(tmp_path: Path) -> None:
    one = DATASET.model_copy(
        update={
            "image_suffixes": (".png",),
            "label_suffix": "_mask.png",
            "splits": {"val": Split(images=("one",), labels=("one",))},
        }
    )
    touch(tmp_path, "one/x.png", "one/x_mask.png", "one/y.png", "one/y_mask.png")
    found = samples(one, tmp_path)
    assert (names(found), found.notes) == (["x", "y"], ())
    touch(tmp_path, "one/x_mask_1.png", "one/z_mask.png")
    found = samples(one, tmp_path)
    assert names(found) == ["x", "y"]
    further, unclaimed = found.notes
    assert "1 file " in further and "x_mask_1.png" in further
    assert "1 label " in unclaimed and "z_mask.png" in unclaimed


def test_an_image_that_is_its_own_label(tmp_path: Path) -> None:
    split = {"val": Split(images=("one",), labels=("one",))}
    same = DATASET.model_copy(update={"label_suffix": ".png", "splits": split})
    touch(tmp_path, "one/x.png")
    with pytest.raises(InputError, match=r"x\.png: is both image and label"):
        samples(same, tmp_path)


def test_a_list_that_gives_an_image_the_label_of_another_is_told(root: Path) -> None:
    listed = root / "pairs.txt"
    whole = samples(DATASET, root)
    one, other = whole.items[:2]
    listed.write_text(f"{one.image}\t{other.label}\n")
    (note,) = samples(DATASET, root, list_file=listed).notes
    assert "1 image of" in note and "another label" in note and "line 1" in note
    listed.write_text(f"{one.image}\t{one.label}\n")
    assert samples(DATASET, root, list_file=listed).notes == ()
