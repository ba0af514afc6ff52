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
from densesiam_seg.manifest import Manifest, Skipped
from densesiam_seg.scan import scan


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
