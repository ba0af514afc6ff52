"""Files found are taken once, skipped with a reason, and named relative to one root."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from densesiam_seg.errors import InputError
from densesiam_seg.scan import scan


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
