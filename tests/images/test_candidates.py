"""Files found are taken once, skipped with a reason, and named relative to one root."""

from __future__ import annotations

import json
import os
import socket
import struct
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_files import touch
from tar_files import END, header, write_tar

from densesiam_seg.errors import InputError
from densesiam_seg.images.candidates import Candidates
from densesiam_seg.images.manifest import Manifest, PassedOver, Skipped
from densesiam_seg.images.scan import scan
from densesiam_seg.packed.members import open_file, plain_name


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


class TestTars:
    """Members of tars are images as files are."""

    def test_places_and_times(self, tmp_path: Path) -> None:
        write_tar(tmp_path / "in" / "x.tar", {"b.jpg": b"22", "./a/c.PNG": b"333", "/d.tif": b""})
        os.utime(tmp_path / "in" / "x.tar", ns=(0, 5_000_000))
        touch(tmp_path / "in", "w.jpg", "x.tar-2/e.jpg", "y.jpg")
        files = scan([tmp_path / "in"])
        members = ("x.tar/a/c.PNG", "x.tar/b.jpg", "x.tar/d.tif")
        assert files.names == ("w.jpg", "x.tar-2/e.jpg", *members, "y.jpg")
        assert files.tars == ("x.tar",)
        assert files.offsets.tolist() == [-1, -1, 1024, 0, 2048, -1]
        assert files.sizes.tolist() == [0, 1, 3, 2, 0, 2]
        assert files.mtimes_ms.tolist()[2:5] == [5, 5, 5]
        tar = f"{tmp_path}/in/x.tar"
        assert [files.path(place) for place in (0, 2, 3)] == [
            f"{tmp_path}/in/w.jpg",
            f"{tar}/@1024+3/a/c.PNG",
            f"{tar}/@0+2/b.jpg",
        ]
        assert [files.shown(place) for place in (0, 2)] == [
            f"{tmp_path}/in/w.jpg",
            f"{tar}/a/c.PNG",
        ]
        assert all(map(files.is_there, range(6)))
        (tmp_path / "in" / "x.tar").unlink()
        assert list(map(files.is_there, range(6))) == [True, True, False, False, False, True]

    def test_what_is_no_image_is_counted_as_in_folders(self, tmp_path: Path) -> None:
        members = ["a.jpg", "b.json", "c.cls", "d.cls", ".e.jpg", "._f.jpg", ".g/h.jpg"]
        members += ["@eaDir/i.jpg", "@eaDir/j.jpg", "k/@eaDir/l.jpg", "Thumbs.db", "m.tar"]
        write_tar(tmp_path / "x.tar", dict.fromkeys(members, b""))
        files = scan([tmp_path / "x.tar"])
        assert (files.root, files.names) == (str(tmp_path), ("x.tar/a.jpg",))
        assert files.passed_over == PassedOver(
            hidden=2,
            system={"@eaDir": 2, "._*": 1, "Thumbs.db": 1},
            system_images=3,
            others={".cls": 2, ".json": 1, ".tar": 1},
        )
        assert files.skipped == ()

    def test_the_last_of_a_name_is_taken_and_that_is_told(self, tmp_path: Path) -> None:
        write_tar(tmp_path / "x.tar", [("a.jpg", b"old"), ("b.jpg", b""), ("./a.jpg", b"newer")])
        files = scan([tmp_path])
        assert files.names == ("x.tar/a.jpg", "x.tar/b.jpg")
        assert (files.sizes.tolist(), files.offsets.tolist()) == ([5, 0], [1536, 1024])
        assert "1 image of tars with a later one of the same name" in str(files.passed_over)

    def test_what_has_no_content_of_its_own_is_skipped_by_name(self, tmp_path: Path) -> None:
        blocks = [
            header("a.jpg", 0),
            header("b.jpg", 0, b"1", "a.jpg"),
            header("c.jpg", 0, b"2", "/etc/passwd"),
            header("d.jpg", 0, b"S"),
            header("e.jpg", 0, b"6"),
            header("../f.jpg", 0),
            header("g.jpg", 0, b"5"),
            header("../h.txt", 0),
            header("i.txt", 0, b"2", "a.jpg"),
        ]
        (tmp_path / "x.tar").write_bytes(b"".join(blocks) + END)
        files = scan([tmp_path])
        assert files.names == ("x.tar/a.jpg",)
        found = {each.path: each for each in files.skipped}
        assert sorted(found) == [f"x.tar/{name}.jpg" for name in ("../f", *"bcde")]
        assert {each.reason for each in files.skipped} == {"not-regular"}
        assert found["x.tar/b.jpg"].message == (
            f"{tmp_path}/x.tar/b.jpg: is a link in a tar, which has no content of its own; "
            "pack the tar with --dereference --hard-dereference"
        )
        assert files.passed_over.others == {".txt": 2}

    def test_damaged_and_compressed_tars_are_skipped_whole(self, tmp_path: Path) -> None:
        touch(tmp_path, "a.jpg", "x.gz")
        whole = write_tar(tmp_path / "b.tar", {"1.jpg": b"x" * 900, "2.jpg": b"y" * 900})
        data = whole.read_bytes()
        whole.write_bytes(data[:2000])
        (tmp_path / "c.tar").write_bytes(b"no tar at all" * 90)
        for name in ("d.tar.gz", "e.TGZ", "f.tar.zst"):
            (tmp_path / name).write_bytes(b"\x1f\x8b")
        (tmp_path / "g.tar").mkdir()
        touch(tmp_path / "g.tar", "3.jpg")
        (tmp_path / "h.tar").symlink_to("nowhere")
        files = scan([tmp_path])
        assert files.names == ("a.jpg", "g.tar/3.jpg")
        assert {each.path: each.reason for each in files.skipped} == {
            "b.tar": "truncated",
            "c.tar": "corrupt",
            "d.tar.gz": "compressed",
            "e.TGZ": "compressed",
            "f.tar.zst": "compressed",
            "h.tar": "dangling-link",
        }
        (told,) = (each.message for each in files.skipped if each.path == "d.tar.gz")
        assert told.endswith("is a compressed tar; make a plain tar of it: gunzip d.tar.gz")
        assert files.passed_over.others == {".gz": 1}
        assert (files.tars, list(files.offsets)) == ((), [])
        with pytest.raises(InputError, match="gunzip"):
            scan([tmp_path / "d.tar.gz"])

    def test_a_tar_with_several_names_is_taken_once(self, tmp_path: Path) -> None:
        write_tar(tmp_path / "m.tar", {"a.jpg": b"", "b.jpg": b""})
        (tmp_path / "z.tar").hardlink_to(tmp_path / "m.tar")
        (tmp_path / "c.tar").symlink_to("m.tar")
        files = scan([tmp_path])
        assert files.names == ("c.tar/a.jpg", "c.tar/b.jpg")
        assert files.passed_over.repeated == 4
        assert len(scan([tmp_path], merge=False)) == 6

    def test_inputs_of_every_kind(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        for name in ("p/1.tar", "p/2.TAR", "q/3.tar"):
            write_tar(tmp_path / name, {"a.jpg": b"x", "s/b.jpg": b"x"})
        write_tar(tmp_path / "q" / ".hidden.tar", {"a.jpg": b""})
        (tmp_path / "l.txt").write_text("q/3.tar\np/1.tar/s/b.jpg\n")
        inner = ["a.jpg", "s/b.jpg"]
        assert scan(["p/1.tar"]).names == ("1.tar/a.jpg", "1.tar/s/b.jpg")
        assert scan(["p/?.tar"]).names == ("1.tar/a.jpg", "1.tar/s/b.jpg")
        assert scan(["**/*.tar"]).names == tuple(
            f"{t}/{n}" for t in ("p/1.tar", "q/3.tar") for n in inner
        )
        assert scan(["p", "q"]).names == tuple(
            f"{tar}/{name}" for tar in ("p/1.tar", "p/2.TAR", "q/3.tar") for name in inner
        )
        assert scan(["q"]).passed_over.hidden == 1
        assert scan(["l.txt"]).names == ("p/1.tar/s/b.jpg", "q/3.tar/a.jpg", "q/3.tar/s/b.jpg")
        # A member by the name that messages have for it, and one tar alone, by whatever path.
        one = scan(["p/1.tar/s/b.jpg"])
        assert (one.root, one.names, one.tars) == (f"{tmp_path}/p", ("1.tar/s/b.jpg",), ("1.tar",))
        assert one.path(0) == f"{tmp_path}/p/1.tar/@1024+1/s/b.jpg"
        both = scan(["p/1.tar", "p/1.tar/a.jpg"])
        assert (both.root, len(both), both.passed_over.repeated) == (f"{tmp_path}/p", 2, 0)
        for wrong in ("p/1.tar/none.jpg", "l.txt/a.jpg"):
            with pytest.raises(InputError, match="no such file"):
                scan([wrong])
        write_tar(tmp_path / "empty.tar", {"a.txt": b""})
        with pytest.raises(InputError, match=r"empty\.tar: no image found"):
            scan(["empty.tar"])

    @given(st.lists(st.text(letters, min_size=1, max_size=12), max_size=8))
    def test_any_names(self, names: list[str]) -> None:
        """Names stay below their tar, and each leads to the content of the last that has it."""
        with TemporaryDirectory() as folder:
            tar = Path(folder, "x.tar")
            members = [(f"{name}.jpg", str(place).encode()) for place, name in enumerate(names)]
            write_tar(tar, [*members, ("a.jpg", b"last")])
            files = scan([tar])
            expected = {plain_name(name): content for name, content in members} | {"a.jpg": b"last"}
            hidden = [n for n in expected if not n or any(p.startswith(".") for p in n.split("/"))]
            for name in hidden:
                del expected[name]
            found = {}
            for place in range(len(files)):
                with open_file(files.path(place)) as file:
                    found[files.names[place].removeprefix("x.tar/")] = file.read()
            assert found == expected
            assert Manifest.from_dict(json.loads(json.dumps(files.to_dict()))) == files
