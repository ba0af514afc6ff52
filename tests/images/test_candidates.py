"""Files found are taken once, skipped with a reason, and named relative to one root."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import cast

import pytest

from densesiam_seg.errors import InputError
from densesiam_seg.images.candidates import Found
from densesiam_seg.images.scan import scan


def touch(folder: Path, *names: str) -> None:
    """Make files that differ in size."""
    for index, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(index))


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


def test_several_inputs_have_a_common_root(tmp_path: Path) -> None:
    touch(tmp_path, "a/b/1.jpg", "a/bc/2.jpg", "a/bc/d/3.jpg")
    files = scan([tmp_path / "a" / "bc" / "d", tmp_path / "a" / "b" / "1.jpg"])
    assert files.root == str(tmp_path / "a")
    assert files.names == ("b/1.jpg", "bc/d/3.jpg")


def test_only_unusable_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(InputError, match=r"pipe\.jpg: is not a regular file"):
        scan([tmp_path])


def test_an_entry_that_is_gone_before_it_is_looked_at(tmp_path: Path) -> None:
    touch(tmp_path, "sub/a.jpg", "sub/b.jpg")
    with os.scandir(tmp_path / "sub") as listing:
        entries = list(listing)
    (tmp_path / "sub" / "a.jpg").unlink()
    found = Found(str(tmp_path))
    for entry in entries:
        found.add_image(f"sub/{entry.name}", entry)
    files = found.manifest()
    assert files.names == ("sub/b.jpg",)
    message = f"{tmp_path}/sub/a.jpg: is a link to nothing; remove it"
    assert [item.message for item in files.skipped] == [message]


class Entry:
    """An entry of a folder that tells what it is told to."""

    def __init__(self, size: int, time: int, device: int, inode: int) -> None:
        self.values = (0o100644, inode, device, 1, 0, 0, size, time, time, time)

    def stat(self) -> os.stat_result:
        return os.stat_result(self.values, {"st_mtime_ns": 10**9 * self.values[-1]})


def add_entry(found: Found, name: str, *values: int) -> None:
    found.add(name, cast("os.DirEntry[str]", Entry(*values)))


def test_an_entry_that_does_not_tell_which_file_it_is(tmp_path: Path) -> None:
    """As on Windows, where files of one size and time must not be taken for one."""
    found = Found(str(tmp_path))
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(b"same")
        os.utime(tmp_path / name, (5, 5))
        add_entry(found, name, 4, 5, 0, 0)
    files = found.manifest()
    assert files.names == ("a.jpg", "b.jpg")
    assert files.repeated == 0


def test_inodes_handed_out_twice() -> None:
    """Files are the same where device, size and time agree as well."""
    found = Found("/data")
    add_entry(found, "g.jpg", 4, 5, 2**64 - 1, 2**64 - 1)
    add_entry(found, "f.jpg", 4, 6, 1, 7)
    add_entry(found, "e.jpg", 3, 5, 1, 7)
    add_entry(found, "d.jpg", 4, 5, 1, 8)
    add_entry(found, "c.jpg", 4, 5, 2, 7)
    add_entry(found, "b.jpg", 4, 5, 1, 7)
    add_entry(found, "a.jpg", 4, 5, 1, 7)
    files = found.manifest()
    assert files.names == ("a.jpg", "c.jpg", "d.jpg", "e.jpg", "f.jpg", "g.jpg")
    assert files.sizes == (4, 4, 4, 3, 4, 4)
    assert files.mtimes_ms == (5000, 5000, 5000, 5000, 6000, 5000)
    assert files.repeated == 1


def test_of_two_looks_at_one_path_the_last_counts() -> None:
    found = Found("/data")
    add_entry(found, "a.jpg", 4, 5, 1, 7)
    add_entry(found, "b.jpg", 4, 5, 1, 8)
    add_entry(found, "a.jpg", 6, 9, 1, 9)
    files = found.manifest()
    assert (files.names, files.sizes, files.repeated) == (("a.jpg", "b.jpg"), (6, 4), 0)


def test_suffixes(tmp_path: Path) -> None:
    names = ("a.jpg", "a.b.JPG", "sub.jpg/file", "sub.x/b.png", ".jpg", "sub/.png", "a.", "a.txt")
    touch(tmp_path, *names)
    found = Found(str(tmp_path))
    for name in names:
        found.add_image(name)
    assert found.others == {"without a suffix": 4, ".txt": 1}
    assert found.manifest().names == ("a.b.JPG", "a.jpg", "sub.x/b.png")


def test_what_several_inputs_found(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.jpg", "b/c/2.jpg")
    found, other, nothing = (Found(str(tmp_path / name)) for name in ("a", "b", "a"))
    found.add_image("1.jpg")
    other.add_image("c/2.jpg")
    nothing.add_image("gone.jpg")
    found.merge(other)
    found.merge(nothing)
    files = found.manifest()
    assert (files.root, files.names) == (str(tmp_path), ("a/1.jpg", "b/c/2.jpg"))
    assert [item.path for item in files.skipped] == ["a/gone.jpg"]
