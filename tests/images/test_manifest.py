"""The frozen list of files: its digest, its JSON form, and what has changed since."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from densesiam_seg.errors import InputError
from densesiam_seg.images.manifest import Manifest, Skipped
from densesiam_seg.images.scan import scan


def touch(folder: Path, *names: str) -> None:
    """Make files that differ in size."""
    for index, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(index))


def small(*names: str, root: str = "/data") -> Manifest:
    count = len(names)
    return Manifest(root, names, tuple(range(10, 10 + count)), tuple(range(1000, 1000 + count)))


def test_digest_depends_on_names_sizes_times_only() -> None:
    files = small("a.jpg", "b.jpg")
    assert files.digest == small("a.jpg", "b.jpg", root="/moved").digest
    assert files.digest == files.without([Skipped("c.jpg", "empty", "is empty")]).digest
    others = [
        small("a.jpg"),
        small("a.jpg", "c.jpg"),
        Manifest("/data", files.names, (10, 12), files.mtimes_ms),
        Manifest("/data", files.names, files.sizes, (1000, 1002)),
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
    assert files != Manifest("/data", files.names, (10, 12), files.mtimes_ms)


def test_a_manifest_is_frozen() -> None:
    with pytest.raises(AttributeError):
        small("a.jpg").root = "/other"  # type: ignore[misc]


def test_without() -> None:
    files = small("a.jpg", "b.jpg", "c.jpg", "d.jpg")
    bad = [Skipped("c.jpg", "truncated", "ends too early"), Skipped("a.jpg", "empty", "is empty")]
    rest = files.without(bad)
    assert rest.names == ("b.jpg", "d.jpg")
    assert rest.sizes == (11, 13)
    assert rest.mtimes_ms == (1001, 1003)
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


odd = st.text(st.characters(exclude_categories=()), min_size=1, max_size=8)


def reference_digest(files: Manifest) -> str:
    rows = zip(files.names, files.sizes, files.mtimes_ms, strict=True)
    lines = (
        name.encode("utf-8", "surrogatepass") + f"\0{size} {time}\n".encode()
        for name, size, time in rows
    )
    return hashlib.sha256(b"".join(lines)).hexdigest()


@given(st.lists(odd, unique=True, max_size=6), st.sets(odd, max_size=3))
def test_odd_names(names: list[str], bad: set[str]) -> None:
    files = small(*sorted(names))
    assert files.names == tuple(sorted(names))
    assert files.digest == reference_digest(files)
    assert Manifest.from_dict(json.loads(json.dumps(files.to_dict()))) == files
    rest = files.without(Skipped(name, "empty", "is empty") for name in bad)
    assert rest.names == tuple(sorted({*names} - bad))
    assert rest.digest == reference_digest(rest)


def test_many_files() -> None:
    files = small(*(f"{number:05d}.jpg" for number in range(10_000)))
    assert files.digest == reference_digest(files)
    assert files.sizes == tuple(range(10, 10_010))
    assert Manifest.from_dict(json.loads(json.dumps(files.to_dict()))) == files
    odd_ones = [Skipped(name, "empty", "is empty") for name in files.names[1::2]]
    rest = files.without(odd_ones)
    assert rest.names == files.names[::2]
    assert rest.mtimes_ms == tuple(range(1000, 11_000, 2))


def test_columns_of_unequal_length_are_damaged() -> None:
    good = small("a.jpg", "b.jpg").to_dict()
    with pytest.raises(InputError, match="damaged"):
        Manifest.from_dict({**good, "mtimes_ms": [1000]})


def test_paths_lie_below_the_root() -> None:
    assert small("a/b.jpg", root="/").path(0) == "/a/b.jpg"
    assert small("a/b.jpg", "c.jpg", root="/data").path(-1) == "/data/c.jpg"
