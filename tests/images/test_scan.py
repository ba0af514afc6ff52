"""Files, folders, globs and lists mean what a user expects, or are refused with a remedy."""

from __future__ import annotations

import codecs
import inspect
import io
import os
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
from image_files import touch
from PIL import Image

from densesiam_seg.errors import InputError
from densesiam_seg.images.decode import load_image
from densesiam_seg.images.manifest import PassedOver, Skipped
from densesiam_seg.images.scan import each_page, scan
from densesiam_seg.io.outputs import note_outputs
from densesiam_seg.io.run_directory import write_status


def message_of(*inputs: str | os.PathLike[str]) -> str:
    with pytest.raises(InputError) as caught:
        scan(inputs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_folder_is_scanned_recursively_and_sorted_by_code_point(tmp_path: Path) -> None:
    touch(tmp_path, "b.jpg", "a/z.PNG", "Z.tif", "é.webp", "a.gif", "a/deep/er/x.JPeG")
    touch(tmp_path, "notes.md", "a/table.csv", "no_suffix")
    touch(tmp_path, ".hidden.jpg", "._b.jpg", ".cache/c.jpg")
    files = scan([tmp_path])
    assert files.names == ("Z.tif", "a.gif", "a/deep/er/x.JPeG", "a/z.PNG", "b.jpg", "é.webp")
    assert files.root == str(tmp_path)
    assert files.passed_over == PassedOver(
        hidden=2, system={"._*": 1}, others={".md": 1, ".csv": 1, "without a suffix": 1}
    )
    assert files.skipped == ()
    assert len(files) == 6
    for index, name in enumerate(files.names):
        status = (tmp_path / name).stat()
        assert files.path(index) == str(tmp_path / name)
        assert files.sizes[index] == status.st_size
        assert files.mtimes_ms[index] == status.st_mtime_ns // 1_000_000


def test_inputs_are_relative_to_the_working_directory_and_names_to_their_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "in/a.jpg", "in/sub/b.jpg", "far/c.raw")
    monkeypatch.chdir(tmp_path / "in" / "sub")
    for folder in ("..", "../", "../../in"):
        files = scan([folder])
        assert (files.root, files.names) == (str(tmp_path / "in"), ("a.jpg", "sub/b.jpg"))
    files = scan(["../../far/c.raw"])  # a named file needs no suffix
    assert (files.root, files.names) == (str(tmp_path / "far"), ("c.raw",))
    files = scan(["b.jpg", "../../far/c.raw"])
    assert (files.root, files.names) == (str(tmp_path), ("far/c.raw", "in/sub/b.jpg"))
    assert scan(["b.jpg", "../a.jpg"]).root == str(tmp_path / "in")


def test_folders_that_cannot_be_entered_or_read_to_their_end_are_skipped_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "a.jpg", "closed/b.jpg", "failing/c.jpg")
    scandir = os.scandir

    def refuse(folder: str) -> object:
        if folder.endswith("closed"):
            raise PermissionError(13, "Permission denied", folder)
        if not folder.endswith("failing"):
            return scandir(folder)
        entry = SimpleNamespace(name="c.jpg", is_dir=lambda: False)
        entries = MagicMock()
        entries.__next__.side_effect = [entry, OSError(5, "Input/output error", folder)]
        return entries

    monkeypatch.setattr(os, "scandir", refuse)
    files = scan([tmp_path])
    assert files.names == ("a.jpg",)
    closed = f"{tmp_path}/closed: may not be read; change its permissions"
    failing = f"{tmp_path}/failing: cannot be read (Input/output error); remove it"
    assert files.skipped == (
        Skipped("closed", "permission", closed),
        Skipped("failing", "unreadable", failing),
    )
    assert "may not be read" in message_of(tmp_path / "closed")


def test_no_image_in_a_folder(tmp_path: Path) -> None:
    touch(tmp_path, "in/a.txt", "in/b.txt", "in/c.csv", "in/d.zip\n")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "in" / "link").symlink_to(tmp_path / "elsewhere")
    message = message_of(tmp_path / "in")
    assert str(tmp_path / "in") in message
    assert ".bmp, " in message and ".webp" in message
    assert "4 files with other suffixes (2 .txt" in message
    assert "1 linked folder not followed" in message
    (tmp_path / "empty").mkdir()
    assert "nothing else is there" in message_of(tmp_path / "empty")
    touch(tmp_path, "good/a.jpg")
    assert "empty" in message_of(tmp_path / "good", tmp_path / "empty")


@pytest.mark.parametrize("named", ["run", "run/model"])
def test_a_run_in_place_of_images(tmp_path: Path, named: str) -> None:
    touch(tmp_path, "run/model/model.safetensors", "other/weights.safetensors")
    assert "--model" in message_of(tmp_path / named)
    assert "--model" not in message_of(tmp_path / "other")


def test_linked_folders_and_loops_are_not_followed(tmp_path: Path) -> None:
    touch(tmp_path, "in/a.jpg", "in/sub/b.jpg", "out/c.jpg")
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "sub" / "up").symlink_to("..")
    (tmp_path / "in" / "way_out").symlink_to(tmp_path / "out")
    for item in ("in", "in/**/*.jpg", "in/*"):
        assert scan([tmp_path / item]).names == ("a.jpg", "sub/b.jpg")
    assert scan([tmp_path / "in" / "way_out"]).names == ("c.jpg",)


class TestFollowedLinks:
    def test_each_folder_is_read_once_and_loops_end(self, tmp_path: Path) -> None:
        touch(tmp_path, "in/a.jpg", "in/sub/b.jpg", "out/c.jpg", "out/deep/d.jpg")
        (tmp_path / "in" / "loop").symlink_to(tmp_path / "in")
        (tmp_path / "in" / "sub" / "up").symlink_to("..")
        (tmp_path / "in" / "way_out").symlink_to(tmp_path / "out")
        (tmp_path / "out" / "back").symlink_to(tmp_path / "in" / "sub")
        files = scan([tmp_path / "in"], follow_links=True, merge=False)
        assert files.names == ("a.jpg", "sub/b.jpg", "way_out/c.jpg", "way_out/deep/d.jpg")
        assert files.passed_over == PassedOver(repeated=3)

    def test_a_folders_own_name_comes_before_those_of_links(self, tmp_path: Path) -> None:
        touch(tmp_path, "in/z/a.jpg", "out/b.jpg")
        (tmp_path / "in" / "a").symlink_to("z")
        for name in "nm":
            (tmp_path / "in" / name).symlink_to("../out")
        for item in ("in", "in/**/*.jpg"):
            assert scan([tmp_path / item], follow_links=True).names == ("m/b.jpg", "z/a.jpg")


class TestSystemFolders:
    def test_their_images_are_counted_and_not_taken(self, tmp_path: Path) -> None:
        touch(tmp_path, "a.jpg", "@eaDir/a.jpg/THUMB.jpg", "#recycle/b.jpg", "x/lost+found/c.png")
        touch(tmp_path, "$RECYCLE.BIN/$R1.jpg", "__macosx/._a.jpg", ".Trash-1000/files/d.jpg")
        touch(tmp_path, "System Volume Information/e", "._a.jpg", "Thumbs.db", ".DS_Store")
        for item in (".", "**/*.jpg"):
            files = scan([tmp_path / item])
            assert files.names == ("a.jpg",)
            assert files.passed_over.system_images == 5
        assert scan([tmp_path]).passed_over.system == {
            **dict.fromkeys(["@eaDir", "#recycle", "lost+found", "$RECYCLE.BIN", "__macosx"], 1),
            **dict.fromkeys([".Trash-1000", "System Volume Information", "._*"], 1),
            **dict.fromkeys(["Thumbs.db", ".DS_Store"], 1),
        }

    def test_what_is_named_is_taken(self, tmp_path: Path) -> None:
        touch(tmp_path, "#recycle/b.jpg", "#recycle/x/c.jpg", "._d.jpg")
        assert scan([tmp_path / "#recycle"]).names == ("b.jpg", "x/c.jpg")
        assert scan([tmp_path / "#recycle" / "*.jpg"]).names == ("b.jpg",)
        assert scan([tmp_path / "._d.jpg"]).names == ("._d.jpg",)

    def test_globs_do_not_reach_into_them(self, tmp_path: Path) -> None:
        touch(tmp_path, "a/b.jpg", "@eaDir/c.jpg")
        for item in ("*", "*/*.jpg"):
            files = scan([tmp_path / item])
            assert files.names == ("a/b.jpg",)
            assert (files.passed_over.system, files.passed_over.system_images) == ({"@eaDir": 1}, 1)


class TestOwnOutputs:
    @pytest.mark.parametrize("item", [".", "*", "**/*"])
    def test_noted_files_and_runs_are_left_out(self, tmp_path: Path, item: str) -> None:
        """But what somebody else put beside the masks is not."""
        touch(
            tmp_path, "a.jpg", "a.png", "a_overlay.jpg", "m/a.png", "m/mine.jpg", "r/report/1.png"
        )
        note_outputs(tmp_path, ["a.png", "a_overlay.jpg"])
        note_outputs(tmp_path / "m", ["a.png"])
        write_status(tmp_path / "r", "done")
        files = scan([tmp_path / item])
        assert files.names == ("a.jpg", "m/mine.jpg")
        assert files.passed_over.outputs == 4

    def test_a_run_that_is_named_is_read(self, tmp_path: Path) -> None:
        touch(tmp_path, "r/report/1.png")
        write_status(tmp_path / "r", "done")
        assert scan([tmp_path / "r"]).names == ("report/1.png",)
        (tmp_path / "r" / "run.json").write_text("{}")  # another program's
        assert scan([tmp_path]).names == ("r/report/1.png",)

    def test_the_folder_to_write_into(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        touch(tmp_path, "a.jpg", "x/out/a.png", "y/out/b.png")
        monkeypatch.chdir(tmp_path)
        (tmp_path / "link").symlink_to("x")
        for out in ("x/out", tmp_path / "link" / "out"):
            files = scan(["."], out=out)
            assert (files.names, files.passed_over.outputs) == (("a.jpg", "y/out/b.png"), 1)
        assert scan(["x/out"], out="x/out").names == ("a.png",)


def test_folders_may_lie_as_deep_as_the_system_allows(tmp_path: Path) -> None:
    touch(tmp_path, "d/" * 150 + "a.jpg")
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + 100)
    try:
        assert len(scan([tmp_path])) == 1
    finally:
        sys.setrecursionlimit(limit)


def test_missing_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    touch(tmp_path, "a.jpg")
    assert message_of("gone.jpg") == "gone.jpg: no such file or folder; check the path"
    assert "no such file" in message_of("a.jpg", "a.jpg/b.jpg")
    assert "gone.txt: cannot be read (No such file" in message_of("gone.txt")
    assert "no such folder" in message_of("gone/*.jpg")
    assert "no input" in message_of()
    assert "empty" in message_of("")
    assert "NUL byte" in message_of("nul\0.jpg")
    (tmp_path / "dangling").symlink_to("nowhere")
    os.mkfifo("pipe.jpg")
    assert "link to nothing" in message_of("dangling")
    assert "pipe.jpg: is not a regular file" in message_of("pipe.jpg")
    assert scan(["a.jpg", "dangling"]).skipped[0].reason == "dangling-link"


def test_what_may_not_be_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    look = os.stat

    def refuse(path: str | Path, **options: Any) -> os.stat_result:
        if Path(path).parent.name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return look(path, **options)

    touch(tmp_path, "closed/a.jpg", "b.jpg", "sub/.x")
    monkeypatch.setattr(os, "stat", refuse)
    assert "a.jpg: may not be read" in message_of(tmp_path / "closed" / "a.jpg")
    assert "no image found" in message_of(f"{tmp_path}/closed/*.png")
    (tmp_path / "l.txt").write_text("closed/a.jpg\nb.jpg\n")
    files = scan([tmp_path / "l.txt"])
    assert files.names == ("b.jpg",)
    assert [(item.path, item.reason) for item in files.skipped] == [("closed/a.jpg", "permission")]


def test_glob(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    touch(tmp_path, "in/a1.jpg", "in/a2.png", "in/b1.jpg", "in/x/a3.jpg", "in/x/y/a4.jpg")
    touch(tmp_path, "in/.hidden.jpg", "in/.git/a5.jpg", "in/a6.txt")
    expected = {
        "in/*.jpg": ("a1.jpg", "b1.jpg"),
        "in/a[12].*": ("a1.jpg", "a2.png"),
        "in/a?.???": ("a1.jpg", "a2.png"),
        "in/**/a*.jpg": ("a1.jpg", "x/a3.jpg", "x/y/a4.jpg"),
        "in/**/y/*": ("x/y/a4.jpg",),
        "in/**/x/**/*.jpg": ("x/a3.jpg", "x/y/a4.jpg"),
        "in/**": ("a1.jpg", "a2.png", "b1.jpg", "x/a3.jpg", "x/y/a4.jpg"),
        "in/*": ("a1.jpg", "a2.png", "b1.jpg", "x/a3.jpg", "x/y/a4.jpg"),
        "in/*/*.jpg": ("x/a3.jpg",),
        "in/.*": (".git/a5.jpg", ".hidden.jpg"),
    }
    for pattern, names in expected.items():
        files = scan([pattern])
        assert files.names == names, pattern
        assert files.root == str(tmp_path / "in")
    assert scan(["i?/x/*.jpg"]).root == str(tmp_path)
    message = message_of("in/*.txt")
    assert "1 file with other suffixes (1 .txt)" in message


def test_literal_names_with_pattern_signs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    touch(tmp_path, "a[1].jpg", "a1.jpg", "trip [2023]/b.jpg")
    assert scan(["a[1].jpg"]).names == ("a[1].jpg",)
    assert scan(["a[12].jpg"]).names == ("a1.jpg",)
    assert scan(["trip [2023]"]).names == ("b.jpg",)
    files = scan(["trip [2023]/*.jpg"])
    assert (files.root, files.names) == (str(tmp_path / "trip [2023]"), ("b.jpg",))


def test_list_file(tmp_path: Path) -> None:
    touch(tmp_path, "lists/pad", "data/a.jpg", "data/b c .jpg", "data/#d.jpg", "far/e.raw")
    text = "\ufeff# chosen\r\n../data/a.jpg\r\n\r\n../data/b c .jpg\n  \n../data/#d.jpg\n"
    (tmp_path / "lists" / "l.txt").write_bytes(f"{text}{tmp_path}/far/e.raw".encode())
    files = scan([tmp_path / "lists" / "l.txt"])
    assert files.root == str(tmp_path)
    assert files.names == ("data/#d.jpg", "data/a.jpg", "data/b c .jpg", "far/e.raw")


def test_list_on_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a.jpg", "b.jpg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"b.jpg\r\na.jpg")))
    assert scan(["-"]).names == ("a.jpg", "b.jpg")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\n# nothing\n")))
    assert "names no file" in message_of("-")
    monkeypatch.setattr("sys.stdin", None)
    assert "no standard input" in message_of("-")


def test_a_list_in_any_order_and_with_a_path_named_again(tmp_path: Path) -> None:
    touch(tmp_path, "b/2.jpg", "a/1.jpg", "a b/3.jpg", "a.jpg")
    lines = ["b/2.jpg", "a/1.jpg", "./a/1.jpg", "a//1.jpg", "a.jpg", "x/../b/2.jpg", "a b/3.jpg"]
    (tmp_path / "x").mkdir()
    (tmp_path / "l.txt").write_text("\n".join(lines))
    files = scan([tmp_path / "l.txt"])
    assert files.root == str(tmp_path)
    assert files.names == ("a b/3.jpg", "a.jpg", "a/1.jpg", "b/2.jpg")
    assert files.passed_over.repeated == 0


class TestSpellings:
    """Lines as programs write them."""

    @pytest.mark.parametrize(
        "content",
        [
            b"\xef\xbb\xbfb c.jpg\r\n",
            "b c.jpg\r\n# remark\r\n".encode("utf-16"),
            codecs.BOM_UTF16_BE + "b c.jpg".encode("utf-16-be"),
            b"  b c.jpg \t\n",
            b'"b c.jpg"\n',
            b" 'b c.jpg'\r\n",
            b".\\b c.jpg\r\n",
        ],
    )
    def test_of_one_file(self, tmp_path: Path, content: bytes) -> None:
        touch(tmp_path, "b c.jpg")
        (tmp_path / "l.txt").write_bytes(content)
        assert scan([tmp_path / "l.txt"]).names == ("b c.jpg",)

    def test_a_line_that_names_a_file_is_that_file(self, tmp_path: Path) -> None:
        names = ["#1.jpg", " 2.jpg ", "'3.jpg'", "a\\4.jpg", "5.jpg\r"]
        touch(tmp_path, *names, "2.jpg", "3.jpg", "a/4.jpg", "5.jpg")
        (tmp_path / "l.txt").write_text("#2.jpg\n" + "\n".join(names), newline="")
        assert scan([tmp_path / "l.txt"]).names == tuple(sorted(names))


class TestWhatListsAreRelativeTo:
    @pytest.fixture
    def lists(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        touch(tmp_path, "images/c.jpg", "images/d.jpg", "lists/x")
        monkeypatch.chdir(tmp_path)
        return tmp_path / "lists"

    def test_the_working_directory_where_only_that_fits(self, lists: Path) -> None:
        (lists / "l.txt").write_text("images/c.jpg\nimages/d.jpg\n")
        assert scan(["lists/l.txt"]).root == str(lists.parent / "images")
        touch(lists, "images/c.jpg")  # not both are here
        assert scan(["lists/l.txt"]).root == str(lists.parent / "images")
        touch(lists, "images/d.jpg")
        assert scan(["lists/l.txt"]).root == str(lists / "images")

    def test_nothing_is_mixed(self, lists: Path) -> None:
        touch(lists, "images/e.jpg")
        (lists / "l.txt").write_text("images/c.jpg\nimages/d.jpg\nimages/e.jpg\n")
        message = message_of("lists/l.txt")
        assert "1 of the 3 files it names do not exist (line 3: 'images/e.jpg'" in message
        assert f"looked for in {lists} and in {lists.parent}" in message

    def test_a_folder_stands_for_its_images(self, lists: Path) -> None:
        """As the output of `find images` begins with the folder."""
        (lists / "l.txt").write_text("images\nimages/c.jpg\n")
        assert scan(["lists/l.txt"]).names == ("c.jpg", "d.jpg")


def test_bad_lists(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg")
    path = tmp_path / "l.txt"
    path.write_text("a.jpg\ngone1\ngone2\ngone3\ngone4\n")
    message = message_of(path)
    assert "l.txt: 4 of the 5 files it names do not exist" in message
    assert "line 2: 'gone1', line 3: 'gone2', line 4: 'gone3', …" in message
    path.write_bytes(b"a.jpg\nb\0.jpg\n")
    assert "l.txt: line 2 holds a NUL byte" in message_of(path)
    path.write_text("empty\n# only a remark\n")
    (tmp_path / "empty").mkdir()
    assert "no image found" in message_of(path)
    path.write_text("")
    assert "names no file" in message_of(path)


def test_odd_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["new\nline.jpg", "tab\t.jpg", "quo'te\".jpg", "[/red].jpg", "-rf.jpg", " .jpg"]
    names += ["caf\u00e9.jpg", "cafe\u0301.jpg", "x" * 251 + ".jpg", os.fsdecode(b"bad\xff.jpg")]
    touch(tmp_path, *names)
    files = scan([tmp_path])
    assert files.names == tuple(sorted(names))
    assert files.changed() == ([], [])
    monkeypatch.chdir(tmp_path)
    assert scan(["-rf.jpg"]).names == ("-rf.jpg",)
    (tmp_path / "l.txt").write_bytes(b"bad\xff.jpg\n[/red].jpg\n")
    assert scan(["l.txt"]).names == ("[/red].jpg", os.fsdecode(b"bad\xff.jpg"))


def test_memory_for_each_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = 20_000
    listed = [f"photograph_{number:09d}.jpg" for number in reversed(range(count))]

    def look(path: str) -> os.stat_result:
        number = int(path[-13:-4])
        values = (0o100644, number + 1, 7, 1, 0, 0, 3_000_000, 0, 0, 0)
        return os.stat_result(values, {"st_mtime_ns": 10**18 + number})

    folder = "folder/with/a/name/of/usual/length"

    def walk(top: str, **options: object) -> Iterator[tuple[str, list[str], list[str]]]:
        yield (top, [], listed) if top.endswith(folder) else (top, [folder], [])

    with monkeypatch.context() as patch:
        patch.setattr(os, "walk", walk)
        patch.setattr(os.path, "isdir", lambda path: True)
        patch.setattr(os, "stat", look)
        tracemalloc.start()
        files = scan([tmp_path])
        left, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert len(files) == count
    assert files.names[0] == f"{folder}/photograph_000000000.jpg"
    # While names are sorted they are objects, and at last in one piece too: that is what stays.
    assert peak / count < 290
    assert left / count < 110


def test_each_page_is_an_image_of_its_own(tmp_path: Path) -> None:
    small = [Image.new("L", (4, 4), shade) for shade in range(0, 110, 10)]
    small[0].save(tmp_path / "a.tif", save_all=True, append_images=small[1:])
    small[0].save(tmp_path / "a.tif.png")
    (tmp_path / "b.gif").write_bytes(b"GIF89a and nothing else")
    pages = each_page(scan([tmp_path]))
    stack = [f"a.tif/{number:02}" for number in range(1, 12)]
    assert list(pages.names) == ["a.tif.png", *stack, "b.gif"]
    assert pages.changed() == ([], [])
    assert len(set(zip(pages.names, pages.sizes, pages.mtimes_ms, strict=True))) == 13
    assert load_image(pages.path(5))[0, 0, 0] == 40
    os.utime(tmp_path / "a.tif", (1, 1))
    assert pages.changed() == (stack, [])


def test_names_in_another_form_of_unicode_and_lists_of_other_suffixes(tmp_path: Path) -> None:
    Image.new("L", (2, 2)).save(tmp_path / "u\u0308.png")
    for suffix in (".txt", ".lst", ".list"):
        listed = tmp_path / f"names{suffix}"
        listed.write_text("\u00fc.png\n", encoding="utf-8")
        assert scan([listed]).names == ("u\u0308.png",)


def test_photographs_in_the_folder_of_a_run_are_taken(tmp_path: Path) -> None:
    run = tmp_path / "project"
    for name in ("photos/a.png", "report/b.png", "c.png"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (2, 2)).save(run / name)
    write_status(run, "done")
    found = scan([tmp_path])
    assert found.names == ("project/c.png", "project/photos/a.png")
    assert found.passed_over.outputs == 1


def test_from_a_folder_that_was_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert "current folder" in message_of(Path("a.png"))
