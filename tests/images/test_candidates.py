"""Files found are taken once, skipped with a reason, and named relative to one root."""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_files import touch

from densesiam_seg.images.candidates import Candidates
from densesiam_seg.images.manifest import Skipped
from densesiam_seg.images.scan import scan


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
    assert files.passed_over.repeated == 2
    each = scan([tmp_path], merge=False)
    assert (each.names, each.passed_over.repeated) == (("x/b.jpg", "x/m.jpg", "x/z.jpg"), 0)
    again = scan([tmp_path, tmp_path / "x", tmp_path / "x" / "b.jpg", f"{tmp_path}/x/*.jpg"])
    assert again.names == ("b.jpg",)
    assert again.passed_over.repeated == 2


@pytest.mark.parametrize(
    ("rows", "expected", "repeated"),
    [
        # Inodes may be handed out twice: files are the same where device, size and time agree as well.
        (
            [
                ("f.jpg", 4, 5, 2**64 - 1, 2**64 - 1),
                ("e.jpg", 4, 6, 1, 7),
                ("d.jpg", 3, 5, 1, 7),
                ("c.jpg", 4, 5, 2, 7),
                ("b.jpg", 4, 5, 1, 7),
                ("a.jpg", 4, 5, 1, 7),
            ],
            [("a.jpg", 4), ("c.jpg", 4), ("d.jpg", 3), ("e.jpg", 4), ("f.jpg", 4)],
            1,
        ),
        # Of two looks at one path the last counts.
        (
            [("a.jpg", 4, 5, 1, 7), ("b.jpg", 4, 5, 1, 8), ("a.jpg", 6, 9, 1, 9)],
            [("a.jpg", 6), ("b.jpg", 4)],
            0,
        ),
    ],
)
def test_which_names_mean_one_file(
    monkeypatch: pytest.MonkeyPatch,
    rows: list[tuple[str, int, int, int, int]],
    expected: list[tuple[str, int]],
    repeated: int,
) -> None:
    """Rows are name, size, time in seconds, device and inode."""
    found = Candidates("/data/")
    times = {}
    for name, size, time, device, inode in rows:
        values = (0o100644, inode, device, 1, 0, 0, size, time, time, time)
        status = os.stat_result(values, {"st_mtime_ns": 10**9 * time})
        monkeypatch.setattr(os, "stat", Mock(return_value=status))
        found.add(name)
        times[name] = 1000 * time
    files = found.manifest()
    assert [*zip(files.names, files.sizes, strict=True)] == expected
    assert files.mtimes_ms.tolist() == [times[name] for name in files.names]
    assert files.passed_over.repeated == repeated


def test_suffixes(tmp_path: Path) -> None:
    names = ("a.jpg", "a.b.JPG", "sub.jpg/file", "sub.x/b.png", ".jpg", "sub/.png", "a.", "a.txt")
    touch(tmp_path, *names)
    found = Candidates(f"{tmp_path}/")
    for name in names:
        found.add_image(name)
    assert found.others == {"without a suffix": 4, ".txt": 1}
    assert found.manifest().names == ("a.b.JPG", "a.jpg", "sub.x/b.png")


def test_what_several_inputs_mean(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.jpg", "b/c/2.jpg")
    found, other, nothing = (Candidates(f"{tmp_path}/{name}/") for name in ("a", "b", "a"))
    found.add_image("1.jpg")
    other.add_image("c/2.jpg")
    nothing.add_image("gone.jpg")
    found.merge(other)
    found.merge(nothing)
    files = found.manifest()
    assert (files.root, files.names) == (str(tmp_path), ("a/1.jpg", "b/c/2.jpg"))
    message = f"{tmp_path}/a/gone.jpg: is a link to nothing; remove it"
    assert files.skipped == (Skipped("a/gone.jpg", "dangling-link", message),)


letters = st.sampled_from(["a", "b", "/", ".", "\n", "\x7f", "é", "\udcff", "\ue000", "😀"])


@given(st.lists(st.text(letters, min_size=1, max_size=12), min_size=1, max_size=20))
def test_names_are_sorted_as_strings_are(names: list[str]) -> None:
    found = Candidates("/data/")
    found.names = names
    for inode in range(len(names)):
        found.identities += struct.pack("=qqQQq", 1, 1, 1, inode, -1)
    assert found.manifest().names == tuple(sorted(set(names)))
