from __future__ import annotations

import hashlib
import io
import json
import os
import socket
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from densesiam_seg import manifest
from densesiam_seg.errors import InputError
from densesiam_seg.manifest import Manifest, Skipped, scan


def touch(folder: Path, *names: str) -> None:
    """Make files that differ in size."""
    for index, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(index))


def small(*names: str, root: str = "/data") -> Manifest:
    count = len(names)
    return Manifest(root, names, np.arange(count) + 10, np.arange(count) + 1000)


def message_of(*inputs: str | os.PathLike[str], stdin: io.StringIO | None = None) -> str:
    with pytest.raises(InputError) as caught:
        scan(inputs, stdin=stdin)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- folders --------------------------------------------------------------------------------


def test_folder_is_scanned_recursively_and_sorted_by_code_point(tmp_path: Path) -> None:
    touch(tmp_path, "b.jpg", "a/z.PNG", "Z.tif", "é.webp", "a.gif", "a/deep/er/x.JPeG")
    touch(tmp_path, "notes.md", "a/table.csv", "no_suffix")
    files = scan([tmp_path])
    assert files.names == ("Z.tif", "a.gif", "a/deep/er/x.JPeG", "a/z.PNG", "b.jpg", "é.webp")
    assert files.root == str(tmp_path)
    assert files.ignored == 3
    assert files.skipped == ()
    assert len(files) == 6
    for index, name in enumerate(files.names):
        status = (tmp_path / name).stat()
        assert files.path(index) == str(tmp_path / name)
        assert files.sizes[index] == status.st_size
        assert files.mtimes_ms[index] == status.st_mtime_ns // 1_000_000


def test_hidden_files_and_folders_are_passed_over(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", ".b.jpg", "._a.jpg", ".cache/c.jpg")
    files = scan([tmp_path])
    assert files.names == ("a.jpg",)
    assert files.ignored == 0


def test_a_folder_is_relative_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "in/a.jpg", "in/sub/b.jpg")
    monkeypatch.chdir(tmp_path / "in" / "sub")
    for folder in ("..", "../", "../../in"):
        files = scan([folder])
        assert files.root == str(tmp_path / "in")
        assert files.names == ("a.jpg", "sub/b.jpg")


def test_what_is_no_regular_file_is_skipped_with_a_reason(tmp_path: Path) -> None:
    touch(tmp_path, "good.jpg", "folder.jpg/inside.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "dangling.png").symlink_to("nowhere.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(tmp_path)  # a socket's path may have only 107 bytes
        try:
            server.bind("socket.jpg")
        finally:
            os.chdir(here)
        files = scan([tmp_path])
    assert files.names == ("folder.jpg/inside.jpg", "good.jpg")
    assert [(item.path, item.reason) for item in files.skipped] == [
        ("dangling.png", "dangling-link"),
        ("loop.png", "unreadable"),
        ("pipe.jpg", "not-regular"),
        ("socket.jpg", "not-regular"),
    ]


def test_unreadable_folder_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a.jpg", "closed/b.jpg")
    scandir = os.scandir

    def refuse(folder: str) -> object:
        if folder.endswith("closed"):
            raise PermissionError(13, "Permission denied", folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    files = scan([tmp_path])
    assert files.names == ("a.jpg",)
    message = f"{tmp_path}/closed: may not be read; change its permissions"
    assert files.skipped == (Skipped("closed", "permission", message),)
    assert "may not be read" in message_of(tmp_path / "closed")


def test_no_image_in_a_folder(tmp_path: Path) -> None:
    touch(tmp_path, "in/a.txt", "in/b.txt", "in/c.csv", "in/d.zip\n")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "in" / "link").symlink_to(tmp_path / "elsewhere")
    message = message_of(tmp_path / "in")
    assert str(tmp_path / "in") in message
    assert ".bmp, " in message and ".webp" in message
    assert "4 other files there: 2 .txt" in message
    assert "1 linked folders not followed" in message
    (tmp_path / "empty").mkdir()
    assert "0 other files there)" in message_of(tmp_path / "empty")
    touch(tmp_path, "good/a.jpg")
    assert "empty" in message_of(tmp_path / "good", tmp_path / "empty")


def test_only_unusable_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    assert "pipe.jpg: is not a regular file" in message_of(tmp_path)


# ---- links and repeats ----------------------------------------------------------------------


def test_linked_folders_and_loops(tmp_path: Path) -> None:
    touch(tmp_path, "in/a.jpg", "in/sub/b.jpg", "out/c.jpg")
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "sub" / "up").symlink_to("..")
    (tmp_path / "in" / "way_out").symlink_to(tmp_path / "out")
    assert scan([tmp_path / "in"]).names == ("a.jpg", "sub/b.jpg")
    followed = scan([tmp_path / "in"], follow_links=True)
    assert followed.names == ("a.jpg", "sub/b.jpg", "way_out/c.jpg")
    assert followed.repeated == 0
    pattern = f"{tmp_path}/in/**/*.jpg"
    assert scan([pattern]).names == ("a.jpg", "sub/b.jpg")
    assert scan([pattern], follow_links=True).names == followed.names


def test_each_folder_is_listed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a.jpg", "x/b.jpg", "x/y/c.jpg", "z/d.jpg")
    for number in range(5):
        (tmp_path / "x" / "y" / f"up{number}").symlink_to("../..")
        (tmp_path / "z" / f"x{number}").symlink_to("../x")
    listed: list[str] = []
    scandir = os.scandir

    def note(folder: str) -> object:
        listed.append(folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", note)
    assert len(scan([tmp_path], follow_links=True)) == 4
    assert len(listed) == 4


def test_a_file_with_several_names_is_taken_once(tmp_path: Path) -> None:
    touch(tmp_path, "x/pad.jpg", "x/m.jpg")
    (tmp_path / "x" / "pad.jpg").unlink()
    (tmp_path / "x" / "z.jpg").hardlink_to(tmp_path / "x" / "m.jpg")
    (tmp_path / "x" / "b.jpg").symlink_to("m.jpg")
    files = scan([tmp_path])
    assert files.names == ("x/b.jpg",)
    assert files.repeated == 2
    again = scan([tmp_path, tmp_path / "x", tmp_path / "x" / "b.jpg", f"{tmp_path}/x/*.jpg"])
    assert again.names == ("b.jpg",)
    assert again.repeated == 2


def test_copies_are_different_files(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(b"same")
        os.utime(tmp_path / name, (5, 5))
    assert scan([tmp_path]).names == ("a.jpg", "b.jpg")


# ---- files, globs ---------------------------------------------------------------------------


def test_a_named_file_needs_no_suffix(tmp_path: Path) -> None:
    touch(tmp_path, "frame.raw", "other.jpg")
    files = scan([tmp_path / "frame.raw"])
    assert (files.root, files.names) == (str(tmp_path), ("frame.raw",))


def test_several_inputs_have_a_common_root(tmp_path: Path) -> None:
    touch(tmp_path, "a/b/1.jpg", "a/bc/2.jpg", "a/bc/d/3.jpg")
    files = scan([tmp_path / "a" / "bc" / "d", tmp_path / "a" / "b" / "1.jpg"])
    assert files.root == str(tmp_path / "a")
    assert files.names == ("b/1.jpg", "bc/d/3.jpg")


def test_missing_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    touch(tmp_path, "a.jpg")
    assert message_of("gone.jpg") == "gone.jpg: no such file or folder; check the path"
    assert "no such file" in message_of("a.jpg", "a.jpg/b.jpg")
    assert "no such file" in message_of("nul\0.jpg")
    assert "no such folder" in message_of("gone/*.jpg")
    assert "no input" in message_of()
    assert "empty" in message_of("")
    (tmp_path / "dangling").symlink_to("nowhere")
    assert "link to nothing" in message_of("dangling")
    assert scan(["a.jpg", "dangling"]).skipped[0].reason == "dangling-link"


def test_what_may_not_be_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    look = Path.stat

    def refuse(self: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        if self.parent.name == "closed":
            raise PermissionError(13, "Permission denied", str(self))
        return look(self, follow_symlinks=follow_symlinks)

    touch(tmp_path, "closed/a.jpg", "b.jpg", "sub/.x")
    monkeypatch.setattr(Path, "stat", refuse)
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
    assert "1 other files there: 1 .txt" in message


def test_literal_names_with_pattern_signs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    touch(tmp_path, "a[1].jpg", "a1.jpg", "trip [2023]/b.jpg")
    assert scan(["a[1].jpg"]).names == ("a[1].jpg",)
    assert scan(["a[12].jpg"]).names == ("a1.jpg",)
    assert scan(["trip [2023]"]).names == ("b.jpg",)
    files = scan(["trip [2023]/*.jpg"])
    assert (files.root, files.names) == (str(tmp_path / "trip [2023]"), ("b.jpg",))


# ---- lists ----------------------------------------------------------------------------------


def test_list_file(tmp_path: Path) -> None:
    touch(tmp_path, "lists/pad", "data/a.jpg", "data/b c .jpg", "data/#d.jpg", "far/e.raw")
    text = "\ufeff# chosen\r\n../data/a.jpg\r\n\r\n../data/b c .jpg\n  \n../data/#d.jpg\n"
    (tmp_path / "lists" / "l.txt").write_bytes(f"{text}{tmp_path}/far/e.raw".encode())
    files = scan([tmp_path / "lists" / "l.txt"])
    assert files.root == str(tmp_path)
    assert files.names == ("data/#d.jpg", "data/a.jpg", "data/b c .jpg", "far/e.raw")


def test_names_never_lead_out_of_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "work/own.jpg", "data/a.jpg")
    monkeypatch.chdir(tmp_path / "work")
    files = scan(["own.jpg", "../data/a.jpg"])
    assert (files.root, files.names) == (str(tmp_path), ("data/a.jpg", "work/own.jpg"))


def test_list_on_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a.jpg", "b.jpg")
    monkeypatch.chdir(tmp_path)
    assert scan(["-"], stdin=io.StringIO("b.jpg\na.jpg\n")).names == ("a.jpg", "b.jpg")
    binary = io.TextIOWrapper(io.BytesIO(b"a.jpg\r\n"), encoding="ascii")
    assert scan(["-"], stdin=binary).names == ("a.jpg",)
    monkeypatch.setattr("sys.stdin", io.StringIO("b.jpg"))
    assert scan(["-"]).names == ("b.jpg",)
    assert "names no file" in message_of("-", stdin=io.StringIO("\n# nothing\n"))


def test_bad_lists(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg")
    path = tmp_path / "l.txt"
    path.write_text("a.jpg\ngone1\ngone2\ngone3\ngone4\n")
    message = message_of(path)
    assert "l.txt: 4 of the 5 files it names do not exist" in message
    assert "line 2: 'gone1', line 3: 'gone2', line 4: 'gone3', …" in message
    path.write_bytes(b"a.jpg\nb\0.jpg\n")
    assert "l.txt: line 2 holds a NUL byte" in message_of(path)
    path.write_bytes("a.jpg\n".encode("utf-16"))
    assert "line 1 holds a NUL byte" in message_of(path)
    path.write_text("a.jpg\n.\n")
    assert "line 2 names a folder" in message_of(path)
    path.write_text("")
    assert "names no file" in message_of(path)


# ---- names ----------------------------------------------------------------------------------


def test_odd_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [
        "new\nline.jpg",
        "tab\t.jpg",
        "quo'te\".jpg",
        "[/red].jpg",
        "-rf.jpg",
        "caf\u00e9.jpg",
        "cafe\u0301.jpg",
        "x" * 251 + ".jpg",
        " .jpg",
        os.fsdecode(b"bad\xff.jpg"),
    ]
    touch(tmp_path, *names)
    files = scan([tmp_path])
    assert files.names == tuple(sorted(names))
    text = json.dumps(files.to_dict())
    assert text.isascii()
    assert Manifest.from_dict(json.loads(text)) == files
    assert files.changed() == []
    assert len(files.digest) == 64
    monkeypatch.chdir(tmp_path)
    assert scan(["-rf.jpg"]).names == ("-rf.jpg",)
    (tmp_path / "l.txt").write_bytes(b"bad\xff.jpg\n[/red].jpg\n")
    assert scan(["l.txt"]).names == ("[/red].jpg", os.fsdecode(b"bad\xff.jpg"))


# ---- the manifest ---------------------------------------------------------------------------


def test_digest_depends_on_names_sizes_times_only() -> None:
    files = small("a.jpg", "b.jpg")
    assert files.digest == small("a.jpg", "b.jpg", root="/moved").digest
    assert files.digest == files.without([Skipped("c.jpg", "empty", "is empty")]).digest
    others = [
        small("a.jpg"),
        small("a.jpg", "c.jpg"),
        Manifest("/data", files.names, files.sizes + 1, files.mtimes_ms),
        Manifest("/data", files.names, files.sizes, files.mtimes_ms + 1),
    ]
    assert len({files.digest, *(other.digest for other in others)}) == 5
    # Written out by hand: name, NUL, size, space, time, newline.
    row = b"a.jpg\x0010 1000\n"
    assert small("a.jpg").digest == hashlib.sha256(row).hexdigest()


def test_equality_and_hash() -> None:
    files = small("a.jpg", "b.jpg")
    assert files == small("a.jpg", "b.jpg")
    assert hash(files) == hash(small("a.jpg", "b.jpg"))
    assert files != small("a.jpg", "b.jpg", root="/moved")
    assert files != small("a.jpg", "c.jpg")
    assert files != "a.jpg"
    assert files != Manifest("/data", files.names, files.sizes + 1, files.mtimes_ms)


def test_columns_cannot_be_changed() -> None:
    files = small("a.jpg")
    with pytest.raises(ValueError, match="read-only"):
        files.sizes[0] = 3
    with pytest.raises(AttributeError):
        files.root = "/other"  # type: ignore[misc]


def test_select_and_without() -> None:
    files = small("a.jpg", "b.jpg", "c.jpg", "d.jpg")
    some = files.select([2, 0, 2])
    assert some.names == ("a.jpg", "c.jpg")
    assert some.sizes.tolist() == [10, 12]
    assert some.mtimes_ms.tolist() == [1000, 1002]
    assert files.select([]).names == ()
    bad = [Skipped("c.jpg", "truncated", "ends too early"), Skipped("a.jpg", "empty", "is empty")]
    rest = files.without(bad)
    assert rest.names == ("b.jpg", "d.jpg")
    assert rest.skipped == (bad[1], bad[0])
    assert rest.without(bad) == rest
    assert files.without([]) == files


def test_changed_files(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{letter}.jpg" for letter in "abcde"))
    files = scan([tmp_path])
    assert files.changed() == []
    (tmp_path / "b.jpg").unlink()
    (tmp_path / "c.jpg").write_bytes(b"longer than before")
    os.utime(tmp_path / "d.jpg", (1, 1))
    (tmp_path / "e.jpg").unlink()
    (tmp_path / "e.jpg").mkdir()
    assert files.changed() == ["b.jpg", "c.jpg", "d.jpg", "e.jpg"]
    assert scan([tmp_path]).digest != files.digest


def test_damaged_dictionaries() -> None:
    good = small("a.jpg", "b.jpg").without([Skipped("c.jpg", "empty", "is empty")]).to_dict()
    assert Manifest.from_dict(good).to_dict() == good
    for key in good:
        with pytest.raises(InputError):
            Manifest.from_dict({name: value for name, value in good.items() if name != key})
    for change in (
        {"names": ["a.jpg"]},
        {"names": ["a.jpg", "c.jpg"]},
        {"sizes": [10, 12]},
        {"sizes": [10, 2**70]},
        {"sizes": "many"},
        {"mtimes_ms": [[1000, 1001]]},
        {"skipped": [{"path": "c.jpg"}]},
        {"names": None},
    ):
        with pytest.raises(InputError, match="damaged"):
            Manifest.from_dict({**good, **change})


@given(st.lists(st.text(min_size=1, max_size=8), unique=True, max_size=6))
def test_json_round_trip(names: list[str]) -> None:
    files = small(*sorted(names))
    assert Manifest.from_dict(json.loads(json.dumps(files.to_dict()))) == files


# ---- memory ---------------------------------------------------------------------------------


class FakeEntry:
    """As much of `os.DirEntry` as a scan asks for."""

    __slots__ = ("name", "number", "path")

    def __init__(self, number: int) -> None:
        self.number = number
        self.name = f"photograph_{number:09d}.jpg"
        self.path = f"/some/folder/with/a/name/of/usual/length/{self.name}"

    def is_dir(self) -> bool:
        return False

    def stat(self) -> os.stat_result:
        values = (0o100644, self.number + 1, 7, 1, 0, 0, 3_000_000, 0, 0, 0)
        return os.stat_result(values, {"st_mtime_ns": 10**18 + self.number})


class FakeListing:
    def __init__(self, count: int) -> None:
        self.count = count

    def __enter__(self) -> Iterator[FakeEntry]:
        return (FakeEntry(number) for number in reversed(range(self.count)))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass


def test_memory_of_a_hundred_thousand_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "scandir", lambda folder: FakeListing(100_000))
    found = manifest._Found(follow_links=False)
    tracemalloc.start()
    manifest._walk(str(tmp_path), found)
    files = found.manifest("/some/folder/with/a/name/of/usual/length")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(files) == 100_000
    assert files.names[0] == "photograph_000000000.jpg"
    assert peak < 50e6
