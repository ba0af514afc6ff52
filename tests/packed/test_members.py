"""Members of tars by their paths: read as files are, and nothing else is read in their place."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest
from tar_files import END, filled, header, number, write_tar

from densesiam_seg.errors import ImageError
from densesiam_seg.packed import members
from densesiam_seg.packed.members import (
    Member,
    as_shown,
    member_of,
    open_file,
    piece_of,
    plain_name,
)
from densesiam_seg.packed.tars import places

FORMS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
LONG = "folder/" * 30 + "é\udcff\n" + "x" * 90 + ".jpg"


def paths_in(tar: Path) -> dict[str, str]:
    """The path of each member."""
    return {name: Member(str(tar), name, *place).path for name, place in places(str(tar)).items()}


def test_a_path_is_read_back(tmp_path: Path) -> None:
    tar = str(tmp_path / "a b.TAR")
    member = Member(tar, "@1+2/x.tar/@3+4/7.jpg", 1536, 20_480)
    assert member.path == f"{tar}/@1536+20480/@1+2/x.tar/@3+4/7.jpg"
    assert member_of(member.path) == member
    assert as_shown(member.path) == f"{tar}/@1+2/x.tar/@3+4/7.jpg"
    for plain in ("/d/@1+2/a.jpg", "/d/x.tar/a.jpg", "/d/x.tar/@1+2", "/d/x.tar/@1-2/a", "/@"):
        assert member_of(plain) is None and as_shown(plain) == plain
    # A folder may have any name.
    folder = tmp_path / "y.tar" / "@1+2"
    folder.mkdir(parents=True)
    assert member_of(f"{folder}/a.jpg") is None
    inner = f"{folder}/in.tar/@5+6/a.jpg"
    assert member_of(inner) == Member(f"{folder}/in.tar", "a.jpg", 5, 6)


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("a/b.jpg", "a/b.jpg"),
        ("./a//b.jpg", "a/b.jpg"),
        ("/etc/b.jpg", "etc/b.jpg"),
        ("../b.jpg", ""),
        ("a/../../b.jpg", ""),
        ("a/..b.jpg", "a/..b.jpg"),
        (".", ""),
        ("a\0b.jpg", ""),
    ],
)
def test_names_stay_below_their_tar(name: str, plain: str) -> None:
    assert plain_name(name) == plain


@pytest.mark.parametrize("form", FORMS)
def test_a_member_reads_as_a_file(tmp_path: Path, form: int) -> None:
    names = ["./first.bin", "small.bin", "empty.bin", "last.bin"]
    names += [] if form == tarfile.USTAR_FORMAT else [LONG]
    contents = {name: os.urandom(1000 + 7 * len(name)) for name in names}
    contents["empty.bin"] = b""
    contents["last.bin"] = os.urandom((1 << 20) + 5005)  # is not read at once
    paths = paths_in(write_tar(tmp_path / "x.tar", contents, form))
    for name, content in contents.items():
        path = paths[plain_name(name)]
        with open_file(path) as file:
            assert file.read(10) == content[:10]
            assert file.tell() == min(10, len(content))
            assert file.seek(0, io.SEEK_END) == len(content)
            assert file.read() == b""
            assert file.seek(-min(100, len(content)), io.SEEK_CUR) == max(len(content) - 100, 0)
            assert file.read(1 << 40) == content[-100:]
            file.seek(0)
            assert file.read() == content
            with pytest.raises(OSError, match="fileno"):
                file.fileno()  # whoever read through it would read the tar
        piece = piece_of(path)
        assert piece is not None
        tar, start, size = piece
        assert Path(tar).read_bytes()[start : start + size] == content


def test_a_file_is_no_piece(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"content")
    assert piece_of(str(tmp_path / "a.jpg")) is None
    with open_file(str(tmp_path / "a.jpg")) as file:
        assert file.read() == b"content"
    with pytest.raises(FileNotFoundError):
        open_file(f"{tmp_path}/none.tar/@0+5/a.jpg")


def test_headers_that_need_a_second_read(tmp_path: Path) -> None:
    """Attributes of a file may stand in front of it, and be long."""
    tar = tmp_path / "x.tar"
    with tarfile.open(tar, "w", format=tarfile.PAX_FORMAT) as file:
        entry = tarfile.TarInfo("a.bin")
        entry.size, entry.pax_headers = 5, {"SCHILY.xattr.user.note": "n" * 50_000}
        file.addfile(entry, io.BytesIO(b"hello"))
    with open_file(paths_in(tar)["a.bin"]) as opened:
        assert opened.read() == b"hello"


def replaced(path: str) -> bool:
    """Whether a member is refused since something else is in its place."""
    try:
        with open_file(path) as file:
            file.read()
    except ImageError as error:
        assert error.reason == "replaced" and as_shown(path) in str(error)
        with pytest.raises(ImageError):
            piece_of(path)
        return True
    return False


def test_never_another_file(tmp_path: Path) -> None:
    tar = tmp_path / "x.tar"
    end = "y" * 150 + ".jpg"  # beyond what a header holds
    before = [("a.jpg", b"11111"), ("b.jpg", b"22222"), (f"1{end}", b"33333"), (f"2{end}", b"4444")]
    paths = paths_in(write_tar(tar, before))
    assert not any(map(replaced, paths.values()))
    others = {
        "names": [("c.jpg", b"11111"), ("d.jpg", b"22222"), (f"3{end}", b"33333")],
        "order": [("b.jpg", b"22222"), ("a.jpg", b"11111"), (f"2{end}", b"33333")],
        "sizes": [("a.jpg", b"1111"), ("b.jpg", b"222222"), (f"1{end}", b"3333")],
        "shifted": [("0.jpg", b"0"), *before],
        "empty": [],
    }
    for what, members_now in others.items():
        write_tar(tar, members_now)
        assert all(map(replaced, paths.values())), what
    write_tar(tar, before)
    whole = tar.read_bytes()
    assert not any(map(replaced, paths.values()))
    content = whole.index(b"22222")
    tar.write_bytes(whole[: content + 3])  # cut off inside it
    assert replaced(paths["b.jpg"]) and not replaced(paths["a.jpg"])
    tar.write_bytes(os.urandom(len(whole)))
    assert all(map(replaced, paths.values()))


@pytest.mark.parametrize(
    "block",
    [
        header("a.jpg", 5, b"2", "/etc/passwd"),
        header("a.jpg", 5, b"5"),
        header("a.jpg", 5, b"S"),
        header("a.jpg", number(-512)),
        header("a.jpg", 5)[:300] + b"!" * 212,
        header("a.jpg", 5, b"x") + filled(b"5 x=\n") + header("a.jpg", 5, b"x"),
    ],
    ids=["link", "folder", "sparse", "negative", "damaged", "unended"],
)
def test_what_is_no_plain_member(tmp_path: Path, block: bytes) -> None:
    (tmp_path / "x.tar").write_bytes(block + filled(b"hello") + END)
    assert replaced(f"{tmp_path}/x.tar/@0+5/a.jpg")


@pytest.mark.parametrize("place", ["1000000000000+5", "0+999999999999999", "3+5"])
def test_places_that_are_none(tmp_path: Path, place: str) -> None:
    write_tar(tmp_path / "x.tar", {"a.jpg": b"hello"})
    assert replaced(f"{tmp_path}/x.tar/@{place}/a.jpg")


def test_one_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A photograph is asked for at once, header and all."""
    path = paths_in(write_tar(tmp_path / "x.tar", {"0.jpg": b"-", "a.jpg": os.urandom(300_000)}))
    reads = []

    def read(file: io.RawIOBase, offset: int, size: int) -> bytes:
        reads.append((offset, size))
        return real(file, offset, size)

    real = members._read
    monkeypatch.setattr(members, "_read", read)
    with open_file(path["a.jpg"]) as file:
        assert len(file.read()) == 300_000
    assert reads == [(1024, 301_536)]
