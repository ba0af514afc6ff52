"""What tars hold: every member where it is, and reading that ends, whatever a tar claims."""

from __future__ import annotations

import subprocess
import tarfile
import time
import tracemalloc
from pathlib import Path
from shutil import which

import pytest
from tar_files import END, filled, header, number, write_tar

from densesiam_seg.packed.tars import (
    Entry,
    TarError,
    decompressor,
    entries,
    is_tar,
    places,
)


def reason(path: Path) -> str:
    """Why a tar is refused."""
    with pytest.raises(TarError) as caught:
        list(entries(str(path)))
    return caught.value.reason


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_places_by_hand(tmp_path: Path, form: int) -> None:
    path = write_tar(tmp_path / "x.tar", {"a.jpg": b"x" * 513, "b.jpg": b"", "c.jpg": b"y"}, form)
    expected = [
        Entry("a.jpg", "file", 0, 513),
        Entry("b.jpg", "file", 1536, 0),
        Entry("c.jpg", "file", 2048, 1),
    ]
    assert list(entries(str(path))) == expected


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names(tmp_path: Path, form: int) -> None:
    names = ["é" * 120, "line\n" * 40, "folder/" * 60 + "x", "\udcff.jpg" * 30, "short"]
    path = write_tar(tmp_path / "x.tar", dict.fromkeys(names, b"content"), form)
    found = places(str(path))
    assert list(found) == names
    data = path.read_bytes()
    for offset, size in found.values():
        assert offset % 512 == 0 and size == 7
        assert b"content" in data[offset : offset + 3072]


def test_kinds(tmp_path: Path) -> None:
    kinds = {"0": "file", "1": "link", "2": "link", "3": "device", "5": "folder", "6": "device"}
    blocks = [header(f"{kind}.jpg", 0, kind.encode(), "0.jpg") for kind in kinds]
    sparse = header("s.jpg", 5, b"S")
    (tmp_path / "x.tar").write_bytes(b"".join(blocks) + sparse + filled(b"hello") + END)
    found = [(each.name, each.kind) for each in entries(str(tmp_path / "x.tar"))]
    assert found == [*((f"{k}.jpg", kind) for k, kind in kinds.items()), ("s.jpg", "sparse")]
    assert list(places(str(tmp_path / "x.tar"))) == ["0.jpg"]


@pytest.mark.skipif(which("tar") is None, reason="there is no tar here")
def test_tars_of_tar_itself(tmp_path: Path) -> None:
    folder = (
        "deep" * 10
    )  # more than 100 letters with the file, which each form holds in its own way
    (tmp_path / "in" / folder).mkdir(parents=True)
    for place in range(30):
        (tmp_path / "in" / folder / f"{place:080d}.jpg").write_bytes(bytes([place]) * 700)
    for form in ("gnu", "ustar", "posix"):
        out = tmp_path / f"{form}.tar"
        subprocess.run(
            ["tar", "cf", out, f"--format={form}", "-C", tmp_path / "in", "."], check=True
        )
        found = places(str(out))
        assert sorted(found) == [f"{folder}/{place:080d}.jpg" for place in range(30)]
        data = out.read_bytes()
        for name, (offset, size) in found.items():
            content = bytes([int(name[-84:-4])]) * 700
            assert size == 700 and content in data[offset : offset + 4096]


def test_the_last_of_a_name(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", [("a.jpg", b"old"), ("./a.jpg", b"newer")])
    assert places(str(path)) == {"a.jpg": (1024, 5)}


def test_whole_tars_and_others(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", {"a.jpg": b"x" * 600, "b.jpg": b"y" * 600})
    whole = path.read_bytes()
    for end in (3072, 3584, len(whole)):  # the blocks of its end may be missing
        path.write_bytes(whole[:end])
        assert len(list(entries(str(path)))) == 2
    for end in (100, 511, 512, 1000, 1537, 2100, 2600, 2647):
        path.write_bytes(whole[:end])
        assert reason(path) == "truncated", end
    names = write_tar(path, {"a.jpg": b"x" * 600, f"{'b' * 1900}.jpg": b""}).read_bytes()
    for end in (2049, 2500, 3000, 4000, 4097, 4607):  # inside the headers of the long name
        path.write_bytes(names[:end])
        assert reason(path) == "truncated", end
    path.write_bytes(whole[:1536] + b"\x01" * 512 + whole[2048:])
    assert reason(path) == "corrupt"
    path.write_bytes(whole[:200] + b"\x01" + whole[201:])
    with pytest.raises(TarError, match="is damaged at byte 0;"):
        list(entries(str(path)))
    path.write_bytes(b"")
    assert reason(path) == "empty"
    path.write_bytes(b"\xff\xd8\xff\xe0" * 500)
    with pytest.raises(TarError, match="is no tar;"):
        list(entries(str(path)))
    path.write_bytes(b"\x1f\x8b\x08" + bytes(600))
    assert reason(path) == "compressed"
    path.write_bytes(whole + whole)
    assert reason(path) == "joined"
    path.write_bytes(whole + b"garbage" * 400)  # behind its end
    assert len(list(entries(str(path)))) == 2
    path.write_bytes(bytes(10_240))
    assert list(entries(str(path))) == []
    with pytest.raises(OSError, match="regular"):
        list(entries(str(tmp_path)))


CHAIN = b"".join(header("x", 6, b"x") + filled(b"6 a=b\n") for _ in range(5000))
HOSTILE = {
    "huge": header("a.jpg", number(2**80)),
    "larger than the tar": header("a.jpg", 10**6),
    "negative": header("a.jpg", 0) + header("b.jpg", number(-1024)),
    "negative attributes": header("x", number(-512), b"x") + header("a.jpg", 0),
    "huge attributes": header("x", number(2**62), b"x") + header("a.jpg", 0),
    "huge name": header("x", 8**11 - 1, b"L") + header("a.jpg", 0),
    "chain of attributes": CHAIN,
    "attributes without a file": header("x", 6, b"x") + filled(b"6 a=b\n"),
    "attributes without end": header("x", 600, b"x") + b"999999999999 a=" + bytes(1009),
    "size in attributes": header("x", 24, b"x")
    + filled(b"24 size=99999999999999\n\n")
    + header("a.jpg", 5),
    "negative size in attributes": header("x", 13, b"x")
    + filled(b"13 size=-900\n")
    + header("a.jpg", 5),
    "text for a size": header("a.jpg", b"zzzzzzzzzzz\0"),
    "sparse without end": header("a.jpg", 5, b"S")[:482] + b"\x01" + bytes(29),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_headers(tmp_path: Path, what: str) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(HOSTILE[what] + (b"" if "end" in what else END))
    began = time.monotonic()
    tracemalloc.start()
    found = reason(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found in ("truncated", "corrupt")
    assert time.monotonic() - began < 10
    assert peak < 20e6


def test_memory_does_not_grow(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    with path.open("wb") as file:
        for place in range(5000):
            file.write(header(f"{place}.jpg", 0))
        file.write(END)
    tracemalloc.start()
    count = sum(1 for _ in entries(str(path)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 5000
    assert peak < 300_000


@pytest.mark.parametrize(
    ("name", "program"),
    [
        ("x.tar.gz", "gunzip"),
        ("X.TAR.GZ", "gunzip"),
        ("x.tgz", "gunzip"),
        ("x.tar.bz2", "bunzip2"),
        ("x.tar.xz", "unxz"),
        ("x.tar.zst", "unzstd"),
        ("x.tzst", "unzstd"),
        ("x.gz", ""),
        ("x.txt", ""),
        ("x.tar", ""),
        ("x.nii.gz", ""),
    ],
)
def test_names_of_compressed_tars(name: str, program: str) -> None:
    assert decompressor(name) == program
    assert is_tar(name) == (name == "x.tar")
    assert is_tar("X.TAR") and not is_tar("tar")
