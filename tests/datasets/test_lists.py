"""Lists as people have them: names or paths, alone or with labels, in the encodings of other systems."""

from __future__ import annotations

from pathlib import Path

import pytest

from densesiam_seg.datasets.declaration import Dataset, DatasetClass, Split
from densesiam_seg.datasets.index import Index
from densesiam_seg.datasets.lists import Entry, ListReader
from densesiam_seg.errors import InputError

DATASET = Dataset(
    name="tiny",
    title="Tiny",
    classes=(DatasetClass(name="a", values=(0,)),),
    image_suffixes=(".jpg",),
    label_suffix=".png",
    splits={"val": Split(images=("images/val",), labels=("labels/val",))},
)
BOTH = ["a", "sub/b c"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two images, one with a space in its name; their labels, and one more elsewhere."""
    for name in ("images/val/a.jpg", "images/val/sub/b c.jpg", "labels/val/a.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for name in ("labels/val/sub/b c.png", "other/a_2.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "lists").mkdir()
    return tmp_path


def read(
    root: Path, content: str | bytes, place: str = "lists/x.txt", *, allow_outside: bool = False
) -> list[Entry]:
    path = root / place
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    index = Index(DATASET, root / "images/val", root / "labels/val")
    return ListReader(DATASET, index, root, allow_outside=allow_outside).read(path)


@pytest.mark.parametrize(
    "lines",
    [
        ("a", "sub/b c"),
        ("a.jpg", "sub/b c.JPG"),
        ("./a.jpg", "sub/../sub/b c"),
        ("A.JPG", "SUB/B C"),
        ("images/val/a.jpg", "images/val/sub/b c"),
        ("../images/val/a", "../images/val/sub/b c.jpg"),
        ("a", r"sub\b c"),
        (r"images\val\a.jpg", r"..\images\val\sub\b c.jpg"),
        ("{root}/images/val/a.jpg", "{root}/images/val/sub/b c"),
        ("{link}/images/val/a.jpg", "{link}/images/val/sub/b c"),
        ('"a.jpg"', "'sub/b c.jpg'"),
    ],
)
def test_names_and_paths(root: Path, lines: tuple[str, str]) -> None:
    link = root.with_name(f"{root.name}-link")
    link.symlink_to(root)
    text = "\n".join(lines).format(root=root, link=link)
    found = read(root, text)
    assert [(each.name, each.pair) for each in found] == [(name, False) for name in BOTH]
    assert [each.image for each in found] == [root / f"images/val/{name}.jpg" for name in BOTH]


def test_paths_from_the_current_folder(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "deep/er").mkdir(parents=True)
    monkeypatch.chdir(root / "images")
    assert [each.name for each in read(root, "val/a.jpg", "deep/er/x.txt")] == ["a"]


@pytest.mark.parametrize("apart", [" ", "\t", ",", ", ", ";", "  \t "])
@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("images/val/sub/b c.jpg", "labels/val/sub/b c.png"),
        ("sub/b c", "sub/b c"),
        (r"sub\b c.jpg", r"labels\val\sub\b c.png"),
        ("../images/val/sub/b c.jpg", "../labels/val/sub/b c.png"),
        ('"sub/b c.jpg"', '"sub/b c.png"'),
    ],
)
def test_pairs(root: Path, image: str, label: str, apart: str) -> None:
    (entry,) = read(root, image + apart + label)
    assert (entry.name, entry.pair, entry.line) == ("sub/b c", True, 1)
    assert entry.image == root / "images/val/sub/b c.jpg"
    assert entry.label is not None
    assert entry.label.samefile(root / "labels/val/sub/b c.png")


def test_pairs_with_files_anywhere(root: Path) -> None:
    (root / "photos").mkdir()
    (root / "photos/z.jpg").touch()
    one, two = read(root, "a other/a_2.png\nphotos/z.jpg other/a_2.png\n")
    assert (one.name, one.label) == ("a", root / "other/a_2.png")
    assert (two.name, two.image) == ("photos/z", root / "photos/z.jpg")


@pytest.mark.parametrize(
    ("line", "taken"),
    [
        ("a {out}/z.png", "labels"),
        ("a ../{name}/z.png", "labels"),
        ("{out}/z.jpg sub/b c", "images"),
        ("{out}/z.jpg", "none"),
        ("../{name}/z.jpg", "none"),
        ("{out}/z.jpg nothing", "none"),
    ],
)
def test_files_outside_need_leave(root: Path, line: str, taken: str) -> None:
    out = root.with_name(f"{root.name}-outside")
    out.mkdir()
    for name in ("z.jpg", "z.png"):
        (out / name).touch()
    text = "sub/b c\n" + line.format(out=out, name=out.name)
    text = text.replace("sub/b c\n", "") if taken == "images" else text
    number = len(text.splitlines())
    with pytest.raises(InputError, match=rf"x\.txt: line {number} leads out .*--allow-outside"):
        read(root, text)
    found = read(root, text, allow_outside=True)[-1]
    assert found.whole == (taken != "none")


def test_links_may_lead_anywhere(root: Path) -> None:
    """Folders and files of a data set often lie on other disks."""
    out = root.with_name(f"{root.name}-disk")
    for kind in ("images", "labels", "other"):
        (out / kind).parent.mkdir(exist_ok=True)
        (root / kind).rename(out / kind)
        (root / kind).symlink_to(out / kind)
    one, two = read(root, f"a other/a_2.png\n{out}/images/val/sub/b c.jpg")
    assert (one.label, two.name) == (root / "other/a_2.png", "sub/b c")


def test_a_line_longer_than_any_path(root: Path) -> None:
    with pytest.raises(InputError, match=r"line 2 has 1,000,000 characters"):
        read(root, "a\n" + "b " * 500_000)


def test_a_whole_line_is_first_one_name(root: Path) -> None:
    for name in ("a a.png", "a"):
        (root / f"images/val/{name}.jpg").touch()
    (entry,) = read(root, "a a.png")
    assert (entry.name, entry.pair) == ("a a.png", False)


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbfa\r\nsub/b c\r\n",
        "\ufeffa\r\nsub\\b c\r\n".encode("utf-16-le"),
        "\ufeffa\nsub/b c".encode("utf-16-be"),
        b"\n\n  a  \n\t\nsub/b c",
    ],
)
def test_encodings_and_ends_of_lines(root: Path, content: bytes) -> None:
    assert [each.name for each in read(root, content)] == BOTH


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a".encode("utf-16-le"), "UTF-16"),
        (b"\xff\xfea", "UTF-16"),
        (b"\x89PNG\0\0", "no text at all"),
        (b" \n", "empty; give one name a line"),
        (b"a\nsub/b c\nimages/val/a.jpg", "line 3 repeats 'a' of line 1"),
        (b"a.jpg a.png\na.jpg other/a_2.png", "line 2 repeats 'a' of line 1"),
    ],
)
def test_what_is_no_list(root: Path, content: bytes, words: str) -> None:
    with pytest.raises(InputError, match=rf"lists/x\.txt: .*{words}"):
        read(root, content)


def test_what_is_not_there(root: Path) -> None:
    found = read(root, "gone.jpg\na gone.png\nC:\\data\\x.jpg\n" + "x" * 5000)
    assert [(each.line, each.image is None, each.label) for each in found] == [
        (1, True, None),
        (2, False, None),
        (3, True, None),
        (4, True, None),
    ]
    assert [each.name for each in found[:2]] == ["gone", "a"]


def test_two_files_that_may_be_meant_are_both_named(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("images/val/Bb.jpg", "images/val/bB.jpg", "images/val/images/val/a.jpg"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    with pytest.raises(InputError, match="may be Bb or bB"):
        read(root, "bb")
    (one,) = read(root, "images/val/a.jpg")
    assert one.name == "images/val/a", "the image folder comes first"
    monkeypatch.chdir(root / "images/val/images/val")
    (root / "images/val/other").mkdir()
    (root / "images/val/other/a_2.png").touch()
    with pytest.raises(InputError, match=r"a_2\.png or .*a_2\.png; give its full path"):
        read(root, "a other/a_2.png", "images/val/x.txt")


def test_lines_of_other_computers(root: Path) -> None:
    assert [each.name for each in read(root, b"a\rsub/b c\r")] == BOTH
    assert [each.name for each in read(root, b"# a comment\na\n#sub/x\nsub/b c\n")] == BOTH
    for line in (
        "/images/val/a.jpg /other/a_2.png",  # as below the root
        "/home/jane/set/images/val/a.jpg /home/jane/set/other/a_2.png",
        "C:\\set\\images\\val\\a.jpg\tC:\\set\\other\\a_2.png",
    ):
        (found,) = read(root, line)
        assert (found.name, found.label) == ("a", root / "other/a_2.png"), line
